"""Which loader serves a data set, and how to make it."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from rotnet_fast.checks import check_streaming
from rotnet_fast.data.crop import Decoder, RandomResizedCrop
from rotnet_fast.data.dali import DaliLoader, require_dali
from rotnet_fast.data.datasets import FILE_DATASETS, Dataset, check_request, load_dataset, make_dataset
from rotnet_fast.data.folder import Choice
from rotnet_fast.data.loader import Loader
from rotnet_fast.data.resident import ResidentLoader
from rotnet_fast.data.sampling import WHOLE, BatchShare
from rotnet_fast.data.split import AnySplit, EncodedSplit
from rotnet_fast.data.workers import processes_of_this_machine

LoaderName = Literal["auto", "resident", "dali"]

RESIDENT_SHARE = 0.5
"""Of the free memory of the device, what ``auto`` gives to decoded images at most."""


@dataclass(frozen=True)
class Streaming:
    """Whether and how the images of a folder are streamed, from the settings of a command.

    Attributes:
        loader: ``auto``, or the loader to use.
        crop: show crops of random size; None shows whole images.
        decoder: where DALI decodes, see `rotnet_fast.data.dali.DaliLoader`.
        device: where batches are needed.
        begun: the loader that a run to go on with began with; None where there is none.
        free: bytes that may be had on the device; None to find out.
    """

    device: torch.device
    loader: LoaderName = "auto"
    crop: RandomResizedCrop | None = None
    decoder: Decoder = "auto"
    begun: str | None = None
    free: int | None = None


def open_dataset(
    name: str,
    data_dir: Path | None,
    image_size: int,
    limit_train: int | None,
    limit_test: int | None,
    streaming: Streaming,
    *,
    progress: bool = True,
    bad_images: str = "fail",
    display_name: str | None = None,
    check_images: str = "structure",
) -> Dataset[AnySplit]:
    """A data set in memory, or as encoded files for DALI where it is too large or cropped.

    Args:
        name, data_dir, image_size, limit_train, limit_test, bad_images, display_name, check_images: see
            `load_dataset`.
        progress: likewise; also say which loader is taken, and why.
        streaming: says what is wanted.

    Raises:
        ArgumentError, DataError: see `load_dataset` and :func:`choose_loader`.
    """
    check_streaming(name, streaming.loader, streaming.crop is not None)
    if name not in FILE_DATASETS:
        return load_dataset(
            name,
            data_dir,
            image_size,
            limit_train,
            limit_test,
            progress,
            display_name=display_name,
            bad_images=bad_images,
            check_images=check_images,
        )
    choice = Choice(limit_train, limit_test, bad_images, check_images)
    check_request(name, image_size, choice)
    found = FILE_DATASETS[name](data_dir, choice, progress)
    chosen, reason = choose_loader(streaming, len(found.kept) * image_size**2 * 3)
    if progress and (streaming.loader != "resident" or streaming.crop is not None):
        print(f"loader: {chosen}; {reason}")
    if chosen == "resident":
        return make_dataset(name, found.decoded(image_size), progress, display_name)
    require_dali(streaming.device)
    dataset = make_dataset(name, found.encoded(image_size), progress, display_name)
    return replace(dataset, crop=streaming.crop, decoder=streaming.decoder)


def make_loader(
    dataset: Dataset[AnySplit],
    split: AnySplit,
    device: torch.device | str,
    batch_size: int,
    seed: int,
    *,
    is_test: bool = False,
    epoch_size: int | None = None,
    shuffle: bool = True,
    share: BatchShare = WHOLE,
) -> Loader:
    """The loader of a half, or of some images of one: DALI where they are encoded, else resident.

    Args:
        dataset: says how encoded images are read.
        split: the images.
        is_test: show the centre where training images are crops of random size.
        device, batch_size, seed, epoch_size, shuffle, share: see `ResidentLoader`.

    Raises:
        ArgumentError: DALI is needed and cannot be used.
        ValueError: see `ResidentLoader`.
    """
    if not isinstance(split, EncodedSplit):
        return ResidentLoader(split, device, batch_size, seed, epoch_size, shuffle, share)
    return DaliLoader(
        split,
        device,
        batch_size,
        seed,
        crop=dataset.crop,
        is_test=is_test,
        epoch_size=epoch_size,
        shuffle=shuffle,
        share=share,
        decoder=dataset.decoder,
    )


def choose_loader(streaming: Streaming, decoded_bytes: int) -> tuple[str, str]:
    """Which loader serves a folder of images.

    Args:
        streaming: what is wanted.
        decoded_bytes: what all images take in memory when they are decoded.

    Returns:
        ``resident`` or ``dali``, and why, as half a sentence.

    """
    if streaming.crop is not None:
        return "dali", "crops of random size are made from the files"
    if streaming.loader != "auto":
        return streaming.loader, "as asked for"
    if streaming.begun is not None:
        return streaming.begun, "as this run began"
    free = free_memory(streaming.device) if streaming.free is None else streaming.free
    fits = decoded_bytes <= RESIDENT_SHARE * free
    reason = (
        f"decoded, the images take {_gigabytes(decoded_bytes)} of {_gigabytes(free)} free on "
        f"{streaming.device.type}"
    )
    return ("resident" if fits else "dali"), reason


def free_memory(device: torch.device) -> int:
    """Bytes that this process can have on a device.

    On the CPU the least of what the system says is available and what a container's limit leaves; shared
    between the processes of this machine where torchrun started several.
    """
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    free = [_available()]
    limit, used = (_number(Path("/sys/fs/cgroup") / name) for name in ("memory.max", "memory.current"))
    if limit is not None and used is not None:
        free.append(max(0, limit - used))
    return min(free) // processes_of_this_machine()


def _available() -> int:
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2  # systems that do not say


def _number(path: Path) -> int | None:
    """A file's whole number; None where there is none (``max``: no limit)."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.2f} GB"

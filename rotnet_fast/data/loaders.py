"""Choose and create the loader of a data set."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from rotnet_fast.checks import check_streaming
from rotnet_fast.data.crop import Decoder, RandomResizedCrop
from rotnet_fast.data.dali import DaliLoader, require_dali
from rotnet_fast.data.datasets import FILE_DATASETS, Dataset, check_request, load_in_memory, make_dataset
from rotnet_fast.data.folder import Choice
from rotnet_fast.data.loader import Loader
from rotnet_fast.data.resident import ResidentLoader
from rotnet_fast.data.sampling import WHOLE, BatchShare
from rotnet_fast.data.split import AnySplit, EncodedSplit
from rotnet_fast.data.workers import processes_of_this_machine
from rotnet_fast.system import available_memory

LoaderName = Literal["auto", "resident", "dali"]

RESIDENT_SHARE = 0.5
"""Largest fraction of the device's free memory that ``auto`` gives to decoded images."""


@dataclass(frozen=True)
class Streaming:
    """Describe whether and how to stream the images of a folder, from the settings of a command.

    Attributes:
        device: device of the batches.
        loader: ``auto``, or the loader to use.
        crop: random crops to show; None shows whole images.
        decoder: where DALI decodes, see `rotnet_fast.data.dali.DaliLoader`.
        begun: the loader that the resumed run started with; None for a new run.
        free: bytes that may be used on the device; None to measure them.
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
    validation: int | None = None,
) -> Dataset[AnySplit]:
    """Open a data set in memory, or as encoded files for DALI if it is too large or randomly cropped.

    Args:
        name, data_dir, image_size, limit_train, limit_test, bad_images, display_name, check_images,
            validation: see `load_dataset`.
        streaming: the settings of the loader.
        progress: see `load_dataset`; it also prints which loader is used, and why.

    Raises:
        ArgumentError: an argument or a setting of the loader is invalid, or DALI is needed but unusable.
        DataError: the data cannot be read, see `load_dataset`.
    """
    check_streaming(name, streaming.loader, streaming.crop is not None)
    choice = Choice(limit_train, limit_test, validation, bad_images, check_images)
    check_request(name, image_size, choice)
    if name not in FILE_DATASETS:
        return load_in_memory(name, data_dir, image_size, choice, progress, display_name)
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
    """Create the loader of a split or a part of one: DALI for encoded images, otherwise resident.

    Args:
        dataset: determines how encoded images are read.
        split: the images.
        is_test: show centre crops if training images are cropped at random.
        device, batch_size, seed, epoch_size, shuffle, share: see `ResidentLoader`.

    Raises:
        ArgumentError: DALI is needed and cannot be used.
        ValueError: batch_size is below 1, the split is empty, or epoch_size is below N.
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
    """Choose the loader of a folder of images.

    Args:
        streaming: the settings of the loader.
        decoded_bytes: memory that all images take when decoded.

    Returns:
        ``resident`` or ``dali``, and the reason as a phrase.
    """
    if streaming.crop is not None:
        return "dali", "random resized crops are made from the files"
    if streaming.loader != "auto":
        return streaming.loader, "as requested"
    if streaming.begun is not None:
        return streaming.begun, "as this run started"
    free = free_memory(streaming.device) if streaming.free is None else streaming.free
    if free is None:
        return "resident", "the system does not say how much memory is free"
    fits = decoded_bytes <= RESIDENT_SHARE * free
    reason = (
        f"the decoded images take {_gigabytes(decoded_bytes)} of {_gigabytes(free)} free on "
        f"{streaming.device.type}"
    )
    return ("resident" if fits else "dali"), reason


def free_memory(device: torch.device) -> int | None:
    """Return the number of bytes that this process may use on a device, None where the system does not say.

    On the CPU, this is the smaller of the system's available memory and the rest of a container's limit,
    divided by the number of processes that torchrun started on this machine.
    """
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    free = [available_memory()]
    limit, used = (_number(Path("/sys/fs/cgroup") / name) for name in ("memory.max", "memory.current"))
    if limit is not None and used is not None:
        free.append(max(0, limit - used))
    known = [found for found in free if found is not None]
    return min(known) // processes_of_this_machine() if known else None


def _number(path: Path) -> int | None:
    """Read an integer from a file, or return None if it has none (``max`` means no limit)."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.2f} GB"

"""Checks of settings that the commands share and that need neither torch nor the images.

They run first, so that an invalid option is reported at once instead of after a download or the scan of a
large folder.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from rotnet_fast.errors import ArgumentError, DataError
from rotnet_fast.files import is_archive, unpacking
from rotnet_fast.plain import counted

SIZES = {"cifar10": (50_000, 10_000), "digits": (1_437, 360)}
"""Number of training and test images of the data sets with a fixed size."""

CIFAR10_SIDE = 32
LARGEST_SIDE = {"cifar10": CIFAR10_SIDE, "digits": 256, "folder": 4096}
"""Largest image size in pixels; digits are originally 8x8, and all of them are kept in memory."""


def check_images(
    dataset: str,
    data_dir: Path | None,
    limit_train: int | None,
    limit_test: int | None,
    argument: str = "data-dir",
) -> None:
    """Check the folder of a data set and its limits.

    Args:
        dataset, data_dir, limit_train, limit_test: the settings.
        argument: name of the folder's argument in error messages.

    Raises:
        ArgumentError: the folder is missing from the settings or is of no use to the data set, or a limit
            exceeds the number of images.
        DataError: the folder does not exist.
    """
    if dataset == "folder":
        remedy = "the folder of the images"
        if data_dir is None:
            raise ArgumentError(f"dataset folder needs --{argument}, {remedy}")
        check_folder(data_dir, remedy, argument)
    if dataset == "digits" and data_dir is not None:
        raise ArgumentError(
            f"{argument} is {data_dir}, but the images of dataset digits come with scikit-learn; omit it, or "
            f"choose a dataset that is read from a folder"
        )
    limits = (("limit-train", limit_train), ("limit-test", limit_test))
    for (name, limit), count in zip(limits, SIZES.get(dataset, ()), strict=False):
        if limit is not None and limit > count:
            raise ArgumentError(
                f"{name} is {limit}; it must lie in [1, {count}], the number of images in this split of "
                f"{dataset}; omit it to use all of them"
            )


def check_folder(data_dir: Path, remedy: str, argument: str = "data-dir") -> None:
    """Check that the folder of the images exists.

    Args:
        data_dir: the folder.
        remedy: what to pass instead, to follow "pass".
        argument: name of the folder's argument in error messages.

    Raises:
        DataError: it does not exist, or is a file.
    """
    # With several machines, one may lack the folder; then the reader reports it to all processes.
    if "RANK" in os.environ or data_dir.is_dir():
        return
    state = "is not a folder" if data_dir.exists() else "does not exist"
    if data_dir.is_file() and is_archive(data_dir.name):
        how = unpacking(os.fspath(data_dir.parent), [data_dir.name])
        raise DataError(f"{argument} is {data_dir}, an archive; {how}, and pass the folder")
    if data_dir.is_file() and data_dir.suffix.lower() == ".tar":
        remedy = f"{data_dir.parent}, the folder of the shards, or unpack it"
    raise DataError(f"{argument} is {data_dir}, which {state}; pass {remedy}")


def check_image_size(dataset: str, image_size: int) -> None:
    """Check the side of a data set's images, in pixels.

    Raises:
        ArgumentError: the data set does not support the size.
    """
    if dataset == "cifar10" and image_size != CIFAR10_SIDE:
        raise ArgumentError(
            f"image-size is {image_size}; cifar10 only has images of {CIFAR10_SIDE} pixels: pass "
            f"--image-size {CIFAR10_SIDE}, or use --dataset folder for other sizes"
        )
    largest = LARGEST_SIDE[dataset]
    if not 1 <= image_size <= largest:
        raise ArgumentError(f"image-size is {image_size}; it must lie in [1, {largest}] for {dataset}")


def check_streaming(dataset: str, loader: str | None, is_cropped: bool) -> None:
    """Check that the data set supports the loader and the crop.

    Raises:
        ArgumentError: streaming or resized crops of a data set that is always in memory, or resized crops
            with the resident loader.
    """
    for argument, value, is_made_of_files in (
        ("loader", loader, loader == "dali"),
        ("crop", "resized", is_cropped),
    ):
        if is_made_of_files and dataset != "folder":
            raise ArgumentError(
                f"{argument} is {value}, which needs image files, but data set {dataset} is always in "
                f"memory: omit --{argument}"
            )
    if is_cropped and loader == "resident":
        raise ArgumentError(
            "loader is resident, which keeps whole images of one size, but random resized crops are made "
            "from the files: use --loader dali, or --crop pad"
        )


def smallest_batch(images: int, batch_size: int) -> int:
    """Return the size of an epoch's smallest batch, which is the last one."""
    return images % batch_size or batch_size


def batches_of_one(
    images: int, batch_size: int, what: str = "training", remedy: str | None = None
) -> ArgumentError:
    """Return the error about a batch of one image, on which BatchNorm cannot train.

    Args:
        images: images per epoch.
        batch_size: batch size that leaves a last batch of one image.
        what: kind of images, for the message.
        remedy: what to do; None suggests another batch size.
    """
    found = f"batch-size is {batch_size}, and {counted(images, f'{what} image')} leave a last batch of one"
    if batch_size == 1:
        found = "batch-size is 1, so every batch has a single image"
    if remedy is None:
        other = next((size for size in range(max(2, batch_size), images + 1) if images % size != 1), None)
        remedy = "use more images" if other is None else f"use another, such as --batch-size {other}"
    return ArgumentError(f"{found}, on which BatchNorm cannot train; {remedy}")


def check_seed(seed: int) -> None:
    """Check the seed of a command.

    Raises:
        ArgumentError: not every generator accepts the seed.
    """
    if not 0 <= seed < 2**63:
        raise ArgumentError(f"seed is {seed}; it must lie in [0, 2**63): use for example {seed % 2**63}")


def check_device(name: str) -> None:
    """Check the form of a device's name; only torch knows whether the device exists.

    Raises:
        ArgumentError: the name is not ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
    """
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", name):
        raise ArgumentError(f"device is {name}; it must be auto, cpu, cuda, cuda:N or mps")


def check_precision(precision: str, device: str) -> None:
    """Check that a number format works on a device.

    Args:
        precision: ``auto``, ``fp32``, ``bf16`` or ``fp16``.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``. What ``auto`` means is known once torch is
            loaded.

    Raises:
        ArgumentError: the precision is fp16 on the CPU, or another one than fp32 on mps.
    """
    if device == "mps" and precision not in ("auto", "fp32"):
        raise ArgumentError(f"precision is {precision}, and device is mps, where only fp32 is supported")
    if precision == "fp16" and device == "cpu":
        raise ArgumentError(
            "precision is fp16, which needs a CUDA device: on a CPU, BatchNorm's backward pass overflows in "
            "fp16; use --precision bf16 or fp32"
        )


def check_needs_gpu(argument: str, value: str, needs_gpu: bool, device: str) -> None:
    """Check a setting that only works on GPUs.

    Args:
        argument, value: name and value of the setting, for the message.
        needs_gpu: whether this value needs a GPU.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``; only torch knows what ``auto`` means.

    Raises:
        ArgumentError: the setting needs a GPU, but the device is the CPU.
    """
    if needs_gpu and device == "cpu":
        raise ArgumentError(
            f"{argument} is {value}, which needs a GPU, but the device is cpu: omit --{argument}"
        )

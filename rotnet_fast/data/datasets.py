"""The data sets that the commands know, and what a data set is once it is loaded."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Generic, Literal, TypeVar, overload

import numpy as np
import torch

from rotnet_fast.data import cifar10, digits
from rotnet_fast.data.crop import Decoder, RandomResizedCrop
from rotnet_fast.data.folder import Choice, OpenFolder
from rotnet_fast.data.scan import CHECKS
from rotnet_fast.data.split import AnySplit, EncodedSplit, Half, RawDataset, limit_rows
from rotnet_fast.data.split import Split as Split
from rotnet_fast.errors import ArgumentError, DataError, printable
from rotnet_fast.paper import CIFAR10_MEAN, CIFAR10_STD

SplitT = TypeVar("SplitT", bound=AnySplit)

DATASETS: dict[str, Callable[[Path | None, int, bool, str], RawDataset]] = {
    "cifar10": cifar10.load,
    "digits": digits.load,
}
"""Name on the command line -> reader, called with (data_dir, image_size, progress, bad_images)."""

FILE_DATASETS: dict[str, Callable[[Path | None, Choice, bool], OpenFolder]] = {"folder": OpenFolder}
"""The same for data sets of files, which can be left encoded; called with (data_dir, choice, progress)."""


@dataclass(frozen=True)
class Dataset(Generic[Half]):
    """A data set, ready for a loader.

    Attributes:
        name: its key in ``DATASETS`` or ``FILE_DATASETS``.
        display_name: its name in tables and reports.
        classes: class names; a label is a position in it. Empty: the images have no labels.
        train, test: the two halves, after the limits: in memory, or encoded files.
        fingerprint: of both halves, see :func:`fingerprint`. A checkpoint carries it, so that a run is not
            resumed on other data.
        mean, std: per channel, for pixel values in [0, 1].
        skipped: names, relative to the data folder, of damaged images that were left out.
        crop: encoded images are shown as crops of random size; None: whole.
        decoder: where they are decoded, see `rotnet_fast.data.dali.DaliLoader`.
        contents: of encoded halves, see :func:`contents_digest`; carried like the fingerprint.
        files: both halves encoded, where they come from files, whichever way they are loaded.
    """

    name: str
    display_name: str
    classes: tuple[str, ...]
    train: Half
    test: Half
    fingerprint: str
    mean: tuple[float, ...] = CIFAR10_MEAN
    std: tuple[float, ...] = CIFAR10_STD
    skipped: tuple[str, ...] = ()
    crop: RandomResizedCrop | None = None
    decoder: Decoder = "auto"
    contents: str | None = None
    files: tuple[EncodedSplit, EncodedSplit] | None = None

    def identity(self) -> dict[str, str]:
        """What a checkpoint says of the data, by name."""
        known = {"data_fingerprint": self.fingerprint}
        return known if self.contents is None else {**known, "data_contents": self.contents}


@overload
def load_dataset(
    name: str,
    data_dir: Path | None = None,
    image_size: int = 32,
    limit_train: int | None = None,
    limit_test: int | None = None,
    progress: bool = True,
    display_name: str | None = None,
    bad_images: str = "fail",
    encoded: Literal[False] = False,
    check_images: str = "structure",
) -> Dataset: ...


@overload
def load_dataset(
    name: str,
    data_dir: Path | None = None,
    image_size: int = 32,
    limit_train: int | None = None,
    limit_test: int | None = None,
    progress: bool = True,
    display_name: str | None = None,
    bad_images: str = "fail",
    *,
    encoded: bool,
    check_images: str = "structure",
) -> Dataset[AnySplit]: ...


def load_dataset(
    name: str,
    data_dir: Path | None = None,
    image_size: int = 32,
    limit_train: int | None = None,
    limit_test: int | None = None,
    progress: bool = True,
    display_name: str | None = None,
    bad_images: str = "fail",
    encoded: bool = False,
    check_images: str = "structure",
) -> Dataset[AnySplit]:
    """Read a data set into memory, or find its files.

    Args:
        name: a key of ``DATASETS`` or ``FILE_DATASETS``. The named data set is read or an error raised, never
            another one.
        data_dir: folder of the files: where ``cifar10`` is looked for and downloaded to (None means
            ./data), and what ``folder`` reads (layouts: :mod:`rotnet_fast.data.layout`). ``digits`` needs
            none.
        image_size: H = W of the images in pixels; ``cifar10`` has only 32.
        limit_train, limit_test: keep only so many images of a half, balanced over the classes: the
            first image of each class in file order, then the second of each class, and so on, until
            the limit is reached. What is kept stays in file order. None keeps all.
        progress: show progress bars of downloads and decoding, and say what is used and what is not.
        display_name: replaces the data set's own name in tables and reports.
        bad_images: what to do about damaged images: ``fail``, or ``skip`` a few (see
            :func:`rotnet_fast.data.scan.check_images`).
        encoded: leave the images encoded, as `EncodedSplit`; ``folder`` alone can.
        check_images: how closely files are looked at: ``structure``, or ``decode`` to decode each one before
            any is used (see :class:`rotnet_fast.data.scan.Scanner`).

    Raises:
        ArgumentError: an unknown name, a size or a limit that the data set does not have.
        DataError: files are missing, incomplete or damaged, or cannot be downloaded.
    """
    choice = Choice(limit_train, limit_test, bad_images, check_images)
    check_request(name, image_size, choice)
    if name in FILE_DATASETS:
        opened = FILE_DATASETS[name](data_dir, choice, progress)
        raw: RawDataset[AnySplit] = opened.encoded(image_size) if encoded else opened.decoded(image_size)
        return make_dataset(name, raw, progress, display_name)
    if encoded:
        raise ArgumentError(
            f"dataset {name} cannot be left encoded; only {', '.join(FILE_DATASETS)} can, as its images "
            f"are files"
        )
    in_memory = DATASETS[name](data_dir, image_size, progress, bad_images)
    limited = replace(
        in_memory,
        train=limit_split(in_memory.train, limit_train, "limit_train"),
        test=limit_split(in_memory.test, limit_test, "limit_test"),
    )
    return make_dataset(name, limited, progress, display_name)


def check_request(name: str, image_size: int, choice: Choice) -> None:
    """Check what is asked of :func:`load_dataset`.

    Raises:
        ArgumentError: a value that cannot be used.
    """
    if name not in (*DATASETS, *FILE_DATASETS):
        raise ArgumentError(f"dataset is {name!r}; known are {', '.join((*DATASETS, *FILE_DATASETS))}")
    if image_size < 1:
        raise ArgumentError(f"image_size is {image_size}; it must be at least 1 pixel")
    if choice.bad_images not in ("fail", "skip"):
        raise ArgumentError(f"bad_images is {choice.bad_images!r}; it must be fail or skip")
    if choice.check not in CHECKS:
        raise ArgumentError(f"check_images is {choice.check!r}; it must be {' or '.join(CHECKS)}")


def make_dataset(
    name: str, raw: RawDataset[AnySplit], progress: bool, display_name: str | None = None
) -> Dataset[AnySplit]:
    """A data set of what its reader found.

    Args:
        progress: say in one line what is used and what is not.
        display_name: replaces that of the reader.
    """
    if progress:
        print(printable(summary(raw)))
    return Dataset(
        name=name,
        display_name=raw.display_name if display_name is None else display_name,
        classes=raw.classes,
        train=raw.train,
        test=raw.test,
        fingerprint=fingerprint(raw.train, raw.test),
        contents=contents_digest(raw.train, raw.test),
        skipped=raw.skipped,
        files=raw.files,
    )


def summary(raw: RawDataset[AnySplit]) -> str:
    """One line on how many images of how many classes each half has, and on what was passed over."""
    halves = []
    for half, split in (("training", raw.train), ("test", raw.test)):
        count = len(split.labels.unique())
        classes = f"of {count:,} class{'es' * (count > 1)}" if raw.classes else "without labels"
        halves.append(f"{len(split):,} {half} image{'s' * (len(split) > 1)} {classes}")
    said = f"data: {raw.display_name}: {', '.join(halves)}"
    if raw.held_out:
        said += "; every 20th image is held out for the test, as there is no second half"
    if raw.skipped:
        said += f"; left out as damaged: {len(raw.skipped):,}"
    return f"{said}; passed over: {raw.passed_over}" if raw.passed_over else said


def check_has_classes(dataset: Dataset[AnySplit]) -> None:
    """For whatever needs labels.

    Raises:
        DataError: the data set has none, or all of its training images are of one class.
    """
    if dataset.classes and len(dataset.train.labels.unique()) < 2:
        only = dataset.classes[int(dataset.train.labels[0])]
        raise DataError(
            f"all training images of {dataset.display_name} are of one class, {only}; give a data set of "
            f"several classes (--data-dir), or a higher --limit-train"
        )
    if not dataset.classes:
        raise DataError(
            f"{dataset.display_name} has no classes to learn and to test; give a data set with class folders "
            f"or labelled shards (--data-dir)"
        )


def limit_split(split: SplitT, limit: int | None, argument: str) -> SplitT:
    """The first ``limit`` images, class by class in turn (see :func:`load_dataset`), in file order.

    Args:
        argument: name of the limit, for the error.

    Raises:
        ArgumentError: limit below 1 or above the number of images.
    """
    if limit is None:
        return split
    return take(split, torch.from_numpy(limit_rows(split.labels.numpy(), limit, argument)))


def take(split: SplitT, rows: torch.Tensor) -> SplitT:
    """These images alone, in this order.

    Args:
        rows: int64, positions in the split.
    """
    if isinstance(split, EncodedSplit):
        kept = rows.numpy()
        return replace(
            split,
            source=split.source.take(kept),
            labels=split.labels[rows],
            sizes=split.sizes[kept],
            convert=split.convert[kept],
            contents=None if split.contents is None else split.contents[kept],
        )
    return replace(split, images=split.images[rows], labels=split.labels[rows])


def fingerprint(train: AnySplit, test: AnySplit) -> str:
    """What the two halves hold, as a string that differs where they differ.

    In memory: SHA-256 (hexadecimal) of the shapes, pixels and labels. Encoded: ``files:`` and the SHA-256 of
    the images' names (relative to the data folder), lengths in bytes and labels, as reading all files
    would take as long as an epoch.
    """
    digest = hashlib.sha256()
    prefix = ""
    for split in (train, test):
        if isinstance(split, EncodedSplit):
            prefix = "files:"
            digest.update(f"{len(split)}\n".encode())
            for index in range(len(split)):
                digest.update(os.fsencode(split.source.relative_name(index)) + b"\0")
            digest.update(split.source.byte_sizes.astype("<i8", copy=False).data)
        else:
            digest.update(repr(tuple(split.images.shape)).encode())
            digest.update(split.images.numpy().data)
        digest.update(split.labels.numpy().astype("<i8", copy=False).data)
    return prefix + digest.hexdigest()


def contents_digest(train: AnySplit, test: AnySplit) -> str | None:
    """SHA-256 (hexadecimal) over what encoded images hold, as it was when all of them were looked at.

    Apart from the fingerprint, by which studies and older checkpoints know their data. None where it is not
    known, and in memory, where the fingerprint is over the pixels.
    """
    digest = hashlib.sha256()
    for split in (train, test):
        if not isinstance(split, EncodedSplit) or split.contents is None:
            return None
        digest.update(np.ascontiguousarray(split.contents, dtype="<i4").data)
    return digest.hexdigest()

"""The data sets that the commands offer, and the loaded form that they share."""

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
from rotnet_fast.data.split import AnySplit, EncodedSplit, Half, RawDataset, limit_rows, validation_rows
from rotnet_fast.data.split import Split as Split
from rotnet_fast.errors import ArgumentError, DataError, printable
from rotnet_fast.paper import CIFAR10_MEAN, CIFAR10_STD
from rotnet_fast.plain import counted

SplitT = TypeVar("SplitT", bound=AnySplit)

DATASETS: dict[str, Callable[[Path | None, int, bool, str], RawDataset]] = {
    "cifar10": cifar10.load,
    "digits": digits.load,
}
"""Map a name on the command line to its reader, called with (data_dir, image_size, progress, bad_images)."""

FILE_DATASETS: dict[str, Callable[[Path | None, Choice, bool], OpenFolder]] = {"folder": OpenFolder}
"""The same for data sets of image files, which can stay encoded; called with (data_dir, choice, progress)."""


@dataclass(frozen=True)
class Dataset(Generic[Half]):
    """Hold a data set that is ready for a loader.

    Attributes:
        name: its key in ``DATASETS`` or ``FILE_DATASETS``.
        display_name: its name in tables and reports.
        classes: class names, indexed by label; empty if the images have no labels.
        train, test: the two splits after the limits, either in memory or as encoded files.
        fingerprint: identifies both splits, see `fingerprint`. Checkpoints store it, so that a run
            cannot be resumed on different data.
        mean, std: per channel, for pixel values in [0, 1].
        skipped: names, relative to the data folder, of damaged images that were skipped.
        crop: how to crop encoded images at random; None shows whole images.
        decoder: where encoded images are decoded, see `rotnet_fast.data.dali.DaliLoader`.
        contents: checksum of encoded splits, see `contents_digest`; stored like the fingerprint.
        files: both splits in encoded form if they come from files, however they are loaded.
        tested_on: what the second split is made of: ``validation`` if it is held out of the training images
            on request, else ``test``.
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
    tested_on: str = "test"

    def identity(self) -> dict[str, str]:
        """Return what a checkpoint records about the data, by name."""
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
    validation: int | None = None,
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
    validation: int | None = None,
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
    validation: int | None = None,
) -> Dataset[AnySplit]:
    """Read a data set into memory, or locate its files.

    Args:
        name: a key of ``DATASETS`` or ``FILE_DATASETS``. The function reads this data set or raises; it never
            falls back to another one.
        data_dir: folder with the files: the place where ``cifar10`` is searched for and downloaded to (None
            means ./data), or the folder that ``folder`` reads (for layouts see
            `rotnet_fast.data.layout`). ``digits`` ignores it.
        image_size: H = W of the images in pixels; ``cifar10`` only supports 32.
        limit_train, limit_test: maximum number of images to keep from each split, balanced over the classes:
            the first image of each class in file order, then the second of each class, and so on. The kept
            images stay in file order. None keeps all of them.
        progress: show progress bars for downloads and decoding, and print what is used and what is ignored.
        display_name: replaces the data set's own name in tables and reports.
        bad_images: how to treat damaged images: ``fail``, or ``skip`` a few (see
            `rotnet_fast.data.scan.check_images`).
        validation: hold out this many training images, the last of each class in proportion to its size, and
            use them in place of the test images; limits apply to what is left.
        encoded: leave the images encoded, as `EncodedSplit`; only supported by ``folder``.
        check_images: how thoroughly to check files: ``structure``, or ``decode`` to decode every file before
            using any (see `rotnet_fast.data.scan.Scanner`).

    Raises:
        ArgumentError: the name is unknown, or the data set does not support the size or the limit.
        DataError: files are missing, incomplete or damaged, or cannot be downloaded.
    """
    choice = Choice(limit_train, limit_test, validation, bad_images, check_images)
    check_request(name, image_size, choice)
    if name in FILE_DATASETS:
        opened = FILE_DATASETS[name](data_dir, choice, progress)
        raw: RawDataset[AnySplit] = opened.encoded(image_size) if encoded else opened.decoded(image_size)
        return make_dataset(name, raw, progress, display_name)
    if encoded:
        raise ArgumentError(
            f"encoded is True, but dataset {name} does not consist of image files; only "
            f"{', '.join(FILE_DATASETS)} can stay encoded"
        )
    return load_in_memory(name, data_dir, image_size, choice, progress, display_name)


def load_in_memory(
    name: str,
    data_dir: Path | None,
    image_size: int,
    choice: Choice,
    progress: bool,
    display_name: str | None,
) -> Dataset[AnySplit]:
    """Read a data set of ``DATASETS``, which has no image files, see :func:`load_dataset`."""
    raw = DATASETS[name](data_dir, image_size, progress, choice.bad_images)
    chosen = choose_in_memory(raw, choice.limit_train, choice.limit_test, choice.validation)
    return make_dataset(name, chosen, progress, display_name)


def choose_in_memory(
    raw: RawDataset[Split], limit_train: int | None, limit_test: int | None, validation: int | None
) -> RawDataset[Split]:
    """Hold out and limit the images of a data set in memory, see :func:`load_dataset`."""
    if validation is not None:
        raw = with_validation(raw, validation)
    return replace(
        raw,
        train=limit_split(raw.train, limit_train, "limit_train"),
        test=limit_split(raw.test, limit_test, "limit_test"),
    )


def with_validation(raw: RawDataset[Split], count: int) -> RawDataset[Split]:
    """Hold out training images, which take the place of the test images, see `validation_rows`."""
    is_held_out = torch.zeros(len(raw.train), dtype=torch.bool)
    is_held_out[torch.from_numpy(validation_rows(raw.train.labels.numpy(), count))] = True
    train, held_out = (take(raw.train, rows.nonzero()[:, 0]) for rows in (~is_held_out, is_held_out))
    return replace(raw, train=train, test=held_out, is_validation=True)


def check_request(name: str, image_size: int, choice: Choice) -> None:
    """Check the arguments of :func:`load_dataset`.

    Raises:
        ArgumentError: an argument has an invalid value.
    """
    if name not in (*DATASETS, *FILE_DATASETS):
        raise ArgumentError(f"unknown dataset {name!r}; choose from {', '.join((*DATASETS, *FILE_DATASETS))}")
    if image_size < 1:
        raise ArgumentError(f"image_size is {image_size}; it must be at least 1 pixel")
    if choice.bad_images not in ("fail", "skip"):
        raise ArgumentError(f"bad_images is {choice.bad_images!r}; it must be fail or skip")
    if choice.check not in CHECKS:
        raise ArgumentError(f"check_images is {choice.check!r}; it must be {' or '.join(CHECKS)}")


def make_dataset(
    name: str, raw: RawDataset[AnySplit], progress: bool, display_name: str | None = None
) -> Dataset[AnySplit]:
    """Build a `Dataset` from what its reader returned.

    Args:
        progress: print one line on what is used and what is ignored.
        display_name: replaces the reader's display name.
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
        tested_on=raw.tested_on,
    )


def summary(raw: RawDataset[AnySplit]) -> str:
    """Describe in one line the images and classes of each split, and what was ignored."""
    splits = []
    for kind, split in (("training", raw.train), (raw.tested_on, raw.test)):
        count = len(split.labels.unique())
        classes = f"of {counted(count, 'class')}" if raw.classes else "without labels"
        splits.append(f"{counted(len(split), f'{kind} image')} {classes}")
    line = f"data: {raw.display_name}: {', '.join(splits)}"
    if raw.held_out and not raw.is_validation:
        line += "; every 20th image is held out as the test split, because the data has no second split"
    if raw.skipped:
        line += f"; skipped as damaged: {len(raw.skipped):,}"
    return f"{line}; ignored: {raw.ignored}" if raw.ignored else line


def check_has_classes(dataset: Dataset[AnySplit]) -> None:
    """Check that the data set has labels to train a classifier on.

    Raises:
        DataError: it has no labels, or all of its training images belong to one class.
    """
    if dataset.classes and len(dataset.train.labels.unique()) < 2:
        only = dataset.classes[int(dataset.train.labels[0])]
        raise DataError(
            f"all training images of {dataset.display_name} belong to one class, {only}; use a data set with "
            f"several classes (--data-dir), or a higher --limit-train"
        )
    if not dataset.classes:
        raise DataError(
            f"{dataset.display_name} has no class labels to train and test with; use a data set with class "
            f"folders or labelled shards (--data-dir)"
        )


def limit_split(split: SplitT, limit: int | None, argument: str) -> SplitT:
    """Keep ``limit`` images, balanced over the classes (see :func:`load_dataset`), in file order.

    Args:
        argument: name of the limit in the error message.

    Raises:
        ArgumentError: limit is below 1 or above the number of images.
    """
    if limit is None:
        return split
    return take(split, torch.from_numpy(limit_rows(split.labels.numpy(), limit, argument)))


def take(split: SplitT, rows: torch.Tensor) -> SplitT:
    """Return a split with only the given images, in the given order.

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
    """Return a string that identifies the contents of both splits.

    For splits in memory it is the SHA-256 (hexadecimal) of their shapes, pixels and labels. For encoded
    splits it is ``files:`` and the SHA-256 of the images' names (relative to the data folder), lengths in
    bytes and labels, because reading all files would take as long as an epoch.
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
    """Return the SHA-256 (hexadecimal) over the contents of encoded images, as of when they were checked.

    It is separate from the fingerprint, which knows encoded images by their names and lengths. The
    result is None if the contents are not known, and for splits in memory, whose fingerprint covers the
    pixels.
    """
    digest = hashlib.sha256()
    for split in (train, test):
        if not isinstance(split, EncodedSplit) or split.contents is None:
            return None
        digest.update(np.ascontiguousarray(split.contents, dtype="<i4").data)
    return digest.hexdigest()

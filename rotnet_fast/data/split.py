"""Data classes that the readers of data sets return."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Generic

import numpy as np
import numpy.typing as npt
import torch
from typing_extensions import TypeVar

from rotnet_fast.data.ignored import IgnoredFiles
from rotnet_fast.data.source import ImageSource
from rotnet_fast.errors import ArgumentError
from rotnet_fast.plain import counted


@dataclass(frozen=True)
class Split:
    """Hold the training or the test split of a data set in memory.

    Attributes:
        images: uint8 [N,H,W,C], contiguous, on the CPU.
        labels: int64 [N], classes in [0, number of classes), on the CPU; all 0 if there are no classes.
    """

    images: torch.Tensor
    labels: torch.Tensor
    _copies: dict[torch.device, Split] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.labels)

    def on(self, device: torch.device) -> Split:
        """Return the split on a device: one copy for all loaders, for as long as this split lives."""
        if device == self.images.device:
            return self
        if device not in self._copies:
            self._copies[device] = Split(self.images.to(device), self.labels.to(device))
        return self._copies[device]

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Return (H, W, C)."""
        height, width, channels = self.images.shape[1:]
        return height, width, channels


@dataclass(frozen=True)
class EncodedSplit:
    """Hold the training or the test split of a data set as image files that are not decoded.

    Every image was checked (see :mod:`rotnet_fast.data.scan`) and is intact as far as its structure and its
    checksums tell.

    Attributes:
        source: the encoded images.
        labels: int64 [N], classes in [0, number of classes), on the CPU; all 0 if there are no classes.
        sizes: int32 [N,2], stored height and width in pixels, after applying the camera's orientation tag.
        convert: bool [N], True for images that only :func:`rotnet_fast.data.decode.decode_rgb` decodes
            correctly (see :mod:`rotnet_fast.data.scan`).
        image_size: H = W in pixels that the decoder must produce.
        contents: int32 [N,4], digests of the images (see `rotnet_fast.data.scan.Scan`); None if unknown.
    """

    source: ImageSource
    labels: torch.Tensor
    sizes: npt.NDArray[np.int32]
    convert: npt.NDArray[np.bool_]
    image_size: int
    contents: npt.NDArray[np.int32] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Return (H, W, C)."""
        return self.image_size, self.image_size, 3


AnySplit = Split | EncodedSplit

Half = TypeVar("Half", bound=AnySplit, default=Split, covariant=True)
"""Type of a data set's splits: plain ``Dataset`` means ``Dataset[Split]``; code that accepts both kinds takes
``Dataset[AnySplit]``."""


@dataclass(frozen=True)
class RawDataset(Generic[Half]):
    """Hold what a reader found.

    Attributes:
        display_name: the data set's name in tables and reports.
        classes: class names, indexed by label; empty if the images have no labels.
        train, test: the two splits.
        skipped: names, relative to the data folder, of damaged images that were skipped.
        files: both splits in encoded form if they come from files.
        ignored: what else the data folder contains.
        held_out: True if the test split was held out from the only split that the folder has.
        is_validation: True if training images were held out on request, in place of the test images.
    """

    display_name: str
    classes: tuple[str, ...]
    train: Half
    test: Half
    skipped: tuple[str, ...] = ()
    files: tuple[EncodedSplit, EncodedSplit] | None = None
    ignored: IgnoredFiles = field(default_factory=IgnoredFiles)
    held_out: bool = False
    is_validation: bool = False

    @property
    def tested_on(self) -> str:
        """What ``test`` is made of: ``validation`` or ``test`` images."""
        return "validation" if self.is_validation else "test"


def limit_rows(labels: npt.NDArray[np.int64], limit: int, argument: str) -> npt.NDArray[np.int64]:
    """Return the positions of ``limit`` images, balanced over the classes, in file order.

    The limit takes the first image of each class in file order, then the second of each class, and so on.

    Args:
        labels: int64 [N].
        argument: name of the limit in the error message.

    Raises:
        ArgumentError: limit is below 1 or above the number of images.
    """
    count = len(labels)
    if not 1 <= limit <= count:
        raise ArgumentError(
            f"{argument} is {limit}; it must lie in [1, {count}], the number of images in this split; "
            f"omit it to use all of them"
        )
    by_class = np.argsort(labels, kind="stable")
    class_sizes = np.bincount(labels)
    class_starts = np.cumsum(class_sizes) - class_sizes
    rank_in_class = np.empty(count, dtype=np.int64)
    rank_in_class[by_class] = np.arange(count) - np.repeat(class_starts, class_sizes)
    # by_class has the classes in order, so a stable sort by rank takes the classes in turn.
    in_turn = by_class[np.argsort(rank_in_class[by_class], kind="stable")]
    return np.sort(in_turn[:limit])


def validation_rows(labels: npt.NDArray[np.int64], count: int) -> npt.NDArray[np.int64]:
    """Return the positions of ``count`` training images to hold out, in file order.

    They are the last ones of each class, each class in proportion to its size; its first image stays.

    Args:
        labels: int64 [N].

    Raises:
        ArgumentError: count is below 1, above half the number of images, or leaves a class without any.
    """
    sizes = np.bincount(labels)
    most = min(len(labels) // 2, len(labels) - int((sizes > 0).sum()))
    if not 1 <= count <= most:
        raise ArgumentError(
            f"validation is {count}; it must lie in [1, {most}], at most half of "
            f"{counted(len(labels), 'training image')}; omit it to test on the test images"
        )
    by_class = np.argsort(labels, kind="stable")
    rank = np.concatenate([np.arange(size) for size in sizes])
    of_class = sizes[labels[by_class]]
    from_the_end = np.where(rank == 0, np.inf, (of_class - rank - 0.5) / of_class)
    return np.sort(by_class[np.argsort(from_the_end, kind="stable")[:count]])

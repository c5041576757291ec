"""The plain objects that the readers of data sets give back."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Generic

import numpy as np
import numpy.typing as npt
import torch
from typing_extensions import TypeVar

from rotnet_fast.data.passed import PassedOver
from rotnet_fast.data.source import ImageSource
from rotnet_fast.errors import ArgumentError


@dataclass(frozen=True)
class Split:
    """The training or the test half of a data set, in memory.

    Attributes:
        images: uint8 [N,H,W,C], contiguous, on the CPU.
        labels: int64 [N], classes in [0, number of classes), on the CPU; all 0 where there are no classes.
    """

    images: torch.Tensor
    labels: torch.Tensor

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C)."""
        height, width, channels = self.images.shape[1:]
        return height, width, channels


@dataclass(frozen=True)
class EncodedSplit:
    """The training or the test half of a data set as image files, not decoded.

    Every image was looked at (see :mod:`rotnet_fast.data.scan`) and found whole as far as its structure and
    its checksums tell.

    Attributes:
        source: the encoded images.
        labels: int64 [N], classes in [0, number of classes), on the CPU; all 0 where there are no classes.
        sizes: int32 [N,2], height and width in pixels as stored, after the camera's orientation tag.
        convert: bool [N], images that only :func:`rotnet_fast.data.decode.decode_rgb` decodes as it should
            be (see :mod:`rotnet_fast.data.scan`).
        image_size: H = W that the images are brought to by whoever decodes them.
        contents: int32 [N,4], digests of the images (see `rotnet_fast.data.scan.Scan`); None: not known.
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
        """(H, W, C)."""
        return self.image_size, self.image_size, 3


AnySplit = Split | EncodedSplit

Half = TypeVar("Half", bound=AnySplit, default=Split, covariant=True)
"""What the halves of a data set are: ``Dataset`` alone means ``Dataset[Split]``, and code that takes both
kinds takes ``Dataset[AnySplit]``."""


@dataclass(frozen=True)
class RawDataset(Generic[Half]):
    """What a reader found.

    Attributes:
        display_name: the data set's name in tables and reports.
        classes: class names; a label is a position in it. Empty: the images have no labels.
        train, test: the two halves.
        skipped: names, relative to the data folder, of damaged images that were left out.
        files: the two halves encoded, where they come from files.
        passed_over: what else the data folder holds.
        held_out: there is no second half, so that images of the first are the test images.
    """

    display_name: str
    classes: tuple[str, ...]
    train: Half
    test: Half
    skipped: tuple[str, ...] = ()
    files: tuple[EncodedSplit, EncodedSplit] | None = None
    passed_over: PassedOver = field(default_factory=PassedOver)
    held_out: bool = False


def limit_rows(labels: npt.NDArray[np.int64], limit: int, argument: str) -> npt.NDArray[np.int64]:
    """Positions of the first ``limit`` images, class by class in turn, in file order.

    That is the first image of each class in file order, then the second of each class, and so on.

    Args:
        labels: int64 [N].
        argument: name of the limit, for the error.

    Raises:
        ArgumentError: limit below 1 or above the number of images.
    """
    count = len(labels)
    if not 1 <= limit <= count:
        raise ArgumentError(
            f"{argument} is {limit}; this data set has {count} such images: give 1 to {count}, or no limit"
        )
    by_class = np.argsort(labels, kind="stable")
    class_sizes = np.bincount(labels)
    class_starts = np.cumsum(class_sizes) - class_sizes
    rank_in_class = np.empty(count, dtype=np.int64)
    rank_in_class[by_class] = np.arange(count) - np.repeat(class_starts, class_sizes)
    # by_class has the classes in order, so a stable sort by rank takes the classes in turn.
    in_turn = by_class[np.argsort(rank_in_class[by_class], kind="stable")]
    return np.sort(in_turn[:limit])

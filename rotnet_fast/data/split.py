"""The plain objects that the readers of data sets give back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic

import numpy as np
import numpy.typing as npt
import torch
from typing_extensions import TypeVar

from rotnet_fast.data.source import ImageSource


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
    """The training or the test half of a data set as JPEG and PNG files, not decoded.

    Every image was looked at (see :mod:`rotnet_fast.data.scan`) and found whole as far as its header, its
    checksums and its end tell.

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
    """What a reader found: all images, before any limit.

    Attributes:
        display_name: the data set's name in tables and reports.
        classes: class names; a label is a position in it. Empty: the images have no labels.
        train, test: the two halves.
        skipped: names, relative to the data folder, of damaged images that were left out.
    """

    display_name: str
    classes: tuple[str, ...]
    train: Half
    test: Half
    skipped: tuple[str, ...] = ()

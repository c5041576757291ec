"""The plain objects that the readers of data sets give back."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Split:
    """The training or the test half of a data set.

    Attributes:
        images: uint8 [N,H,W,C], contiguous, on the CPU.
        labels: int64 [N], classes in [0, number of classes), on the CPU.
    """

    images: torch.Tensor
    labels: torch.Tensor


@dataclass(frozen=True)
class RawDataset:
    """What a reader found: all images, before any limit.

    Attributes:
        display_name: the data set's name in tables and reports.
        classes: class names; a label is a position in it.
        train, test: the two halves.
    """

    display_name: str
    classes: tuple[str, ...]
    train: Split
    test: Split

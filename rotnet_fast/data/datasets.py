"""What a data set is, and the table of those that the commands know."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Split:
    """One half of a data set.

    Attributes:
        images: uint8 [N,H,W,C], contiguous, on the CPU.
        labels: int64 [N], classes in [0, number of classes), on the CPU.
    """

    images: torch.Tensor
    labels: torch.Tensor

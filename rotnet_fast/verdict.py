"""Whether a training has come to anything, told at its end.

Importing this module does not import torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

STANDARD_ERRORS = 3
"""An accuracy that is no more of its standard errors above chance may well be chance."""

ABSURD = 2
"""A loss of more times that of guessing: the network is sure of what is wrong."""


def is_at_chance(accuracy: float, chance: float, count: int) -> bool:
    """Whether an accuracy may well be that of guessing.

    Args:
        accuracy, chance: in percent; what was measured, and what guessing gives on average.
        count: predictions that it was measured on.
    """
    share = chance / 100
    return accuracy <= chance + 100 * STANDARD_ERRORS * math.sqrt(share * (1 - share) / count)


@dataclass(frozen=True)
class Verdict:
    """What went wrong in a pretraining.

    Attributes:
        sentence: that says so, and what to try.
        is_hopeless: whether nothing can be expected of its features.
    """

    sentence: str
    is_hopeless: bool


def of_pretraining(results: Mapping[str, Any]) -> Verdict | None:
    """What went wrong in a pretraining, by its ``results.json``; None where nothing did."""
    rotations = len(results["rotation_accuracy_by_degrees"])
    chance, guessing = 100 / rotations, math.log(rotations)
    train = results["train"]
    loss, learned = train.get("loss", guessing), train.get("rotation_accuracy", chance)
    if loss > ABSURD * guessing:
        return Verdict(
            f"the training diverged: its loss ended at {loss:.3g}, where guessing has {guessing:.2f}; start "
            f"again with a lower --lr and another --output",
            is_hopeless=True,
        )
    if not is_at_chance(results["rotation_accuracy"], chance, results["test_images"] * rotations):
        return None
    finding = f"the rotation accuracy cannot be told from that of guessing, {chance:.2f} %"
    if is_at_chance(learned, chance, results["train_images"] * rotations):
        return Verdict(
            f"{finding}: the network has learned nothing; try another --lr, more --epochs, or more images",
            is_hopeless=True,
        )
    return Verdict(
        f"{finding}, though it was {learned:.2f} % on the training images; try more --epochs, or more images",
        is_hopeless=False,
    )

"""Judge at the end of a training whether the network has learned anything.

Importing this module does not import torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rotnet_fast.pretext_tasks import PRETEXT_TASKS

STANDARD_ERRORS = 3
"""An accuracy within this many standard errors above chance counts as chance."""

ABSURD = 2
"""A loss above this multiple of the loss of guessing means that the network is confidently wrong."""


def is_at_chance(accuracy: float, chance: float, count: int) -> bool:
    """Return whether an accuracy is indistinguishable from guessing.

    Args:
        accuracy, chance: the measured accuracy and the expected accuracy of guessing, in percent.
        count: number of predictions behind the accuracy.
    """
    share = chance / 100
    return accuracy <= chance + 100 * STANDARD_ERRORS * math.sqrt(share * (1 - share) / count)


def wilson(accuracy: float, count: int) -> tuple[float, float]:
    """Return Wilson's 95 % interval of an accuracy, in percent.

    Unlike that of the standard error, it stays in [0, 100] and is right for few predictions, too.

    Args:
        accuracy: the measured accuracy, in percent.
        count: number of predictions behind it, at least 1.
    """
    share, z = accuracy / 100, 1.96
    centre = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    reach = z / (1 + z**2 / count) * math.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    return 100 * max(0.0, centre - reach), 100 * min(1.0, centre + reach)


UNIFORM = 1.0
"""Squared error of a uniform image, roughly: the variance of normalised pixels."""


@dataclass(frozen=True)
class Verdict:
    """Describe what went wrong in a pretraining run.

    Attributes:
        sentence: the problem, and what to try.
        is_hopeless: whether its features are useless.
    """

    sentence: str
    is_hopeless: bool


def of_pretraining(results: Mapping[str, Any]) -> Verdict | None:
    """Return what went wrong in a pretraining run, based on its ``results.json``, or None.

    A pretext task without classes cannot be solved by guessing; it only fails to come below the error of a
    uniform image.
    """
    task = PRETEXT_TASKS[results["pretext_task"]]
    if not task.is_classification:
        return _of_reconstruction(results["train"].get("loss", UNIFORM), results[task.measure])
    classes = task.outputs or len(results["rotation_accuracy_by_degrees"])
    views = task.views or classes
    chance, guessing = 100 / classes, math.log(classes)
    train = results["train"]
    loss, learned = train.get("loss", guessing), train.get(task.measure, chance)
    if loss > ABSURD * guessing:
        return Verdict(
            f"the training diverged: its final loss is {loss:.3g}, but that of guessing is {guessing:.2f}; "
            f"start again with a lower --lr and another --output",
            is_hopeless=True,
        )
    if not is_at_chance(results[task.measure], chance, results["test_images"] * views):
        return None
    finding = (
        f"the {task.measure.replace('_', ' ')} is indistinguishable from that of guessing, {chance:.2f} %"
    )
    if is_at_chance(learned, chance, results["train_images"] * views):
        return Verdict(
            f"{finding}: the network has learned nothing; try another --lr, more --epochs, or more images",
            is_hopeless=True,
        )
    return Verdict(
        f"{finding}, but {learned:.2f} % on the training images; try more --epochs, or more images",
        is_hopeless=False,
    )


def _of_reconstruction(train: float, test: float) -> Verdict | None:
    """Judge mean squared errors of normalised pixels, of training and of test images."""
    if train > ABSURD * UNIFORM:
        return Verdict(
            f"the training diverged: its final loss is {train:.3g}, but that of a uniform image is about "
            f"{UNIFORM:g}; start again with a lower --lr and another --output",
            is_hopeless=True,
        )
    if test > ABSURD * UNIFORM:
        return Verdict(
            f"the reconstruction error is {test:.3g}, above the {UNIFORM:g} or so of a uniform image, but "
            f"{train:.3g} on the training images; try a lower --lr, more --epochs, or more images",
            is_hopeless=False,
        )
    return None

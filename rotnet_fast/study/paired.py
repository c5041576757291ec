"""Comparison of two classifiers on the same test images.

Importing this module does not import torch.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SIGNIFICANCE = 0.05
"""A difference is noise where chance gives one as large, in either direction, more often than this."""


@dataclass(frozen=True)
class Paired:
    """The difference of two accuracies on the same images.

    Attributes:
        difference: first minus second, in points, mean over the seeds.
        standard_error: of the difference, in points, over test images and seeds.
        p_value: how often chance gives a difference as large, in either direction.
    """

    difference: float
    standard_error: float
    p_value: float


def paired(first: Sequence[NDArray[np.bool_]], second: Sequence[NDArray[np.bool_]]) -> Paired:
    """Compare two classifiers image by image.

    With one seed, the p-value is that of McNemar's exact test: of the images about which exactly one of the
    two is right, each should be right about half. With several, the difference is divided by a standard error
    that adds the spread over images, of the mean over the seeds, and the spread over seeds.

    Args:
        first, second: for each seed, bool [N]: whether the classifier was right about each image.

    Raises:
        ValueError: no seed, or other numbers of seeds or images.
    """
    right = np.stack([a.astype(np.int8) - b for a, b in zip(first, second, strict=True)])  # [S,N] in -1, 0, 1
    seeds, images = right.shape
    by_seed = 100 * right.mean(axis=1)
    over_images = 100 * right.mean(axis=0).std() / math.sqrt(images)
    error = math.hypot(over_images, error_over_seeds(by_seed.tolist()))
    difference = float(by_seed.mean())
    if seeds == 1:
        p_value = mcnemar(int((right == 1).sum()), int((right == -1).sum()))
    else:
        p_value = normal_p_value(difference, error)
    return Paired(difference, error, p_value)


def error_over_seeds(values: Collection[float]) -> float:
    """Return the standard error of the mean of one value per seed; 0 for a single one."""
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0


def mcnemar(only_first: int, only_second: int) -> float:
    """Return the two-sided p-value of McNemar's exact test.

    Args:
        only_first, only_second: number of images about which only the one or only the other is right.
    """
    from scipy.stats import binomtest  # here, because importing scipy.stats takes a second

    together = only_first + only_second
    return float(binomtest(only_first, together).pvalue) if together else 1.0


def normal_p_value(difference: float, standard_error: float) -> float:
    """Return how often a normal variable of mean 0 and this deviation lies as far from 0."""
    if not standard_error:
        return float(difference == 0)
    return math.erfc(abs(difference) / standard_error / math.sqrt(2))

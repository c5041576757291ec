"""Comparison of two classifiers on the same test images.

Importing this module does not import torch.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

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
    two is right, each should be right about half. With several, see :func:`over_seeds`.

    Args:
        first, second: for each seed, bool [N]: whether the classifier was right about each image.

    Raises:
        ValueError: no seed, or other numbers of seeds or images.
    """
    right = np.stack([a.astype(np.int8) - b for a, b in zip(first, second, strict=True)])  # [S,N] in -1, 0, 1
    seeds, images = right.shape
    over_images = 100 * right.mean(axis=0).std() / math.sqrt(images)
    found = over_seeds((100 * right.mean(axis=1)).tolist(), over_images)
    if seeds == 1:
        return replace(found, p_value=mcnemar(int((right == 1).sum()), int((right == -1).sum())))
    return found


def over_seeds(by_seed: Collection[float], *errors: float) -> Paired:
    """Judge the mean of a difference that was found with each seed.

    Its standard error adds the spread over seeds to errors of other origin, such as that over test images.
    The p-value is that of Student's t with the degrees of freedom of Welch and Satterthwaite: as few as the
    seeds allow where their spread is most of the error, many where it is little.

    Args:
        by_seed: differences, in points.
        errors: standard errors of the mean difference that more seeds would not reduce, in points.
    """
    from scipy.stats import t  # here, because importing scipy.stats takes a second

    n, difference = len(by_seed), statistics.fmean(by_seed)
    spread = statistics.stdev(by_seed) / math.sqrt(n) if n > 1 else 0.0
    error = math.hypot(spread, *errors)
    if not error:
        return Paired(difference, error, float(difference == 0))
    freedom = (n - 1) * (error / spread) ** 4 if spread else math.inf
    return Paired(difference, error, float(2 * t.sf(abs(difference) / error, freedom)))


def mcnemar(only_first: int, only_second: int) -> float:
    """Return the two-sided p-value of McNemar's exact test.

    Args:
        only_first, only_second: number of images about which only the one or only the other is right.
    """
    from scipy.stats import binomtest

    together = only_first + only_second
    return float(binomtest(only_first, together).pvalue) if together else 1.0

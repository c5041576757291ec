"""Classifiers are compared on the same images, not as if their test sets were different."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from rotnet_fast.study.paired import mcnemar, over_seeds, paired


def right(images: int, *wrong: int) -> np.ndarray:
    found = np.ones(images, dtype=bool)
    found[list(wrong)] = False
    return found


def test_the_exact_p_value_is_that_of_a_fair_coin() -> None:
    assert mcnemar(0, 0) == 1.0
    assert mcnemar(5, 0) == pytest.approx(2 * 0.5**5)
    assert mcnemar(9, 1) == pytest.approx(2 * (1 + 10) * 0.5**10)
    assert mcnemar(3, 3) == 1.0


def test_images_that_both_get_right_or_wrong_say_nothing() -> None:
    few = paired([right(20, *range(5, 9))], [right(20, *range(4, 9), 19)])
    many = paired([right(2000, *range(5, 9))], [right(2000, *range(4, 9), 19)])
    assert few.p_value == many.p_value == mcnemar(2, 0)
    assert (few.difference, many.difference) == (pytest.approx(10.0), pytest.approx(0.1))


def test_a_paired_difference_is_surer_than_two_accuracies_apart() -> None:
    draw = np.random.default_rng(0)
    first = draw.random(10_000) < 0.8
    second = first & (draw.random(10_000) < 0.99)
    found = paired([first], [second])
    apart = 100 * math.sqrt(2 * 0.8 * 0.2 / 10_000)
    assert found.standard_error < apart / 3
    assert found.difference < 2 * apart
    assert found.p_value < 1e-10


@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.integers(2, 50))
def test_the_error_is_that_of_the_mean_difference(seed: int, seeds: int, images: int) -> None:
    draw = np.random.default_rng(seed)
    first, second = (list(draw.random((seeds, images)) < 0.6) for _ in range(2))
    found, opposite = paired(first, second), paired(second, first)
    by_seed = [100 * (a.mean() - b.mean()) for a, b in zip(first, second, strict=True)]
    assert found.difference == pytest.approx(np.mean(by_seed))
    per_image = np.mean([a.astype(float) - b for a, b in zip(first, second, strict=True)], axis=0)
    error = 100 * per_image.std() / math.sqrt(images)
    if seeds > 1:
        error = math.hypot(error, np.std(by_seed, ddof=1) / math.sqrt(seeds))
    assert found.standard_error == pytest.approx(error)
    assert (opposite.difference, opposite.p_value) == (-found.difference, pytest.approx(found.p_value))
    assert 0 <= found.p_value <= 1


def test_a_seed_that_disagrees_makes_the_difference_less_sure() -> None:
    base = right(1000, *range(200))
    better, worse = right(1000, *range(150)), right(1000, *range(240))
    steady, scattered = paired([better] * 2, [base] * 2), paired([better, worse], [base] * 2)
    assert steady.p_value < 1e-6
    assert scattered.p_value > 0.5
    assert paired([base] * 2, [base] * 2).p_value == 1.0


def test_few_seeds_make_a_difference_less_sure_than_many_images() -> None:
    scattered = over_seeds([1.0, 2.0, 3.0])
    assert scattered.standard_error == pytest.approx(1 / math.sqrt(3))
    assert scattered.p_value == pytest.approx(stats.ttest_1samp([1.0, 2.0, 3.0], 0).pvalue)
    steady = over_seeds([2.0, 2.0, 2.0], 1.0)
    assert steady.p_value == pytest.approx(2 * stats.norm.sf(2.0))
    one = over_seeds([2.0], 0.6, 0.8)
    assert (one.standard_error, one.p_value) == (pytest.approx(1.0), steady.p_value)
    between = over_seeds([1.0, 2.0, 3.0], 1 / math.sqrt(3))  # half the variance: 2 * (1 / (1 / 2)) ** 2
    assert between.p_value == pytest.approx(2 * stats.t.sf(2 / math.sqrt(2 / 3), 8))


def test_other_numbers_of_seeds_are_refused() -> None:
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        paired([right(3)] * 2, [right(3)])

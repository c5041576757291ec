"""Orderings are judged by hand-made numbers whose verdicts are known."""

from __future__ import annotations

from pathlib import Path

import pytest
from synthetic_study import settings_of

from rotnet_fast.study.cells import StudyCell
from rotnet_fast.study.pages.orderings import (
    FAILS,
    HOLDS,
    NOISE,
    NOT_RUN,
    Ordering,
    better,
    compare,
    find_correlation,
    find_orderings,
    judge,
    permutation_p_value,
    spearman,
)
from rotnet_fast.study.plan import Entry, make_plan
from rotnet_fast.study.summary import Number, Study


def study_of(values: dict[str, list[float]], seeds: int = 1, name: str = "cifar10") -> Study:
    """A study in which the entries named ``item/name`` have these values, one per seed."""
    settings = settings_of(name)
    entries = make_plan(settings, seeds)
    files = {}
    for wish, by_seed in values.items():
        item, _, entry_name = wish.partition("/")
        entry = next(entry for entry in entries if (entry.item, entry.name) == (item, entry_name))
        for cell, value in zip(entry.cells, by_seed, strict=True):
            # Of a pretraining, a whole result: the other values do not matter.
            whole = dict.fromkeys((its.value for its in entries if cell in its.cells), 70.0)
            files.setdefault(cell.key, {"result": whole})["result"][entry.value] = value
    return Study(Path("nowhere"), settings, seeds, tuple(entries), files)


def number(*values: float, title: str = "") -> Number:
    entry = Entry("table3", title, title, (StudyCell("head", {}),))
    return Number(entry, dict(enumerate(values)))


def verdict(study: Study, beginning: str) -> str:
    return next(found for found in find_orderings(study) if found.claim.startswith(beginning)).verdict


FOUR_BLOCKS = {
    "table1/4-conv1": [80.0],
    "table1/4-conv2": [89.0],
    "table1/4-conv3": [85.0],
    "table1/4-conv4": [60.0],
}


def test_a_chain_holds_where_every_step_does() -> None:
    assert verdict(study_of(FOUR_BLOCKS), "4 blocks") == HOLDS


def test_a_chain_fails_with_one_step() -> None:
    assert verdict(study_of({**FOUR_BLOCKS, "table1/4-conv1": [87.0]}), "4 blocks") == FAILS


def test_a_chain_is_within_noise_with_one_step() -> None:
    assert verdict(study_of({**FOUR_BLOCKS, "table1/4-conv1": [84.9]}), "4 blocks") == NOISE


def test_a_chain_with_a_missing_cell_is_not_run_unless_a_step_fails_already() -> None:
    partial = {name: values for name, values in FOUR_BLOCKS.items() if name != "table1/4-conv4"}
    assert verdict(study_of(partial), "4 blocks") == NOT_RUN
    assert verdict(study_of({**partial, "table1/4-conv3": [95.0]}), "4 blocks") == FAILS


def test_an_empty_study_has_no_verdicts() -> None:
    study = study_of({})
    assert {ordering.verdict for ordering in find_orderings(study)} == {NOT_RUN}
    assert find_correlation(study).verdict == NOT_RUN


def test_ties_are_noise_even_at_100_percent_where_the_standard_error_is_0() -> None:
    step = compare(study_of({}), number(100.0), number(100.0))
    assert (step.difference, step.standard_error, step.verdict) == (0.0, 0.0, NOISE)


def test_the_standard_error_is_the_binomial_one_of_both_accuracies() -> None:
    step = compare(study_of({}), number(50.0), number(50.0))
    assert step.standard_error == pytest.approx(0.5 * 2**0.5)  # of 10,000 images each


def test_seeds_that_scatter_widen_the_standard_error() -> None:
    steady = compare(study_of({}), number(82.0, 82.0), number(80.0, 80.0))
    scattered = compare(study_of({}), number(85.0, 79.0), number(80.0, 80.0))
    assert steady.difference == scattered.difference == 2.0
    assert (steady.verdict, scattered.verdict) == (HOLDS, NOISE)


def test_only_seeds_that_both_have_are_compared() -> None:
    step = compare(study_of({}), number(90.0, 70.0), number(80.0))
    assert step.by_seed == {0: 10.0}
    assert step.means == (90.0, 80.0)


def test_the_better_of_two_is_open_until_both_have_been_run() -> None:
    assert better([number(70.0, title="a"), number(71.0, title="b")]).entry.title == "b"
    assert better([number(70.0, title="a"), number(title="b")]).mean is None


def test_random_init_counts_in_its_better_batchnorm_mode() -> None:
    values = {"table3/supervised": [92.0], "table3/rotnet-conv": [90.0], "table3/rotnet-nonlinear": [85.0]}
    values |= {"table3/random-conv-running": [50.0], "table3/random-conv-batch": [88.0]}
    study = study_of(values)
    assert verdict(study, "Supervised >") == FAILS
    assert verdict(study, "Conv head: pretrained") == HOLDS


def test_rotations_include_the_step_over_both() -> None:
    values = {"table2/0-90-180-270": [80.0], "table2/0-180": [79.5], "table2/90-270": [79.0]}
    ordering = next(found for found in find_orderings(study_of(values)) if found.claim.startswith("Four rot"))
    assert [step.difference for step in ordering.steps] == [0.5, 0.5, 1.0]
    assert ordering.verdict == NOISE


def test_few_labels_are_the_three_smallest_numbers() -> None:
    values = {f"figure5b/rotnet-{count}": [80.0] for count in (20, 100, 400)}
    values |= {f"figure5b/supervised-{count}": [70.0] for count in (20, 100, 400)}
    assert verdict(study_of(values), "RotNet > supervised with 20, 100 and 400 labels") == HOLDS


@pytest.mark.parametrize(
    ("difference", "standard_error", "expected"),
    [(2.0, 1.0, HOLDS), (1.99, 1.0, NOISE), (-1.99, 1.0, NOISE), (-2.0, 1.0, FAILS), (0.0, 0.0, NOISE)],
)
def test_two_standard_errors_are_a_difference(
    difference: float, standard_error: float, expected: str
) -> None:
    assert judge(difference, standard_error) == expected


def test_the_worst_step_decides() -> None:
    low, high = number(50.0), number(90.0)
    steps = [
        compare(study_of({}), *pair) for pair in ((high, low), (low, low), (high, number()), (low, high))
    ]
    assert [Ordering("", tuple(steps[:count])).verdict for count in (1, 2, 3, 4)] == [
        HOLDS,
        NOISE,
        NOT_RUN,
        FAILS,
    ]


def test_spearman_ranks_ties_by_their_mean() -> None:
    assert spearman([1, 2, 3], [10, 20, 15]) == pytest.approx(0.5)
    assert spearman([1, 2, 2, 3], [1, 2, 3, 4]) == pytest.approx(0.9486833)
    assert spearman([1, 1, 1], [1, 2, 3]) is None


def test_the_p_value_counts_orders() -> None:
    assert permutation_p_value([1, 2, 3, 4], [5, 6, 7, 8]) == pytest.approx(1 / 24)
    assert permutation_p_value([1, 2, 3, 4], [8, 7, 6, 5]) == pytest.approx(1 / 24)


@pytest.mark.parametrize(
    ("objects", "expected"),
    [
        ([81, 88, 90, 91, 92, 93], HOLDS),
        ([93, 92, 91, 90, 88, 81], FAILS),
        ([88, 81, 92, 90, 93, 89], NOISE),
        ([90, 90, 90, 90, 90, 90], NOISE),
    ],
)
def test_accuracies_rise_together_or_not(objects: list[float], expected: str) -> None:
    epochs = settings_of().snapshot_epochs
    values = {f"figure5a/rotation-{epoch}": [50.0 + place] for place, epoch in enumerate(epochs)}
    values |= {f"figure5a/object-{epoch}": [value] for epoch, value in zip(epochs, objects, strict=True)}
    assert find_correlation(study_of(values)).verdict == expected

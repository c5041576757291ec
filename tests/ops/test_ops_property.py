"""Thousands of drawn calls: each equals the definition, or is refused as documented and writes nothing.

The calls are the same in every run. ``ROTNET_OP_EXAMPLES`` asks for more; `sanitize.py` runs this file with a
compiler's checks of memory and undefined behaviour.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis.strategies import SearchStrategy
from op_calls import calls, check
from raw_op_calls import DATA_OPS, check_raw, plain_torch, raw_calls

from rotnet_fast.ops.library import BATCH_NORM_OPS, LIBRARIES

IS_FULL = os.environ.get("ROTNET_TESTS") == "full"
EXAMPLES = int(os.environ.get("ROTNET_OP_EXAMPLES", "3000" if IS_FULL else "1000"))
needs_kernels = pytest.mark.skipif(
    not LIBRARIES["cpu"].loaded, reason="the compiled CPU library is not in use"
)


@pytest.fixture
def tally(record_property: Callable[[str, object], None]):
    """Counts of calls; they end up in the report that ``--junitxml`` asks for."""
    counts: Counter[str] = Counter()
    yield counts
    for kind in ("valid", "invalid"):
        record_property(kind, counts[kind])


def try_calls(examples: int, strategy: SearchStrategy[Any], trial: Callable[[Any], object]) -> None:
    @settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(call=strategy)
    def run(call) -> None:
        trial(call)

    run()


def assert_both_kinds(tally: Counter[str], examples: int, least: float = 1 / 3) -> None:
    assert tally.total() >= examples
    assert min(tally["valid"], tally["invalid"]) >= least * examples


def test_a_call_equals_the_definition_or_is_refused_for_a_documented_reason(tally: Counter[str]) -> None:
    reasons: Counter[str] = Counter()
    try_calls(EXAMPLES, calls(), lambda call: check(call, tally, reasons))
    assert_both_kinds(tally, EXAMPLES)
    if EXAMPLES >= 1000:  # fewer need not find each
        arguments = "images indices sample_ids seed epoch pad flip_prob mean std rotations dtype out"
        assert {name for _, name in reasons} >= set(arguments.split())
        assert (IndexError, "indices") in reasons


def test_plain_torch_does_and_refuses_the_same(tally: Counter[str]) -> None:
    with plain_torch():
        try_calls(EXAMPLES // 6, calls(), lambda call: check(call, tally, Counter()))
    assert_both_kinds(tally, EXAMPLES // 6)


@needs_kernels
def test_the_ops_themselves_refuse_or_are_right_and_plain_torch_refuses_the_same(tally: Counter[str]) -> None:
    def trial(call) -> None:
        is_accepted = check_raw(call, tally)
        with plain_torch():
            assert check_raw(call, Counter()) == is_accepted

    try_calls(EXAMPLES // 3, raw_calls(DATA_OPS), trial)
    assert_both_kinds(tally, EXAMPLES // 3, least=1 / 4)


@needs_kernels
def test_the_ops_of_batch_norm_refuse_or_do_as_with_sound_copies(tally: Counter[str]) -> None:
    try_calls(EXAMPLES // 6, raw_calls(BATCH_NORM_OPS), lambda call: check_raw(call, tally))
    assert_both_kinds(tally, EXAMPLES // 6, least=1 / 5)

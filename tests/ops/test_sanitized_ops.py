"""The ops' own library, called from Python, under AddressSanitizer and UndefinedBehaviorSanitizer."""

from __future__ import annotations

import cpp_build
import pytest
import sanitize


def test_drawn_calls_of_the_ops_give_no_report_and_planted_faults_do() -> None:
    try:
        sanitize.build()
    except cpp_build.NoSanitizersError as error:
        pytest.skip(str(error))
    sanitize.check_planted_faults()
    # Instructions for masked vectors are not looked at: the kernel that has none.
    found = sanitize.run_tests("scalar", examples=300)
    assert found.reports == 0, found.output
    assert not found.failed, found.output
    assert min(found.calls["valid"], found.calls["invalid"]) >= 150

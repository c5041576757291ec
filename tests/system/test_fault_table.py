"""The table of what tests broke: nothing that was lost is missing from it."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest_plugins = "pytester"

BROKEN = """
import pytest

@pytest.mark.faults("one after the other")
@pytest.mark.parametrize("number", range(4))
def test_by_name(number):
    assert number != 2

@pytest.mark.faults
def test_by_number(fault_log):
    fault_log("many at once", tried=5, survived=5)

@pytest.mark.faults
def test_that_lost_some(fault_log):
    fault_log("many at once", tried=5, survived=3)

@pytest.mark.faults("never tried")
def test_skipped():
    pytest.skip("not here")

@pytest.mark.faults
def test_that_failed_before_it_could_say_what(fault_log):
    raise OSError

@pytest.mark.faults
def test_that_failed_afterwards(fault_log):
    fault_log("many at once", tried=1, survived=1)
    raise OSError

def test_that_breaks_nothing():
    pass
"""


def test_the_table_counts_what_was_tried_and_what_was_lost(pytester: pytest.Pytester) -> None:
    pytester.makeconftest((Path(__file__).parents[1] / "conftest.py").read_text())
    pytester.makeini("[pytest]\nmarkers = faults")
    pytester.makepyfile(BROKEN)
    result = pytester.runpytest_inprocess("-p", "no:cacheprovider")
    result.assert_outcomes(passed=5, failed=4, skipped=1)
    lines = [[cell.strip() for cell in line.split("|")] for line in result.outlines]
    assert [line for line in lines if len(line) == 4] == [
        ["fault", "tried", "survived", "lost"],
        ["one after the other", "4", "3", "1"],
        ["many at once", "11", "9", "2"],
        ["test_that_failed_before_it_could_say_what", "1", "0", "1"],
        ["test_that_failed_afterwards", "1", "0", "1"],
    ]


def test_there_is_no_table_where_nothing_was_broken(pytester: pytest.Pytester) -> None:
    pytester.makeconftest((Path(__file__).parents[1] / "conftest.py").read_text())
    pytester.makeini("[pytest]\nmarkers = faults")
    pytester.makepyfile("def test_that_breaks_nothing():\n    pass")
    result = pytester.runpytest_inprocess("-p", "no:cacheprovider")
    result.assert_outcomes(passed=1)
    assert "broken on purpose" not in result.stdout.str()

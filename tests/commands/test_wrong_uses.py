"""Wrong uses of the commands, each in a process of its own: one sentence, an exit code, no file left behind.

How soon the answers come is measured by ``python -m benchmarks.wrong_uses``, which has the table of cases.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from benchmarks.wrong_uses import CASES, WrongUse, ask, make_world


def content(world: Path) -> dict[str, bytes | None]:
    """Every file and folder by name; which process took the lock of a run last does not matter."""
    return {
        str(path.relative_to(world)): path.read_bytes() if path.is_file() and path.name != "lock" else None
        for path in world.rglob("*")
    }


@pytest.fixture(scope="module")
def answers(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[dict[str, subprocess.CompletedProcess[str]]]:
    """Line -> answer of every case, and under "" one of what they left behind."""
    world = tmp_path_factory.mktemp("world")
    with make_world(world), ThreadPoolExecutor(2) as pool:
        before = content(world)
        found = dict(
            zip([case.line for case in CASES], pool.map(lambda case: ask(case, world), CASES), strict=True)
        )
        left = [name for name, value in content(world).items() if name not in before or before[name] != value]
        found[""] = subprocess.CompletedProcess([], 0, stderr="\n".join(left))
        yield found


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.line)
def test_it_is_answered_by_one_sentence_that_says_what_is_wrong_and_what_to_do(
    case: WrongUse, answers: dict[str, subprocess.CompletedProcess[str]]
) -> None:
    answer = answers[case.line]
    assert answer.returncode == case.code, answer.stderr
    (line,) = answer.stderr.splitlines()
    assert line.startswith("error: ")
    assert [text for text in case.says if text not in line] == [], line


def test_no_file_is_left_behind(answers: dict[str, subprocess.CompletedProcess[str]]) -> None:
    assert answers[""].stderr == ""

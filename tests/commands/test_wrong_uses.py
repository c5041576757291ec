"""Wrong uses of the commands, each in a process of its own: one sentence, an exit code, no file left behind.

How soon the answers come is measured by ``python -m benchmarks.wrong_uses``, which has the table of cases.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from processes import Ended, in_a_process

from benchmarks.wrong_uses import CASES, WrongUse, make_world


def content(world: Path) -> dict[str, bytes | None]:
    """Every file and folder by name; which process took the lock of a run last does not matter."""
    return {
        str(path.relative_to(world)): path.read_bytes() if path.is_file() and path.name != "lock" else None
        for path in world.rglob("*")
    }


def stand_in(world: Path, patch: pytest.MonkeyPatch) -> None:
    """Work in a folder, beside a narrow terminal."""
    patch.chdir(world)
    patch.setenv("COLUMNS", "60")


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Ended]]:
    """Line -> answer of every case, and under "" one of what they left behind."""
    world = tmp_path_factory.mktemp("world")
    found = {}
    with make_world(world):
        before = content(world)
        for case in CASES:
            _, module, *options = case.arguments()
            found[case.line] = in_a_process(options, partial(stand_in, world), module=module)
        left = [name for name, value in content(world).items() if name not in before or before[name] != value]
        found[""] = Ended(0, "", "\n".join(left))
        yield found


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.line)
def test_it_is_answered_by_one_sentence_that_says_what_is_wrong_and_what_to_do(
    case: WrongUse, answers: dict[str, Ended]
) -> None:
    answer = answers[case.line]
    assert answer.code == case.code, answer.err
    (line,) = answer.err.splitlines()
    assert line.startswith("error: ")
    assert [text for text in case.says if text not in line] == [], line


def test_no_file_is_left_behind(answers: dict[str, Ended]) -> None:
    assert answers[""].err == ""

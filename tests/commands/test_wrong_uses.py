"""Wrong uses of the commands, each in a process of its own: one sentence, an exit code, no file left behind.

The processes are forked from a server that has imported torch, see `ranks.py`. How soon the answers come is
measured by ``python -m benchmarks.wrong_uses``, which has the table of cases.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest
from ranks import FORKS

from benchmarks.wrong_uses import CASES, WrongUse, make_world


def content(world: Path) -> dict[str, bytes | None]:
    """Every file and folder by name; which process took the lock of a run last does not matter."""
    return {
        str(path.relative_to(world)): path.read_bytes() if path.is_file() and path.name != "lock" else None
        for path in world.rglob("*")
    }


def run(arguments: list[str], world: Path, log: Path) -> None:
    """Be the process of ``python`` with these arguments, from the import of torch on."""
    os.chdir(world)
    os.environ.update(OMP_NUM_THREADS="1", COLUMNS="60")
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    _, command, *options = arguments
    sys.exit(import_module(command).main(options))


@pytest.fixture(scope="module")
def answers(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[dict[str, subprocess.CompletedProcess[str]]]:
    """Line -> answer of every case, and under "" one of what they left behind."""
    world = tmp_path_factory.mktemp("world")
    log = tmp_path_factory.mktemp("log") / "stderr"
    found = {}
    with make_world(world):
        before = content(world)
        for case in CASES:
            process = FORKS.Process(target=run, args=(case.arguments(), world, log))
            process.start()
            process.join(60)
            code = process.exitcode
            process.kill()
            found[case.line] = subprocess.CompletedProcess(case.line, code, stderr=log.read_text())
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

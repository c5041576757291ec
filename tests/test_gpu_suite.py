"""The GPU suite does each step once, goes on where it stopped, and refuses where there is no GPU."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SUITE = ROOT / "benchmarks" / "gpu_suite.sh"

pytestmark = pytest.mark.skipif(
    shutil.which("bash") is None or shutil.which("timeout") is None, reason="needs bash and coreutils"
)

STEPS = """
STEPS=("good|5|always works" "bad|5|fails at first" "part|5|goes on" "tool|5|lacks a tool" "two-words|5|ends")
require_gpu() { :; }
count() { echo once >> "$WORK/$1.txt"; wc -l < "$WORK/$1.txt"; }
step_good() { count good; }
step_bad() { [[ $(count bad) -ge 2 ]] || { echo "broken"; return 4; }; }
step_part() { [[ $(count part) -ge 3 ]] || { echo "half way"; return "$UNFINISHED"; }; }
step_tool() { count tool; echo "no tool"; return "$SKIPPED"; }
step_two_words() { count two; echo "data in $DATA_DIR"; }
"""


@pytest.fixture
def steps(tmp_path: Path) -> Path:
    path = tmp_path / "steps.sh"
    path.write_text(STEPS)
    return path


def suite(
    output: Path, *flags: str, steps: Path | None = None, python: str = sys.executable
) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHON": python, "CUDA_VISIBLE_DEVICES": ""}
    if steps is not None:
        environment["ROTNET_GPU_SUITE_STEPS"] = str(steps)
    return subprocess.run(
        ["bash", str(SUITE), "--output", str(output), *flags],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )


def states(output: Path) -> dict[str, str]:
    return {path.name: path.read_text().strip() for path in (output / "state").iterdir()}


def runs(output: Path, name: str) -> int:
    return len((output / "work" / f"{name}.txt").read_text().splitlines())


def test_it_has_no_syntax_error_and_a_function_for_every_step() -> None:
    assert subprocess.run(["bash", "-n", str(SUITE)], check=False).returncode == 0
    text = SUITE.read_text()
    functions = set(re.findall(r"^step_(\w+)\(\)", text, re.MULTILINE))
    table = re.findall(r'^  "([a-z0-9-]+)\|(\d+)\|[^|"]+"$', text, re.MULTILINE)
    assert {name.replace("-", "_") for name, _ in table} == functions
    assert all(int(limit) < 540 for _, limit in table)


def test_what_the_steps_run_is_there() -> None:
    text = SUITE.read_text()
    for path in re.findall(r"(?<![\w/])(?:benchmarks|tests)/[\w/]+\.(?:py|cu|sh)", text):
        assert (ROOT / path).is_file(), path
    for module in re.findall(r"-m ((?:rotnet_fast|benchmarks)[\w.]+)", text):
        assert (ROOT / f"{module.replace('.', '/')}.py").is_file(), module


def test_the_steps_are_listed_without_a_gpu(tmp_path: Path) -> None:
    done = suite(tmp_path / "out", "--list")
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert lines[0].split()[:5] == ["doctor", "120", "s", "not", "run"]
    assert [line.split()[0] for line in lines[-3:]] == ["pretrain", "speedrun", "study"]
    assert not (tmp_path / "out").exists()


def test_where_there_is_no_gpu_it_refuses_in_one_line(tmp_path: Path) -> None:
    done = suite(tmp_path / "out")
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "finds no torch with a CUDA device on this machine" in done.stderr
    assert not (tmp_path / "out").exists()


def test_finished_steps_are_not_done_again_and_others_are(tmp_path: Path, steps: Path) -> None:
    output = tmp_path / "out"
    first = suite(output, steps=steps)
    assert first.returncode == 1
    assert re.search(r"^bad: failed after \d+ s: broken$", first.stdout, re.MULTILINE)
    assert first.stderr.startswith("failed: bad; see ")
    listed = suite(output, "--list", steps=steps).stdout
    assert re.search(r"^part +5 s +unfinished +goes on$", listed, re.MULTILINE)
    assert states(output) == {
        "good": "finished",
        "bad": "failed",
        "part": "unfinished",
        "tool": "skipped",
        "two-words": "finished",
    }
    second = suite(output, steps=steps)
    assert second.returncode == 3
    assert "good: finished before" in second.stdout
    assert second.stdout.endswith("left: part; run the same command again\n")
    third = suite(output, steps=steps)
    assert third.returncode == 0
    assert [runs(output, name) for name in ("good", "bad", "part", "tool", "two")] == [1, 2, 3, 3, 1]


def test_one_step_alone_is_done_even_if_it_is_finished(tmp_path: Path, steps: Path) -> None:
    output = tmp_path / "out"
    for _ in range(2):
        done = suite(output, "--only", "good", "--only", "two-words", "--data-dir", "/data", steps=steps)
        assert done.returncode == 0
    assert (runs(output, "good"), runs(output, "two")) == (2, 2)
    assert sorted(path.name for path in (output / "logs").iterdir()) == ["good.log", "two-words.log"]
    assert "data in /data" in (output / "logs" / "two-words.log").read_text()


def test_a_step_that_takes_too_long_is_stopped_and_failed(tmp_path: Path) -> None:
    steps = tmp_path / "slow.sh"
    steps.write_text('STEPS=("slow|1|sleeps")\nrequire_gpu() { :; }\nstep_slow() { sleep 60; }\n')
    done = suite(tmp_path / "out", steps=steps)
    assert done.returncode == 1
    assert "stopped after 1 s" in done.stdout


def test_no_step_is_begun_that_may_not_end_in_time(tmp_path: Path, steps: Path) -> None:
    output = tmp_path / "out"
    done = suite(output, "--budget", "4", steps=steps)
    assert done.returncode == 3
    assert done.stdout.splitlines()[-1].startswith("left: good bad part tool two-words;")
    assert not any((output / "logs").iterdir())


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--colour", "red"], "unknown argument --colour"),
        (["--only"], "--only needs a value"),
        (["--only", "colour"], "there is no step colour; --list names them"),
        (["--budget", "soon"], "--budget is soon; give whole seconds"),
    ],
)
def test_a_wrong_argument_is_refused(tmp_path: Path, flags: list[str], sentence: str) -> None:
    done = suite(tmp_path / "out", *flags)
    assert done.returncode == 2
    assert sentence in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_tests_that_need_a_gpu_can_be_chosen() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "--collect-only", "-p", "no:cacheprovider"]
    files = ["tests/test_sampling.py", "tests/test_gpu_suite.py", "tests/test_engine_parts.py"]
    done = subprocess.run(
        [*command, "--only-cuda", *files], cwd=ROOT, capture_output=True, text=True, check=False
    )
    found = [line for line in done.stdout.splitlines() if "::" in line]
    assert any("test_sampling.py" in line for line in found)
    assert all("cuda" in line for line in found if "test_engine_parts.py" in line)
    assert not any("test_gpu_suite.py" in line for line in found)

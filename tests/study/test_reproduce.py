"""The study's command: shared between processes, killed at any moment, stopped by a budget."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from rotnet_fast import reproduce
from rotnet_fast.plain import duration
from rotnet_fast.protocols.result import format_table
from rotnet_fast.reproduce import ReproduceConfig, main

QUICK = ["--dataset", "digits", "--preset", "quickstart", "--scale", "0.05", "--limit-test", "40"]
FEW = ["--only", "table3/supervised", "table3/random-conv-running", "table3/rotnet-conv", "table1/3-conv1"]
FEW_CELLS = 6  # with the two pretrainings
ALL_CELLS = 115


def command(output: Path, *others: str) -> list[str]:
    return [sys.executable, "-m", "rotnet_fast.reproduce", *QUICK, "--output", str(output), *others]


def run(output: Path, *others: str) -> str:
    done = subprocess.run(command(output, *others), capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def found(output: Path) -> dict[str, Any]:
    """Key -> result, without timings."""
    results = {}
    for path in (output / "cells").glob("*.json"):
        result = json.loads(path.read_text())["result"]
        results[path.stem] = {
            k: v for k, v in result.items() if k not in ("images_per_second", "train_seconds")
        }
    return results


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    output = tmp_path_factory.mktemp("study") / "undisturbed"
    run(output, *FEW)
    results = found(output)
    assert len(results) == FEW_CELLS
    return results


def test_a_study_that_is_killed_again_and_again_comes_to_the_same_results(
    undisturbed: dict[str, Any], tmp_path: Path
) -> None:
    output = tmp_path / "killed"
    for lines in (1, 3, 6):  # killed at other places each time
        process = subprocess.Popen(
            command(output, *FEW), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
        )
        assert process.stdout is not None
        for _ in range(lines):
            process.stdout.readline()
        time.sleep(0.1)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    assert list((output / "runs").iterdir())
    finished = {path: path.stat().st_mtime_ns for path in (output / "cells").glob("*.json")}
    run(output, *FEW)
    assert found(output) == undisturbed
    assert {path: path.stat().st_mtime_ns for path in finished} == finished  # not computed again


def test_two_processes_share_the_cells(undisturbed: dict[str, Any], tmp_path: Path) -> None:
    output = tmp_path / "shared"
    processes = [
        subprocess.Popen(command(output, *FEW), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    outputs = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    counts = [int(re.findall(r"computed (\d+) cells", text)[0]) for text, _ in outputs]
    assert sum(counts) == FEW_CELLS
    lines = [line for text, _ in outputs for line in text.splitlines() if line.startswith("--- ")]
    for line in lines:
        assert re.match(rf"--- cell \d of {FEW_CELLS}, about \d+ (s|min) left: \w", line), line
    started = [line.partition(" left: ")[2] for line in lines]
    assert len(started) == len(set(started))
    assert found(output) == undisturbed


def test_a_time_budget_stops_cleanly_and_says_what_is_left(tmp_path: Path) -> None:
    text = run(tmp_path / "budget", "--time-budget", "0.05")
    left = re.findall(r"time budget exhausted; (\d+) cells in (\d+) groups are left", text)
    assert left
    assert 0 < int(left[0][0]) <= ALL_CELLS
    assert "run the same command again" in text


def test_ctrl_c_saves_and_prints_the_command_that_goes_on(tmp_path: Path) -> None:
    process = subprocess.Popen(
        command(tmp_path / "stopped"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("epoch"):
            break
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "resume with: python -m rotnet_fast.reproduce --dataset digits" in errors
    assert "Traceback" not in errors


def test_a_dry_run_prints_the_plan_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*QUICK, "--dry-run"]) == 0
    text = capsys.readouterr().out
    assert f"{ALL_CELLS} cells, {ALL_CELLS} to compute, in about" in text
    assert re.search(r"pretext, 4 blocks, eight, seed 0 +extras +1 +\d+ (s|min)", text)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("columns", [50, 80, 120])
def test_a_plan_is_narrower_than_the_terminal(columns: int) -> None:
    group = "conv1 nonlinear, conv2 nonlinear, conv3 nonlinear on pretext, 3 blocks, 0-90-180-270, seed 0"
    items = "table1, table2, table3, figure5a, figure5b"
    rows = [[group, items, "12", "3 h 20 min"], ["pixels", "extras", "1", "finished"]]
    fitted = reproduce.fit_plan(rows, columns)
    lines = format_table(["group", "for", "cells", "estimate"], fitted, numeric=(2, 3)).splitlines()
    assert max(map(len, lines)) < columns
    joined = [" ".join(" ".join(column).split()) for column in zip(*fitted, strict=True)]
    assert joined == [f"{group} pixels", f"{items} extras", "12 1", "3 h 20 min finished"]


def test_estimates_come_from_finished_cells(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = ["--output", str(tmp_path / "study")]
    assert main([*QUICK, *folder, "--only", "table3/random-conv-running"]) == 0
    for path in (tmp_path / "study" / "cells").glob("*.json"):
        content = json.loads(path.read_text())
        content["group_seconds"] *= 1000
        path.write_text(json.dumps(content))
    monkeypatch.setattr("rotnet_fast.study.estimate.measured_rate", lambda context: pytest.fail("measured"))
    capsys.readouterr()
    assert main([*QUICK, *folder, "--dry-run"]) == 0
    text = capsys.readouterr().out
    assert re.search(r"conv2 conv on an untrained network, seed 0 +table3 +1 +finished", text)
    assert re.search(rf"{ALL_CELLS} cells, {ALL_CELLS - 1} to compute, in about [\d.]+ h", text)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--scale", "0"], "scale is 0; it must lie in (0, 1]"),
        (["--scale", "1.5"], "scale is 1.5"),
        (["--seeds", "0"], "seeds is 0"),
        (["--headline-seeds", "0"], "headline-seeds is 0"),
        (["--seeds", "3", "--headline-seeds", "2"], "give --headline-seeds 3 or more, or omit it"),
        (["--only", "table9"], "only holds 'table9'; choose from table3, table1"),
        (["--time-budget", "-1"], "time-budget is -1"),
        (["--limit-test", "0"], "limit-test is 0"),
        (["--dataset", "folder"], "needs --data-dir"),
        (["--device", "gpu"], "device is gpu"),
        (["--device", "cpu", "--graph", "on"], "graph is on, which needs a GPU"),
    ],
)
def test_wrong_settings_are_refused_before_anything_is_loaded(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reproduce, "make_context", lambda config: pytest.fail("loaded"))
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


def test_help_answers_without_torch() -> None:
    program = (
        "import sys; from rotnet_fast.reproduce import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "print('torch' in sys.modules)"
    )
    text = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert text.splitlines()[-1] == "False"
    assert "--time-budget" in text


def test_results_of_every_scale_have_a_folder_of_their_own() -> None:
    assert str(ReproduceConfig().output_folder()) == "studies/paper-cifar10"
    assert str(ReproduceConfig(scale=0.05).output_folder()) == "studies/paper-cifar10-scale0.05"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"),
        (99, "99 s"),
        (100, "2 min"),
        (5900, "98 min"),
        (7200, "2 h"),
        (24000, "6 h 40 min"),
        (40000, "11 h"),
    ],
)
def test_durations_are_short(seconds: float, text: str) -> None:
    assert duration(seconds) == text

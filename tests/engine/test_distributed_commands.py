"""Processes of torchrun divide the work of an evaluation and of a study; the numbers are those of one."""

from __future__ import annotations

import contextlib
import io
import json
import shlex
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from ranks import on_ranks
from tiny import read_digits_once, tiny_config

from rotnet_fast import evaluate, reproduce
from rotnet_fast.pretrain import pretrain
from rotnet_fast.protocols.result import load_results

STUDY = shlex.split(
    "--dataset digits --preset quickstart --scale 0.05 --limit-test 40 "
    "--only table3/supervised table3/random-conv-running table3/rotnet-conv table1/3-conv1"
)
STUDY_CELLS = 6  # with the two pretrainings


def run(command: ModuleType, arguments: list[str]) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), read_digits_once():
        code = command.main(arguments)
    return code, out.getvalue(), err.getvalue()


def run_named(name: str, arguments: list[str]) -> tuple[int, str, str]:
    return run({"evaluate": evaluate, "reproduce": reproduce}[name], arguments)


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folder of a tiny pretraining, not to be changed."""
    folder = tmp_path_factory.mktemp("pretrained") / "run"
    with read_digits_once():
        pretrain(tiny_config(folder))
    return folder


@pytest.mark.parametrize("world", [2, 3])
def test_an_evaluation_in_several_processes_has_the_rows_of_one(
    world: int, pretrained: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(pretrained, tmp_path / "run"))
    arguments = [
        *["--checkpoint", str(folder), "--epochs", "1", "--device", "cpu", "--heads", "conv"],
        *["--random-init", "--fine-tune", "--supervised", "--knn", "--linear", "--batch-size", "16"],
    ]
    # One thread, as in the others: sums of several are rounded differently.
    ((code, _, _),) = on_ranks(1, run_named, "evaluate", arguments)
    assert code == 0
    (code, out, err), *others = on_ranks(world, run_named, "evaluate", arguments)
    assert (code, err) == (0, "")
    assert others == [(0, "", "")] * (world - 1)
    one, many = load_results(folder / "evaluate-001"), load_results(folder / "evaluate-002")
    assert len(one["cells"]) == 11
    assert many["cells"] == one["cells"]
    assert (one["environment"]["processes"], many["environment"]["processes"]) == (1, world)
    assert out.count("results: ") == 1
    trained = [
        {path.parent.name for path in (folder / n).glob("*/lock")} for n in ("evaluate-001", "evaluate-002")
    ]
    assert trained[0] == trained[1]
    assert len(trained[0]) == 5

    # Finished trainings are not repeated, whoever had made them.
    again = [*arguments, "--output", str(folder / "evaluate-002")]
    before = {path: path.stat().st_mtime_ns for path in (folder / "evaluate-002").glob("*/checkpoints/*")}
    assert [code for code, _, _ in on_ranks(2, run_named, "evaluate", again)] == [0, 0]
    assert load_results(folder / "evaluate-002")["cells"] == one["cells"]
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_failing_unit_of_an_evaluation_is_reported_by_its_process(pretrained: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(pretrained, tmp_path / "run"))
    arguments = [
        *["--checkpoint", str(folder), "--epochs", "1", "--device", "cpu", "--heads", "conv"],
        *["--random-init", "--output", str(tmp_path / "output")],
    ]
    broken = tmp_path / "output" / "random-init-running-statistics" / "checkpoints"
    broken.mkdir(parents=True)
    (broken / "last.pt").write_bytes(b"damaged")
    (code, out, err), other = on_ranks(2, run_named, "evaluate", arguments)
    assert (code, err) == (4, "")
    assert "1 of 3: heads on frozen features of conv2" in out
    assert other[0] == 4
    assert "has 1 checkpoint, but none that is usable" in other[2]
    assert not (tmp_path / "output" / "results.json").exists()


def found(output: Path) -> dict[str, Any]:
    """Key -> result, without timings."""
    timings = ("images_per_second", "train_seconds")
    return {
        path.stem: {k: v for k, v in json.loads(path.read_text())["result"].items() if k not in timings}
        for path in (output / "cells").glob("*.json")
    }


@pytest.mark.long
def test_a_study_in_several_processes_has_the_cells_of_one(tmp_path: Path) -> None:
    ((code, _, _),) = on_ranks(1, run_named, "reproduce", [*STUDY, "--output", str(tmp_path / "one")])
    assert code == 0
    arguments = [*STUDY, "--output", str(tmp_path / "two")]
    (code, out, err), (other_code, other_out, other_err) = on_ranks(2, run_named, "reproduce", arguments)
    assert (code, err, other_code, other_err) == (0, "", 0, "")
    assert found(tmp_path / "two") == found(tmp_path / "one")
    assert f"computed {STUDY_CELLS} cells" in out
    assert out.count("report: ") == 1
    assert (tmp_path / "two" / "RESULTS.md").exists()
    begun = [line for line in (out + other_out).splitlines() if "--- " in line]
    assert len(begun) == len({line.partition(" left: ")[2] for line in begun}) == STUDY_CELLS
    assert all(line.startswith("[process 1] ") for line in other_out.splitlines())
    assert "--- " in other_out


def test_a_dry_run_prints_one_plan(tmp_path: Path) -> None:
    arguments = [*STUDY, "--output", str(tmp_path / "study"), "--dry-run"]
    (code, out, _), other = on_ranks(2, run_named, "reproduce", arguments)
    assert (code, other) == (0, (0, "", ""))
    assert f"{STUDY_CELLS} cells, {STUDY_CELLS} to compute" in out
    assert not (tmp_path / "study").exists()

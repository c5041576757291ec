"""The pretraining command: what it prints, writes and returns."""

from __future__ import annotations

import json
import os
import shlex
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import read_digits_once

from rotnet_fast import evaluate
from rotnet_fast.engine import checkpoint
from rotnet_fast.engine.rotation_task import RotationTask
from rotnet_fast.engine.run_folder import RunFolder
from rotnet_fast.models.nin import NetworkInNetwork
from rotnet_fast.pretrain import PROGRAM, main, parse, warn_of_late_milestones
from rotnet_fast.rotations import EIGHT_ROTATIONS

TINY = shlex.split(
    "--preset quickstart --image-size 16 --limit-train 40 --limit-test 20 --blocks 3 --width 0.05 --epochs 2 "
    "--batch-size 16 --lr 0.05 --device cpu --precision fp32"
)


@pytest.fixture(autouse=True, scope="module")
def _digits() -> Iterator[None]:
    with read_digits_once():
        yield


@pytest.fixture
def output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder of a tiny run, relative to the working directory."""
    monkeypatch.chdir(tmp_path)
    return Path("the run")


def test_a_run_leaves_everything_that_it_promises(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*TINY, "--output", str(output)]) == 0
    printed = capsys.readouterr().out
    results = json.loads((output / "results.json").read_text())
    assert f"rotation accuracy {results['rotation_accuracy']:.2f} % on the 20 test images" in printed
    assert "images/s" in printed
    assert "training on cpu" in printed
    assert "precision fp32, compile none, graph off" in printed
    assert "\ncurves: tensorboard --logdir 'the run'\n" in printed
    assert "\nnext:\n  python -m rotnet_fast.evaluate 'the run' --images-per-class 1" in printed

    assert sorted(path.name for path in output.iterdir()) == [
        "checkpoints", "config.json", "lock", "metrics.jsonl", "results.json", "tensorboard",
    ]  # fmt: skip
    assert {path.name for path in (output / "tensorboard").iterdir()} == {"train", "test"}
    assert json.loads((output / "config.json").read_text())["settings"]["epochs"] == 2
    assert set(results["rotation_accuracy_by_degrees"]) == {"0", "90", "180", "270"}
    assert 0 <= results["rotation_accuracy"] <= 100
    assert results["images_per_second"] > 0
    assert 0 < results["data_wait"] < 1
    assert results["dataset"] == "handwritten digits (scikit-learn)"
    assert results["environment"]["torch"] == torch.__version__
    kinds = [json.loads(line)["kind"] for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert kinds == ["train", "train_epoch", "test_epoch"] * 2


def test_a_checkpoint_alone_rebuilds_the_network(output: Path) -> None:
    assert main([*TINY, "--output", str(output), "--rotations", "90", "270"]) == 0
    _, state = checkpoint.load_newest(output)
    config = state["config"]
    network = NetworkInNetwork(
        len(config["rotations"]), config["blocks"], config["width"], config["in_channels"]
    )
    network.load_state_dict(state["module"])
    assert network.classifier.out_features == 2


def test_eight_rotations_are_pretrained_and_evaluated(output: Path) -> None:
    degrees = [str(angle) for angle in EIGHT_ROTATIONS]
    assert main([*TINY, "--output", str(output), "--rotations", *degrees]) == 0
    results = json.loads((output / "results.json").read_text())
    assert list(results["rotation_accuracy_by_degrees"]) == degrees
    flags = "--layers conv1 --heads conv --epochs 1 --device cpu"
    assert evaluate.main(["--checkpoint", str(output), *shlex.split(flags)]) == 0


def test_a_second_run_in_the_same_folder_is_refused(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*TINY, "--output", str(output)]) == 0
    before = (output / "results.json").read_bytes()
    assert main([*TINY, "--output", str(output)]) == 2
    assert "already holds a run; add --resume auto" in capsys.readouterr().err
    assert (output / "results.json").read_bytes() == before


def test_scales_of_batch_norm_start_between_0_and_1_on_demand(output: Path) -> None:
    means = []
    for flags in ([], ["--uniform-gamma"]):
        folder = output / str(len(flags))
        assert main([*TINY, "--output", str(folder), *flags]) == 0
        module = checkpoint.load_newest(folder)[1]["module"]
        means.append(torch.cat([module[name] for name in module if name.endswith("bn.weight")]).mean())
    assert means[0] > 0.75 > means[1]


def test_results_call_the_data_set_as_they_are_told(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*TINY, "--output", str(output), "--dataset-name", "Digits (a copy)"]) == 0
    assert "test images of Digits (a copy)" in capsys.readouterr().out
    _, state = checkpoint.load_newest(output)
    assert "dataset_name" not in state["config"]


def test_milestones_beyond_the_last_epoch_are_pointed_out(capsys: pytest.CaptureFixture[str]) -> None:
    for flags, late in (
        (["--epochs", "60"], "60 80"),
        ([], ""),
        (["--epochs", "50", "--schedule", "cosine"], ""),
    ):
        warn_of_late_milestones(parse(flags))
        warning = (
            f"WARNING: milestones {late} never take effect in 60 epochs; choose others with --milestones\n"
        )
        assert capsys.readouterr().err == (warning if late else "")


def fails_in_training(error: BaseException) -> Callable[..., Any]:
    def views(self: RotationTask, *batch: Any) -> Any:
        raise error

    return views


def fail(arguments: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The command ends with this code and one sentence."""
    assert main(arguments) == code
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].startswith("error: ")
    assert message in lines[-1]


def test_missing_data_is_exit_code_3(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [*TINY, "--output", str(output), "--dataset", "folder", "--data-dir", "nowhere"]
    fail(arguments, 3, "nowhere", capsys)


def test_a_run_that_failed_before_training_does_not_occupy_its_folder(output: Path) -> None:
    assert main([*TINY, "--output", str(output), "--limit-train", "100000"]) == 2
    assert main([*TINY, "--output", str(output)]) == 0


def test_a_graph_is_refused_on_a_cpu(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fail([*TINY, "--output", str(output), "--graph", "on"], 2, "needs a GPU", capsys)


@pytest.mark.faults("all checkpoints damaged")
def test_damaged_checkpoints_are_exit_code_4(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*TINY, "--output", str(output)]) == 0
    for path in (output / "checkpoints").iterdir():
        path.write_bytes(b"")
    fail([*TINY, "--output", str(output), "--resume", "auto"], 4, "has 4 checkpoints, but none", capsys)


def test_divergence_is_exit_code_5(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fail([*TINY, "--output", str(output), "--lr", "1e30"], 5, "start again with a lower --lr", capsys)


@pytest.mark.faults("out of memory")
@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate"),
        RuntimeError("could not create a primitive"),
        MemoryError(),
    ],
    ids=["cuda", "cpu", "onednn", "python"],
)
def test_running_out_of_memory_is_exit_code_6(
    error: BaseException, output: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RotationTask, "views", fails_in_training(error))
    fail([*TINY, "--output", str(output)], 6, "--batch-size", capsys)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("a bug"),
        RuntimeError("could not create a primitive descriptor for a convolution"),
        OSError(5, "Input/output error"),
    ],
)
def test_a_bug_shows_its_traceback(error: Exception, output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RotationTask, "views", fails_in_training(error))
    with pytest.raises(type(error), match=str(error.args[-1])):
        main([*TINY, "--output", str(output)])


def test_an_unwritable_folder_is_exit_code_7(capsys: pytest.CaptureFixture[str]) -> None:
    fail([*TINY, "--output", "/dev/null/run"], 7, "cannot write /dev/null/run", capsys)


@pytest.mark.faults("disk full")
def test_a_full_disk_under_a_library_is_exit_code_7(
    output: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        RunFolder, "append_metrics", fails_in_training(OSError(28, "No space left on device"))
    )
    fail([*TINY, "--output", str(output)], 7, "No space left on device", capsys)


@pytest.mark.faults("signal at any step")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_the_printed_command_goes_on(
    number: int,
    code: int,
    output: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert main([*TINY, "--output", "whole"]) == 0
    views = RotationTask.views

    def interrupted(self: RotationTask, *batch: Any) -> Any:
        os.kill(os.getpid(), number)
        return views(self, *batch)

    with monkeypatch.context() as patch:
        patch.setattr(RotationTask, "views", interrupted)
        assert main([*TINY, "--output", str(output)]) == code
    lines = capsys.readouterr().err.splitlines()
    command = next(line for line in lines if line.startswith("saved; resume with: "))
    program = shlex.split(command.removeprefix("saved; resume with: "))
    assert program == [*shlex.split(PROGRAM), "--resume", str(output)]
    assert main(program[3:]) == 0
    hashes = [json.loads((Path(f) / "results.json").read_text())["state_hash"] for f in ("whole", output)]
    assert hashes[0] == hashes[1]

"""A run that was stopped or killed at any point ends like one that never was."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import FaultLog
from processes import before_step
from tiny import EPOCHS, STEPS_PER_EPOCH, read_digits_once, tiny_config

from rotnet_fast.config import PretrainConfig
from rotnet_fast.data import datasets, digits
from rotnet_fast.engine import checkpoint
from rotnet_fast.engine.rotation_task import RotationTask
from rotnet_fast.engine.signals import REQUESTS, WARNINGS, Interrupted
from rotnet_fast.errors import ArgumentError, CheckpointError
from rotnet_fast.pretrain import pretrain

SUPPORT = Path(__file__).parents[1] / "support"
STEPS = EPOCHS * STEPS_PER_EPOCH


@pytest.fixture(autouse=True, scope="module")
def _digits() -> Iterator[None]:
    with read_digits_once():
        yield


class Killed(BaseException):
    """Ends a run in this process as abruptly as an exception can."""


def die() -> None:
    raise Killed


def pretrain_until_killed(config: PretrainConfig, step: int) -> None:
    """Run ``config`` and kill it at the beginning of a training step."""
    with pytest.MonkeyPatch.context() as patch:
        before_step(patch, step, die)
        with pytest.raises(Killed):
            pretrain(config)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return pretrain(tiny_config(tmp_path_factory.mktemp("undisturbed") / "run"))


@pytest.mark.faults("killed before any step")
@pytest.mark.parametrize(("step", "every"), [*((step, 1) for step in range(STEPS)), (4, 2), (5, None)])
def test_a_run_killed_before_any_step_resumes_to_the_same_state(
    step: int, every: int | None, undisturbed: dict[str, Any], tmp_path: Path
) -> None:
    config = tiny_config(tmp_path / "run", resume="auto", checkpoint_every_steps=every)
    pretrain_until_killed(config, step)
    assert pretrain(config)["state_hash"] == undisturbed["state_hash"]


@pytest.mark.needs_dali
@pytest.mark.faults
@pytest.mark.long
def test_a_run_under_repeated_sigkill_ends_in_the_same_state(tmp_path: Path, fault_log: FaultLog) -> None:
    settings = ["--settings", "fp32 resident sgd", "bf16 dali muon"]
    script = subprocess.run(
        [
            sys.executable,
            SUPPORT / "kill_repeatedly.py",
            tmp_path,
            "--kills",
            "30",
            "--every",
            "4",
            *settings,
        ],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": f"{SUPPORT}{os.pathsep}{SUPPORT.parents[1]}"},
        timeout=300,
    )
    assert script.returncode in (0, 1), script.stderr
    counts = json.loads(script.stdout.splitlines()[-1])
    assert counts["kills"] == 30
    assert counts["operations"] > 15
    assert counts["finished"] > counts["operations"]
    lost = counts["unreadable"] + counts["different"] + counts["distinct hashes"] - counts["settings"]
    print(script.stdout)
    fault_log("SIGKILL at a random moment", counts["kills"], counts["kills"] - lost)
    fault_log("SIGKILL at an operation on a file", counts["operations"], counts["operations"] - lost)
    assert script.returncode == 0


@pytest.mark.faults("signal at any step")
@pytest.mark.parametrize("step", [0, 1, STEPS_PER_EPOCH - 1, STEPS - 1])
@pytest.mark.parametrize("number", [*REQUESTS, *WARNINGS])
def test_a_signal_saves_the_finished_step_and_the_run_resumes_from_there(
    number: signal.Signals,
    step: int,
    undisturbed: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = tiny_config(tmp_path / "run", checkpoint_every_steps=None)
    with monkeypatch.context() as patch:
        before_step(patch, step, lambda: os.kill(os.getpid(), number))
        with pytest.raises(Interrupted) as stopped:
            pretrain(config)
    assert stopped.value.exit_code == 128 + number
    saved = checkpoint.load(tmp_path / "run" / "checkpoints" / "last.pt")
    assert saved["epoch"] * STEPS_PER_EPOCH + saved["step"] == step + 1
    resumed = pretrain(tiny_config(tmp_path / "run", resume="auto"))
    assert resumed["state_hash"] == undisturbed["state_hash"]


@pytest.mark.faults("signal during an evaluation")
def test_a_signal_during_an_evaluation_stops_it_and_the_evaluation_is_repeated(
    undisturbed: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def evaluate(self: RotationTask) -> dict[str, float]:
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("the evaluation went on")

    with monkeypatch.context() as patch:
        patch.setattr(RotationTask, "evaluate", evaluate)
        with pytest.raises(Interrupted):
            pretrain(tiny_config(tmp_path / "run"))
    saved = checkpoint.load(tmp_path / "run" / "checkpoints" / "last.pt")
    assert (saved["epoch"], saved["step"]) == (0, STEPS_PER_EPOCH)
    resumed = pretrain(tiny_config(tmp_path / "run", resume="auto"))
    assert resumed["state_hash"] == undisturbed["state_hash"]


def test_handlers_are_restored_after_a_run(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    pretrain(tiny_config(tmp_path / "run"))
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def metrics(folder: Path) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl without what depends on time."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    timings = ("images_per_second", "data_wait")
    return [{name: value for name, value in line.items() if name not in timings} for line in lines]


@pytest.mark.faults("killed with metrics that no checkpoint knows of")
@pytest.mark.parametrize("step", [2, 5])
def test_metrics_of_a_resumed_run_have_every_line_once(step: int, tmp_path: Path) -> None:
    pretrain(tiny_config(tmp_path / "whole", log_every=1))
    # Killed before the first checkpoint, or saved after the first epoch and killed two steps later: the lines
    # of steps that are repeated must not be there twice.
    config = tiny_config(tmp_path / "cut", log_every=1, checkpoint_every_steps=None, resume="auto")
    pretrain_until_killed(config, step)
    assert len(metrics(tmp_path / "cut")) >= step
    pretrain(config)
    assert metrics(tmp_path / "cut") == metrics(tmp_path / "whole")


@pytest.mark.faults("damaged newest checkpoint")
def test_a_damaged_last_checkpoint_costs_steps_but_not_exactness(
    undisturbed: dict[str, Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    config = tiny_config(tmp_path / "run", resume="auto")
    pretrain_until_killed(config, 5)
    last = tmp_path / "run" / "checkpoints" / "last.pt"
    last.write_bytes(last.read_bytes()[:-1])
    assert pretrain(config)["state_hash"] == undisturbed["state_hash"]
    assert "last.pt" in caplog.text
    assert "epoch-0001.pt" in capsys.readouterr().out


@pytest.mark.faults("all checkpoints damaged")
def test_a_run_whose_checkpoints_are_all_damaged_is_not_silently_begun_again(tmp_path: Path) -> None:
    pretrain(tiny_config(tmp_path / "run"))
    for path in (tmp_path / "run" / "checkpoints").iterdir():
        path.write_bytes(b"x" * 1000)
    with pytest.raises(CheckpointError, match="has 4 checkpoints, but none"):
        pretrain(tiny_config(tmp_path / "run", resume="auto"))


def test_a_finished_run_can_be_resumed_without_training(
    undisturbed: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretrain(tiny_config(tmp_path / "run"))
    before_step(monkeypatch, 0, die)
    again = pretrain(tiny_config(tmp_path / "run", resume="auto"))
    assert again["state_hash"] == undisturbed["state_hash"]
    assert again["rotation_accuracy"] == undisturbed["rotation_accuracy"]


def test_a_named_checkpoint_starts_a_new_folder(undisturbed: dict[str, Any], tmp_path: Path) -> None:
    pretrain(tiny_config(tmp_path / "first"))
    epoch_1 = tmp_path / "first" / "checkpoints" / "epoch-0001.pt"
    second = pretrain(tiny_config(tmp_path / "second", resume=str(epoch_1)))
    assert second["state_hash"] == undisturbed["state_hash"]


def test_another_runs_folder_is_not_gone_on_in(tmp_path: Path) -> None:
    pretrain(tiny_config(tmp_path / "first"))
    pretrain(tiny_config(tmp_path / "second", seed=7))
    files = {path: path.read_bytes() for path in (tmp_path / "second").rglob("*") if path.is_file()}
    for resume in (tmp_path / "first", tmp_path / "first" / "checkpoints" / "epoch-0001.pt"):
        with pytest.raises(ArgumentError, match="second already holds a run"):
            pretrain(tiny_config(tmp_path / "second", resume=str(resume)))
    after = {path: path.read_bytes() for path in (tmp_path / "second").rglob("*") if path.is_file()}
    lock = tmp_path / "second" / "lock"  # of the last process that looked
    assert {**after, lock: b""} == {**files, lock: b""}


@pytest.mark.faults("killed after going on from an older checkpoint")
@pytest.mark.parametrize("step", [0, 1])
def test_a_run_that_goes_on_from_an_older_checkpoint_leaves_what_came_after(
    step: int, undisturbed: dict[str, Any], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    pretrain(tiny_config(run))
    lines = (run / "metrics.jsonl").read_text().splitlines()
    older = tiny_config(run, resume=str(run / "checkpoints" / "epoch-0001.pt"), checkpoint_every_steps=None)
    pretrain_until_killed(older, step)
    assert checkpoint.load_newest(run)[1]["epoch"] == 1
    assert pretrain(tiny_config(run, resume="auto"))["state_hash"] == undisturbed["state_hash"]
    kinds = [[json.loads(line)["kind"] for line in some] for some in (lines, (run / "metrics.jsonl").open())]
    assert kinds[0] == kinds[1]


@pytest.mark.parametrize(
    "change",
    [
        {"lr": 0.01},
        {"seed": 1},
        {"rotations": (0, 180)},
        {"width": 0.1},
        {"epochs": 5},
        {"flip_prob": 0.1},
        {"precision": "bf16"},
        {"uniform_gamma": True},
        {"optimizer": "muon"},
        {"warmup": 0.5},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_checkpoint_of_other_settings_is_refused_by_name(change: dict[str, Any], tmp_path: Path) -> None:
    pretrain(tiny_config(tmp_path / "run"))
    config = (tmp_path / "run" / "config.json").read_bytes()
    with pytest.raises(CheckpointError, match=f"{next(iter(change))} is .*here"):
        pretrain(tiny_config(tmp_path / "run", resume="auto", **change))
    assert (tmp_path / "run" / "config.json").read_bytes() == config


def test_automatic_precision_is_kept_as_the_one_it_stood_for(tmp_path: Path) -> None:
    chosen = pretrain(tiny_config(tmp_path / "run", precision="auto"))["precision"]
    assert checkpoint.load_newest(tmp_path / "run")[1]["config"]["precision"] == chosen
    again = pretrain(tiny_config(tmp_path / "run", precision=chosen, resume="auto"))
    assert again["precision"] == chosen


@pytest.mark.faults("data altered between runs")
def test_a_checkpoint_of_other_data_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretrain(tiny_config(tmp_path / "run"))

    def altered(data_dir: Path | None, image_size: int, progress: bool, bad_images: str) -> Any:
        raw = digits.load(data_dir, image_size, progress, bad_images)
        raw.train.images[0, 0, 0, 0] += 1
        return raw

    monkeypatch.setitem(datasets.DATASETS, "digits", altered)
    with pytest.raises(CheckpointError, match="data_fingerprint"):
        pretrain(tiny_config(tmp_path / "run", resume="auto"))


def test_settings_outside_the_recipe_may_change_on_resume(
    undisturbed: dict[str, Any], tmp_path: Path
) -> None:
    pretrain_until_killed(tiny_config(tmp_path / "run"), 4)
    config: PretrainConfig = tiny_config(tmp_path / "run", resume="auto", tensorboard=True, eval_every=2)
    resumed = pretrain(config)
    assert resumed["rotation_accuracy"] == undisturbed["rotation_accuracy"]


@pytest.mark.faults("killed before any step")
def test_bf16_resumes_exactly_too(tmp_path: Path) -> None:
    whole = pretrain(tiny_config(tmp_path / "whole", precision="bf16"))
    config = tiny_config(tmp_path / "cut", precision="bf16", resume="auto")
    pretrain_until_killed(config, 4)
    assert pretrain(config)["state_hash"] == whole["state_hash"]


@pytest.mark.faults("killed before any step")
@pytest.mark.parametrize("step", [1, 4])
def test_muon_and_a_warm_up_resume_exactly_too(step: int, tmp_path: Path) -> None:
    # Killed within the warm-up of four steps, and after it.
    recipe: dict[str, Any] = {"optimizer": "muon", "warmup": 4 / 3}
    whole = pretrain(tiny_config(tmp_path / "whole", **recipe))
    config = tiny_config(tmp_path / "cut", resume="auto", **recipe)
    pretrain_until_killed(config, step)
    assert pretrain(config)["state_hash"] == whole["state_hash"]


def test_the_callers_random_state_is_left_alone_and_has_no_say(
    undisturbed: dict[str, Any], tmp_path: Path
) -> None:
    torch.manual_seed(1234)
    before = torch.get_rng_state()
    assert pretrain(tiny_config(tmp_path / "run"))["state_hash"] == undisturbed["state_hash"]
    assert torch.equal(torch.get_rng_state(), before)

"""Several processes stop, fail and resume as one."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from processes import run_command
from ranks import on_ranks, torchrun
from tiny import EPOCHS, STEPS_PER_EPOCH, tiny_config

from rotnet_fast.config import PretrainConfig
from rotnet_fast.data import datasets, digits
from rotnet_fast.engine import checkpoint, trainer
from rotnet_fast.engine.rotation_task import RotationTask
from rotnet_fast.engine.run_folder import was_begun_by_this_job
from rotnet_fast.pretrain import parse, pretrain

STEPS = EPOCHS * STEPS_PER_EPOCH
FLAGS = shlex.split(
    "--preset quickstart --image-size 16 --limit-train 40 --limit-test 20 --blocks 3 --width 0.05 --epochs 2 "
    "--batch-size 16 --lr 0.05 --device cpu --precision fp32 --no-tensorboard"
)

LONG = [*FLAGS, "--epochs", "60", "--checkpoint-every-steps", "1"]
"""Long enough for kills to come in the middle: 180 lines of metrics."""


def my_rank() -> int:
    return int(os.environ["RANK"])


def before_step(patch: pytest.MonkeyPatch, number: int, action: Callable[[], None]) -> None:
    """Call ``action`` at the beginning of training step ``number`` (from 0) of the next run."""
    views, calls = RotationTask.views, 0

    def counting(self: RotationTask, *batch: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == number + 2:  # the first call warms up
            action()
        return views(self, *batch)

    patch.setattr(RotationTask, "views", counting)


class Killed(BaseException):
    """Ends all processes at the same place, as abruptly as an exception can."""


def pretrain_until_killed(config: PretrainConfig, step: int) -> None:
    """Run ``config`` and kill all processes at the beginning of a training step."""

    def die() -> None:
        raise Killed

    with pytest.MonkeyPatch.context() as patch:
        before_step(patch, step, die)
        with pytest.raises(Killed):
            pretrain(config)


@pytest.mark.faults("several processes killed before a step")
@pytest.mark.parametrize(("world", "steps"), [(2, [1, 4]), (3, [0, 2, 3, 5])], ids=["2", "3"])
def test_processes_killed_before_any_step_resume_to_the_same_state(
    world: int, steps: Sequence[int], tmp_path: Path
) -> None:
    whole = on_ranks(world, pretrain, tiny_config(tmp_path / "whole"))[0]
    for step in steps:
        config = tiny_config(tmp_path / str(step), resume="auto", log_every=4)
        on_ranks(world, pretrain_until_killed, config, step)
        assert on_ranks(world, pretrain, config)[0]["state_hash"] == whole["state_hash"]


def test_the_number_of_processes_may_change_when_a_run_is_resumed(tmp_path: Path) -> None:
    config = tiny_config(tmp_path / "run", resume="auto")
    on_ranks(3, pretrain_until_killed, config, 4)
    results = on_ranks(2, pretrain, config)[0]
    assert results["environment"]["processes"] == 2
    assert checkpoint.load_newest(tmp_path / "run")[1]["epoch"] == EPOCHS


def signal_the_last(patch: pytest.MonkeyPatch) -> None:
    if my_rank() == 1:
        before_step(patch, 1, lambda: os.kill(os.getpid(), signal.SIGTERM))


@pytest.mark.faults("signal to one of several processes")
def test_a_signal_to_one_process_stops_all_at_the_same_step(tmp_path: Path) -> None:
    arguments = [*FLAGS, "--output", str(tmp_path / "run")]
    whole = on_ranks(2, pretrain, parse([*FLAGS, "--output", str(tmp_path / "whole")]))[0]
    (code, out, err), second = on_ranks(2, run_command, arguments, signal_the_last)
    assert (code, second) == (143, (143, "", ""))
    lines = out.splitlines()
    for beginning in ("pretraining on digits", "data: handwritten digits", "training on cpu"):
        assert len([line for line in lines if line.startswith(beginning)]) == 1, out
    saved, stopped = err.splitlines()
    assert saved.startswith("saved; resume with: python -m rotnet_fast.pretrain --resume ")
    assert stopped == "stopped by SIGTERM"
    state = checkpoint.load(tmp_path / "run" / "checkpoints" / "last.pt")
    assert (state["epoch"], state["step"]) == (0, 2)
    (code, out, err), second = on_ranks(2, run_command, [*arguments, "--resume", "auto"])
    assert (code, err, second) == (0, "", (0, "", ""))
    assert "0 epochs and 2 steps done" in out
    assert f"rotation accuracy {whole['rotation_accuracy']:.2f} %" in out
    assert json.loads((tmp_path / "run" / "results.json").read_text())["state_hash"] == whole["state_hash"]


def with_a_fast_clock(config: PretrainConfig) -> tuple[dict[str, Any], list[str]]:
    """Results, and the names that this process saved under, where the last one's clock is fast."""
    names: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        save, clock = trainer.Trainer.save_checkpoint, time.monotonic

        def noting(self: trainer.Trainer, *saved: str) -> None:
            names.extend(saved)
            save(self, *saved)

        patch.setattr(trainer.Trainer, "save_checkpoint", noting)
        if my_rank() == 1:
            patch.setattr(trainer.time, "monotonic", lambda: clock() * 1e6)
        return pretrain(config), names


def test_clocks_that_differ_do_not_keep_processes_from_saving_together(tmp_path: Path) -> None:
    config = tiny_config(tmp_path / "run", checkpoint_every_steps=None, checkpoint_every_seconds=1000.0)
    (results, names), (_, others) = on_ranks(2, with_a_fast_clock, config)
    assert names == others
    assert names.count("last.pt") == STEPS + EPOCHS  # in mid-epoch too
    assert results["state_hash"] == on_ranks(2, pretrain, tiny_config(tmp_path / "plain"))[0]["state_hash"]


def test_metrics_of_resumed_processes_have_every_line_once(tmp_path: Path) -> None:
    def lines(name: str) -> list[dict[str, Any]]:
        text = (tmp_path / name / "metrics.jsonl").read_text()
        return [{**json.loads(line), "images_per_second": 0, "data_wait": 0} for line in text.splitlines()]

    on_ranks(3, pretrain, tiny_config(tmp_path / "whole", log_every=1))
    config = tiny_config(tmp_path / "cut", log_every=1, checkpoint_every_steps=None, resume="auto")
    on_ranks(3, pretrain_until_killed, config, 5)
    assert len(lines("cut")) > 5
    on_ranks(3, pretrain, config)
    assert lines("cut") == lines("whole")


def fail_with(error: BaseException) -> Any:
    def fail(*_: object) -> Any:
        raise error

    return fail


def no_memory_in_the_last(patch: pytest.MonkeyPatch) -> None:
    if my_rank() == 1:
        before_step(patch, 1, fail_with(MemoryError()))


def no_data_for_the_last(patch: pytest.MonkeyPatch) -> None:
    if my_rank() == 1:
        patch.setitem(datasets.DATASETS, "digits", fail_with(datasets_error()))


def datasets_error() -> Exception:
    from rotnet_fast.errors import DataError

    return DataError("the digits are gone")


def other_data_for_the_last(patch: pytest.MonkeyPatch) -> None:
    def altered(*arguments: Any) -> Any:
        raw = digits.load(*arguments)
        raw.train.images[0, 0, 0, 0] += 1
        return raw

    if my_rank() == 1:
        patch.setitem(datasets.DATASETS, "digits", altered)


def full_disk(patch: pytest.MonkeyPatch) -> None:
    from rotnet_fast import files

    def refuse(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    patch.setattr(files.os, "fsync", refuse)


@pytest.mark.faults("fault of one of several processes")
@pytest.mark.parametrize(
    ("flags", "prepare", "codes", "sentences"),
    [
        ("--epochs 0", (), (2, 2), ("epochs is 0", "")),
        ("--batch-size 1", (), (2, 2), ("batch-size is 1, fewer images than the 2 processes", "")),
        ("--lr 1e30", (), (5, 5), ("start again with a lower --lr", "")),
        ("--output /dev/null/run", (), (7, 7), ("cannot write /dev/null/run", "")),
        ("--limit-train 100000", (), (2, 2), ("limit-train is 100000", "")),
        ("", (full_disk,), (7, 7), ("No space left on device", "")),
        ("", (no_data_for_the_last,), (3, 3), ("", "the digits are gone")),
        ("", (other_data_for_the_last,), (2, 2), ("", "data_fingerprint is")),
        ("", (no_memory_in_the_last,), (8, 6), ("lost its connection to another", "ran out of memory")),
    ],
    ids=["flag", "batch", "loss", "folder", "limit", "disk", "no data", "other data", "memory"],
)
def test_a_failure_is_reported_once_by_the_process_that_met_it(
    flags: str,
    prepare: tuple[Callable[[pytest.MonkeyPatch], None], ...],
    codes: tuple[int, int],
    sentences: tuple[str, str],
    tmp_path: Path,
) -> None:
    arguments = [*FLAGS, "--output", str(tmp_path / "run"), *shlex.split(flags)]
    found = on_ranks(2, run_command, arguments, *prepare)
    assert tuple(code for code, _, _ in found) == codes
    for (_, _, err), sentence in zip(found, sentences, strict=True):
        assert sentence in err
        assert err.count("error: ") == (1 if sentence else 0)
        told = [line for line in err.splitlines() if not line.startswith("WARNING: ")]
        assert len(told) == (1 if sentence else 0)


@pytest.mark.faults("second run in a folder")
def test_a_folder_in_use_is_refused_once(tmp_path: Path) -> None:
    arguments = [*FLAGS, "--output", str(tmp_path / "run")]
    assert [code for code, _, _ in on_ranks(2, run_command, arguments)] == [0, 0]
    (code, _, err), other = on_ranks(2, run_command, arguments)
    assert (code, other) == (2, (2, "", ""))
    assert "already holds a run; add --resume auto" in err


# What torchrun itself does is tested with torchrun itself.


def workers_of(agent: int, attempt: int = 0) -> dict[int, int]:
    """Rank -> process id of the workers that a torchrun process started, or started again."""
    found = {}
    for child in Path(f"/proc/{agent}/task/{agent}/children").read_text().split():
        try:
            entries = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
        except OSError:
            continue  # it has just ended
        variables = dict(entry.split(b"=", 1) for entry in entries if b"=" in entry)
        if variables.get(b"TORCHELASTIC_RESTART_COUNT") == str(attempt).encode():
            found[int(variables[b"RANK"])] = int(child)
    return found


def wait_until(job: subprocess.Popen[str], is_so: Callable[[], bool]) -> None:
    """Wait for a job to get somewhere, but not for ever."""
    deadline = time.monotonic() + 120
    while not is_so():
        assert job.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)


def wait_for_lines(job: subprocess.Popen[str], log: Path, lines: int) -> None:
    wait_until(job, lambda: log.exists() and log.read_text().count("\n") >= lines)


@pytest.mark.faults("torchrun and its workers killed and stopped")
@pytest.mark.long
def test_killed_and_stopped_jobs_of_torchrun_lose_no_steps(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    log = folder / "metrics.jsonl"
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}

    program, environment = torchrun(2, *LONG, "--output", str(folder), restarts=1)
    with subprocess.Popen(program, env=environment, **pipes) as job:
        wait_for_lines(job, log, 10)
        os.kill(workers_of(job.pid)[1], signal.SIGKILL)
        # torchrun starts both again, and they resume by themselves; the next time, it gives up.
        wait_until(job, lambda: 0 in workers_of(job.pid, attempt=1))
        wait_for_lines(job, log, 60)
        os.kill(workers_of(job.pid, attempt=1)[0], signal.SIGKILL)
        killed = time.monotonic()
        out, err = job.communicate(timeout=60)
    assert time.monotonic() - killed < 60
    assert job.returncode != 0
    assert out.count("resuming from") == 1
    for rank in (0, 1):
        assert err.count(f"error: rank {rank} lost its connection to another process of this job") == 1
    assert "rotnet_fast/" not in err  # the one traceback is torchrun's own

    # A terminal sends Ctrl-C to all three, and torchrun sends it to its workers once more.
    program, environment = torchrun(2, *LONG, "--output", str(folder), "--resume", "auto")
    with subprocess.Popen(program, env=environment, start_new_session=True, **pipes) as job:
        wait_for_lines(job, log, 110)
        os.killpg(job.pid, signal.SIGINT)
        out, err = job.communicate(timeout=60)
    assert job.returncode != 0
    assert out.count("resuming from") == 1
    assert err.count("stopped by SIGINT") == 1
    (advice,) = [line for line in err.splitlines() if line.startswith("saved; resume with: ")]
    command_again = shlex.split(advice.partition(": ")[2])
    assert command_again[:5] == ["torchrun", "--nproc-per-node", "2", "-m", "rotnet_fast.pretrain"]
    assert "rotnet_fast/" not in err

    assert not (folder / "results.json").exists()
    on_ranks(2, pretrain, parse(command_again[5:]))  # sooner than by torchrun
    found = json.loads((folder / "results.json").read_text())
    whole = on_ranks(2, pretrain, parse([*LONG, "--output", str(tmp_path / "whole")]))[0]
    assert found["state_hash"] == whole["state_hash"]


def test_only_the_workers_of_the_same_torchrun_are_restarted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for begun in ("7", f"none agent {os.getppid()}", None):
        (tmp_path / "config.json").write_text(json.dumps({"job": begun}))
        for run_id in ("7", "8", "none"):
            monkeypatch.setenv("TORCHELASTIC_RUN_ID", run_id)
            assert was_begun_by_this_job(tmp_path) is (begun is not None and begun.startswith(run_id))
            assert not was_begun_by_this_job(tmp_path / "nowhere")
        monkeypatch.delenv("TORCHELASTIC_RUN_ID")
        assert not was_begun_by_this_job(tmp_path)


def restarted(patch: pytest.MonkeyPatch) -> None:
    patch.setenv("TORCHELASTIC_RUN_ID", "7")
    patch.setenv("TORCHELASTIC_RESTART_COUNT", "1")


def test_a_restart_before_the_first_checkpoint_still_resumes_what_was_asked_for(tmp_path: Path) -> None:
    arguments = [*FLAGS, "--output", str(tmp_path / "old")]
    assert run_command(arguments)[0] == 0
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "config.json").write_text(
        json.dumps({"job": "7", "settings": {"preset": "quickstart"}})
    )
    arguments = [*FLAGS, "--output", str(tmp_path / "new"), "--resume", str(tmp_path / "old")]
    (code, out, _), _ = on_ranks(2, run_command, arguments, restarted)
    assert code == 0
    assert f"resuming from {tmp_path / 'old'}" in out

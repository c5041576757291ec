"""Runs that are starved, stopped and locked out: they say so, lose nothing, and come to the same end."""

from __future__ import annotations

import ctypes
import json
import os
import re
import resource
import shlex
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from conftest import FaultLog
from image_files import encoded, pixels, write_jpegs
from processes import TINY, Command, before_step, in_a_process, limit_memory, lines, run_command, stop_before
from tiny import STEPS_PER_EPOCH, folder_config

from rotnet_fast.engine import checkpoint
from rotnet_fast.engine.run_folder import RunFolder
from rotnet_fast.errors import CheckpointError, DataError
from rotnet_fast.pretrain import pretrain

ROOT = Path(__file__).parents[2]


def end_of(run: Path) -> tuple[str, list[dict[str, Any]]]:
    """The final hash, and all metrics but those that tell the speed."""
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    metrics = [
        {k: v for k, v in line.items() if k not in ("images_per_second", "data_wait")} for line in found
    ]
    return json.loads((run / "results.json").read_text())["state_hash"], metrics


def assert_all_checkpoints_are_whole(run: Path, count: int) -> None:
    found = checkpoint.candidates(run)
    assert len(found) == count
    for path in found:
        checkpoint.load(path)
    assert not list(run.rglob("*.tmp"))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[dict[str, Any]]]:
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    assert in_a_process([*TINY, "--output", str(run)]).code == 0
    return end_of(run)


def flags_of(run: Path) -> list[str]:
    return [*TINY, "--output", str(run), "--resume", "auto"]


def fill_the_disk(function: str, call: int, run: Path, patch: pytest.MonkeyPatch) -> None:
    """From that call of a function on, files end ten bytes behind the end of metrics.jsonl."""
    owner, _, name = function.rpartition(".")
    target: Any = RunFolder if owner == "RunFolder" else checkpoint
    original, calls = getattr(target, name), 0

    def starved(*arguments: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == call:
            metrics = run / "metrics.jsonl"
            length = metrics.stat().st_size if metrics.exists() else 0
            resource.setrlimit(resource.RLIMIT_FSIZE, (length + 10, resource.RLIM_INFINITY))
        original(*arguments)

    patch.setattr(target, name, starved)


@pytest.mark.faults("disk full")
@pytest.mark.parametrize(
    ("function", "call", "name", "kept"),
    [
        ("RunFolder.write_config", 1, "config.json", 0),
        ("RunFolder.append_metrics", 1, "metrics.jsonl", 0),
        ("RunFolder.append_metrics", 6, "metrics.jsonl", 3),
        ("checkpoint.save", 1, "checkpoints/last.pt", 0),
        ("checkpoint.save", 2, "checkpoints/last.pt", 1),
        ("checkpoint.save", 4, "checkpoints/epoch-0001.pt", 1),
        ("checkpoint.save", 6, "checkpoints/last.pt", 3),
        ("RunFolder.write_results", 1, "results.json", 4),
    ],
)
def test_a_full_disk_costs_nothing_but_time(
    function: str, call: int, name: str, kept: int, undisturbed: Any, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    code, _, err = in_a_process(flags_of(run), partial(fill_the_disk, function, call, run))
    assert code == 7
    assert err == (
        f"error: cannot write {run / name}: File too large; "
        f"raise the limit of file sizes with ulimit -f, or choose another folder with --output\n"
    )
    assert_all_checkpoints_are_whole(run, kept)
    assert in_a_process(flags_of(run)).code == 0  # there is space again
    assert end_of(run) == undisturbed


@pytest.mark.faults
def test_a_run_that_gets_no_memory_says_what_to_lower_and_goes_on_later(
    tmp_path: Path, fault_log: FaultLog
) -> None:
    large = ["--width", "0.2", "--batch-size", "64", "--limit-train", "128"]
    whole, run = tmp_path / "whole", tmp_path / "run"
    assert in_a_process([*TINY, *large, "--output", str(whole)]).code == 0
    arguments = [*TINY, *large, "--output", str(run), "--resume", "auto"]
    assert in_a_process(arguments, partial(stop_before, 2, signal.SIGTERM)).code == 143
    last = run / "checkpoints" / "last.pt"
    before = last.read_bytes()
    limits = (0, 2, 8, 16, 48)
    told = r"error: the device ran out of memory( \(.+\))?; use a smaller --batch-size or --width\n"
    survived = 0
    for megabytes in limits:
        code, out, err = in_a_process(arguments, partial(limit_memory, megabytes))
        is_told = re.fullmatch(told, err) is not None
        survived += code == 6 and is_told and last.read_bytes() == before
        assert_all_checkpoints_are_whole(run, 3)
    assert "resuming from" in out  # with the most memory, it ran out in a training step
    fault_log("out of memory", len(limits), survived)
    assert in_a_process(arguments).code == 0
    assert end_of(run) == end_of(whole)


def without_privileges(patch: pytest.MonkeyPatch) -> None:
    """Let permissions hold for root, too."""
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # linux/capability.h: version 3, this thread
    assert ctypes.CDLL(None).capset(header, (ctypes.c_uint32 * 6)()) == 0


def lock_before(step: int, folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Make a folder read-only at the beginning of a training step."""
    without_privileges(patch)
    before_step(patch, step, lambda: folder.chmod(0o555))


@pytest.mark.faults("folder made read-only")
@pytest.mark.parametrize(
    ("folder", "step", "kept"), [("checkpoints", 0, 0), ("checkpoints", 4, 3), (".", 5, 4)]
)
def test_a_folder_that_becomes_read_only_is_named_and_the_run_goes_on_later(
    folder: str, step: int, kept: int, undisturbed: Any, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    code, _, err = in_a_process(flags_of(run), partial(lock_before, step, run / folder))
    assert code == 7
    assert err.startswith(f"error: cannot write {run / folder}/")
    assert "Permission denied; get permission to write there, or choose another folder with --output" in err
    code, _, err = in_a_process(flags_of(run), without_privileges)  # it still is
    assert code == 7
    assert "Permission denied" in err
    (run / folder).chmod(0o755)
    assert_all_checkpoints_are_whole(run, kept)
    assert in_a_process(flags_of(run)).code == 0
    assert end_of(run) == undisturbed


def wait_before(step: int, file: Path, patch: pytest.MonkeyPatch) -> None:
    """Stop at the beginning of a training step until there is a file."""

    def wait() -> None:
        while not file.exists():
            time.sleep(0.01)

    before_step(patch, step, wait)


@pytest.mark.faults("second run in a folder")
def test_a_second_run_in_a_folder_is_refused_and_does_the_first_no_harm(
    undisturbed: Any, tmp_path: Path
) -> None:
    run, sign = tmp_path / "run", tmp_path / "sign"
    first = Command(flags_of(run), partial(wait_before, 4, sign))
    first.wait_for(lambda: lines(run / "metrics.jsonl") == 6)  # four steps, and both lines of an epoch
    for arguments in (flags_of(run), [*TINY, "--output", str(run)]):
        code, _, err = in_a_process(arguments)
        assert code == 2
        assert f"output {run} is in use by another run (process {first.pid})" in err
    sign.touch()
    assert first.end().code == 0
    assert end_of(run) == undisturbed


@pytest.mark.faults
def test_a_stopped_program_saves_leaves_and_says_how_to_go_on(tmp_path: Path, fault_log: FaultLog) -> None:
    # Programs of their own, as a shell starts them; both at once, as most of their time goes into imports.
    epochs = ["--epochs", "20"]
    program = [sys.executable, "-m", "rotnet_fast.pretrain", *TINY, *epochs, "--output"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}  # as in_a_process has it
    jobs = {
        number: subprocess.Popen(
            [*program, str(tmp_path / number.name)], env=environment, stderr=subprocess.PIPE, text=True
        )
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
    }
    waiting, deadline = set(jobs), time.monotonic() + 120
    while waiting:
        assert time.monotonic() < deadline
        for number in [n for n in waiting if lines(tmp_path / n.name / "metrics.jsonl") >= 5]:
            jobs[number].send_signal(number)
            waiting.remove(number)
        time.sleep(0.01)
    assert in_a_process([*TINY, *epochs, "--output", str(tmp_path / "whole")]).code == 0
    for number, job in jobs.items():
        run = tmp_path / number.name
        err = job.communicate(timeout=30)[1]
        assert job.returncode == 128 + number
        saved, stopped = err.splitlines()[-2:]
        assert stopped == f"stopped by {number.name}"
        state = checkpoint.load(run / "checkpoints" / "last.pt")
        trained = [line for line in (run / "metrics.jsonl").read_text().splitlines() if '"train"' in line]
        assert state["epoch"] * STEPS_PER_EPOCH + state["step"] == len(trained)  # nothing of it is lost
        again = shlex.split(saved.removeprefix("saved; resume with: python -m rotnet_fast.pretrain "))
        assert in_a_process(again).code == 0
        fault_log(f"{number.name} to a program", 1, end_of(run) == end_of(tmp_path / "whole"))


def cut(image: Path) -> None:
    image.write_bytes(image.read_bytes()[:-100])


def replace(image: Path) -> None:
    image.write_bytes(encoded(255 - pixels(99, 16, 16) // 8, "JPEG"))


def add(image: Path) -> None:
    image.with_name("another.jpg").write_bytes(image.read_bytes())


@pytest.mark.faults("data altered between runs")
@pytest.mark.parametrize("loader", ["resident", pytest.param("dali", marks=pytest.mark.needs_dali)])
@pytest.mark.parametrize(
    ("alter", "error"),
    [(cut, DataError), (replace, CheckpointError), (add, CheckpointError), (Path.unlink, CheckpointError)],
    ids=["cut", "replace", "add", "remove"],
)
def test_altered_data_are_not_trained_on(alter: Any, error: type, loader: str, tmp_path: Path) -> None:
    images, run = write_jpegs(tmp_path / "images"), tmp_path / "run"
    config = folder_config(run, images, f"fp32 {loader} sgd")
    pretrain(config)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    alter(images / "train" / "dark" / "07.jpg")
    named = {cut: "07.jpg is truncated", replace: "data_fingerprint|content of files has changed"}
    with pytest.raises(error, match=named.get(alter, "data_fingerprint")):
        pretrain(config)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


@pytest.mark.faults("damaged checkpoint that was named")
def test_a_damaged_checkpoint_that_was_asked_for_is_refused(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert run_command([*TINY, "--output", str(run)]).code == 0
    epoch_1 = run / "checkpoints" / "epoch-0001.pt"
    content = bytearray(epoch_1.read_bytes())
    content[len(content) // 2] ^= 1
    epoch_1.write_bytes(content)
    code, out, err = run_command([*TINY, "--output", str(tmp_path / "new"), "--resume", str(epoch_1)])
    assert code == 4
    assert f"error: the checkpoint {epoch_1} is damaged: its SHA-256 digest does not match" in err
    assert "resuming from" not in out
    assert not (tmp_path / "new" / "config.json").exists()

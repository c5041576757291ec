"""Windows and macOS, as far as this machine can be either: without what their Python lacks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from image_files import encoded, pixels, write_tar
from pages import ROOT
from processes import TINY

from rotnet_fast import load_backbone

SCRIPT = ROOT / "tests" / "support" / "other_system.py"
RUN = [*TINY, "--epochs", "30"]


def started(*words: str | Path) -> subprocess.Popen[str]:
    """Python, on one thread, so that all runs add in one order."""
    return subprocess.Popen(
        [sys.executable, *map(str, words)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def ended(*words: str | Path) -> str:
    process = started(*words)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    return said


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Hash of the weights of a run on this system as it is."""
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    ended("-m", "rotnet_fast.pretrain", *RUN, "--output", folder)
    return str(load_backbone(folder).metadata["state_hash"])


# On macOS less is different.
@pytest.mark.parametrize("system", ["windows", pytest.param("macos", marks=pytest.mark.long)])
def test_a_run_is_refused_a_folder_in_use_and_resumes_after_a_kill_to_the_same_weights(
    system: str, tmp_path: Path, undisturbed: str
) -> None:
    run = tmp_path / "run"
    first = started(SCRIPT, system, "rotnet_fast.pretrain", *RUN, "--output", run)
    try:
        while not any((run / "checkpoints").glob("*.pt")):
            assert first.poll() is None, first.communicate()
            time.sleep(0.01)
        first.send_signal(signal.SIGSTOP)
        second = started(SCRIPT, system, "rotnet_fast.pretrain", *RUN, "--output", run)
        said, _ = second.communicate(timeout=300)
        assert second.returncode == 2
        assert f"is in use by another run (process {first.pid})" in said
    finally:
        first.kill()
        first.communicate()
    assert not (run / "results.json").exists(), "it was stopped too late to show anything"
    ended(SCRIPT, system, "rotnet_fast.pretrain", "--resume", run)
    assert load_backbone(run).metadata["state_hash"] == undisturbed


def test_tar_shards_are_read(tmp_path: Path) -> None:
    for half, first in (("train", 0), ("test", 100)):  # as many as TINY asks for
        members = {}
        for number in range(40):
            members[f"{number}.cls"] = str(number % 2).encode()
            members[f"{number}.png"] = encoded(pixels(first + number), "PNG")
        write_tar(tmp_path / "images" / half / "0.tar", members)
    flags = ("--dataset", "folder", "--data-dir", tmp_path / "images", "--epochs", "1")
    run = ("rotnet_fast.pretrain", *TINY, *flags, "--output", tmp_path / "run")
    assert "40 training images of 2 classes" in ended(SCRIPT, "windows", *run)


def test_the_checks_of_the_installation_pass() -> None:
    assert "All is well" in ended(SCRIPT, "windows", "rotnet_fast.doctor")

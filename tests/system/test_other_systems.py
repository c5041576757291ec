"""Windows and macOS, as far as this machine can be either: without what their Python lacks."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from other_system import LACKS
from pages import ROOT
from processes import TINY

from rotnet_fast import load_backbone

SCRIPT = ROOT / "tests" / "support" / "other_system.py"
RUN = [*TINY, "--epochs", "30"]


def started(system: str, *arguments: str | Path) -> subprocess.Popen[str]:
    words = [sys.executable, SCRIPT, system, *map(str, arguments)]
    return subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def ended(system: str, *arguments: str | Path) -> str:
    process = started(system, *arguments)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    return said


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Hash of the weights of a run on this system as it is."""
    from rotnet_fast import pretrain

    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    assert pretrain.main([*RUN, "--output", str(folder)]) == 0
    return str(load_backbone(folder).metadata["state_hash"])


@pytest.mark.parametrize("system", LACKS)
def test_a_run_is_refused_a_folder_in_use_and_resumes_after_a_kill_to_the_same_weights(
    system: str, tmp_path: Path, undisturbed: str
) -> None:
    run = tmp_path / "run"
    first = started(system, "rotnet_fast.pretrain", *RUN, "--output", run)
    try:
        while not any((run / "checkpoints").glob("*.pt")):
            assert first.poll() is None, first.communicate()
            time.sleep(0.01)
        first.send_signal(signal.SIGSTOP)
        second = started(system, "rotnet_fast.pretrain", *RUN, "--output", run)
        said, _ = second.communicate(timeout=300)
        assert second.returncode == 2
        assert f"is in use by another run (process {first.pid})" in said
    finally:
        first.kill()
        first.communicate()
    assert not (run / "results.json").exists(), "it was stopped too late to show anything"
    ended(system, "rotnet_fast.pretrain", "--resume", run)
    assert load_backbone(run).metadata["state_hash"] == undisturbed


def test_the_checks_of_the_installation_pass() -> None:
    assert "All is well" in ended("windows", "rotnet_fast.doctor")

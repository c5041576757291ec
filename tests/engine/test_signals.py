"""A signal that arrives during an import waits for it: a module that is half executed stays broken."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from rotnet_fast.engine import signals
from rotnet_fast.engine.signals import Interrupted, StopSignals

SLOW = """
import time
from pathlib import Path
Path(__file__).with_suffix(".begun").touch()
for _ in range({rounds}):
    time.sleep(0.01)
whole = True
"""


def import_slowly(folder: Path, name: str, rounds: int) -> None:
    (folder / f"{name}.py").write_text(SLOW.format(rounds=rounds))
    begun = folder / f"{name}.begun"

    def interrupt() -> None:
        while not begun.exists():
            time.sleep(0.001)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        __import__(name)
        thread.join()
        time.sleep(10)  # interrupted here
    finally:
        thread.join()


def test_an_import_is_finished_before_the_work_is_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    with StopSignals() as stop:
        with pytest.raises(Interrupted, match="SIGTERM"), stop.interruptible():
            import_slowly(tmp_path, "imported_slowly", rounds=20)
        stop.forget()
    assert sys.modules["imported_slowly"].whole


def test_an_import_that_does_not_end_is_interrupted_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(signals, "_LONGEST_IMPORT", 0.1)
    with StopSignals() as stop:
        with pytest.raises(Interrupted), stop.interruptible():
            import_slowly(tmp_path, "imported_for_ever", rounds=6000)
        stop.forget()
    assert "imported_for_ever" not in sys.modules


def test_a_handler_that_python_did_not_set_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    # As in a program that embeds Python and had its own handler before.
    before = signal.getsignal(signal.SIGTERM)
    known = signal.getsignal
    monkeypatch.setattr(
        signal, "getsignal", lambda number: None if number == signal.SIGTERM else known(number)
    )
    with StopSignals():
        assert known(signal.SIGTERM) is before
        assert known(signal.SIGINT) != before
    assert known(signal.SIGTERM) is before

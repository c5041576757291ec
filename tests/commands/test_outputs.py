"""Folders that a refused command leaves as they were, and locks of folders that are gone."""

from __future__ import annotations

import os
import shutil
import threading
import time
from pathlib import Path

import pytest

from rotnet_fast.engine.run_folder import FileLock, check_output, claimed
from rotnet_fast.errors import ArgumentError, CannotWriteError
from rotnet_fast.files import make_folder
from rotnet_fast.study.store import Results


def content(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_a_folder_in_which_nothing_was_begun_is_removed_with_those_above_it(tmp_path: Path) -> None:
    with claimed(tmp_path / "a" / "b", False):
        assert content(tmp_path) == ["a", "a/b", "a/b/checkpoints", "a/b/lock"]
    assert content(tmp_path) == []


def test_a_folder_that_was_there_before_stays_with_all_it_holds(tmp_path: Path) -> None:
    (tmp_path / "mine" / "checkpoints").mkdir(parents=True)
    (tmp_path / "mine" / "notes").write_text("keep")
    with pytest.raises(ArgumentError), claimed(tmp_path / "mine", False):
        raise ArgumentError("a wrong one")
    assert content(tmp_path) == ["mine", "mine/checkpoints", "mine/notes"]


def test_a_run_that_was_begun_stays(tmp_path: Path) -> None:
    with claimed(tmp_path / "run", False) as run:
        run.write_config({"settings": {}})
    assert content(tmp_path / "run") == ["checkpoints", "config.json", "lock"]


def test_who_waited_for_a_lock_that_was_removed_does_not_get_it(tmp_path: Path) -> None:
    with claimed(tmp_path / "run", False):
        late = FileLock(tmp_path / "run" / "lock")
        assert not late.take()
    assert not late.take()  # its file is free, but is no longer the folder's
    late.close()


def test_a_folder_that_can_be_written_to_is_not_made_by_the_check(tmp_path: Path) -> None:
    check_output(tmp_path / "a" / "b")
    assert content(tmp_path) == []


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CannotWriteError, match=r"file: it is a file, not a folder; .*--output"):
        check_output(tmp_path / "file")
    with pytest.raises(CannotWriteError, match="Not a directory"):
        check_output(tmp_path / "file" / "run")
    assert content(tmp_path) == ["file"]


def test_a_folder_behind_one_that_may_not_be_entered_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exists(self: Path) -> bool:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "exists", exists)
    with pytest.raises(CannotWriteError, match="Permission denied"):
        check_output(tmp_path / "locked" / "run")


def test_a_folder_is_made_although_another_command_removes_an_empty_one_above_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mkdir, removed = os.mkdir, []

    def mkdir_too_late(name: str, *, dir_fd: int) -> None:
        if name == "run" and not removed:
            removed.append(name)
            (tmp_path / "runs").rmdir()
        mkdir(name, dir_fd=dir_fd)

    monkeypatch.setattr(os, "mkdir", mkdir_too_late)
    make_folder(tmp_path / "runs" / "run")
    assert removed
    assert (tmp_path / "runs" / "run").is_dir()


def test_who_waits_for_a_lock_of_a_study_that_is_removed_gets_a_new_one(tmp_path: Path) -> None:
    results, entered = Results(tmp_path / "study"), threading.Event()

    def wait() -> None:
        with Results(tmp_path / "study").waiting_lock("report"):
            entered.set()

    with results.waiting_lock("report"):
        waiting = threading.Thread(target=wait, daemon=True)
        waiting.start()
        time.sleep(0.2)
        shutil.rmtree(tmp_path / "study")
    assert entered.wait(timeout=20)
    waiting.join()

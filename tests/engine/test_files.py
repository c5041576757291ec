"""Files are whole or not there, and nothing is written, cut, made or removed through a symbolic link."""

from __future__ import annotations

import errno
import os
import resource
import signal
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tiny import read_digits_once, tiny_config

from rotnet_fast.engine.run_folder import FileLock
from rotnet_fast.errors import CannotWriteError
from rotnet_fast.export import ExportConfig, export
from rotnet_fast.files import (
    append_line,
    cannot_read,
    cannot_write,
    cut_off,
    link_atomically,
    make_folder,
    open_plain,
    open_to_append,
    replacing,
    resolve_path,
    temporary_path,
    write_atomically,
)
from rotnet_fast.pretrain import pretrain
from rotnet_fast.study.settings import Seeds
from rotnet_fast.study.store import Results

REFUSED = "is a symbolic link, and nothing is written through links; replace the link by a file or folder"


@pytest.fixture(autouse=True, scope="module")
def _digits() -> Iterator[None]:
    with read_digits_once():
        yield


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """A folder that no run may touch, with a file in it."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (folder / "precious").write_text("precious\n")
    return folder


def contents(folder: Path) -> dict[str, tuple[int, bytes | str | None]]:
    """Everything below a folder: its time of change, and what it holds or points to."""
    found: dict[str, tuple[int, bytes | str | None]] = {}
    for path in sorted(folder.rglob("*")):
        held = os.readlink(path) if path.is_symlink() else None if path.is_dir() else path.read_bytes()
        found[str(path.relative_to(folder))] = (path.lstat().st_mtime_ns, held)
    return found


_changed: list[str] | None = None


def _note_changes(event: str, arguments: tuple[Any, ...]) -> None:
    """A hook of the interpreter, which is told of every file before it is opened; it cannot be removed."""
    if _changed is None:
        return
    if event in ("os.mkdir", "os.rename", "os.remove", "os.link", "os.symlink", "os.truncate"):
        _changed.append(str(arguments[1 if event in ("os.rename", "os.link", "os.symlink") else 0]))
    is_path = event == "open" and not isinstance(arguments[0], int)  # or a descriptor, opened before
    if is_path and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        _changed.append(os.fsdecode(arguments[0]))


sys.addaudithook(_note_changes)


@contextmanager
def watched_changes() -> Iterator[list[str]]:
    """Context in which paths that anything in this process opens for writing, makes or removes are noted."""
    global _changed
    _changed = found = []
    try:
        yield found
    finally:
        _changed = None


def append(path: Path) -> None:
    append_line(path, "more")


def take_lock(path: Path) -> None:
    FileLock(path).take()


@pytest.mark.parametrize("write", [append, take_lock, lambda path: cut_off(path, 2)])
def test_a_file_that_is_changed_in_place_must_not_be_a_link(
    write: Callable[[Path], None], tmp_path: Path, elsewhere: Path
) -> None:
    link = tmp_path / "file"
    link.symlink_to(elsewhere / "precious")
    with pytest.raises(CannotWriteError, match=f"cannot write {link}: {link} {REFUSED}"):
        write(link)
    assert (elsewhere / "precious").read_text() == "precious\n"


@pytest.mark.parametrize("place", ["precious", "new"])
def test_a_link_in_the_place_of_a_file_or_of_its_temporary_name_is_replaced_not_followed(
    place: str, tmp_path: Path, elsewhere: Path
) -> None:
    before = contents(elsewhere)
    path = tmp_path / "last.pt"
    for link in (path, temporary_path(path)):
        link.symlink_to(elsewhere / place)
    write_atomically(path, b"whole")
    assert (path.is_symlink(), path.read_bytes()) == (False, b"whole")
    for link in (tmp_path / "best.pt", temporary_path(tmp_path / "best.pt")):
        link.symlink_to(elsewhere / place)
    link_atomically(path, tmp_path / "best.pt")
    assert path.samefile(tmp_path / "best.pt")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["best.pt", "elsewhere", "last.pt"]
    assert contents(elsewhere) == before


@pytest.mark.parametrize("depth", ["", "deeper"])
@pytest.mark.parametrize(
    "write",
    [
        pytest.param(append, id="append"),
        pytest.param(take_lock, id="lock"),
        pytest.param(lambda path: write_atomically(path, b"new"), id="replace"),
        pytest.param(lambda path: link_atomically(path.parent / "precious", path), id="link"),
    ],
)
def test_a_folder_that_is_a_link_is_not_written_through_however_deep_it_lies(
    write: Callable[[Path], None], depth: str, tmp_path: Path, elsewhere: Path
) -> None:
    (elsewhere / "deeper").mkdir()
    (elsewhere / "deeper" / "precious").write_text("precious\n")
    before = contents(elsewhere)
    (tmp_path / "checkpoints").symlink_to(elsewhere)
    with pytest.raises(CannotWriteError, match=f"{tmp_path / 'checkpoints'} {REFUSED}"):
        write(tmp_path / "checkpoints" / depth / "precious")
    assert contents(elsewhere) == before


def test_a_folder_is_not_made_through_a_link(tmp_path: Path, elsewhere: Path) -> None:
    (tmp_path / "runs").symlink_to(elsewhere)
    for path in (tmp_path / "runs", tmp_path / "runs" / "a" / "b"):
        with pytest.raises(OSError, match="is a symbolic link"):
            make_folder(path)
    make_folder(tmp_path / "a" / "b")
    make_folder(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()
    assert [entry.name for entry in elsewhere.iterdir()] == ["precious"]


def test_a_folder_that_becomes_a_link_while_a_file_is_written_is_not_followed(
    tmp_path: Path, elsewhere: Path
) -> None:
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    before = contents(elsewhere)
    with replacing(folder / "last.pt") as file:
        folder.rename(tmp_path / "moved")
        folder.symlink_to(elsewhere)
        file.write(b"whole")
    assert (tmp_path / "moved" / "last.pt").read_bytes() == b"whole"
    assert contents(elsewhere) == before


def test_a_link_that_appears_at_the_last_moment_is_not_followed(
    tmp_path: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(elsewhere)
    unlink = os.unlink

    def unlink_and_plant(name: str, *, dir_fd: int) -> None:
        unlink(name, dir_fd=dir_fd)
        os.symlink(elsewhere / "precious", name, dir_fd=dir_fd)

    path = tmp_path / "last.pt"
    temporary_path(path).touch()
    monkeypatch.setattr(os, "unlink", unlink_and_plant)
    with pytest.raises(CannotWriteError, match="File exists"):
        write_atomically(path, b"new")
    assert contents(elsewhere) == before


def test_what_the_user_named_may_be_a_link_or_lie_behind_one(
    tmp_path: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "runs").symlink_to(elsewhere)
    assert resolve_path(tmp_path / "runs" / "new") == elsewhere / "new"
    assert resolve_path(elsewhere / "new") == elsewhere / "new"
    monkeypatch.chdir(tmp_path)
    assert resolve_path(Path("a/b")) == Path("a/b")


@pytest.mark.parametrize("opened", [open_plain, open_to_append])
def test_what_is_no_plain_file_is_refused_without_waiting_for_it(
    opened: Callable[[Any], int], tmp_path: Path
) -> None:
    def waited(number: int, frame: object) -> None:
        raise AssertionError("it waits for another process")

    signal.signal(signal.SIGALRM, waited)
    signal.alarm(10)
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", Path("/dev/null")):
        with pytest.raises(OSError, match=f"{path} is no plain file"):
            opened(path)
    signal.alarm(0)


def test_processes_that_write_one_file_at_once_do_not_meet(tmp_path: Path) -> None:
    with replacing(tmp_path / "file", is_shared=True) as one:
        with replacing(tmp_path / "file", is_shared=True) as other:
            other.write(b"other")
        one.write(b"one")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("file", b"one")]


@pytest.mark.parametrize(
    "name", ["metrics.jsonl", "lock", "checkpoints", "checkpoints/.last.pt.tmp", "config.json", "tensorboard"]
)
def test_a_run_folder_with_a_link_in_it_never_leads_a_run_out_of_it(
    name: str, tmp_path: Path, elsewhere: Path
) -> None:
    run = tmp_path / "run"
    (run / name).parent.mkdir(parents=True)
    is_folder = name in ("checkpoints", "tensorboard")
    (run / name).symlink_to(elsewhere if is_folder else elsewhere / "precious")
    if name == "config.json":  # one that is read is refused unless it is that of a pretraining
        (elsewhere / "precious").write_text('{"settings": {"preset": "quickstart"}}')
    before = contents(elsewhere)
    config = tiny_config(run, tensorboard=name == "tensorboard", resume="auto", epochs=1)
    if name in ("config.json", "checkpoints/.last.pt.tmp"):  # replaced, as every content of theirs is
        pretrain(config)
        assert not (run / name).is_symlink()
    else:
        with pytest.raises(CannotWriteError, match=f"{run / name} {REFUSED}"):
            pretrain(config)
    assert contents(elsewhere) == before


def test_a_study_does_not_leave_its_folder_either(tmp_path: Path, elsewhere: Path) -> None:
    before = contents(elsewhere)
    for name in ("cells", "locks", "runs", "work"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / name).symlink_to(elsewhere)
        with pytest.raises(CannotWriteError, match=f"{folder / name} {REFUSED}"):
            Results(folder).begin(settings=None, seeds=Seeds())  # type: ignore[arg-type]  # never looked at
    assert contents(elsewhere) == before


def test_a_run_writes_nothing_outside_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    surrounding = tmp_path / "home"
    (surrounding / "here").mkdir(parents=True)
    (surrounding / "neighbour").write_text("neighbour")
    (surrounding / "runs").mkdir()
    (surrounding / "linked").symlink_to(surrounding / "runs")  # the user's choice
    monkeypatch.chdir(surrounding / "here")
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.setattr(tempfile, "tempdir", None)
    for name in ("HOME", "TMPDIR", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, str(surrounding))
    before = contents(surrounding)
    with watched_changes() as changed:
        pretrain(tiny_config(Path("../linked/run"), tensorboard=True, epochs=1))
        export(ExportConfig(surrounding / "linked" / "run"))
    after = contents(surrounding)
    run = surrounding / "runs" / "run"
    assert (run / "export" / "model.safetensors").is_file()
    for name in before.keys() | after.keys():
        if name != "runs" and not name.startswith("runs/run"):
            assert before.get(name) == after.get(name), name
    # Names without a folder are those inside one that is open already: see the tests above.
    assert ".model.safetensors.tmp" in changed
    absolute = [Path(path) for path in changed if path.startswith("/")]
    assert [path for path in absolute if not path.is_relative_to(run) and str(path) != os.devnull] == []


@pytest.mark.parametrize(
    ("limit", "most", "remedy"),
    [
        (256, resource.RLIM_INFINITY, "raise it with `ulimit -n 4096` in"),
        (256, 1000, "raise it with `ulimit -n 1000` in"),
        (8192, 1 << 20, "raise it with `ulimit -n 32768` in"),
        (1024, 1024, "the administrator can raise it"),
    ],
)
def test_of_too_many_open_files_the_remedy_is_one_that_can_be_done(
    limit: int, most: int, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (limit, most))
    said = cannot_read("x.tar", OSError(errno.EMFILE, "Too many open files"), "repair it")
    assert said.startswith(
        f"x.tar cannot be opened, as this process has {limit} files open, its limit; " + remedy
    )
    said = cannot_read("x.tar", OSError(errno.ENFILE, "Too many open files in system"), "repair it")
    assert said.endswith("too many files are open on this machine; end other programs")
    said = cannot_read("x.tar", OSError(errno.EIO, "Input/output error"), "repair it")
    assert said == "x.tar cannot be read ([Errno 5] Input/output error); repair it"
    said = str(cannot_write("last.pt", OSError(errno.EMFILE, "Too many open files")))
    assert f"cannot write last.pt, as this process has {limit} files open, its limit; {remedy}" in said


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EBADF, errno.ENOTSUP])
def test_a_folder_that_cannot_be_flushed_is_written_to_all_the_same(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flush = os.fsync

    def refuse(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", refuse)
    write_atomically(tmp_path / "file", b"content")
    assert (tmp_path / "file").read_bytes() == b"content"
    monkeypatch.setattr(sys.modules["rotnet_fast.files"], "_CANNOT_FLUSH", ())
    with pytest.raises(CannotWriteError, match=os.strerror(number)):
        write_atomically(tmp_path / "file", b"other")

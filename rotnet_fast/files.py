"""Files that are whole or not there, written and changed through no symbolic link.

A command writes into folders that the user named, and nowhere else. Those may be links, or lie behind some:
:func:`resolve_path` gives their real names once, where a path enters the program. Whatever is made below them
is reached from the root folder on by names that are no links, so that one which somebody put into a run
folder never leads a write to another place. The check cannot be outrun: each folder is
opened by its name inside the one that is open already, and the file by its name inside the last.

Importing this module does not import torch.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from rotnet_fast.errors import ArgumentError, CannotWriteError

_FOLDER = os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# Passing through a folder does not take the right to list it, where the system makes the difference.
_PASS = _FOLDER | getattr(os, "O_PATH", os.O_RDONLY)
_PLAIN = os.O_NONBLOCK | os.O_CLOEXEC  # opening a FIFO would wait for its other end


def named(path: str | os.PathLike[str], argument: str = "path") -> Path:
    """The path that a user means: ``~`` and ``~name`` at its beginning are home folders, as in a shell.

    Every path of a user passes through here: settings by `rotnet_fast.settings`, those of functions in these.

    Args:
        path: as the user gave it; it need not exist. A name of nobody stays as it is.
        argument: what errors call it.

    Raises:
        ArgumentError: an empty text, which would be the current folder.
    """
    text = os.fspath(path)
    if not text:
        raise ArgumentError(f"{argument} is empty; give a path, such as . for the current folder")
    if not text.startswith("~"):
        return path if isinstance(path, Path) else Path(path)
    return Path(os.path.expanduser(text))


def resolve_path(path: Path) -> Path:
    """The same file or folder by a name without symbolic links; ``path`` itself where it has none.

    Args:
        path: as the user gave it, see :func:`named`; it need not exist.
    """
    path = named(path)
    real = os.path.realpath(path)
    return path if real == os.path.abspath(path) else Path(real)


def make_folder(path: Path) -> None:
    """Make a folder and those above it where they are missing.

    Raises:
        OSError: it cannot be made, or a symbolic link is on the way or in its place.
    """
    for _ in range(10):
        # Another command may remove an empty folder above it, which it made for nothing, at this very moment.
        with suppress(FileNotFoundError), _entered(path, make=True):
            return
    with _entered(path, make=True):
        pass


@contextmanager
def replacing(path: Path, is_shared: bool = False) -> Iterator[BinaryIO]:
    """Write a file under a temporary name in its folder and give it its own name when it is whole.

    The content is flushed to the disk before the file gets its name, and the folder after it, so that a crash
    or a loss of power at any moment leaves the old content or the new. Whatever ends the block early (an
    error, Ctrl-C) leaves the old file, or none. A link in the place of ``path`` is replaced, not followed.

    Args:
        path: the file to make or replace, in a folder that is there.
        is_shared: several processes may write this file at once: the temporary name is a new one each time.
            Without it there must be one writer at a time (a run folder is locked), and the name is that of
            :func:`temporary_path`, so that what a killed process left behind is replaced by the next write.

    Yields:
        The temporary file, open for writing.

    Raises:
        OSError: the disk is full, the folder is read-only or behind a symbolic link, ...
    """
    temporary = temporary_path(path).name
    if is_shared:
        temporary = f"{path.name}.{secrets.token_hex(8)}.part"
    with _entered(path.parent) as folder:
        try:
            with suppress(FileNotFoundError):
                os.unlink(temporary, dir_fd=folder)
            # Not tempfile.mkstemp: its files are readable by their owner alone, and folders are shared.
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            with os.fdopen(os.open(temporary, flags, 0o666, dir_fd=folder), "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path.name, src_dir_fd=folder, dst_dir_fd=folder)
        except BaseException:
            with suppress(OSError):
                os.unlink(temporary, dir_fd=folder)
            raise
        _flush(folder)


def link_file(source: str, path: Path) -> None:
    """Give a file another name in its folder, in place of what had it; durable as :func:`replacing` is.

    Args:
        source: the file's present name in that folder.
        path: the new one.

    Raises:
        OSError: the file system has no hard links, ...; ``path`` is as it was.
    """
    temporary = temporary_path(path).name
    with _entered(path.parent) as folder:
        with suppress(FileNotFoundError):
            os.unlink(temporary, dir_fd=folder)
        os.link(source, temporary, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=False)
        os.replace(temporary, path.name, src_dir_fd=folder, dst_dir_fd=folder)
        with suppress(FileNotFoundError):  # where both were the same file already, replacing does nothing
            os.unlink(temporary, dir_fd=folder)
        _flush(folder)


def open_to_append(path: Path) -> int:
    """Descriptor of a plain file to be read, appended to and cut; it is made where it is missing.

    Raises:
        OSError: it cannot be opened, is a symbolic link or behind one, or is no plain file.
    """
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | _PLAIN
    with _entered(path.parent) as folder:
        try:
            descriptor = os.open(path.name, flags, 0o666, dir_fd=folder)
        except OSError as error:
            raise _explained(error, path) from error
    return _checked_plain(descriptor, path)


def open_plain(path: str | os.PathLike[str]) -> int:
    """Descriptor of a plain file to be read, links followed; opening never waits, whatever it is.

    Raises:
        OSError: it cannot be opened, or is a FIFO, a device or the like.
    """
    return _checked_plain(os.open(path, os.O_RDONLY | _PLAIN), path)


def temporary_path(path: Path) -> Path:
    """Where the content of ``path`` is written before it is renamed, by one writer at a time."""
    return path.with_name(f".{path.name}.tmp")


@contextmanager
def _entered(path: Path, make: bool = False) -> Iterator[int]:
    """Descriptor of a folder that is reached through no symbolic link, to name files in."""
    root, *parts = Path(os.path.abspath(path)).parts
    place = Path(root)
    folder = os.open(place, _PASS)
    try:
        for part in parts:
            place /= part
            inner = _step(folder, part, place, make)
            os.close(folder)
            folder = inner
        yield folder
    finally:
        os.close(folder)


def _step(folder: int, part: str, place: Path, make: bool) -> int:
    try:
        return os.open(part, _PASS, dir_fd=folder)
    except FileNotFoundError:
        if not make:
            raise
        with suppress(FileExistsError):  # another process was quicker
            os.mkdir(part, dir_fd=folder)
        return os.open(part, _PASS, dir_fd=folder)
    except OSError as error:
        raise _explained(error, place) from error


def _explained(error: OSError, place: Path) -> OSError:
    """What systems say of a link that must not be followed (no directory, too many links) says too little."""
    if not place.is_symlink():
        return error
    return OSError(errno.ELOOP, f"{place} is a symbolic link, and nothing is written through one")


def _checked_plain(descriptor: int, path: str | os.PathLike[str]) -> int:
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, f"{os.fspath(path)} is no plain file")
    return descriptor


def _flush(folder: int) -> None:
    # A descriptor that was opened to pass through cannot be flushed.
    readable = os.open(".", _FOLDER | os.O_RDONLY, dir_fd=folder)
    try:
        os.fsync(readable)
    finally:
        os.close(readable)


def write_atomically(path: Path, content: bytes | memoryview) -> None:
    """Replace the file at ``path``; see `rotnet_fast.files.replacing`. There must be one writer at a time.

    Raises:
        CannotWriteError: the disk is full, the folder is read-only, ...; ``path`` is unchanged.
    """
    try:
        with replacing(path) as file:
            file.write(content)
    except OSError as error:
        raise cannot_write(path, error) from error


def link_atomically(source: Path, path: Path) -> None:
    """Give the content of ``source`` another name in its folder, in place of what had it.

    A hard link, as writing the same content twice takes twice as long; a copy where the file system has none.
    Neither file is ever written to again, only replaced.

    Raises:
        CannotWriteError: the disk is full, the folder is read-only, ...; ``path`` is unchanged.
    """
    try:
        try:
            link_file(source.name, path)
        except OSError:
            write_atomically(path, source.read_bytes())
    except OSError as error:
        raise cannot_write(path, error) from error


def ensure_folder(path: Path) -> None:
    """Make a folder, those above it included, where it is missing; see `rotnet_fast.files.make_folder`.

    Raises:
        CannotWriteError: it cannot be made, or a symbolic link is in the way.
    """
    try:
        make_folder(path)
    except OSError as error:
        raise cannot_write(path, error) from error


def append_line(path: Path, line: str) -> None:
    """Add a line to a file, which is made where it is missing.

    Raises:
        CannotWriteError: the disk is full, a symbolic link is in the way, ...
    """
    try:
        with os.fdopen(open_to_append(path), "a") as file:
            file.write(line + "\n")
    except OSError as error:
        raise cannot_write(path, error) from error


def flush_length(path: Path) -> int:
    """Length in bytes of a file that is appended to, all of which are on the disk when this returns.

    Raises:
        CannotWriteError: see :func:`append_line`.
    """
    try:
        with os.fdopen(open_to_append(path), "ab") as file:
            os.fsync(file.fileno())
            return os.fstat(file.fileno()).st_size
    except OSError as error:
        raise cannot_write(path, error) from error


def cut_off(path: Path, length: int) -> None:
    """Drop what a file holds behind ``length`` bytes, where it is longer.

    Raises:
        CannotWriteError: see :func:`append_line`.
    """
    try:
        with os.fdopen(open_to_append(path), "ab") as file:
            if os.fstat(file.fileno()).st_size > length:
                file.truncate(length)
    except OSError as error:
        raise cannot_write(path, error) from error


_REMEDIES = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "remove something of yours there",
    errno.EACCES: "get the right to write there",
    errno.EPERM: "get the right to write there",
    errno.ELOOP: "put a file or folder of its own in its place",
    errno.EMFILE: "raise the limit of open files with ulimit -n",
}
"""What can be done about a failed write; other errors leave no choice but another folder."""


def cannot_write(path: Path | str, error: OSError) -> CannotWriteError:
    """The one sentence that a failed write is reported with."""
    reason = error.strerror or str(error)
    remedy = f"{_REMEDIES[error.errno]}, or " if error.errno in _REMEDIES else ""
    return CannotWriteError(f"cannot write {path}: {reason}; {remedy}choose another folder with --output")

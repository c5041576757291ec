"""Writing a file so that a crash at any moment leaves the old content or the new, never a mixture."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from rotnet_fast.errors import CannotWriteError
from rotnet_fast.files import (
    is_out_of_descriptors,
    link_file,
    make_folder,
    open_to_append,
    out_of_descriptors,
    replacing,
)


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
}
"""What can be done about a failed write; other errors leave no choice but another folder."""


def cannot_write(path: Path | str, error: OSError) -> CannotWriteError:
    """The one sentence that a failed write is reported with."""
    if is_out_of_descriptors(error):
        return CannotWriteError(f"cannot write {path}, {out_of_descriptors(error)}")
    reason = error.strerror or str(error)
    remedy = f"{_REMEDIES[error.errno]}, or " if error.errno in _REMEDIES else ""
    return CannotWriteError(f"cannot write {path}: {reason}; {remedy}choose another folder with --output")

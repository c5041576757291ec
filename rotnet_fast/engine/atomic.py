"""Writing a file so that a crash at any moment leaves the old content or the new, never a mixture."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from rotnet_fast.errors import CannotWriteError


def write_atomically(path: Path, content: bytes | memoryview) -> None:
    """Replace the file at ``path``.

    The content goes to a temporary file in the same folder, is flushed to the disk and renamed over
    ``path``; then the folder is flushed too, so that the rename survives a loss of power. The
    temporary name is fixed, so that what a killed process left behind is removed by the next
    write. There must be one writer at a time (a run folder is locked).

    Raises:
        CannotWriteError: the disk is full, the folder is read-only, ...; ``path`` is unchanged.
    """
    temporary = temporary_path(path)
    try:
        # Not overwritten: a process killed in `link_atomically` leaves another name of a whole file there.
        temporary.unlink(missing_ok=True)
        try:
            with temporary.open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
        _flush_folder(path.parent)
    except OSError as error:
        raise cannot_write(path, error) from error


def link_atomically(source: Path, path: Path) -> None:
    """Give the content of ``source`` another name in its folder, in place of what had it.

    A hard link, as writing the same content twice takes twice as long; a copy where the file system has none.
    Neither file is ever written to again, only replaced.

    Raises:
        CannotWriteError: the disk is full, the folder is read-only, ...; ``path`` is unchanged.
    """
    temporary = temporary_path(path)
    try:
        temporary.unlink(missing_ok=True)
        try:
            os.link(source, temporary)
        except OSError:
            write_atomically(path, source.read_bytes())
            return
        temporary.replace(path)
        temporary.unlink(missing_ok=True)  # where both were the same file already, replacing does nothing
        _flush_folder(path.parent)
    except OSError as error:
        raise cannot_write(path, error) from error


def _flush_folder(path: Path) -> None:
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def temporary_path(path: Path) -> Path:
    """Where the content of ``path`` is written before it is renamed."""
    return path.with_name(f".{path.name}.tmp")


def cannot_write(path: Path | str, error: OSError) -> CannotWriteError:
    """The one sentence that a failed write is reported with."""
    reason = error.strerror or str(error)
    return CannotWriteError(
        f"cannot write {path}: {reason}; free some space or choose another folder with --output"
    )

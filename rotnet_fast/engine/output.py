"""Where a command writes: checked before anything else is done, and left as it was where nothing comes of it.

Importing this module does not import torch.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rotnet_fast.engine.atomic import cannot_write
from rotnet_fast.engine.distributed import ALONE, Processes
from rotnet_fast.engine.run_folder import RunFolder, open_run_folder
from rotnet_fast.errors import ArgumentError

STUDY_FILE = "study.json"
"""Settings of a study, in its folder."""


def check_is_no_study(folder: Path) -> None:
    """Refuse the folder of a study for anything else, and the run folders that are its own.

    Raises:
        ArgumentError: it holds a study, or is the run folder of one of its trainings.
    """
    for place, what in ((folder, "holds a study"), (folder.parent.parent, "belongs to a study")):
        is_its_own = place == folder or folder.parent.name in ("runs", "work")
        if is_its_own and (place / STUDY_FILE).exists():
            raise ArgumentError(
                f"output {folder} {what} of python -m rotnet_fast.reproduce; choose another folder with "
                f"--output"
            )


def check_output(folder: Path) -> None:
    """Refuse a folder that cannot be made or written to, before work is done for it.

    Raises:
        ArgumentError: a name that is not UTF-8.
        CannotWriteError: a file, a folder on a read-only disk, ...
    """
    try:
        os.fspath(folder).encode()
    except UnicodeEncodeError:
        raise ArgumentError(
            f"output is {os.fsencode(folder)!r}, which is not UTF-8, and logs and reports could not name it; "
            f"choose another folder with --output"
        ) from None
    try:
        # Nothing is made to find out: other commands may be at work in the same place.
        there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
        if not there.is_dir():
            finding = "it is a file, not a folder" if there == folder else os.strerror(errno.ENOTDIR)
            raise NotADirectoryError(errno.ENOTDIR, finding)
        if not os.access(there, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise cannot_write(folder, error) from error


@contextmanager
def claimed(path: Path, resume: bool, processes: Processes = ALONE) -> Iterator[RunFolder]:
    """Together: context with the run folder of processes, see `open_run_folder`.

    Where no run was begun in it when the context ends, as an argument or the data turned out to be wrong,
    what was made for it is removed.

    Raises:
        ArgumentError, CannotWriteError, ElsewhereError: see :func:`check_output` and `open_run_folder`.
    """
    processes.on_main(lambda: check_output(path))
    made = [*_missing(path / "checkpoints"), *_missing(path / "lock")[:1]]
    with open_run_folder(path, resume, processes) as run:
        try:
            if processes.is_main:
                # A command that failed may have removed it before we had the lock.
                run.checkpoints.mkdir(exist_ok=True)
            yield run
        finally:
            # Still under the lock: whoever has opened its file by now finds that it is not in its place.
            if processes.is_main and not (path / "config.json").exists():
                _remove(made)


def _missing(path: Path) -> list[Path]:
    """A path and those above it, as far as they do not exist."""
    return [place for place in (path, *path.parents) if not place.exists()]


def _remove(made: list[Path]) -> None:
    """Remove a file and the folders around it, from the inside; a folder that holds anything else stays."""
    for place in sorted(made, key=lambda place: -len(place.parts)):
        try:
            if place.is_dir():
                place.rmdir()
            else:
                place.unlink(missing_ok=True)
        except OSError:
            return

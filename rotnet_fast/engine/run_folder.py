"""The folder of one run: how it is claimed and locked, and what it holds.

    config.json         all settings, and the environment in which the run was started
    images-*.json.gz    names and digests of the files that a pretraining uses
    metrics.jsonl       one JSON object per line: logging intervals and epochs
    checkpoints/        last.pt, best.pt, and epoch-XXXX.pt of the last epochs
    snapshots/          epoch-XXXX.pt of epochs that are kept for good
    tensorboard/        train/ and test/: the same metrics as curves, with settings and pictures
    results.json        written when the run is finished
    lock                held by the process that writes here

Importing this module does not import torch.
"""

from __future__ import annotations

import errno
import functools
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import rotnet_fast
from rotnet_fast import system
from rotnet_fast.engine.distributed import ALONE, Processes, job
from rotnet_fast.errors import ArgumentError
from rotnet_fast.files import (
    append_line,
    cannot_write,
    cut_off,
    ensure_folder,
    flush_length,
    open_to_append,
    write_atomically,
)
from rotnet_fast.json_files import read_object

STUDY_FILE = "study.json"
"""Settings of a study, in its folder."""


class FileLock:
    """A lock on a file that one process can hold at a time.

    The system releases the lock when its holder ends, however it ends. It works between processes, and
    between machines if the file system passes locks on, as NFS 4 does.

    Args:
        path: file to create if it is missing; while the lock is held, it names the holder's process. No
            symbolic link is followed on the way to it or in its place.

    Raises:
        CannotWriteError: the file cannot be created.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._file = os.fdopen(open_to_append(path), "a+")
        except OSError as error:
            raise cannot_write(path, error) from error

    def take(self) -> bool:
        """Try to take the lock, without waiting for another holder.

        Returns:
            Whether this process holds the lock now. A file that its last holder has removed, together with
            the folder around it, is no longer a lock.

        Raises:
            CannotWriteError: the file system has no locks.
        """
        try:
            if not system.lock(self._file):
                return False
        except OSError as error:
            raise cannot_write(self._path, error) from error
        try:
            is_in_place = os.path.samestat(os.fstat(self._file.fileno()), os.lstat(self._path))
        except FileNotFoundError:
            is_in_place = False
        if not is_in_place:
            return False
        self._file.truncate(0)
        self._file.write(f"{os.getpid()}\n")
        self._file.flush()
        return True

    def holder(self) -> str:
        """Number of the process that holds the lock, as text."""
        self._file.seek(0)
        return self._file.read().strip()

    def close(self) -> None:
        """Release the lock."""
        self._file.close()


class RunFolder:
    """Exclusive access to a run folder; a context manager that releases it.

    Args:
        path: folder to create, including its parents; see `rotnet_fast.files.resolve_path`.
        resume: whether to accept a folder that already holds a run.

    Raises:
        ArgumentError: another process is writing to the folder, or it holds a run and ``resume`` is False.
        CannotWriteError: the folder cannot be created or written to.
    """

    def __init__(self, path: Path, resume: bool = False) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self._metrics_path = path / "metrics.jsonl"
        for folder in (path, self.checkpoints):
            ensure_folder(folder)
        self._lock = FileLock(path / "lock")
        try:
            if not self._lock.take():
                raise ArgumentError(
                    f"output {path} is in use by another run (process {self._lock.holder()}); wait for it to "
                    f"end, or choose another folder with --output"
                )
            if (path / "config.json").exists() and not resume:
                raise ArgumentError(
                    f"output {path} already holds a run; add --resume auto to resume it, or choose "
                    f"another folder with --output"
                )
        except BaseException:
            self._lock.close()
            raise

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the folder."""
        self._lock.close()

    def snapshot(self, epoch: int) -> Path:
        """Path of the snapshot after ``epoch`` epochs, in a folder that exists."""
        path = snapshot_path(self.path, epoch)
        ensure_folder(path.parent)
        return path

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Write config.json."""
        write_json(self.path / "config.json", config)

    def write_results(self, results: Mapping[str, Any]) -> None:
        """Write results.json."""
        write_json(self.path / "results.json", results)

    def append_metrics(self, record: Mapping[str, Any]) -> None:
        """Append a line to metrics.jsonl."""
        append_line(self._metrics_path, json.dumps(record))

    def metrics_position(self) -> int:
        """Flush metrics.jsonl to the disk and return its length in bytes."""
        return flush_length(self._metrics_path)

    def truncate_metrics(self, position: int) -> None:
        """Cut metrics.jsonl to a length in bytes: a resumed run writes what follows again."""
        cut_off(self._metrics_path, position)


class RunFolderElsewhere(RunFolder):
    """Stand-in for the run folder in all processes but rank 0, which alone writes.

    Args:
        path: the folder, which need not exist on this machine.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"

    def close(self) -> None:
        """No-op: nothing is held."""

    def append_metrics(self, record: Mapping[str, Any]) -> None:
        """No-op: rank 0 writes."""

    def truncate_metrics(self, position: int) -> None:
        """No-op: rank 0 writes."""


def open_run_folder(path: Path, resume: bool, processes: Processes = ALONE) -> RunFolder:
    """Collective: open the run folder of processes that train together, to which only rank 0 writes.

    Raises:
        ArgumentError, CannotWriteError: in rank 0, see `RunFolder`.
        ElsewhereError: in the other processes.
    """
    run = processes.on_main(lambda: RunFolder(path, resume))
    return RunFolderElsewhere(path) if run is None else run


def check_is_no_study(folder: Path) -> None:
    """Check that a folder belongs to no study, neither as the study's own nor as one of its run folders.

    Raises:
        ArgumentError: it does.
    """
    for place, what in ((folder, "holds a study"), (folder.parent.parent, "belongs to a study")):
        is_its_own = place == folder or folder.parent.name in ("runs", "work")
        if is_its_own and (place / STUDY_FILE).exists():
            raise ArgumentError(
                f"output {folder} {what} of python -m rotnet_fast.reproduce; choose another folder with "
                f"--output"
            )


def is_part_of_run(folder: Path) -> bool:
    """Whether a folder is that of the checkpoints or of the snapshots of a run."""
    return folder.name in ("checkpoints", "snapshots") and (folder.parent / "config.json").exists()


def check_output(folder: Path, argument: str = "output") -> None:
    """Check that a folder can be created and written to, without creating it.

    Args:
        folder: the folder, with all links resolved.
        argument: name of the argument in error messages.

    Raises:
        ArgumentError: its name is not UTF-8, or a run keeps its checkpoints in it.
        CannotWriteError: it is a file, lies on a read-only disk, ...
    """
    try:
        os.fspath(folder).encode()
    except UnicodeEncodeError:
        raise ArgumentError(
            f"{argument} is {os.fsencode(folder)!r}, which is not UTF-8, and logs and reports could not name "
            f"it; choose another folder with --{argument}"
        ) from None
    if is_part_of_run(folder):
        raise ArgumentError(
            f"{argument} is {folder}, which belongs to a run; choose another folder with --{argument}"
        )
    try:
        # Nothing is created to find out, because other commands may be working in the same place.
        there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
        if not there.is_dir():
            finding = "it is a file, not a folder" if there == folder else os.strerror(errno.ENOTDIR)
            raise NotADirectoryError(errno.ENOTDIR, finding)
        if not os.access(there, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise cannot_write(folder, error, f"--{argument}") from error


@contextmanager
def claimed(path: Path, resume: bool, processes: Processes = ALONE) -> Iterator[RunFolder]:
    """Collective: context with an open run folder, see :func:`open_run_folder`.

    If no run was begun in it when the context ends, because an argument or the data turned out to be wrong,
    everything that was created for it is removed.

    Raises:
        ArgumentError, CannotWriteError, ElsewhereError: see :func:`check_output` and :func:`open_run_folder`.
    """
    processes.on_main(lambda: check_output(path))
    made = [*_missing(path / "checkpoints"), *_missing(path / "lock")[:1]]
    with open_run_folder(path, resume, processes) as run:
        try:
            if processes.is_main:
                # A command that failed may have removed it before this one took the lock.
                run.checkpoints.mkdir(exist_ok=True)
            yield run
        finally:
            # Still under the lock: a process that has opened its file by now finds that it has been removed.
            if processes.is_main and not (path / "config.json").exists():
                _remove(made)


def _missing(path: Path) -> list[Path]:
    """A path and its parents, as far as they do not exist."""
    return [place for place in (path, *path.parents) if not place.exists()]


def _remove(made: list[Path]) -> None:
    """Remove a file and the folders around it, innermost first; a folder with other content stays."""
    for place in sorted(made, key=lambda place: -len(place.parts)):
        try:
            if place.is_dir():
                place.rmdir()
            else:
                place.unlink(missing_ok=True)
        except OSError:
            return


def was_begun_by_this_job(folder: Path) -> bool:
    """Whether the workers that torchrun has restarted began this folder, and therefore resume it."""
    try:
        content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return job() is not None and bool(content["job"] == job())
    except (OSError, ValueError, KeyError, TypeError):
        return False


def write_json(path: Path, content: Any) -> None:
    """Replace a JSON file atomically.

    Raises:
        CannotWriteError: the file cannot be written; an older one is intact.
    """
    write_atomically(path, (json.dumps(content, indent=2, default=str) + "\n").encode())


def snapshot_path(run: Path, epoch: int) -> Path:
    """Path of the snapshot after ``epoch`` epochs in a run folder."""
    return run / "snapshots" / f"epoch-{epoch:04d}.pt"


def epoch_checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """List the checkpoints of epochs: number of finished epochs and file, in ascending order of the number.

    Sorted as text, epoch-10000 would come before epoch-9999.

    Args:
        folder: ``checkpoints`` of a run folder, which need not exist.
    """
    found = ((re.fullmatch(r"epoch-(\d+)\.pt", path.name), path) for path in folder.glob("epoch-*.pt"))
    return sorted((int(match[1]), path) for match, path in found if match is not None)


def candidates(run: Path) -> list[Path]:
    """List the checkpoints in a run folder, newest first.

    ``checkpoints/last.pt`` is the newest. ``checkpoints/epoch-0012.pt`` was written after 12 epochs.
    ``checkpoints/best.pt``, of the epoch with the best test, may be older than all of them. After an epoch,
    several of these are names of one file, so that damage to it affects all of them; earlier epochs are
    files of their own.
    """
    folder = run / "checkpoints"
    of_epochs = [path for _, path in reversed(epoch_checkpoints(folder))]
    return [path for path in (folder / "last.pt", *of_epochs, folder / "best.pt") if path.is_file()]


def run_of(checkpoint: Path) -> Path:
    """The run folder that a checkpoint belongs to.

    Args:
        checkpoint: a checkpoint file, or the run folder itself.
    """
    if checkpoint.is_dir():
        return checkpoint
    folder = checkpoint.parent
    return folder.parent if folder.name in ("checkpoints", "snapshots") else folder


def read_settings(folder: Path) -> dict[str, Any] | None:
    """Read the settings in a folder's config.json; None if there is no such file.

    Raises:
        ArgumentError: the file cannot be read.
    """
    path = folder / "config.json"
    if not path.exists():
        return None
    settings: dict[str, Any] = read_object(path, "run", {"settings": dict}, "restore or remove it")[
        "settings"
    ]
    return settings


def loader_of(run: Path) -> str | None:
    """The loader that a run began with; None if there is no run, or its config.json does not say."""
    try:
        found = json.loads((run / "config.json").read_text(encoding="utf-8")).get("loader")
    except (OSError, ValueError, AttributeError):
        return None
    return found if found in ("resident", "dali") else None


def environment(device: str) -> dict[str, Any]:
    """Collect the versions and the hardware that a result depends on.

    Args:
        device: the device in use, such as ``cpu`` or ``cuda:0``.
    """
    import torch

    from rotnet_fast.ops.library import LIBRARIES

    is_cuda = device.startswith("cuda")
    return {
        "rotnet_fast": rotnet_fast.__version__,
        "commit": _commit(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda if is_cuda else None,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name(device) if is_cuda else _cpu_model(),
        "cpu": _cpu_model(),
        "threads": torch.get_num_threads(),
        "kernel": LIBRARIES.get(torch.device(device).type, LIBRARIES["cpu"]).detail,
        "libraries": {
            name: sys.modules[name].__version__
            for name in ("nvidia.dali", "torchvision", "timm")
            if name in sys.modules  # in use, as none of them is imported unless needed
        },
    }


@functools.cache
def _commit() -> str | None:
    """Short commit of the checkout that this package runs from, with ``-dirty`` if files differ; or None."""
    package = Path(rotnet_fast.__file__).resolve().parent
    if not (package.parent / ".git").exists():
        return None  # an installed copy; git would answer for any checkout around it
    command = ["git", "describe", "--always", "--dirty", "--exclude", "*"]
    try:
        done = subprocess.run(command, cwd=package, capture_output=True, text=True, check=False)
    except OSError:
        return None  # no git
    return done.stdout.strip() or None


def _cpu_model() -> str:
    """Name of the processor, as the system gives it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()

"""The folder of one run: settings, metrics, checkpoints and results.

    config.json         all settings, and what the run was started with
    images-*.json.gz    names and digests of the files that a pretraining is on
    metrics.jsonl       one JSON object per line: logging intervals and epochs
    checkpoints/        last.pt, and epoch-XXXX.pt of the last epochs
    snapshots/          epoch-XXXX.pt of epochs that are kept for good
    tensorboard/        the same metrics as curves
    results.json        written when the run has finished
    lock                held by the process that writes here

Importing this module does not import torch.
"""

from __future__ import annotations

import errno
import fcntl
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

STUDY_FILE = "study.json"
"""Settings of a study, in its folder."""


class FileLock:
    """A lock on a file, held by one process at a time.

    Works between processes, and between machines where the file system passes locks on (local disks
    and NFS 4 do).

    Args:
        path: file to make where it is missing; it names its holder's process while it is held. A symbolic
            link there is refused.

    Raises:
        CannotWriteError: the file cannot be made.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._file = os.fdopen(open_to_append(path), "a+")
        except OSError as error:
            raise cannot_write(path, error) from error

    def take(self) -> bool:
        """Whether the lock is ours now; does not wait for another holder.

        A file that its last holder has removed, with the folder that it lay in, is not a lock any more.

        Raises:
            CannotWriteError: the file system has no locks.
        """
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
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
        """Process that holds the lock, as text."""
        self._file.seek(0)
        return self._file.read().strip()

    def close(self) -> None:
        """Give the lock back."""
        self._file.close()


class RunFolder:
    """Exclusive access to a run folder; a context manager that gives it back.

    Args:
        path: folder to make, parents included; without symbolic links (see `rotnet_fast.files.resolve_path`).
        resume: accept a folder that already holds a run.

    Raises:
        ArgumentError: another process is writing to the folder, or it holds a run and ``resume`` is
            False.
        CannotWriteError: the folder cannot be made or written to.
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
                    f"output {path} already holds a run; add --resume auto to go on with it, or choose "
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
        """Let others use the folder."""
        self._lock.close()

    def snapshot(self, epoch: int) -> Path:
        """File for what is kept of the network after ``epoch`` epochs."""
        path = snapshot_path(self.path, epoch)
        ensure_folder(path.parent)
        return path

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Record the settings in config.json."""
        write_json(self.path / "config.json", config)

    def write_results(self, results: Mapping[str, Any]) -> None:
        """Record the outcome in results.json."""
        write_json(self.path / "results.json", results)

    def append_metrics(self, record: Mapping[str, Any]) -> None:
        """Add a line to metrics.jsonl."""
        append_line(self._metrics_path, json.dumps(record))

    def metrics_position(self) -> int:
        """Length of metrics.jsonl in bytes, all of which are on the disk when this returns."""
        return flush_length(self._metrics_path)

    def truncate_metrics(self, position: int) -> None:
        """Drop the lines written after a checkpoint, which a resumed run writes again."""
        cut_off(self._metrics_path, position)


class RunFolderElsewhere(RunFolder):
    """Stands for the run folder in a process that leaves it to the main one: metrics go nowhere.

    Args:
        path: folder, which need not exist on this machine.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"

    def close(self) -> None:
        """Nothing is held."""

    def append_metrics(self, record: Mapping[str, Any]) -> None:
        """Not from here."""

    def truncate_metrics(self, position: int) -> None:
        """Not from here."""


def open_run_folder(path: Path, resume: bool, processes: Processes = ALONE) -> RunFolder:
    """The run folder of processes that train together, to which the main one alone writes.

    Raises:
        ArgumentError, CannotWriteError: see `RunFolder`.
        ElsewhereError: the same, in processes that are not the main one.
    """
    run = processes.on_main(lambda: RunFolder(path, resume))
    return RunFolderElsewhere(path) if run is None else run


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


def was_begun_by_this_job(folder: Path) -> bool:
    """Whether the workers that torchrun restarts are those that began a folder, which then go on with it."""
    try:
        content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return job() is not None and bool(content["job"] == job())
    except (OSError, ValueError, KeyError, TypeError):
        return False


def write_json(path: Path, content: Any) -> None:
    """Replace a JSON file atomically.

    Raises:
        CannotWriteError: it cannot be written; an older one is intact.
    """
    write_atomically(path, (json.dumps(content, indent=2, default=str) + "\n").encode())


def snapshot_path(run: Path, epoch: int) -> Path:
    """File of a run folder for what is kept of the network after ``epoch`` epochs."""
    return run / "snapshots" / f"epoch-{epoch:04d}.pt"


def epoch_checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """Checkpoints that are kept of the last epochs: number of finished epochs and file, ascending by number,
    as names sorted as text would have epoch-10000 before epoch-9999.

    Args:
        folder: ``checkpoints`` of a run folder, which need not exist.
    """
    found = ((re.fullmatch(r"epoch-(\d+)\.pt", path.name), path) for path in folder.glob("epoch-*.pt"))
    return sorted((int(match[1]), path) for match, path in found if match is not None)


def run_of(checkpoint: Path) -> Path:
    """The run folder that a checkpoint belongs to.

    Args:
        checkpoint: a file, or the run folder itself.
    """
    if checkpoint.is_dir():
        return checkpoint
    folder = checkpoint.parent
    return folder.parent if folder.name in ("checkpoints", "snapshots") else folder


def read_settings(folder: Path) -> dict[str, Any] | None:
    """The settings in a folder's config.json; None where there is none.

    Raises:
        ArgumentError: it cannot be read.
    """
    path = folder / "config.json"
    if not path.exists():
        return None
    try:
        settings: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["settings"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArgumentError(f"{path} cannot be read ({error}); restore or remove it") from error
    return settings


def loader_of(run: Path) -> str | None:
    """The loader that a run began with; None where there is no run, or it does not say."""
    try:
        found = json.loads((run / "config.json").read_text(encoding="utf-8")).get("loader")
    except (OSError, ValueError, AttributeError):
        return None
    return found if found in ("resident", "dali") else None


def environment(device: str) -> dict[str, Any]:
    """Versions and hardware that a result depends on.

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
        "kernel": LIBRARIES[torch.device(device).type].detail,
        "libraries": {
            name: sys.modules[name].__version__
            for name in ("nvidia.dali", "torchvision", "timm")
            if name in sys.modules  # in use: none of them is imported without need
        },
    }


@functools.cache
def _commit() -> str | None:
    """Short commit of the checkout that this package runs from, ``-dirty`` where files differ; or None."""
    package = Path(rotnet_fast.__file__).resolve().parent
    if not (package.parent / ".git").exists():
        return None  # an installed copy; git would answer for whatever checkout it may lie in
    command = ["git", "describe", "--always", "--dirty", "--exclude", "*"]
    try:
        done = subprocess.run(command, cwd=package, capture_output=True, text=True, check=False)
    except OSError:
        return None  # no git
    return done.stdout.strip() or None


def _cpu_model() -> str:
    """The processor's name as the system gives it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()

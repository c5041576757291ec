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

import functools
import json
import platform
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import rotnet_fast
from rotnet_fast.engine.atomic import append_line, cut_off, ensure_folder, flush_length, write_atomically
from rotnet_fast.engine.distributed import ALONE, Processes, job
from rotnet_fast.engine.lock import FileLock
from rotnet_fast.errors import ArgumentError


class RunFolder:
    """Exclusive access to a run folder; a context manager that gives it back.

    Args:
        path: folder to make, parents included; without symbolic links (see `rotnet_fast.files.followed`).
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

"""The results folder of a study: one JSON file per finished cell, and what is needed on the way.

    study.json              settings of the study
    cells/<key>.json        result of a cell; all that the report needs
    runs/<key>/             run folder of a network that other cells start from
    work/<group>/           trainings in progress, removed when their cells are finished
    locks/                  held by the processes that compute

Several processes, or machines that share the folder, work on one study: a group of cells is computed
under its lock, and results appear whole or not at all.

Importing this module does not import torch.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rotnet_fast.engine.run_folder import STUDY_FILE, FileLock, snapshot_path, write_json
from rotnet_fast.errors import ArgumentError, DataError, RotnetError
from rotnet_fast.files import ensure_folder
from rotnet_fast.json_files import Parts, read_object
from rotnet_fast.study.cells import RESULT_FORMAT, StudyCell
from rotnet_fast.study.settings import Seeds, StudySettings

_CELL: Parts = {
    "key": str,
    "kind": str,
    "settings": dict,
    "needs": list,
    "result": dict,
    "seconds": (int, float),
    "group_seconds": (int, float),
    "multiply_adds": (int, float),
    "resumed": bool,
    "command": str,
    "finished": str,
    "environment": dict,
}
"""What a cell's file holds."""

_ENVIRONMENT = ("rotnet_fast", "commit", "torch", "cuda", "python", "device", "cpu", "threads", "kernel")
"""What a cell's file says of machine and versions."""


def cell_path(folder: Path, key: str) -> Path:
    """Return the file in which a study keeps a cell's result."""
    return folder / "cells" / f"{key}.json"


def read_cell(folder: Path, cell: StudyCell) -> dict[str, Any] | None:
    """Read what a study's folder holds of a cell; None where the cell is not finished.

    Raises:
        DataError: the file is damaged, or belongs to another cell.
    """
    path = cell_path(folder, cell.key)
    if not path.exists():
        return None
    content = read_object(path, "result of a cell", _CELL, REMEDY, DataError)
    if content["key"] != cell.key:
        raise DataError(f"{path} belongs to another cell; {REMEDY}")
    for name in _ENVIRONMENT:
        if name not in content["environment"]:
            raise DataError(
                f"{path} holds no result of a cell, as {name} is missing in its environment; {REMEDY}"
            )
    return content


REMEDY = "delete it, and rotnet_fast.reproduce computes this cell again"
"""What to do about the damaged file of a cell."""


def read_study(
    folder: Path, remedy: str, error: type[RotnetError] = ArgumentError
) -> tuple[StudySettings, Seeds]:
    """Read the settings of the study in a folder, and how many seeds it has.

    Args:
        folder: of the study.
        remedy: what the user can do if the study cannot be read.
        error: class of the error to raise.

    Raises:
        error: the file cannot be read, holds no study, or was written by another version.
    """
    path = folder / STUDY_FILE
    content = read_object(path, "study", {"format": int, "settings": object, "seeds": object}, remedy, error)
    if content["format"] != RESULT_FORMAT:
        raise error(
            f"{path} has format {content['format']!r}, and this version reads {RESULT_FORMAT}; use the "
            f"version that wrote it, or run the study again with another --output"
        )
    try:
        return StudySettings.from_json(content["settings"]), Seeds(**content["seeds"])
    except (KeyError, TypeError, ValueError, AttributeError) as reason:
        raise error(f"{path} was written by another version ({reason!r}); {remedy}") from None


class Results:
    """The folder of one study.

    Args:
        path: of the folder, which is only made when something is written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._finished: set[str] = set()

    def begin(self, settings: StudySettings, seeds: Seeds) -> None:
        """Record what the folder is about.

        Raises:
            ArgumentError: the folder holds a study with other settings.
            CannotWriteError: the file cannot be written.
        """
        for folder in ("cells", "locks", "runs", "work"):
            ensure_folder(self.path / folder)
        with self.waiting_lock("study"):
            known = self.check(settings)
            if known is not None:  # what was asked for once stays part of the study
                seeds = Seeds(max(seeds.every, known.every), max(seeds.headline, known.headline))
            content = {"format": RESULT_FORMAT, "settings": settings.to_json(), "seeds": asdict(seeds)}
            write_json(self.path / STUDY_FILE, content)

    def read_settings(self) -> tuple[StudySettings, Seeds] | None:
        """Return settings and numbers of seeds; None for a folder that holds no study.

        Raises:
            DataError: the settings cannot be read.
        """
        if not (self.path / STUDY_FILE).exists():
            return None
        return read_study(self.path, "restore it, or choose another --output", DataError)

    def check(self, settings: StudySettings) -> Seeds | None:
        """Return the numbers of seeds of the study in the folder; None where there is no study.

        Raises:
            ArgumentError: the folder holds a study with other settings.
            DataError: the settings of the study cannot be read.
        """
        known = self.read_settings()
        if known is None:
            return None
        old, new = _flat(known[0]), _flat(settings)
        different = [name for name in new if old.get(name) != new[name] and name != "display_name"]
        if different:
            raise ArgumentError(
                f"output {self.path} holds a study with other settings ({', '.join(different)}); choose "
                f"another folder with --output"
            )
        return known[1]

    def read(self, cell: StudyCell) -> dict[str, Any] | None:
        """Return the content of a cell's file; None where the cell is not finished.

        Raises:
            DataError: the file is damaged, or belongs to another cell.
        """
        content = read_cell(self.path, cell)
        if content is not None:
            self._finished.add(cell.key)
        return content

    def is_finished(self, cell: StudyCell) -> bool:
        """Tell whether a cell has a result; files are read once.

        Raises:
            DataError: see :meth:`read`.
        """
        return cell.key in self._finished or self.read(cell) is not None

    def write(
        self,
        cell: StudyCell,
        result: Mapping[str, Any],
        *,
        seconds: float,
        group_seconds: float,
        multiply_adds: float,
        resumed: bool,
        command: str,
        environment: Mapping[str, Any],
    ) -> None:
        """Record a finished cell.

        Args:
            cell: the finished cell.
            result: plain values.
            seconds, group_seconds: time of the cell, as its share of the group's, and of the group.
            multiply_adds: work of the group's networks.
            resumed: whether the group was begun by an earlier process.
            command: command line that computed the cell.
            environment: versions and hardware, see `rotnet_fast.engine.run_folder.environment`.

        Raises:
            CannotWriteError: the file cannot be written.
        """
        content = {
            "format": RESULT_FORMAT,
            "key": cell.key,
            "kind": cell.kind,
            "settings": cell.settings,
            "member": cell.member,
            "needs": [need.key for need in cell.needs],
            "result": dict(result),
            "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "seconds": seconds,
            "group_seconds": group_seconds,
            "multiply_adds": multiply_adds,
            "resumed": resumed,
            "command": command,
            "environment": dict(environment),
        }
        write_json(cell_path(self.path, cell.key), content)

    def has_network(self, cell: StudyCell) -> bool:
        """Tell whether the weights that other cells start from exist, snapshots included."""
        epochs = [None, *cell.settings.get("snapshots", ())]
        return all(self.network(cell, epoch).is_file() for epoch in epochs)

    def network(self, cell: StudyCell, epoch: int | None = None) -> Path:
        """Return the checkpoint of a cell's network after its last epoch, or a snapshot."""
        run = self.run_folder(cell)
        if epoch is None:
            return run / "checkpoints" / "last.pt"
        return snapshot_path(run, epoch)

    def run_folder(self, cell: StudyCell) -> Path:
        """Return the folder in which a cell's network is trained and kept."""
        return self.path / "runs" / cell.key

    def lock(self, cell: StudyCell) -> FileLock:
        """Return the lock of a cell's group."""
        return FileLock(self.path / "locks" / cell.group_key)

    @contextmanager
    def waiting_lock(self, name: str) -> Iterator[None]:
        """Hold a lock that no process holds for long."""
        folder = self.path / "locks"
        ensure_folder(folder)
        lock = FileLock(folder / name)
        try:
            while not lock.take():
                lock.close()  # its file may have been removed, and would not be the folder's lock any more
                time.sleep(0.05)
                ensure_folder(folder)
                lock = FileLock(folder / name)
            yield
        finally:
            lock.close()

    def claim_work(
        self, cells: list[StudyCell], group: list[StudyCell]
    ) -> tuple[list[StudyCell], Path, bool]:
        """Decide which cells to compute under a group's lock, and in which folder.

        Whatever an interrupted process was computing is finished first, so that its checkpoint is used.

        Args:
            cells: requested, unfinished cells of one group.
            group: all cells of that group that this process knows.

        Returns:
            Cells, folder, and whether the folder was begun before.
        """
        folder = self.path / "work" / cells[0].group_key
        note = folder / "cells.json"
        known = {cell.key: cell for cell in group}
        try:
            begun = json.loads(note.read_text(encoding="utf-8"))
            if all(key in known for key in begun) and not all(self.is_finished(known[key]) for key in begun):
                return [known[key] for key in begun], folder, True
        except (OSError, ValueError, TypeError):
            pass  # nothing begun
        shutil.rmtree(folder, ignore_errors=True)
        ensure_folder(folder)
        write_json(note, [cell.key for cell in cells])
        return cells, folder, False


def _flat(settings: StudySettings) -> dict[str, Any]:
    """Return the settings as one dictionary, those of the data set and of all trainings included."""
    values = settings.to_json()
    flat = {**values.pop("data"), **values.pop("pretext")}
    for name in ("supervised", "head"):
        flat |= {f"{name} {setting}": value for setting, value in values.pop(name).items()}
    return {**flat, **values}

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
from pathlib import Path
from typing import Any

from rotnet_fast.engine.run_folder import STUDY_FILE, FileLock, snapshot_path, write_json
from rotnet_fast.errors import ArgumentError, DataError
from rotnet_fast.files import ensure_folder
from rotnet_fast.study.cells import RESULT_FORMAT, StudyCell
from rotnet_fast.study.settings import StudySettings


def cell_path(folder: Path, key: str) -> Path:
    """Where a study keeps a cell's result."""
    return folder / "cells" / f"{key}.json"


class Results:
    """The folder of one study.

    Args:
        path: folder; nothing is made before something is written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._finished: set[str] = set()

    def begin(self, settings: StudySettings, seeds: int) -> None:
        """Record what the folder is about.

        Raises:
            ArgumentError: it holds a study with other settings.
            CannotWriteError: it cannot be written.
        """
        for folder in ("cells", "locks", "runs", "work"):
            ensure_folder(self.path / folder)
        with self.waiting_lock("study"):
            known = self.check(settings)
            seeds = max(seeds, known or 0)
            content = {"format": RESULT_FORMAT, "settings": settings.to_json(), "seeds": seeds}
            write_json(self.path / STUDY_FILE, content)

    def read_settings(self) -> tuple[StudySettings, int] | None:
        """Settings and number of seeds; None for a folder that holds no study.

        Raises:
            DataError: they cannot be read.
        """
        path = self.path / STUDY_FILE
        if not path.exists():
            return None
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content["format"] != RESULT_FORMAT:
                raise ValueError(f"format {content['format']} instead of {RESULT_FORMAT}")
            return StudySettings.from_json(content["settings"]), int(content["seeds"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{path} is damaged or of another version ({error}); restore it, or choose another --output"
            ) from error

    def check(self, settings: StudySettings) -> int | None:
        """Seeds of the study that the folder holds; None where it holds none.

        Raises:
            ArgumentError: it holds a study with other settings.
            DataError: its settings cannot be read.
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
        """What was found for a cell; None where it is not finished.

        Raises:
            DataError: its file is damaged, or belongs to another cell.
        """
        path = cell_path(self.path, cell.key)
        try:
            content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            if content["key"] != cell.key or not isinstance(content["result"], dict):
                raise ValueError("it belongs to another cell")
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{path} is damaged ({error}); remove it, and the cell is computed again"
            ) from error
        self._finished.add(cell.key)
        return content

    def is_finished(self, cell: StudyCell) -> bool:
        """Whether a cell has a result; files are read once.

        Raises:
            DataError: see :meth:`read`.
        """
        return cell.key in self._finished or self.read(cell) is not None

    def write(self, cell: StudyCell, result: Mapping[str, Any], **details: Any) -> None:
        """Record a finished cell.

        Args:
            result: plain values.
            details: what else is worth knowing: seconds, environment, ...

        Raises:
            CannotWriteError: it cannot be written.
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
            **details,
        }
        write_json(cell_path(self.path, cell.key), content)

    def has_network(self, cell: StudyCell) -> bool:
        """Whether the weights that other cells start from are there, snapshots included."""
        epochs = [None, *cell.settings.get("snapshots", ())]
        return all(self.network(cell, epoch).is_file() for epoch in epochs)

    def network(self, cell: StudyCell, epoch: int | None = None) -> Path:
        """Checkpoint of a cell's network after its last epoch, or of a snapshot."""
        run = self.run_folder(cell)
        if epoch is None:
            return run / "checkpoints" / "last.pt"
        return snapshot_path(run, epoch)

    def run_folder(self, cell: StudyCell) -> Path:
        """Where a cell's network is trained and kept."""
        return self.path / "runs" / cell.key

    def lock(self, cell: StudyCell) -> FileLock:
        """The lock of a cell's group."""
        return FileLock(self.path / "locks" / cell.group_key)

    @contextmanager
    def waiting_lock(self, name: str) -> Iterator[None]:
        """Context that holds a lock which nobody holds for long."""
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
        """The cells to compute under a group's lock, and the folder to do it in.

        What an interrupted process was computing is finished first, so that its checkpoint serves.

        Args:
            cells: unfinished cells of one group that are wanted.
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
    """Settings as one dictionary, those of the data set and of the pretraining included."""
    values = settings.to_json()
    return {**values.pop("data"), **values.pop("pretext"), **values}

"""A study's results, read from its folder: values per seed, means, deviations, differences.

Importing this module does not import torch.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from rotnet_fast.engine.run_folder import STUDY_FILE
from rotnet_fast.errors import ArgumentError, DataError
from rotnet_fast.files import named
from rotnet_fast.paper import Circumstances
from rotnet_fast.study.cells import RESULT_FORMAT, StudyCell, with_needs
from rotnet_fast.study.plan import Entry, make_plan
from rotnet_fast.study.settings import StudySettings
from rotnet_fast.study.store import cell_path

_PARTS: Mapping[str, type | tuple[type, ...]] = {
    "kind": str,
    "settings": dict,
    "needs": list,
    "result": dict,
    "seconds": (int, float),
    "finished": str,
    "environment": dict,
}
"""What a cell's file holds, and as what."""


@dataclass(frozen=True)
class Number:
    """One entry with the values that its cells gave.

    Attributes:
        entry: of the plan.
        by_seed: seed -> value in percent; only of the seeds that have been run.
    """

    entry: Entry
    by_seed: Mapping[int, float]

    @property
    def n(self) -> int:
        """How many values there are."""
        return len(self.by_seed)

    @property
    def mean(self) -> float | None:
        """Over the seeds; None where nothing has been run."""
        return statistics.fmean(self.by_seed.values()) if self.by_seed else None

    @property
    def deviation(self) -> float | None:
        """Sample standard deviation (n - 1) over the seeds; None for fewer than two."""
        return statistics.stdev(self.by_seed.values()) if self.n > 1 else None


@dataclass(frozen=True)
class Study:
    """All that a report says comes from here.

    Attributes:
        folder: where the results lie.
        settings: of the study.
        seeds: the most that were asked for.
        entries: the whole plan.
        files: key -> content of the cell files that exist.
    """

    folder: Path
    settings: StudySettings
    seeds: int
    entries: tuple[Entry, ...]
    files: Mapping[str, Mapping[str, Any]]

    @property
    def circumstances(self) -> Circumstances:
        """What decides whether a difference to a published number means something."""
        settings = self.settings
        data = settings.data
        return Circumstances(
            dataset=data.name,
            display_name=data.display_name,
            classes=data.classes,
            train_images=data.train_images,
            test_images=data.test_images,
            is_limited=data.limit_train is not None or data.limit_test is not None,
            is_pretrained_elsewhere=False,
            model=settings.pretext.model,
            width=settings.pretext.width,
            epochs=min(settings.pretext.epochs, settings.supervised_epochs, settings.head_epochs),
        )

    @property
    def comparable(self) -> bool:
        """Whether a difference to a published number means something."""
        return not self.circumstances.obstacles()

    @property
    def commits(self) -> tuple[str, ...]:
        """Of the program, as recorded with the cells, sorted."""
        found = (content["environment"].get("commit") for content in self.files.values())
        return tuple(sorted({str(commit) for commit in found if commit}))

    @cached_property
    def numbers(self) -> Mapping[tuple[str, str], Number]:
        """(item, name) -> number, in the plan's order; entries that are pictures are left out."""
        return {
            (entry.item, entry.name): Number(entry, self._values(entry))
            for entry in self.entries
            if entry.value
        }

    def of(self, item: str) -> list[Number]:
        """The numbers of a table or figure."""
        return [number for (its_item, _), number in self.numbers.items() if its_item == item]

    def number(self, item: str, name: str) -> Number:
        """One of them."""
        return self.numbers[item, name]

    def entry(self, item: str, name: str) -> Entry:
        """An entry of the plan."""
        return next(entry for entry in self.entries if (entry.item, entry.name) == (item, name))

    def results(self, entry: Entry) -> dict[int, Mapping[str, Any]]:
        """Seed -> the whole result of the entry's cell, of the seeds that have been run."""
        return {
            seed: self.files[cell.key]["result"]
            for seed, cell in enumerate(entry.cells)
            if cell.key in self.files
        }

    def difference(self, number: Number) -> float | None:
        """Ours minus published, in points; None where that is not a comparison."""
        if not self.comparable or number.mean is None or number.entry.published is None:
            return None
        return number.mean - number.entry.published

    def standard_error(self, accuracy: float) -> float:
        """Of an accuracy in percent that was measured on the test images: binomial, in points."""
        return 100 * math.sqrt(accuracy / 100 * (1 - accuracy / 100) / self.settings.data.test_images)

    def schedule(self, entry: Entry) -> str:
        """Epochs of the trainings that gave an entry, one after another; empty where none was run."""
        for cell in entry.cells:
            if cell.key in self.files:
                snapshot = cell.settings.get("snapshot")
                epochs = [snapshot or need.settings["epochs"] for need in cell.needs]
                if "epochs" in cell.settings:
                    epochs.append(cell.settings["epochs"])
                return "+".join(map(str, epochs))
        return ""

    def machines(self, entries: Iterable[Entry]) -> str:
        """Short names of the machines that computed the entries' cells."""
        names = {self.machine_of(cell) for entry in entries for cell in entry.cells if cell.key in self.files}
        return ", ".join(sorted(names, key=lambda name: int(name[1:])))

    def machine_of(self, cell: StudyCell) -> str:
        """Short name of the machine that computed a cell, which has been run."""
        return self.machine_names[_machine(self.files[cell.key]["environment"])]

    @cached_property
    def machine_names(self) -> Mapping[tuple[str, ...], str]:
        """Machine and versions -> short name M1, M2, ... in alphabetical order."""
        found = sorted({_machine(content["environment"]) for content in self.files.values()})
        return {machine: f"M{position}" for position, machine in enumerate(found, 1)}

    @cached_property
    def cells(self) -> tuple[StudyCell, ...]:
        """All cells of the plan."""
        return tuple(dict.fromkeys(cell for entry in self.entries for cell in entry.cells))

    def _values(self, entry: Entry) -> dict[int, float]:
        values = {}
        for seed, cell in enumerate(entry.cells):
            if cell.key in self.files:
                value = self.files[cell.key]["result"].get(entry.value)
                is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
                if not is_number or not math.isfinite(value):
                    raise _damaged(
                        cell_path(self.folder, cell.key), f"its result has no number {entry.value!r}"
                    )
                values[seed] = float(value)
        return values


def is_study(folder: Path) -> bool:
    """Whether a folder is one of `rotnet_fast.reproduce`."""
    return (named(folder) / STUDY_FILE).exists()


def load_study(folder: Path) -> Study:
    """Read a study's folder, whatever part of it has been run.

    Raises:
        ArgumentError: it is not the folder of a study, or that of another version.
        DataError: the file of a cell is damaged or not one.
    """
    path = named(folder) / STUDY_FILE
    remedy = "give a folder that rotnet_fast.reproduce wrote"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArgumentError(f"{path} cannot be read ({error}); {remedy}") from None
    if not isinstance(content, dict) or not {"format", "settings", "seeds"} <= content.keys():
        raise ArgumentError(f"{path} holds no study; {remedy}")
    if content["format"] != RESULT_FORMAT:
        raise ArgumentError(
            f"{path} has format {content['format']!r}, and this version reads {RESULT_FORMAT}; use the "
            f"version that wrote it, or run the study again in another folder"
        )
    try:
        settings = StudySettings.from_json(content["settings"])
        seeds = int(content["seeds"])
        entries = tuple(make_plan(settings, seeds))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ArgumentError(f"{path} was written by another version ({error!r}); {remedy}") from None
    if seeds < 1:
        raise ArgumentError(f"{path} has seeds {seeds}, but a study has 1 or more; {remedy}")
    files = {}
    for cell in with_needs(cell for entry in entries for cell in entry.cells):
        content = _read_cell(folder, cell)
        if content is not None:
            files[cell.key] = content
    return Study(folder, settings, seeds, entries, files)


def _read_cell(folder: Path, cell: StudyCell) -> dict[str, Any] | None:
    """Content of a cell's file, checked; None where there is none."""
    path = cell_path(folder, cell.key)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise _damaged(path, str(error)) from None
    if not isinstance(content, dict) or content.get("key") != cell.key:
        raise _damaged(path, "it does not hold the cell that its name says")
    for name, kind in _PARTS.items():
        if not isinstance(content.get(name), kind):
            raise _damaged(path, f"its {name} is missing or not one")
    return content


def _damaged(path: Path, reason: str) -> DataError:
    return DataError(
        f"{path} is damaged ({reason}); delete it, and rotnet_fast.reproduce computes this cell again"
    )


def _machine(environment: Mapping[str, Any]) -> tuple[str, ...]:
    """Hardware and versions of a cell's environment."""
    device, cpu = environment.get("device") or "unknown", environment.get("cpu") or "unknown"
    threads = environment.get("threads")
    hardware = str(device) if device == cpu else f"{device}; host {cpu}"
    if threads is not None:
        hardware += f", {threads} CPU thread{'s' if threads != 1 else ''}"
    cuda = environment.get("cuda")
    versions = [f"torch {environment.get('torch') or 'unknown'}"]
    if cuda:
        versions.append(f"CUDA {cuda}")
    versions += [
        f"Python {environment.get('python') or 'unknown'}",
        f"rotnet_fast {environment.get('rotnet_fast') or 'unknown'}",
    ]
    return hardware, ", ".join(versions), str(environment.get("kernel") or "unknown")

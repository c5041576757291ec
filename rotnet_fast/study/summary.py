"""A study's results, read from its folder: values per seed, means, deviations, differences.

Importing this module does not import torch.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rotnet_fast.arrays import decode_array
from rotnet_fast.engine.run_folder import STUDY_FILE
from rotnet_fast.errors import ArgumentError, DataError
from rotnet_fast.files import named
from rotnet_fast.plain import counted
from rotnet_fast.protocols.result import Cell, Circumstances
from rotnet_fast.study.builder import Builder
from rotnet_fast.study.cells import StudyCell, with_needs
from rotnet_fast.study.plan import Entry, make_plan
from rotnet_fast.study.settings import Seeds, StudySettings
from rotnet_fast.study.store import REMEDY, cell_path, read_cell, read_study
from rotnet_fast.verdict import wilson


@dataclass(frozen=True)
class Number:
    """One entry with the values that its cells gave.

    Attributes:
        entry: entry of the plan.
        by_seed: seed -> value in percent, for the seeds that have been run.
        correct: seed -> whether a classifier was right about each test image, bool [N]; empty for
            what is no accuracy of one.
    """

    entry: Entry
    by_seed: Mapping[int, float]
    correct: Mapping[int, NDArray[np.bool_]] = field(default_factory=dict)

    @property
    def n(self) -> int:
        """Number of values."""
        return len(self.by_seed)

    @property
    def mean(self) -> float | None:
        """Mean over the seeds; None where nothing has been run."""
        return statistics.fmean(self.by_seed.values()) if self.by_seed else None

    @property
    def deviation(self) -> float | None:
        """Sample standard deviation (n - 1) over the seeds; None for fewer than two."""
        return statistics.stdev(self.by_seed.values()) if self.n > 1 else None

    def of_seeds(self, seeds: Collection[int]) -> Number:
        """Return the number with those of its values whose seed is given."""
        return replace(
            self,
            by_seed={seed: value for seed, value in self.by_seed.items() if seed in seeds},
            correct={seed: right for seed, right in self.correct.items() if seed in seeds},
        )


@dataclass(frozen=True)
class Study:
    """The results of a study, from which everything in a report comes.

    Attributes:
        folder: folder of the results.
        settings: settings of the study.
        seeds: largest numbers of seeds that were requested.
        entries: the whole plan.
        files: key -> content of the cell's file, for every finished cell.
    """

    folder: Path
    settings: StudySettings
    seeds: Seeds
    entries: tuple[Entry, ...]
    files: Mapping[str, Mapping[str, Any]]

    @cached_property
    def circumstances(self) -> Circumstances:
        """The facts that decide whether the numbers may be compared with the published ones."""
        settings = self.settings
        data = settings.data
        return Circumstances(
            dataset=data.name,
            display_name=data.display_name,
            classes=data.classes,
            train_images=data.train_images,
            test_images=data.test_images,
            is_limited=(data.limit_train, data.limit_test, data.validation) != (None, None, None),
            is_pretrained_elsewhere=False,
            model=settings.pretext.model,
            width=settings.pretext.width,
            epochs=min(settings.pretext.epochs, settings.supervised.epochs, settings.head.epochs),
        )

    @property
    def comparable(self) -> bool:
        """Whether a difference to a published number means something."""
        return self.circumstances.comparable

    @property
    def commits(self) -> tuple[str, ...]:
        """Commits of the program, as recorded with the cells, sorted."""
        found = (content["environment"]["commit"] for content in self.files.values())
        return tuple(sorted({str(commit) for commit in found if commit}))

    @cached_property
    def numbers(self) -> Mapping[tuple[str, str], Number]:
        """(item, name) -> number, in the plan's order; entries that are pictures are left out."""
        return {
            (entry.item, entry.name): Number(entry, self._values(entry), self._correct(entry))
            for entry in self.entries
            if entry.value
        }

    def of(self, item: str) -> list[Number]:
        """Return the numbers of a table or figure."""
        return [number for (its_item, _), number in self.numbers.items() if its_item == item]

    def number(self, item: str, name: str) -> Number:
        """Return one number."""
        return self.numbers[item, name]

    def entry(self, item: str, name: str) -> Entry:
        """Return one entry of the plan."""
        return next(entry for entry in self.entries if (entry.item, entry.name) == (item, name))

    def results(self, entry: Entry) -> dict[int, Mapping[str, Any]]:
        """Return seed -> the whole result of the entry's cell, for the seeds that have been run."""
        return {
            seed: self.files[cell.key]["result"]
            for seed, cell in enumerate(entry.cells)
            if cell.key in self.files
        }

    def standard_error(self, accuracy: float) -> float:
        """Return the binomial standard error, in points, of an accuracy in percent on the test images."""
        return 100 * math.sqrt(accuracy / 100 * (1 - accuracy / 100) / self.settings.data.test_images)

    def interval(self, number: Number) -> tuple[float, float] | None:
        """Return the ends of a number's error bar: deviation over seeds, or interval of a single one."""
        if number.mean is None:
            return None
        if number.deviation is not None:
            return number.mean - number.deviation, number.mean + number.deviation
        return wilson(number.mean, self.settings.data.test_images)

    @property
    def error_bars(self) -> str:
        """What the error bars of figures are."""
        data = self.settings.data
        one = f"95 % interval of {counted(data.test_images, data.tested_on + ' image')}"
        several = "standard deviation over seeds; of a single one, "
        return f"error bars: {'' if self.seeds.headline == 1 else several}{one}"

    def schedule(self, entry: Entry) -> str:
        """Return the epochs of the trainings behind an entry, one after another; empty where none was run."""
        for cell in entry.cells:
            if cell.key in self.files:
                snapshot = cell.settings.get("snapshot")
                epochs = [snapshot or need.settings["epochs"] for need in cell.needs]
                if "epochs" in cell.settings:
                    epochs.append(cell.settings["epochs"])
                return "+".join(map(str, epochs))
        return ""

    def cost(self, entry: Entry) -> tuple[float, float] | None:
        """Return hours and floating-point operations of an entry, mean over its seeds; None if not run.

        Those of the trainings that its cell starts from are included. An addition and a multiplication are
        two operations; a group's work is divided among its cells as its time is.
        """
        found = []
        for cell in entry.cells:
            files = [self.files.get(one.key) for one in with_needs([cell])]
            known = [file for file in files if file is not None]
            if len(known) < len(files):
                continue
            seconds = sum(file["seconds"] for file in known)
            shares = (
                (file, file["seconds"] / file["group_seconds"]) for file in known if file["group_seconds"]
            )
            found.append((seconds / 3600, sum(2 * file["multiply_adds"] * share for file, share in shares)))
        if not found:
            return None
        return statistics.fmean(hours for hours, _ in found), statistics.fmean(work for _, work in found)

    def machines(self, entries: Iterable[Entry]) -> str:
        """Return the short names of the machines that computed the entries' cells."""
        names = {self.machine_of(cell) for entry in entries for cell in entry.cells if cell.key in self.files}
        return ", ".join(sorted(names, key=lambda name: int(name[1:])))

    def machine_of(self, cell: StudyCell) -> str:
        """Return the short name of the machine that computed a finished cell."""
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

    def _correct(self, entry: Entry) -> dict[int, NDArray[np.bool_]]:
        """Unpack what the classifiers of an entry were right about; it is empty for other entries."""
        images = self.settings.data.test_images
        return {
            seed: np.unpackbits(decode_array(result["correct"]), count=images).astype(bool)
            for seed, result in self.results(entry).items()
            if entry.value == "accuracy"
        }

    def _values(self, entry: Entry) -> dict[int, float]:
        values = {}
        for seed, cell in enumerate(entry.cells):
            if cell.key in self.files:
                value = self.files[cell.key]["result"].get(entry.value)
                is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
                if not is_number or not math.isfinite(value):
                    path = cell_path(self.folder, cell.key)
                    raise DataError(f"{path} holds no number {entry.value!r}; {REMEDY}")
                values[seed] = float(value)
        return values


def is_study(folder: Path) -> bool:
    """Tell whether `rotnet_fast.reproduce` wrote a folder."""
    return (named(folder) / STUDY_FILE).exists()


def load_study(folder: Path) -> Study:
    """Read a study's folder, whatever part of it has been run.

    Raises:
        ArgumentError: the folder holds no study, or one of another version.
        DataError: the file of a cell is damaged.
    """
    folder = named(folder)
    remedy = "give a folder that rotnet_fast.reproduce wrote"
    settings, seeds = read_study(folder, remedy)
    try:
        entries = tuple(make_plan(settings, seeds))
    except (TypeError, ValueError) as error:
        path = folder / STUDY_FILE
        raise ArgumentError(f"{path} was written by another version ({error!r}); {remedy}") from None
    files = {}
    for cell in with_needs(cell for entry in entries for cell in entry.cells):
        content = read_cell(folder, cell)
        if content is not None:
            files[cell.key] = content
    return Study(folder, settings, seeds, entries, files)


def evaluation_of(study: Study, pretext: str) -> dict[str, Any] | None:
    """Return what was found on the frozen features of one pretraining, like an evaluation's ``results.json``.

    It is None if the study, as it is planned now, has no such pretraining.

    These are the classifiers of the faithful protocol, with the labels that the study has, sorted by head and
    layer; ablations and snapshots are left out.

    Args:
        study: the study that the pretraining belongs to.
        pretext: key of the pretraining's cell.
    """
    settings = study.settings
    network = next((cell for cell in with_needs(study.cells) if cell.key == pretext), None)
    if network is None:
        return None
    build = Builder(settings, network.settings["seed"])
    cells = []
    for cell in study.cells:
        if cell.needs != (network,) or cell.kind not in ("head", "knn", "linear"):
            continue
        layer, head = cell.placement
        is_faithful = cell.kind != "head" or cell == build.head(network, layer, head)
        if is_faithful and cell.key in study.files:
            cells.append(Cell.of("frozen", layer, head, "", study.files[cell.key]["result"]["confusion"]))
    return {
        "dataset": {**asdict(settings.data), "tested_on": settings.data.tested_on},
        "settings": {
            "epochs": settings.head.epochs,
            "seed": build.seed,
            "images_per_class": settings.images_per_class,
        },
        "cells": [asdict(cell) for cell in sorted(cells, key=lambda cell: (cell.head, cell.layer))],
    }


def _machine(environment: Mapping[str, Any]) -> tuple[str, ...]:
    """Return hardware, versions and kernel of a cell's environment."""
    device, cpu = environment["device"] or "unknown", environment["cpu"] or "unknown"
    threads, cuda = environment["threads"], environment["cuda"]
    hardware = str(device) if device == cpu else f"{device}; host {cpu}"
    hardware += f", {counted(threads, 'CPU thread')}"
    versions = [f"torch {environment['torch']}"]
    if cuda:
        versions.append(f"CUDA {cuda}")
    versions += [f"Python {environment['python']}", f"rotnet_fast {environment['rotnet_fast']}"]
    return hardware, ", ".join(versions), str(environment["kernel"])

"""A complete study with random results, written as the JSON files that a real one leaves."""

from __future__ import annotations

import functools
import json
import random
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from rotnet_fast.arrays import encode_array
from rotnet_fast.study.cells import StudyCell
from rotnet_fast.study.plan import make_plan
from rotnet_fast.study.settings import Seeds, StudyData, StudyPreset, StudySettings, study_settings

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

ENVIRONMENT = {
    "rotnet_fast": "0.1.0",
    "torch": "2.14.1+cu130",
    "cuda": None,
    "python": "3.11.7",
    "platform": "Linux",
    "device": "AMD EPYC",
    "cpu": "AMD EPYC",
    "threads": 2,
    "kernel": "avx512",
    "commit": None,
}

DETAILS: dict[str, Any] = {
    "seconds": 12.5,
    "group_seconds": 12.5,
    "multiply_adds": 1e9,
    "resumed": False,
    "command": "",
    "environment": ENVIRONMENT,
}
"""What a cell's file says beside its result."""


def settings_of(
    name: str = "cifar10",
    display_name: str = "CIFAR-10",
    preset: StudyPreset = "paper",
    scale: float = 1.0,
    classes: tuple[str, ...] = CLASSES,
) -> StudySettings:
    """Settings of a study at full size."""
    size = 16 if name == "digits" else 32
    data = StudyData(name, display_name, classes, "0123456789abcdef", 50_000, 10_000, 5_000, 3, size)
    return study_settings(preset, scale, data, "bf16")


def write_study(folder: Path, settings: StudySettings, seeds: int, headline: int = 0) -> Path:
    """study.json and the file of every cell."""
    (folder / "cells").mkdir(parents=True)
    repeated = Seeds(seeds, headline or seeds)
    content = {"format": 1, "settings": settings.to_json(), "seeds": asdict(repeated)}
    (folder / "study.json").write_text(json.dumps(content))
    pending = [cell for entry in make_plan(settings, repeated) for cell in entry.cells]
    cells: dict[str, StudyCell] = {}
    while pending:
        cell = pending.pop()
        cells[cell.key] = cell
        pending += cell.needs
    for cell in cells.values():
        write_cell(folder, settings, cell, result_of(cell, settings))
    return folder


def write_cell(folder: Path, settings: StudySettings, cell: StudyCell, result: dict[str, Any]) -> None:
    """One cell's file."""
    content = {
        "format": 1,
        "key": cell.key,
        "kind": cell.kind,
        "settings": cell.settings,
        "member": cell.member,
        "needs": [need.key for need in cell.needs],
        "result": result,
        "finished": "2026-01-02T03:04:05+00:00",
        **DETAILS,
    }
    (folder / "cells" / f"{cell.key}.json").write_text(json.dumps(content))


def remove_cells(folder: Path, keep: int = 0) -> None:
    """Leave only the first ``keep`` cell files, by name."""
    for path in sorted((folder / "cells").iterdir())[keep:]:
        path.unlink()


def copy_study(folder: Path, to: Path) -> Path:
    """A copy of the results, without what was generated from them."""
    to.mkdir()
    shutil.copy(folder / "study.json", to)
    shutil.copytree(folder / "cells", to / "cells")
    return to


def result_of(cell: StudyCell, settings: StudySettings) -> dict[str, Any]:
    """A random result in the form of the cell's kind; the same for the same cell."""
    draw = random.Random(cell.key)
    if cell.kind == "pretext":
        accuracy = draw.uniform(70, 92)
        rotations = cell.settings["rotations"]
        result: dict[str, Any] = {
            "rotation_accuracy": accuracy,
            "rotation_accuracy_by_degrees": {str(angle): draw.uniform(60, 95) for angle in rotations},
            "images_per_second": 1234.5,
            "train_seconds": 100.0,
        }
        for epoch in cell.settings["snapshots"]:
            result[f"rotation_accuracy_after/{epoch}"] = draw.uniform(50, 92)
        return result
    if cell.kind in ("attention", "filters", "rotations", "embedding"):
        return pictures_of(cell.kind, settings.data.classes)
    classes = len(settings.data.classes)
    confusion = [
        [draw.randrange(5, 30) + (row == column) * draw.randrange(200, 900) for column in range(classes)]
        for row in range(classes)
    ]
    correct = sum(confusion[label][label] for label in range(classes))
    accuracy = 100 * correct / sum(map(sum, confusion))
    right = packed_correct(accuracy, settings.data.test_images, draw.randrange(2**32))
    chosen = {"penalty": draw.choice([1e-6, 1e-4]), "has_converged": True} if cell.kind == "svm" else {}
    return {**chosen, "accuracy": accuracy, "confusion": confusion, "correct": right}


def packed_correct(accuracy: float, images: int, seed: int) -> dict[str, Any]:
    """Images that a classifier of this accuracy is right about, at random, as a cell's file holds them."""
    right = np.zeros(images, dtype=bool)
    right[: round(accuracy * images / 100)] = True
    return encode_array(np.packbits(np.random.default_rng(seed).permutation(right)))


def pictures_of(kind: str, classes: tuple[str, ...]) -> dict[str, Any]:
    """What the analysis of a tiny untrained network gives of random images."""
    if kind in ("attention", "filters"):
        found = {"rotation": _analysis(kind, classes, 4), "supervised": _analysis(kind, classes, 3)}
        return found if kind == "filters" else {**found, "resemblance": _analysis("resemblance", classes, 4)}
    return _analysis(kind, classes, 4)


@functools.cache
def _analysis(kind: str, classes: tuple[str, ...], blocks: int) -> dict[str, Any]:
    import torch  # here: what reads a study does not need it
    from analysis_inputs import fp32_views, random_images, small_network

    from rotnet_fast.analysis.attention import attention, resemblance
    from rotnet_fast.analysis.embedding import embedding
    from rotnet_fast.analysis.filters import filters
    from rotnet_fast.analysis.rotation import rotation

    images, views = random_images(40), fp32_views()
    labels = torch.arange(40) % len(classes)
    network = small_network(blocks=blocks, seed=blocks)
    if kind == "attention":
        return attention(network, images, [0, 1, 2], views)
    if kind == "resemblance":
        return resemblance(network, small_network(blocks=3, seed=3), images, views)
    if kind == "filters":
        return filters(network)
    if kind == "embedding":
        return embedding(network, images, labels, classes, "conv2", views)
    return rotation(network, images, labels, classes, (0, 90, 180, 270), [0, 1, 2], views)

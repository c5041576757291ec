"""A study that takes seconds, shared by the tests of the study."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from rotnet_fast.data.datasets import Dataset, Split
from rotnet_fast.engine.precision import resolve_precision
from rotnet_fast.study.context import Context
from rotnet_fast.study.settings import Seeds, StudyData, StudySettings, study_settings
from rotnet_fast.study.store import Results

CPU = torch.device("cpu")
SIDE = 8


def made_dataset(per_class: int = 8, test_images: int = 12) -> Dataset:
    """Images of noise whose mean brightness tells the class, four classes."""

    def split(count: int, seed: int) -> Split:
        labels = torch.arange(count) % 4
        noise = torch.randint(0, 64, (count, SIDE, SIDE, 3), generator=torch.Generator().manual_seed(seed))
        return Split((noise + 64 * labels[:, None, None, None]).to(torch.uint8), labels)

    classes = ("a", "b", "c", "d")
    return Dataset("digits", "made", classes, split(4 * per_class, 0), split(test_images, 1), "0" * 64)


def study_data(dataset: Dataset) -> StudyData:
    return StudyData(
        name=dataset.name,
        display_name=dataset.display_name,
        classes=dataset.classes,
        fingerprint=dataset.fingerprint,
        train_images=len(dataset.train.images),
        test_images=len(dataset.test.images),
        smallest_class=int(dataset.train.labels.bincount().min()),
        channels=3,
        image_size=dataset.train.images.shape[1],
    )


def cifar10_data() -> StudyData:
    """What a study knows of the whole CIFAR-10."""
    classes = tuple(f"class {label}" for label in range(10))
    return StudyData("cifar10", "CIFAR-10", classes, "f" * 64, 50_000, 10_000, 5_000, 3, 32)


def tiny_settings(dataset: Dataset) -> StudySettings:
    settings = study_settings("quickstart", 0.05, study_data(dataset), "fp32")
    return replace(settings, pretext=replace(settings.pretext, width=0.05), batch_size=16)


def tiny_context(folder: Path) -> Context:
    """A study of small noise images in a results folder that has been begun."""
    dataset = made_dataset()
    settings = tiny_settings(dataset)
    results = Results(folder)
    results.begin(settings, Seeds())
    return Context(settings, results, dataset, CPU, resolve_precision("fp32", CPU))

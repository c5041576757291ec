"""Settings of a whole study: what its cells have in common.

Importing this module does not import torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from rotnet_fast.checks import batches_of_one, smallest_batch
from rotnet_fast.config import PretrainConfig
from rotnet_fast.errors import ArgumentError
from rotnet_fast.plain import counted
from rotnet_fast.presets import PRESETS
from rotnet_fast.settings import Optimisation

SNAPSHOT_SHARES = (0.2, 0.4, 0.6, 0.8, 1.0)
"""Points of Figure 5a as shares of the pretraining, after the first one, which is one epoch."""

StudyPreset = Literal["demo", "quickstart", "cpu", "two-cores", "slides", "paper", "official"]
"""Presets that cover everything a study trains; the pretraining of two-cores is preset speedrun."""

MINIMUM_EPOCHS = 6
"""A pretraining has at least one epoch for each of the six points of Figure 5a."""

MINIMUM_IMAGES_PER_CLASS = 8

SMOKE_TEST_STEPS = 100
"""Steps of pretraining below which a study shows that everything works, and no more."""


@dataclass(frozen=True)
class Seeds:
    """How often a study is repeated: with the seeds 0, 1, ...

    Attributes:
        every: number of seeds of all entries.
        headline: number of seeds of the headline, at least as many; see `rotnet_fast.study.plan.Entry`.
    """

    every: int = 1
    headline: int = 1

    def __post_init__(self) -> None:
        """Check that the headline is no exception downwards.

        Raises:
            ValueError: less than one seed, or fewer for the headline than for everything.
        """
        if not 1 <= self.every <= self.headline:
            raise ValueError(f"{self.every} and {self.headline} are no numbers of seeds")

    def __str__(self) -> str:
        """Say which seeds there are, such as "seed 0; of the main numbers seeds 0 to 2"."""
        every, headline = (
            "seed 0" if count == 1 else f"seeds 0 to {count - 1}" for count in (self.every, self.headline)
        )
        return every if every == headline else f"{every}; of the main numbers {headline}"


@dataclass(frozen=True)
class Trainings:
    """How a preset trains all networks and heads of a study; only the pretext task's length may differ.

    Attributes:
        recipe: the pretraining, whose width and schedule supervised networks have, too.
        pretext_epochs, supervised_epochs: epochs of whole networks.
        head: how heads are trained.
        batch_size: images per step of everything but the pretraining.
        few_labels: see `StudySettings`.
        headline_seeds: see `Seeds`.
    """

    recipe: PretrainConfig
    pretext_epochs: int
    supervised_epochs: int
    head: Optimisation
    batch_size: int
    few_labels: tuple[int, ...] = ()
    headline_seeds: int = 1


TRAININGS: dict[StudyPreset, Trainings] = {
    # Ours: one label per class, because with all of them a head on an untrained network knows the digits, too
    # (98.6 %). So few make single trainings differ by ten points, hence five seeds; and on so few, heads with
    # the lower rate and the stronger weight decay are better by two to three points.
    "demo": Trainings(
        PRESETS["quickstart"](),
        6,
        6,
        Optimisation(epochs=4, lr=0.03, weight_decay=0.02),
        32,
        few_labels=(1, 2, 4),
        headline_seeds=5,
    ),
    "quickstart": Trainings(PRESETS["quickstart"](), 8, 8, Optimisation(epochs=10), 32),
    # Ours: six pretext epochs instead of the two of the preset, so that Figure 5a has its points.
    "cpu": Trainings(PRESETS["cpu"](), 6, 6, Optimisation(epochs=6), 32),
    # Ours: the network, images and augmentation of the paper, in hours on two cores. Everything follows Muon
    # and a linear decay; short heads need it most (docs/performance.md).
    "two-cores": Trainings(
        PRESETS["speedrun"](), 10, 20, Optimisation(epochs=12, schedule="linear", optimizer="muon"), 128
    ),
    # The slides train the classifier on frozen conv2 like the pretext task.
    "slides": Trainings(
        PRESETS["slides"](), 100, 100, Optimisation(**PRESETS["slides"]().optimisation()), 128
    ),
    "paper": Trainings(PRESETS["paper"](), 100, 100, Optimisation(), 128),
    "official": Trainings(PRESETS["official"](), 200, 200, Optimisation(), 128),
}
"""Preset -> its trainings. Source: protocol of the released code; the paper trains heads for 100 epochs."""


@dataclass(frozen=True)
class StudyData:
    """Facts about a study's data set, after the limits.

    Attributes:
        name, display_name, classes, fingerprint: as in `rotnet_fast.data.datasets.Dataset`.
        train_images, test_images: number of images.
        smallest_class: training images of the class with the fewest.
        channels, image_size: channels and side of an image, in pixels.
        limit_train, limit_test: how many of more images were kept; None for all.
        validation: how many training images were held out and tested on instead of the test images.
    """

    name: str
    display_name: str
    classes: tuple[str, ...]
    fingerprint: str
    train_images: int
    test_images: int
    smallest_class: int
    channels: int
    image_size: int
    limit_train: int | None = None
    limit_test: int | None = None
    validation: int | None = None

    @property
    def tested_on(self) -> str:
        """``test``, or ``validation`` where training images were held out to be tested on."""
        return "test" if self.validation is None else "validation"


@dataclass(frozen=True)
class StudySettings:
    """Everything that decides the numbers of a study, but for the seeds.

    Attributes:
        preset: recipe of the pretraining.
        scale: requested fraction of the epochs and of the training images.
        data: the data set.
        precision: fp32, bf16 or fp16.
        pretext: the pretraining of Table 3; other cells change blocks, rotations and seed.
        supervised, head: how supervised networks and heads are trained.
        batch_size: images per step of everything but the pretraining.
        few_labels: numbers of labels per class of Figure 5b, before all of them; everything else that is
            trained on labels sees the first number. Empty for the paper's shares of a class, and all labels.
    """

    preset: StudyPreset
    scale: float
    data: StudyData
    precision: str
    pretext: PretrainConfig
    supervised: Optimisation
    head: Optimisation
    batch_size: int
    few_labels: tuple[int, ...] = ()

    @property
    def snapshot_epochs(self) -> tuple[int, ...]:
        """Epochs after which Figure 5a looks at the network: 1, 20, 40, 60, 80, 100 of 100."""
        epochs = [1]
        for share in SNAPSHOT_SHARES:
            epochs.append(max(epochs[-1] + 1, round(share * self.pretext.epochs)))
        return tuple(epochs)

    @property
    def is_smoke_test(self) -> bool:
        """Whether the pretraining is so short that all accuracies mean nothing."""
        steps = math.ceil(self.data.train_images / self.pretext.batch_size) * self.pretext.epochs
        return steps < SMOKE_TEST_STEPS

    @property
    def labels_per_class(self) -> tuple[int, ...]:
        """Figure 5b's numbers of labels; of a smaller class than CIFAR-10's, the same shares of it.

        Increasing, the last being the size of the smallest class.
        """
        if self.few_labels:
            smallest = self.data.smallest_class
            return (*(count for count in self.few_labels if count < smallest), smallest)
        return _shares(self.data.smallest_class)

    def labels(self, count: int) -> str:
        """Say how many labels there are of each class, as in ``20 labels per class``.

        As many as the smallest class has stands for all: more, where other classes are larger.
        """
        data = self.data
        if count == data.smallest_class and count * len(data.classes) < data.train_images:
            return f"{count:,} or more labels per class"
        return counted(count, "label per class", "labels per class")

    @property
    def images_per_class(self) -> int | None:
        """Number of labels per class of everything but Figure 5b; None for all."""
        return self.few_labels[0] if self.few_labels else None

    def to_json(self) -> dict[str, Any]:
        """Return plain values for study.json."""
        return {**asdict(self), "pretext": self.pretext.recipe()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> StudySettings:
        """Make settings from what :meth:`to_json` returned and JSON kept (lists become tuples again).

        Raises:
            KeyError, TypeError: another version wrote them.
        """
        data = {key: _frozen(value) for key, value in values["data"].items()}
        config = PretrainConfig.from_recipe(
            values["pretext"], preset=TRAININGS[values["preset"]].recipe.preset
        )
        trainings = {name: Optimisation(**values[name]) for name in ("supervised", "head")}
        plain = {key: _frozen(value) for key, value in values.items()}
        return cls(**{**plain, **trainings, "pretext": config, "data": StudyData(**data)})


def study_settings(preset: StudyPreset, scale: float, data: StudyData, precision: str) -> StudySettings:
    """Make the settings of a study at a scale.

    Args:
        preset: name of a recipe.
        scale: in (0, 1]; fewer epochs, at least six of the pretraining and one of everything else.
            The data are already limited, see :func:`limit_at_scale`.
        data, precision: see `StudySettings`.

    Raises:
        ArgumentError: classes too small for the five points of Figure 5b, or a last batch of one image.
    """
    if data.smallest_class < MINIMUM_IMAGES_PER_CLASS:
        raise ArgumentError(
            f"the smallest class of {data.display_name} has "
            f"{counted(data.smallest_class, 'training image')}; a study needs "
            f"{MINIMUM_IMAGES_PER_CLASS} or more of each class"
        )
    trainings = TRAININGS[preset]
    if smallest_batch(data.train_images, trainings.batch_size) == 1:
        remedy = f"use one fewer with --limit-train {data.train_images - 1}"
        raise batches_of_one(data.train_images, trainings.batch_size, remedy=remedy)
    base = trainings.recipe

    def scaled(epochs: int) -> int:
        return max(1, round(epochs * scale))

    epochs = max(MINIMUM_EPOCHS, round(trainings.pretext_epochs * scale))
    config = replace(
        base.stretched(epochs),
        dataset=data.name,  # type: ignore[arg-type]
        image_size=data.image_size,
        limit_train=data.limit_train,
        limit_test=data.limit_test,
        validation=data.validation,
        precision=precision,  # type: ignore[arg-type]
    )
    return StudySettings(
        preset=preset,
        scale=scale,
        data=data,
        precision=precision,
        pretext=PretrainConfig.from_recipe(config.recipe(), preset=base.preset),
        supervised=Optimisation(**base.stretched(scaled(trainings.supervised_epochs)).optimisation()),
        head=trainings.head.stretched(scaled(trainings.head.epochs)),
        batch_size=trainings.batch_size,
        few_labels=trainings.few_labels,
    )


def limit_at_scale(scale: float, train_images: int, classes: int) -> int | None:
    """Return how many training images a scale leaves, the same number of each class; None for all of them."""
    if scale == 1:
        return None
    per_class = max(MINIMUM_IMAGES_PER_CLASS, round(train_images * scale / classes))
    return min(train_images, per_class * classes)


def _shares(smallest_class: int) -> tuple[int, ...]:
    """Scale 20, 100, 400, 1000 and 5000 of 5000 to a class of another size; strictly increasing."""
    counts: list[int] = []
    for count in (20, 100, 400, 1000):
        share = round(count * smallest_class / 5000) if smallest_class < 5000 else count
        counts.append(max(share, counts[-1] + 1 if counts else 1))
    return (*counts, smallest_class)


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value

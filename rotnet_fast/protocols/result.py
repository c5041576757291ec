"""Results of an evaluation, and when they may be compared with the published numbers.

Importing this module does not import torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rotnet_fast import paper
from rotnet_fast.checks import SIZES
from rotnet_fast.config import NIN
from rotnet_fast.errors import ArgumentError
from rotnet_fast.files import named
from rotnet_fast.json_files import Parts, read_object
from rotnet_fast.plain import counted
from rotnet_fast.pretext_tasks import ROTATION
from rotnet_fast.verdict import is_at_chance

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

BATCHNORM_MODES = ("running", "batch")
"""Statistics that BatchNorm normalises with in an untrained network: its own running ones, or the batch's."""

Confusion = list[list[int]]
"""Test images of each true class (row) and predicted class (column)."""


@dataclass(frozen=True)
class Outcome:
    """What a classifier said of the test images.

    Attributes:
        confusion: confusion matrix of the test images.
        correct: bool [N], whether it was right, image by image in the order of the data set, so that two
            classifiers can be compared on the same images.
        found: what else it says of itself, such as the penalty that was chosen; values that JSON can hold.
    """

    confusion: Confusion
    correct: NDArray[np.bool_]
    found: Mapping[str, Any] = field(default_factory=dict)

    @property
    def accuracy(self) -> float:
        """Percentage of the test images that it was right about."""
        return accuracy(self.confusion)


@dataclass(frozen=True)
class Cell:
    """One finished result of an evaluation, and one row of its table.

    Attributes:
        method: where the features come from: ``frozen`` (pretrained), ``random-init``, ``fine-tune``
            or ``supervised``.
        layer: feature map that the classifier sees; None for a whole network.
        head: the classifier: ``nonlinear``, ``conv``, ``knn`` or ``linear``; None for a whole network.
        note: what else sets this row apart, such as the BatchNorm mode; empty where nothing does.
        accuracy: on the test images, in percent, after the last epoch.
        confusion: confusion matrix of the test images.
    """

    method: str
    layer: str | None
    head: str | None
    note: str
    accuracy: float
    confusion: Confusion

    @classmethod
    def of(cls, method: str, layer: str | None, head: str | None, note: str, confusion: Confusion) -> Cell:
        """Make the row of a classifier with this confusion matrix."""
        return cls(method, layer, head, note, accuracy(confusion), confusion)

    @property
    def variant(self) -> str:
        """What the table says of :attr:`note`."""
        return f"BatchNorm with {self.note}" if self.note.endswith(" statistics") else self.note

    @property
    def is_guess(self) -> bool:
        """Whether the classifier is no better than naming the largest class of the test images every time."""
        sizes = [sum(row) for row in self.confusion]
        return is_at_chance(self.accuracy, 100 * max(sizes) / sum(sizes), sum(sizes))


def accuracy(confusion: Confusion) -> float:
    """Return the percentage of images on a confusion matrix's diagonal."""
    return 100.0 * sum(row[i] for i, row in enumerate(confusion)) / sum(map(sum, confusion))


def cells_of(results: Mapping[str, Any]) -> list[Cell]:
    """Return the rows of an evaluation's ``results.json``."""
    return [Cell(**values) for values in results["cells"]]


@dataclass(frozen=True)
class Circumstances:
    """Decide whether our numbers may be compared with the published ones, in every table alike.

    Attributes:
        dataset, display_name, classes: name, display name and classes of the labelled images.
        train_images, test_images: number of images.
        is_limited: whether they, or those of the pretraining, are a part of a larger set.
        is_pretrained_elsewhere: whether the network was pretrained on other images than these.
        model, width: of the network.
        epochs: length of the shortest training, the pretraining included.
    """

    dataset: str
    display_name: str
    classes: Sequence[str]
    train_images: int
    test_images: int
    is_limited: bool
    is_pretrained_elsewhere: bool
    model: str
    width: float
    epochs: int

    @classmethod
    def of(cls, results: Mapping[str, Any]) -> Circumstances:
        """Return those of an evaluation's ``results.json``."""
        dataset, network, pretraining = results["dataset"], results["network"], results["pretraining"]
        return cls(
            dataset=dataset["name"],
            display_name=dataset["display_name"],
            classes=dataset["classes"],
            train_images=dataset["train_images"],
            test_images=dataset["test_images"],
            is_limited=pretraining["is_limited"],
            is_pretrained_elsewhere=not pretraining["has_same_images"],
            model=network["model"],
            width=network["width"] if network["model"] == NIN else 1.0,
            epochs=min(pretraining["epochs"], results["settings"]["epochs"]),
        )

    @property
    def is_reencoded(self) -> bool:
        """Whether the data set is a folder that has CIFAR-10's classes and numbers of images."""
        is_same = set(self.classes) == paper.CIFAR10_CLASSES and self._counts == SIZES["cifar10"]
        return self.dataset == "folder" and is_same

    @property
    def has_reference(self) -> bool:
        """Whether published numbers may stand beside ours: for NIN on images of CIFAR-10's classes."""
        is_alike = self.dataset == "cifar10" or set(self.classes) == paper.CIFAR10_CLASSES
        return is_alike and self.model == NIN

    @property
    def _counts(self) -> tuple[int, int]:
        return self.train_images, self.test_images

    @property
    def obstacles(self) -> list[str]:
        """Reasons why no difference is taken, as parts of a sentence; empty where one is."""
        is_cifar10 = self.dataset == "cifar10" or self.is_reencoded
        found = {
            f"the images are those of {self.display_name}": not is_cifar10,
            f"the network is {self.model}": self.model != NIN,
            f"the network has {self.width:g} of the paper's width": self.width != 1,
            "only some of the images are used": self.is_limited
            or (self.dataset == "cifar10" and self._counts != SIZES["cifar10"]),
            "the network was pretrained on other images": self.is_pretrained_elsewhere,
            f"the shortest training has {self.epochs} of the paper's {counted(paper.EPOCHS, 'epoch')}": (
                self.epochs < paper.EPOCHS
            ),
        }
        return [reason for reason, is_so in found.items() if is_so]

    @property
    def comparable(self) -> bool:
        """Whether a difference to a published number means something."""
        return not self.obstacles

    @property
    def caveat(self) -> str:
        """The sentence that stands beside published numbers from which no difference is taken; else empty."""
        if self.comparable or not self.has_reference:
            return ""
        return (
            f"The CIFAR-10 reference is the paper's number, for orientation only: "
            f"{', '.join(self.obstacles)}; no difference to it is taken."
        )

    @property
    def published_name(self) -> str:
        """What a table calls the paper's numbers."""
        return "published" if self.comparable else "CIFAR-10 reference"

    @property
    def header(self) -> tuple[str, ...]:
        """Titles of the columns that stand beside our numbers; none where no published number may."""
        if not self.has_reference:
            return ()
        return (self.published_name, "difference") if self.comparable else (self.published_name,)

    def reference(self, published: float | None) -> float | None:
        """Return a published number, or None where it may not stand beside ours."""
        return published if self.has_reference else None

    def difference(self, ours: float | None, published: float | None) -> float | None:
        """Return ours minus published, in points; None where that is no comparison."""
        if not self.comparable or ours is None or published is None:
            return None
        return ours - published

    def beside(self, ours: float | None, published: float | None) -> tuple[str, ...]:
        """Return the texts of the columns of :attr:`header` in one row."""
        if not self.has_reference:
            return ()
        reference = NO_VALUE if published is None else f"{published:.2f}"
        return (reference, points(self.difference(ours, published))) if self.comparable else (reference,)


NO_VALUE = "-"
"""What a table shows where there is no number."""


def points(difference: float | None) -> str:
    """Format a difference with its sign."""
    return NO_VALUE if difference is None else f"{difference:+.2f}"


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]], numeric: Sequence[int] = ()) -> str:
    """Format a plain-text table with a rule under its header; columns in ``numeric`` are right-aligned."""
    lines = [list(header), *map(list, rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]

    def aligned(line: Sequence[str]) -> str:
        cells = [
            text.rjust(width) if column in numeric else text.ljust(width)
            for column, (text, width) in enumerate(zip(line, widths, strict=True))
        ]
        return "  ".join(cells).rstrip()

    rule = "  ".join("-" * width for width in widths)
    return "\n".join([aligned(lines[0]), rule, *map(aligned, lines[1:])])


def render(results: Mapping[str, Any]) -> str:
    """Render the table of an evaluation's ``results.json``.

    Each row has our accuracy, the published one and the difference. Where that would mean nothing, see
    `Circumstances`, the published numbers are marked as a reference and no difference is taken; beside other
    images than CIFAR-10's and other networks than NIN, there are none.
    """
    dataset, network = results["dataset"], results["network"]
    images_per_class = results["settings"]["images_per_class"]
    circumstances = Circumstances.of(results)
    cells = cells_of(results)
    has_variants = any(cell.note for cell in cells)
    rows = []
    for cell in cells:
        published = None
        if circumstances.has_reference:
            published = paper.published_accuracy(
                cell.method,
                cell.layer,
                cell.head,
                blocks=network["blocks"],
                rotations=network["rotations"],
                images_per_class=images_per_class,
                preset=results["settings"]["preset"],
            )
        rows.append(
            [
                cell.method,
                cell.layer or NO_VALUE,
                cell.head or NO_VALUE,
                *([cell.variant or NO_VALUE] if has_variants else []),
                f"{cell.accuracy:.2f}",
                *circumstances.beside(cell.accuracy, published),
            ]
        )
    named = ["method", "layer", "head", *(["variant"] if has_variants else [])]
    header = [*named, "ours, %", *circumstances.header]
    labels = "all labels"
    if images_per_class is not None:
        labels = counted(images_per_class, "label per class", "labels per class")
    size = network["model"]
    if network["model"] == NIN:
        size = f"{counted(network['blocks'], 'block')}, width {network['width']:g}"
    if network["pretext_task"] != ROTATION:
        size += f", pretext task {network['pretext_task']}"
    parts = [
        f"{dataset['tested_on'].capitalize()} accuracy on {dataset['display_name']} "
        f"({counted(dataset['test_images'], 'image')}); "
        f"{size}; {labels}, {counted(results['settings']['epochs'], 'epoch')}\n",
        format_table(header, rows, numeric=range(len(named), len(header))),
    ]
    guesses = [
        " ".join(text for text in row[: len(named)] if text != NO_VALUE)
        for row, cell in zip(rows, cells, strict=True)
        if cell.is_guess
    ]
    if guesses:
        parts.append(
            f"No better than naming one class for all images: {'; '.join(guesses)}. Try more --epochs, a "
            f"lower --lr, or more labels."
        )
    if circumstances.caveat:
        parts.append(circumstances.caveat)
    return "\n".join(parts)


_PARTS: Parts = {"cells": list, "dataset": dict, "network": dict, "pretraining": dict, "settings": dict}


def load_results(folder: Path) -> dict[str, Any]:
    """Read ``results.json`` of an evaluation's folder, or the file itself.

    Raises:
        ArgumentError: the file is missing, unreadable or not the result of an evaluation.
    """
    folder = named(folder)
    path = folder / "results.json" if folder.is_dir() else folder
    remedy = "give a folder that rotnet_fast.evaluate or reproduce wrote"
    results = read_object(path, "evaluation", _PARTS, remedy)
    if "tested_on" not in results["dataset"]:
        raise ArgumentError(f"{path} was written by another version of rotnet_fast; evaluate again")
    return results

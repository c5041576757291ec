"""The section of a report on classes: accuracy of each, and what is confused with what.

Importing this module does not import torch.
"""

from __future__ import annotations

import statistics

from rotnet_fast.protocols.result import points
from rotnet_fast.study.pages.document import NOT_RUN, Block, Section, Table, escaped, figure
from rotnet_fast.study.pages.tables import data_set, spread
from rotnet_fast.study.summary import Study

CONFUSED = {"rotnet-conv": "RotNet + conv", "supervised": "supervised network"}
"""Entry of Table 3 whose confusion matrix is shown -> its name."""


def class_accuracies(study: Study) -> dict[str, dict[int, list[float]]]:
    """Return key of `CONFUSED` -> seed -> accuracy of each class in percent, from the confusion matrices.

    As the two are compared, both have the same seeds, unless they have none in common. A matrix has the true
    class in rows; a class without test images counts as 0, see :func:`tested_classes`.
    """
    found: dict[str, dict[int, list[float]]] = {name: {} for name in CONFUSED}
    for name, by_seed in found.items():
        for seed, result in study.results(study.entry("table3", name)).items():
            if "confusion" in result:
                rows = enumerate(result["confusion"])
                by_seed[seed] = [100.0 * row[label] / max(1, sum(row)) for label, row in rows]
    common = set.intersection(*(set(by_seed) for by_seed in found.values()))
    if not common:
        return found
    return {name: {seed: by_seed[seed] for seed in sorted(common)} for name, by_seed in found.items()}


def tested_classes(study: Study) -> list[int]:
    """Return the classes with test images, as far as the results tell; limits may leave some without."""
    matrix = next((found for name in CONFUSED if (found := summed_confusion(study, name))), None)
    every = range(len(study.settings.data.classes))
    return [label for label in every if matrix is None or any(matrix[label])]


def summed_confusion(study: Study, name: str) -> list[list[int]] | None:
    """Sum the confusion matrices of a Table 3 entry over the seeds; None where it has not been run."""
    matrices = [
        result["confusion"]
        for result in study.results(study.entry("table3", name)).values()
        if "confusion" in result
    ]
    if not matrices:
        return None
    return [[sum(cells) for cells in zip(*rows, strict=True)] for rows in zip(*matrices, strict=True)]


def per_class(study: Study, drawn: frozenset[str]) -> Section:
    """Show the accuracy of each class, and confusion matrices."""
    accuracies = class_accuracies(study)
    rows = []
    for label in tested_classes(study):
        means = []
        row = [escaped(study.settings.data.classes[label])]
        for name in CONFUSED:
            values = [by_class[label] for by_class in accuracies[name].values()]
            row.append(spread(values, 2) if values else NOT_RUN)
            means.append(statistics.fmean(values) if values else None)
        rotnet, supervised = means
        difference = None if rotnet is None or supervised is None else rotnet - supervised
        rows.append((*row, points(difference)))
    header = ("class", *(f"{name}, %" for name in CONFUSED.values()), "difference")
    caption = f"Test accuracy in % of each class, {data_set(study)}, over the seeds of both networks"
    blocks: list[Block] = list(
        figure(
            drawn,
            "per-class",
            "Bar chart: test accuracy of each class, RotNet with a conv head next to the supervised network.",
            "Accuracy of each class: RotNet + conv and the supervised network.",
        )
    )
    blocks.append(Table(caption, header, tuple(rows), (1, 2, 3)))
    for name, title in CONFUSED.items():
        blocks += figure(
            drawn,
            f"confusion-{name}",
            f"Confusion matrix ({title}): true classes in rows, predicted classes in columns.",
            f"Confusion matrix ({title}), in % of each true class, over all seeds.",
        )
    return Section("Classes: accuracies and confusions", tuple(blocks))

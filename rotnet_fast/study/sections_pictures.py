"""Sections of a report that show what networks look at, confuse, and are sure of.

Importing this module does not import torch.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from rotnet_fast.protocols.result import points
from rotnet_fast.study.document import NOT_RUN, Block, Section, Table, plain
from rotnet_fast.study.sections import figure
from rotnet_fast.study.summary import Study
from rotnet_fast.study.tables import data_set

NETWORKS = {"rotation": "rotation network", "supervised": "supervised network"}
"""Key in the result of an attention or filters cell -> its name."""

CONFUSED = {"rotnet-conv": "RotNet + conv", "supervised": "supervised network"}
"""Entry of Table 3 whose confusion matrix is shown -> its name."""


def figure3(study: Study, drawn: frozenset[str]) -> Section:
    """Figure 3: attention maps and how they turn with the image."""
    results = study.results(study.entry("figure3", "attention"))
    networks = [result[key] for result in results.values() for key in NETWORKS if key in result]
    powers = [str(power) for power in networks[0]["powers"]] if networks else ["1", "2", "4"]
    rows = []
    for key, name in NETWORKS.items():
        found = [result[key] for result in results.values() if key in result]
        if not found:
            rows.append((name, *[NOT_RUN] * len(powers)))
            continue
        for layer in found[0]["layers"]:
            by_power = [[network["equivariance"][layer][power] for network in found] for power in powers]
            rows.append((f"{name}, {layer}", *(spread(values, 3) for values in by_power)))
    note = (
        "Correlation of the map of the turned image, turned back, with that of the upright image; mean over "
        "test images and turns by 90, 180 and 270 degrees. 1: the map turns exactly with the image."
    )
    caption = f"How faithfully attention maps turn with the image (equivariance), {data_set(study)}"
    blocks: list[Block] = list(
        figure(
            drawn,
            "figure3",
            "Attention maps of the rotation network and of the supervised one, on test images and their "
            "turned copies; below, bars of the correlation of each map with that of the upright image.",
            "Figure 3: attention maps, per location the sum over channels of the activation to the power p, "
            "of an early, a middle and the last block, of both networks on the same test images.",
        )
    )
    header = ("network, layer", *(f"p = {power}" for power in powers))
    blocks.append(Table(caption, header, tuple(rows), tuple(range(1, len(header))), note))
    return Section("Figure 3: attention maps", tuple(blocks))


def figure4(study: Study, drawn: frozenset[str]) -> Section:
    """Figure 4: first-layer filters and how diverse they are."""
    results = study.results(study.entry("figure4", "filters"))
    rows = []
    for key, name in NETWORKS.items():
        found = [result[key] for result in results.values() if key in result]
        if not found:
            rows.append((name, NOT_RUN, "", "", ""))
            continue
        rows.append(
            (
                name,
                str(found[0]["count"]),
                f"{spread([network['effective_rank'] for network in found], 2)} of {found[0]['full_rank']}",
                spread([network["mean_abs_cosine"] for network in found], 3),
                spread([network["zero_filters"] for network in found], 0),
            )
        )
    note = (
        "The effective rank is the exponential of the entropy of the normalised singular values: higher is "
        "more varied. The mean absolute cosine is over all pairs of filters: lower is more varied."
    )
    header = ("network", "filters", "effective rank", "mean absolute cosine", "zero filters")
    caption = f"How varied the first-layer filters are, {data_set(study)}"
    blocks: list[Block] = list(
        figure(
            drawn,
            "figure4",
            "First-layer filters as small images, of the rotation network beside the supervised one.",
            "Figure 4: first-layer filters with BatchNorm's scale folded in, both networks side by side.",
        )
    )
    blocks.append(Table(caption, header, tuple(rows), (1, 2, 3, 4), note))
    return Section("Figure 4: first-layer filters", tuple(blocks))


def class_accuracies(study: Study, name: str) -> dict[int, list[float]]:
    """Seed -> accuracy of each class in percent, from the confusion matrix of a Table 3 entry.

    The matrix has the true class in rows; a class without test images counts as 0.
    """
    found = {}
    for seed, result in study.results(study.entry("table3", name)).items():
        if "confusion" in result:
            rows = enumerate(result["confusion"])
            found[seed] = [100.0 * row[label] / max(1, sum(row)) for label, row in rows]
    return found


def summed_confusion(study: Study, name: str) -> list[list[int]] | None:
    """Confusion matrix of a Table 3 entry, summed over the seeds; None where it has not been run."""
    matrices = [
        result["confusion"]
        for result in study.results(study.entry("table3", name)).values()
        if "confusion" in result
    ]
    if not matrices:
        return None
    return [[sum(cells) for cells in zip(*rows, strict=True)] for rows in zip(*matrices, strict=True)]


def per_class(study: Study, drawn: frozenset[str]) -> Section:
    """Accuracy of each class, and confusion matrices."""
    accuracies = {name: class_accuracies(study, name) for name in CONFUSED}
    rows = []
    for label, title in enumerate(study.settings.data.classes):
        means = []
        row = [plain(title)]
        for name in CONFUSED:
            values = [by_class[label] for by_class in accuracies[name].values()]
            row.append(spread(values, 2) if values else NOT_RUN)
            means.append(statistics.fmean(values) if values else None)
        rotnet, supervised = means
        difference = None if rotnet is None or supervised is None else rotnet - supervised
        rows.append((*row, points(difference)))
    header = ("class", *(f"{name}, %" for name in CONFUSED.values()), "difference")
    caption = f"Test accuracy in % of each class, {data_set(study)}"
    blocks: list[Block] = list(
        figure(
            drawn,
            "per-class",
            "Bar chart: test accuracy of each class, RotNet with a conv head beside the supervised network.",
            "Accuracy of each class: RotNet + conv beside the supervised network.",
        )
    )
    blocks.append(Table(caption, header, tuple(rows), (1, 2, 3)))
    for name, title in CONFUSED.items():
        blocks += figure(
            drawn,
            f"confusion-{name}",
            f"Confusion matrix of {title}: true classes in rows, predicted ones in columns.",
            f"Confusion matrix of {title}, in % of each true class, over all seeds.",
        )
    return Section("Classes: accuracies and confusions", tuple(blocks))


def calibration(study: Study, drawn: frozenset[str]) -> Section:
    """How sure the network is of a rotation, and where it is wrong."""
    found = list(study.results(study.entry("extras", "rotations")).values())
    name = NETWORKS["rotation"]
    row = (name, NOT_RUN, "", "")
    if found:
        errors = [100 * result["calibration"]["expected_calibration_error"] for result in found]
        confidences = [100 * result["mean_confidence"] for result in found]
        accuracies = [result["accuracy"] for result in found]
        row = (name, spread(errors, 2), spread(confidences, 2), spread(accuracies, 2))
    caption = f"Calibration of the rotation confidence over all turned test images, {data_set(study)}"
    note = "A calibrated network is as often right as it is sure; the error is the mean gap between both."
    header = ("", "expected calibration error, points", "mean confidence, %", "rotation accuracy, %")
    blocks: list[Block] = [
        *figure(
            drawn,
            "rotations",
            "Gallery of test images in all turned copies, each with the predicted rotation.",
            "Predicted rotations of some test images; a cross marks what is wrong.",
        ),
        *figure(
            drawn,
            "rotation-confusion",
            "Confusion matrix of the rotations: true ones in rows, predicted ones in columns.",
            "Which rotations are taken for which, in % of each true rotation.",
        ),
        *figure(
            drawn,
            "calibration",
            "Reliability diagram: share that is right against confidence of the predicted rotation.",
            "Reliability of the rotation confidence, in bins of equal width.",
        ),
        Table(caption, header, (row,), (1, 2, 3), note),
        *figure(
            drawn,
            "hardest",
            "Gallery of the test images whose rotation is hardest to tell.",
            "The test images with the lowest mean probability of the correct rotation over their copies.",
        ),
    ]
    return Section("Rotations: confidence, and the hardest images", tuple(blocks))


def embedding(study: Study, drawn: frozenset[str]) -> Section:
    """PCA and t-SNE."""
    blocks = figure(
        drawn,
        "embedding",
        "Two scatter plots of test images, coloured by class: principal components, and t-SNE.",
        "Pooled features of the rotation network on test images in the plane, coloured by class, which the "
        "network was never told.",
    )
    return Section("Embedding: what the features know of classes", tuple(blocks))


def first_result(study: Study, item: str, name: str) -> Mapping[str, Any] | None:
    """Result of the first seed that has been run, for what can only show one network."""
    results = study.results(study.entry(item, name))
    return results[min(results)] if results else None


def spread(values: Sequence[float | None], digits: int) -> str:
    """Mean, and standard deviation of several values; those that are None are left out."""
    known = [value for value in values if value is not None]
    if not known:
        return "undefined"
    text = f"{statistics.fmean(known):.{digits}f}"
    return text if len(known) == 1 else f"{text} ± {statistics.stdev(known):.{digits}f}"

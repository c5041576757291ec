"""Sections of a report beyond the paper and the ablations: rotation accuracy, probes, calibration, embedding.

Importing this module does not import torch.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from rotnet_fast.study.pages.document import NOT_RUN, Block, Paragraph, Section, Table, figure
from rotnet_fast.study.pages.tables import NETWORKS, data_set, flat_table, spread
from rotnet_fast.study.summary import Number, Study

JPEG_TRACE = (
    "Where images are kept as JPEG files, part of the rotation accuracy may come from the compression, which "
    "rounds rows and columns differently. By how much, `python -m rotnet_fast.visualize MODEL --what "
    "compression` measures."
)


def rotation_accuracy(study: Study) -> Section:
    """Show how well the pretext task itself is solved."""
    numbers = [number for number in study.of("extras") if number.entry.value == "rotation_accuracy"]
    caption = f"Rotation accuracy in % over all turned copies of the test images, {data_set(study)}"
    trace = [Paragraph(JPEG_TRACE)] if study.settings.data.name == "folder" else []
    return Section(
        "Rotation accuracy",
        (
            *trace,
            flat_table(study, numbers, "rotations told apart", caption),
            rotation_accuracy_by_degrees(study, numbers),
        ),
    )


def rotation_accuracy_by_degrees(study: Study, numbers: Sequence[Number]) -> Table:
    """Tabulate the accuracy of each angle: one row per set of rotations, mean over the seeds."""
    by_set = []
    for number in numbers:
        by_degrees: dict[str, list[float]] = {}
        for result in study.results(number.entry).values():
            for degrees, accuracy in result["rotation_accuracy_by_degrees"].items():
                by_degrees.setdefault(str(degrees), []).append(float(accuracy))
        by_set.append({degrees: statistics.fmean(values) for degrees, values in by_degrees.items()})
    angles = sorted({degrees for means in by_set for degrees in means}, key=int)
    rows = []
    for number, means in zip(numbers, by_set, strict=True):
        name = number.entry.title.partition(", ")[2]
        cells = [f"{means[degrees]:.2f}" if degrees in means else "" for degrees in angles]
        rows.append((name, *(cells if means else [NOT_RUN, *cells[1:]])))
    header = ("told apart", *(f"{degrees}°" for degrees in angles or ["0"]))
    caption = f"Rotation accuracy in % by the angle that the test image was turned, {data_set(study)}"
    return Table(caption, header, tuple(rows), tuple(range(1, len(header))), "Mean over the seeds.")


def neighbours(study: Study, drawn: frozenset[str]) -> Section:
    """Show kNN and linear probes on pooled features."""
    numbers = [number for number in study.of("extras") if number.entry.name.startswith(("knn-", "linear-"))]
    blocks: list[Block] = list(
        figure(
            drawn,
            "features",
            "Line chart: accuracy of nearest neighbours and a linear probe on each block's pooled features.",
            "Nearest neighbours and linear probes on pooled, frozen features of each block.",
        )
    )
    blocks.append(
        flat_table(
            study, numbers, "classifier", f"kNN and linear probes, test accuracy in % on {data_set(study)}"
        )
    )
    return Section("Nearest neighbours and linear probes", tuple(blocks))


def calibration(study: Study, drawn: frozenset[str]) -> Section:
    """Show how sure the network is of a rotation, and where it is wrong."""
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
    header = ("network", "expected calibration error, points", "mean confidence, %", "rotation accuracy, %")
    blocks: list[Block] = [
        *figure(
            drawn,
            "rotations",
            "Gallery of test images in all turned copies, each with the predicted rotation.",
            "Predicted rotations of some test images; a cross marks a wrong one.",
        ),
        *figure(
            drawn,
            "rotation-confusion",
            "Confusion matrix of the rotations: true rotations in rows, predicted rotations in columns.",
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
    """Show PCA and t-SNE."""
    blocks = figure(
        drawn,
        "embedding",
        "Two scatter plots of test images, coloured by class: principal components, and t-SNE.",
        "Pooled features of the rotation network on test images in the plane, coloured by class, which the "
        "network was never told.",
    )
    return Section("Embedding: what the features know of classes", tuple(blocks))

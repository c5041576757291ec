"""Sections of a report for the figures of the paper.

Importing this module does not import torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rotnet_fast.study.pages.document import NOT_RUN, Block, Paragraph, Section, Table, figure
from rotnet_fast.study.pages.tables import NETWORKS, accuracy_over_steps, data_set, flat_table, spread
from rotnet_fast.study.summary import Study


def figure3(study: Study, drawn: frozenset[str]) -> Section:
    """Show Figure 3: attention maps, and how they turn with the image."""
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
    blocks.append(
        _resemblance(study, [its["resemblance"] for its in results.values() if "resemblance" in its])
    )
    return Section("Figure 3: attention maps", tuple(blocks))


def _resemblance(study: Study, found: Sequence[Mapping[str, Any]]) -> Table:
    """Show how much the attention of both networks is alike, and how much of that is chance."""
    rows = (
        [
            (
                f"{' and '.join(dict.fromkeys(layers))}, p = {power}",
                spread([its["same_image"][place] for its in found], 3),
                spread([its["chance"][place] for its in found], 3),
            )
            for place, (layers, power) in enumerate(zip(found[0]["layers"], found[0]["powers"], strict=True))
        ]
        if found
        else [("", NOT_RUN, NOT_RUN)]
    )
    note = (
        "Correlation of the maps of the rotation network and of the supervised one; mean over upright test "
        "images. On another image, it is what maps have in common whatever they show, such as the centre."
    )
    caption = f"How much both networks look at the same places (resemblance), {data_set(study)}"
    return Table(caption, ("layers", "same image", "another image"), tuple(rows), (1, 2), note)


def figure4(study: Study, drawn: frozenset[str]) -> Section:
    """Show Figure 4: first-layer filters, and how diverse they are."""
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
            "First-layer filters of the rotation network and of the supervised one, as small images.",
            "Figure 4: first-layer filters with BatchNorm's scale folded in, both networks side by side.",
        )
    )
    blocks.append(Table(caption, header, tuple(rows), (1, 2, 3, 4), note))
    return Section("Figure 4: first-layer filters", tuple(blocks))


def figure5a(study: Study, drawn: frozenset[str]) -> Section:
    """Show Figure 5a: both accuracies over the pretraining."""
    blocks: list[Block] = list(
        figure(
            drawn,
            "figure5a",
            "Line chart: rotation accuracy and object accuracy against the epoch of the pretraining.",
            "Figure 5a: rotation accuracy of the network after each of six epochs of its pretraining, and "
            "object accuracy of a conv head trained on its frozen conv2.",
        )
    )
    caption = f"Figure 5a in numbers: test accuracy in % on {data_set(study)}"
    blocks.append(accuracy_over_steps(study, study.of("figure5a"), "epoch", caption))
    is_published = any(number.entry.published is not None for number in study.of("figure5a"))
    if study.circumstances.has_reference and is_published:
        blocks.append(
            Paragraph(
                "The paper's numbers are read off its plot, to about 0.15 points, and are for the epochs 1, "
                "21, 41, 61, 81 and 100."
            )
        )
    return Section("Figure 5a: better at rotations, better at objects", tuple(blocks))


def figure5b(study: Study, drawn: frozenset[str]) -> Section:
    """Show Figure 5b: few labels."""
    blocks: list[Block] = list(
        figure(
            drawn,
            "figure5b",
            "Line chart with a logarithmic horizontal axis: test accuracy of RotNet and of the supervised "
            "network against the number of labels per class.",
            "Figure 5b: a conv head on features that were pretrained on all images without labels, and a "
            "network trained on the labels alone. Images are revisited, so that epochs keep their length.",
        )
    )
    caption = f"Figure 5b in numbers: test accuracy in % on {data_set(study)}"
    blocks.append(accuracy_over_steps(study, study.of("figure5b"), "labels per class", caption))
    if study.circumstances.has_reference:
        blocks.append(
            Paragraph(
                "The paper's numbers are read off its plot, to about 0.1 points, and its pretext had 50,000 "
                "images."
            )
        )
    blocks.append(
        flat_table(
            study,
            study.of("figure5b"),
            "method, labels",
            f"Figure 5b, number by number, on {data_set(study)}",
        )
    )
    return Section("Figure 5b: few labels", tuple(blocks))

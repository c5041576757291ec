"""What the method does and what it is good for, in one picture."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from rotnet_fast.arrays import decode_array
from rotnet_fast.errors import ArgumentError
from rotnet_fast.plain import counted
from rotnet_fast.plots.style import WIDTH, frame, marked, new_figure, shortened, show_image, styled

ROTATIONS, NEIGHBOURS = 4, 3
"""Shown at most: more do not fit into the width of a page; of eight rotations, every second one."""


@styled
def overview(rotation: Mapping[str, Any], neighbours: Mapping[str, Any]) -> Figure:
    """Draw each test image under up to four rotations with the predicted angles, and its nearest images.

    Args:
        rotation: result of `rotnet_fast.analysis.rotation.rotation`.
        neighbours: result of `rotnet_fast.analysis.neighbours.neighbours` for the same images.

    Raises:
        ArgumentError: the results show no images, or not the same ones.
    """
    shown, angles = rotation["shown"], rotation["rotations"]
    if not shown["indices"] or shown["indices"] != neighbours["queries"]["indices"]:
        raise ArgumentError(
            f"the rotation result shows images {shown['indices']} and the neighbours result "
            f"{neighbours['queries']['indices']}; compute both for the same images"
        )
    views, found = decode_array(shown["views"]), decode_array(neighbours["neighbours"]["images"])
    classes, labels = neighbours["classes"], neighbours["neighbours"]["labels"]
    taken = range(0, len(angles), -(-len(angles) // ROTATIONS))
    turned, near = len(taken), min(NEIGHBOURS, found.shape[1])
    columns = turned + near + 0.5
    cell = min(0.9, (WIDTH - 0.2) / columns - 0.07)
    figure = new_figure(len(views) * (cell + 0.27) + 0.7, max(4.5, columns * (cell + 0.07) + 0.2))
    figure.suptitle(
        f"Left: predicted rotations, {rotation['accuracy']:.1f} % right\n"
        f"Right: nearest of {counted(neighbours['bank_images'], 'image')} by {neighbours['layer']} features",
        fontsize=9,
    )
    grid = figure.subplots(
        len(views), turned + near + 1, squeeze=False, width_ratios=[*[1] * turned, 0.3, *[1] * near]
    )
    for position, row in enumerate(grid):
        predicted, confidence = shown["predicted"][position], shown["confidence"][position]
        for axes, k in zip(row, taken, strict=False):
            is_right = predicted[k] == angles[k]
            show_image(axes, views[position][k])
            frame(axes, is_right)
            text = f"{predicted[k]}° {100 * confidence[k]:.0f} %"
            axes.set_xlabel(marked(text, is_right), fontsize=8, labelpad=2)
        row[turned].set_axis_off()
        own = neighbours["queries"]["labels"][position]
        for axes, image, label in zip(row[turned + 1 :], found[position], labels[position], strict=False):
            show_image(axes, image)
            if classes:
                frame(axes, label == own)
                axes.set_xlabel(marked(shortened(classes[label], 11), label == own), fontsize=8, labelpad=2)
    return figure

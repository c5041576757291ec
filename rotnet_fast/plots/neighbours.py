"""Test images and their nearest labelled images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from rotnet_fast.arrays import decode_array
from rotnet_fast.errors import ArgumentError
from rotnet_fast.plain import counted
from rotnet_fast.plots.style import (
    WIDTH,
    frame,
    marked,
    new_figure,
    shortened,
    show_image,
    styled,
    title_of,
)

NAME_CHARACTERS = 14
"""Characters of a class name of 8 points that take an inch."""


@styled
def neighbours(result: Mapping[str, Any]) -> Figure:
    """Draw one query per row with its neighbours to the right, nearest first.

    If there are classes, neighbours of another class are marked.

    Args:
        result: result of `rotnet_fast.analysis.neighbours.neighbours`.

    Raises:
        ArgumentError: the result has no queries to show.
    """
    queries, found, classes = result["queries"], result["neighbours"], result["classes"]
    query_images, images = decode_array(queries["images"]), decode_array(found["images"])
    if len(query_images) == 0:
        raise ArgumentError("the neighbours result has no queries to show; compute it with some")
    columns = images.shape[1]
    cell = min(0.95, (WIDTH - 0.3) / (columns + 1.25) - 0.06)
    figure = new_figure(len(images) * (cell + 0.3) + 0.75)
    title = f"Nearest of {counted(result['bank_images'], 'image')} by {result['layer']} features"
    if classes:
        voters = counted(result["k"], "neighbour")
        title += f": the vote of {voters} is right for {result['accuracy']:.1f} %"
    title_of(figure, title)
    most = max(4, int(cell * NAME_CHARACTERS))
    grid = figure.subplots(len(images), columns + 2, squeeze=False, width_ratios=[1, 0.25, *[1] * columns])
    for row, label, query, others, labels, similarity in zip(
        grid,
        queries["labels"],
        query_images,
        images,
        found["labels"],
        found["similarity"],
        strict=True,
    ):
        show_image(row[0], query)
        if classes:
            row[0].set_xlabel(shortened(classes[label], most), fontsize=8, labelpad=2, weight="bold")
        row[1].set_axis_off()
        for axes, image, other, cosine in zip(row[2:], others, labels, similarity, strict=True):
            show_image(axes, image)
            if classes:
                frame(axes, other == label)
                axes.set_xlabel(
                    marked(shortened(classes[other], most - 2), other == label), fontsize=8, labelpad=2
                )
            axes.set_title(f"{cosine:.3f}", fontsize=8, pad=2)
    grid[0][0].set_title("query", fontsize=8, pad=2)
    below = "; below: its class" if classes else ""
    figure.supxlabel(f"above each neighbour: cosine similarity{below}", fontsize=8)
    return figure

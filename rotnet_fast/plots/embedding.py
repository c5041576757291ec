"""Features in the plane, coloured by class."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from rotnet_fast.arrays import decode_array
from rotnet_fast.plain import counted
from rotnet_fast.plots.style import (
    CLASS_COLOURS,
    GREY,
    MARKERS,
    PAGE,
    new_figure,
    shortened,
    styled,
    title_of,
)

MOST_NAMES = 12
"""Classes that are named at their medians; with more, the names would cover the points."""

MOST_IN_LEGEND = 30
"""With more classes, no colour can be told from all others, and none is named."""

LONGEST_NAME = 16
"""Characters of a class name in the picture."""


@styled
def embedding(result: Mapping[str, Any]) -> Figure:
    """Draw PCA above t-SNE, with a colour, a marker and, for up to 12 classes, a name for each class.

    The title says how often the nearest image in the last panel is of the same class.

    Args:
        result: result of `rotnet_fast.analysis.embedding.embedding`.
    """
    labels, classes = decode_array(result["labels"]), result["classes"]
    names = [shortened(name, LONGEST_NAME) for name in classes or [""]]
    panels = [("PCA", decode_array(result["pca"]))]
    if result["tsne"] is not None:
        panels.append(("t-SNE", decode_array(result["tsne"])))
    present = [label for label in range(len(names)) if np.any(labels == label)]
    is_named = bool(classes) and len(present) <= MOST_NAMES
    has_legend = bool(classes) and len(present) <= MOST_IN_LEGEND
    columns = 5 if max(map(len, names)) <= 10 else 3
    legend_height = 0.2 * math.ceil(len(present) / columns) + 0.15 if has_legend else 0.0
    heights = [2.8, 4.2][: len(panels)]
    figure = new_figure(sum(heights) + 0.5 + legend_height, PAGE)
    title_of(figure, _title(result, labels, panels[-1], len(present)))
    all_axes = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)[:, 0]
    size = float(np.clip(9000 / len(labels), 7, 24))
    for axes, (name, points) in zip(all_axes, panels, strict=True):
        for number, label in enumerate(present):
            chosen = points[labels == label]
            axes.scatter(
                chosen[:, 0],
                chosen[:, 1],
                s=size,
                marker=MARKERS[number % len(MARKERS)],
                color=CLASS_COLOURS[number % len(CLASS_COLOURS)],
                edgecolors="white",
                linewidths=0.2,
                alpha=0.9,
                label=names[label],
                # Not one class above all others: their points take turns where clouds overlap.
                zorder=2 + number * 0.01,
            )
        axes.set_xticks([])
        axes.set_yticks([])
        for spine in axes.spines.values():
            spine.set_visible(True)
            spine.set_color("#BFBFBF")
        if name == "PCA":
            first, second = (100 * share for share in result["explained_variance"])
            axes.set_title("PCA")
            axes.set_xlabel(f"first component, {first:.0f} % of the variance")
            axes.set_ylabel(f"second component, {second:.0f} %")
        else:
            axes.set_title(f"t-SNE, perplexity {result['perplexity']:.0f}")
            axes.set_xlabel("(axes without units)")
    if has_legend:
        handles, texts = all_axes[0].get_legend_handles_labels()
        legend = figure.legend(
            handles, texts, loc="outside lower center", ncols=columns, handletextpad=0.1, columnspacing=1.2
        )
        for handle in legend.legend_handles:
            handle.set_sizes([30.0])  # type: ignore[union-attr]
    if is_named:
        figure.draw_without_rendering()  # names are placed in the axes as they are laid out
        # Not in the PCA: its medians lie close together, and the names would cover what there is to see.
        points = panels[-1][1]
        medians = np.array([np.median(points[labels == label], axis=0) for label in present])
        _name(all_axes[-1], medians, [names[label] for label in present])
        figure.set_layout_engine("none")
    return figure


def _title(
    result: Mapping[str, Any], labels: NDArray[np.int64], panel: tuple[str, NDArray[np.float32]], classes: int
) -> str:
    """Say how often the nearest image in the last panel is of the same class."""
    what = f"{counted(result['images'], 'test image')} by their {result['layer']} features"
    if classes < 2:
        return what
    from scipy.spatial import cKDTree  # here: importing it takes a while

    name, points = panel
    nearest = cKDTree(points).query(points, k=2)[1][:, 1]
    same = 100 * float(np.mean(labels[nearest] == labels))
    shares = np.bincount(labels) / len(labels)
    chance = 100 * float((shares**2).sum())
    return (
        f"{what}: the nearest one in the {name} plane is of the same class for {same:.0f} % (by chance "
        f"{chance:.0f} %)"
    )


def _name(axes: Axes, medians: NDArray[np.float64], names: list[str]) -> None:
    """Write each name at the median of its class, moved up or down where it would cover another name.

    Args:
        axes: as they are laid out.
        medians: [classes,2] in data coordinates.
        names: one for each class.
    """
    dots = axes.figure.dpi / 72
    box = axes.get_window_extent().padded(-3 * dots)
    height = 13.5 * dots
    widths = np.array([(6.2 * len(name) + 8) * dots for name in names])
    found = axes.transData.transform(medians)  # [classes,2] in pixels
    x = np.clip(found[:, 0], box.x0 + widths / 2, box.x1 - widths / 2)
    y = np.clip(found[:, 1], box.y0 + height / 2, box.y1 - height / 2)
    for _ in range(500):
        is_moved = False
        for one in range(len(names)):
            for other in range(one):
                gap = height - abs(y[one] - y[other])
                if gap <= 0.01 or abs(x[one] - x[other]) >= (widths[one] + widths[other]) / 2:
                    continue
                upper, lower = (one, other) if y[one] >= y[other] else (other, one)
                y[upper], y[lower] = y[upper] + gap / 2, y[lower] - gap / 2
                is_moved = True
        y = np.clip(y, box.y0 + height / 2, box.y1 - height / 2)
        if not is_moved:
            break
    places = axes.transData.inverted().transform(np.stack([x, y], axis=1))
    for number, (name, (x_median, y_median), (x_name, y_name)) in enumerate(
        zip(names, medians, places, strict=True)
    ):
        colour = CLASS_COLOURS[number % len(CLASS_COLOURS)]
        axes.plot([x_median, x_name], [y_median, y_name], color=GREY, linewidth=0.8, zorder=4)
        axes.plot(
            x_median,
            y_median,
            marker=MARKERS[number % len(MARKERS)],
            color=colour,
            markeredgecolor="black",
            markeredgewidth=0.6,
            markersize=6,
            zorder=5,
        )
        axes.text(
            x_name,
            y_name,
            name,
            fontsize=8,
            ha="center",
            va="center_baseline",
            zorder=6,
            bbox={"facecolor": "white", "edgecolor": colour, "linewidth": 1.4, "alpha": 0.9, "pad": 1.5},
        )

"""Features in the plane, coloured by class."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from rotnet_fast.arrays import decode_array
from rotnet_fast.plots.style import COLOURS, MARKERS, YELLOW, new_figure, styled


@styled
def embedding(result: Mapping[str, Any]) -> Figure:
    """Draw PCA and t-SNE side by side; if there are classes, each has its own colour and marker.

    Args:
        result: result of `rotnet_fast.analysis.embedding.embedding`.
    """
    labels, classes = decode_array(result["labels"]), result["classes"] or [""]
    shares = [100 * share for share in result["explained_variance"]]
    panels = [("PCA", decode_array(result["pca"]))]
    if result["tsne"] is not None:
        panels.append(("t-SNE", decode_array(result["tsne"])))
    present = [label for label in range(len(classes)) if np.any(labels == label)]
    columns = min(len(present), 5 if max(len(name) for name in classes) <= 12 else 3)
    legend_height = 0.2 * math.ceil(len(present) / columns) + 0.15 if result["classes"] else 0.0
    figure = new_figure(3.5 + 0.4 + legend_height, 7.0 if len(panels) == 2 else 4.2)
    figure.suptitle(f"{result['images']:,} test images by their {result['layer']} features")
    all_axes = figure.subplots(1, len(panels), squeeze=False)[0]
    size = float(np.clip(6000 / len(labels), 9, 22))
    for axes, (name, points) in zip(all_axes, panels, strict=True):
        for number, label in enumerate(present):
            chosen = points[labels == label]
            colour = COLOURS[label % len(COLOURS)]
            axes.scatter(
                chosen[:, 0],
                chosen[:, 1],
                s=size,
                marker=MARKERS[label % len(MARKERS)],
                color=colour,
                edgecolors="black" if colour == YELLOW else "white",
                linewidths=0.3,
                alpha=0.85,
                label=classes[label],
                zorder=2 + number * 0.01,
            )
        axes.set_xticks([])
        axes.set_yticks([])
        for spine in axes.spines.values():
            spine.set_visible(True)
            spine.set_color("#BFBFBF")
        if name == "PCA":
            axes.set_title("PCA")
            axes.set_xlabel(f"first component, {shares[0]:.0f} % of the variance")
            axes.set_ylabel(f"second component, {shares[1]:.0f} %")
        else:
            axes.set_title(f"t-SNE, perplexity {result['perplexity']:.0f}")
            axes.set_xlabel("(axes without units)")
    if not result["classes"]:
        return figure
    handles, names = all_axes[0].get_legend_handles_labels()
    legend = figure.legend(handles, names, loc="outside lower center", ncols=columns, handletextpad=0.1)
    for handle in legend.legend_handles:
        handle.set_sizes([30.0])  # type: ignore[union-attr]
    return figure

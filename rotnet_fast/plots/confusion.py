"""Confusion matrices."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from rotnet_fast.errors import ArgumentError
from rotnet_fast.plots.style import COUNTS, new_figure, styled

_MOST_WITH_NUMBERS = 12


@styled
def confusion(
    matrix: Sequence[Sequence[int]], classes: Sequence[str], title: str, *, what: str = "class"
) -> Figure:
    """Draw a confusion matrix in percent of each row, with numbers in the cells for up to 12 classes.

    Args:
        matrix: [classes][classes] counts, true class (row) x predicted class (column).
        classes: class names.
        what: kind of class, for the axis labels.

    Raises:
        ArgumentError: the matrix is not square or has another size than the class names.
    """
    counts = np.array(matrix, dtype=np.float64)
    number = len(classes)
    if counts.shape != (number, number):
        raise ArgumentError(
            f"matrix has the shape {counts.shape}; {number} class names need a square of {number}"
        )
    totals = counts.sum(axis=1, keepdims=True)
    percent = 100 * counts / np.where(totals > 0, totals, 1)
    side = 2.2 + 0.44 * number if number <= _MOST_WITH_NUMBERS else 6.6
    side = min(side, 6.6)
    figure = new_figure(side, side + 0.4)
    axes = figure.add_subplot()
    # Cells without a count stay white.
    image = axes.imshow(np.ma.masked_equal(percent, 0), cmap=COUNTS, vmin=0, vmax=100)
    bar = figure.colorbar(image, ax=axes, fraction=0.046, pad=0.02)
    bar.set_label(f"% of the true {what}")
    bar.outline.set_visible(False)  # type: ignore[operator]
    for spine in axes.spines.values():
        spine.set_visible(False)
    if number <= 40:
        long_names = max(map(len, classes)) > 4
        axes.set_xticks(range(number), classes, rotation=45 if long_names else 0)
        if long_names:
            for label in axes.get_xticklabels():
                label.set_horizontalalignment("right")
                label.set_rotation_mode("anchor")
        axes.set_yticks(range(number), classes)
    axes.tick_params(length=0)
    axes.set_xlabel(f"predicted {what}")
    axes.set_ylabel(f"true {what}")
    axes.set_title(title, fontsize=9)
    if number <= _MOST_WITH_NUMBERS:
        axes.set_xticks(np.arange(number + 1) - 0.5, minor=True)
        axes.set_yticks(np.arange(number + 1) - 0.5, minor=True)
        axes.grid(which="minor", color="#D9D9D9", linewidth=0.8)
        axes.tick_params(which="minor", length=0)
        for (row, column), value in np.ndenumerate(percent):
            if counts[row, column]:
                axes.text(
                    column,
                    row,
                    "<0.1" if value < 0.1 else f"{value:.1f}" if value < 99.95 else "100",
                    ha="center",
                    va="center",
                    fontsize=8,
                    color="white" if value > 45 else "black",
                    weight="bold" if row == column else "normal",
                )
    return figure

"""Confusion matrices."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from rotnet_fast.errors import ArgumentError
from rotnet_fast.plain import counted
from rotnet_fast.plots.style import COUNTS, PAGE, WIDTH, new_figure, shortened, styled, title_of

_MOST_WITH_NUMBERS, _MOST_WITH_NAMES = 12, 40
LONGEST_NAME = 16
"""Characters of a class name beside the matrix."""


@styled
def confusion(
    matrix: Sequence[Sequence[int]], classes: Sequence[str], title: str, *, what: str = "class"
) -> Figure:
    """Draw a confusion matrix in percent of each row, from white for 0; up to 12 classes have numbers, too.

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
            f"matrix has the shape {counts.shape}; for {counted(number, 'class name')}, it must be a square "
            f"of {number}"
        )
    totals = counts.sum(axis=1, keepdims=True)
    percent = 100 * counts / np.where(totals > 0, totals, 1)
    has_numbers = number <= _MOST_WITH_NUMBERS
    width = PAGE if number <= 10 else WIDTH
    figure = new_figure(min(width - 0.3, 2.4 + 0.4 * number) if has_numbers else width + 0.4, width)
    title_of(figure, title)
    axes = figure.add_subplot()
    image = axes.imshow(percent, cmap=COUNTS, vmin=0, vmax=100)
    bar = figure.colorbar(image, ax=axes, fraction=0.046, pad=0.02)
    bar.set_label(f"% of the true {what}")
    bar.outline.set_visible(False)  # type: ignore[operator]
    for spine in axes.spines.values():
        spine.set_visible(False)
    if number <= _MOST_WITH_NAMES:
        names = [shortened(name, LONGEST_NAME) for name in classes]
        is_long = max(map(len, names)) > 4
        axes.set_xticks(range(number), names, rotation=90 if is_long else 0)
        axes.set_yticks(range(number), names)
    else:
        axes.set_xticks([])
        axes.set_yticks([])
    axes.tick_params(length=0)
    axes.set_xlabel(f"predicted {what}")
    axes.set_ylabel(f"true {what}")
    if has_numbers:
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
                    color="white" if value > 50 else "black",
                    weight="bold" if row == column else "normal",
                )
    return figure

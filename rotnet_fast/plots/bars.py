"""Horizontal bars with error bars, above the values that they are compared with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from rotnet_fast.errors import ArgumentError
from rotnet_fast.plots.style import (
    COLOURS,
    GREY,
    HATCHES,
    MARKERS,
    PAGE,
    new_figure,
    styled,
    title_of,
    wrapped,
)


@dataclass(frozen=True)
class Bar:
    """Describe one row; None stands for a missing value.

    Attributes:
        label: label to the left of the bar.
        mean, std: length of the bar, and its standard deviation over several seeds.
        interval: lower and upper end of the error bar where there is no standard deviation.
        published: the value to compare with, drawn as a hollow marker below the bar.
        group: rows of a group share colour and hatch; the legend names the groups if there are several.
        is_quoted: whether there is only a published value, because nothing of the row is ever measured.
    """

    label: str
    mean: float | None
    std: float | None = None
    interval: tuple[float, float] | None = None
    published: float | None = None
    group: str = ""
    is_quoted: bool = False


LINE = 0.165
"""Height in inches of a bar, and of the marker and number below it."""

LABEL = 34
"""Characters of a label in one line."""

LABEL_LINE = 0.14
"""Height in inches of a line of a label."""

AXIS_LABEL = 46
"""Characters of a line below the axis, which is shorter than the figure is wide."""


@styled
def bars(
    rows: Sequence[Bar],
    *,
    x_label: str,
    title: str = "",
    start: float = 0.0,
    published_name: str = "published",
) -> Figure:
    """Draw rows from top to bottom in the given order, each number at what it belongs to.

    A row has a bar, with its number at the end, and below the bar a hollow marker with the published number.

    Args:
        rows: one or more rows.
        x_label: label of the horizontal axis.
        title: title of the figure.
        start: start of the axis. If it is not 0, points replace the bars, which would exaggerate differences.
        published_name: name of the hollow markers in the legend.

    Raises:
        ArgumentError: no rows.
    """
    if not rows:
        raise ArgumentError("rows is empty; pass at least one")
    groups = list(dict.fromkeys(row.group for row in rows))
    has_published = any(row.published is not None for row in rows)
    labels = [wrapped(row.label, LABEL) for row in rows]
    lines = max(label.count("\n") + 1 for label in labels)
    pitch = max((2 if has_published else 1) * LINE + 0.11, lines * LABEL_LINE + 0.06)
    figure = new_figure(pitch * len(rows) + 1.25, PAGE)
    axes = figure.add_subplot()
    for place, row in enumerate(rows):
        # Two lines where there are two values: numbers side by side would run into each other.
        both = row.published is not None and not row.is_quoted
        ours, theirs = (place - LINE / 2 / pitch, place + LINE / 2 / pitch) if both else (place, place)
        if row.mean is not None:
            _draw_mean(axes, row, ours, LINE / pitch, groups.index(row.group), start)
        elif not row.is_quoted:
            _write(axes, "not measured", start, ours, start)
        if row.published is not None:
            if row.published >= start:
                axes.plot(row.published, theirs, label="", **_HOLLOW)
            _write(axes, f"{row.published:.2f}", row.published, theirs, start, color=GREY)
    axes.set_yticks(range(len(rows)), labels)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.set_xlim(left=start)
    axes.set_xlabel(wrapped(x_label, AXIS_LABEL))
    axes.grid(axis="x")
    if title:
        title_of(figure, title)
    handles: list[Artist] = []
    if len(groups) > 1:
        handles += [_group_handle(name, number, start == 0) for number, name in enumerate(groups) if name]
    if has_published:
        handles.append(Line2D([], [], label=published_name, **_HOLLOW))
    if handles:
        figure.legend(handles=handles, loc="outside lower center", ncols=min(3, len(handles)))
    return figure


_HOLLOW: Any = {
    "marker": "D",
    "markersize": 5,
    "linestyle": "",
    "markerfacecolor": "white",
    "markeredgecolor": "black",
}


def _draw_mean(axes: Axes, row: Bar, y: float, height: float, number: int, start: float) -> None:
    """Draw the bar of a row, or its point, with its error bar and number."""
    assert row.mean is not None
    colour, hatch = COLOURS[number % len(COLOURS)], HATCHES[number % len(HATCHES)]
    if start == 0:
        axes.barh(y, row.mean, height=height, color=colour, hatch=hatch, edgecolor="white")
    else:
        axes.plot(row.mean, y, marker=MARKERS[number % len(MARKERS)], linestyle="", color=colour)
    low, high = row.interval or (row.mean, row.mean)
    if row.std is not None:
        low, high = row.mean - row.std, row.mean + row.std
    if high > low:
        error = [[row.mean - low], [high - row.mean]]
        axes.errorbar(row.mean, y, xerr=error, color="black", capsize=2.5, linewidth=1.0, zorder=4)
    spread = "" if row.std is None else f" ± {row.std:.2f}"
    _write(axes, f"{row.mean:.2f}{spread}", high, y, start)


def _write(axes: Axes, text: str, x: float, y: float, start: float, color: str = "black") -> None:
    """Write a number to the right of what it belongs to, or at the start of the axis with an arrow to it."""
    axes.annotate(
        f"← {text}" if x < start else text,
        (max(start, x), y),
        xytext=(7, 0),
        textcoords="offset points",
        va="center_baseline",
        fontsize=8,
        color=color,
        annotation_clip=False,
        # Over the grid, so that no line runs through a number.
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.4},
    )


def _group_handle(name: str, number: int, is_bar: bool) -> Artist:
    colour = COLOURS[number % len(COLOURS)]
    if is_bar:
        return Patch(facecolor=colour, edgecolor="white", hatch=HATCHES[number % len(HATCHES)], label=name)
    return Line2D([], [], marker=MARKERS[number % len(MARKERS)], linestyle="", color=colour, label=name)

"""Lines with error bars, next to published ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter, NullLocator, StrMethodFormatter

from rotnet_fast.errors import ArgumentError
from rotnet_fast.plain import counted
from rotnet_fast.plots.style import (
    COLOURS,
    GREY,
    LINE_STYLES,
    MARKERS,
    PAGE,
    new_figure,
    styled,
    title_of,
    wrapped,
)

Values = Sequence[float | None]


@dataclass(frozen=True)
class Line:
    """Describe one line of a figure; None stands for a missing value.

    Attributes:
        label: name in the legend.
        x, mean: positions and values, in order.
        interval: lower and upper end of the error bar of each value; None for no error bars.
        published_x, published: the published line, drawn dashed with hollow markers.
    """

    label: str
    x: Sequence[float]
    mean: Values
    interval: Sequence[tuple[float, float] | None] | None = None
    published_x: Sequence[float] = ()
    published: Values = ()


@styled
def curves(
    lines: Sequence[Line],
    *,
    x_label: str,
    y_label: str,
    title: str = "",
    log_x: bool = False,
    x_ticks: Sequence[float] = (),
    published_name: str = "published",
    levels: Mapping[str, float] = MappingProxyType({}),
) -> Figure:
    """Draw lines over a common horizontal axis.

    Args:
        lines: one or more lines.
        x_label, y_label: labels of the axes.
        title: title of the figure.
        log_x: whether the horizontal axis is logarithmic.
        x_ticks: positions of ticks; empty for matplotlib's choice.
        published_name: name of the published lines in the legend.
        levels: values by name, drawn as dotted lines over the whole width, such as that of guessing.

    Raises:
        ArgumentError: no line, or one with other numbers of positions and values.
    """
    if not lines:
        raise ArgumentError("lines is empty; pass at least one")
    entries = sum(1 + bool(line.published) for line in lines)
    figure = new_figure(3.7 + LEGEND_ROW * -(-entries // 2), PAGE)
    if title:
        title_of(figure, title)
    axes = figure.add_subplot()
    handles: list[Any] = []
    for number, line in enumerate(lines):
        handles += _draw(axes, line, number, published_name)
    for name, value in levels.items():
        axes.axhline(value, color=GREY, linestyle=":", linewidth=1.2, zorder=1)
        axes.annotate(
            name,
            (1, value),
            xycoords=axes.get_yaxis_transform(),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
            color=GREY,
            annotation_clip=False,
        )
    if log_x:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.xaxis.set_minor_formatter(LogFormatter(labelOnlyBase=False))  # the default one writes TeX
    if x_ticks:
        axes.set_xticks(x_ticks, [f"{tick:g}" for tick in x_ticks])
        axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel(wrapped(x_label, AXIS_LABEL))
    axes.set_ylabel(y_label)
    axes.grid(axis="y")
    if handles:
        # Below: lines that go up and down leave no room for it between them.
        figure.legend(handles=handles, loc="outside lower center", ncols=2)
    return figure


AXIS_LABEL = 60
"""Characters of a line below the axis."""

LEGEND_ROW = 0.18
"""Height of a row of the legend in inches."""


def _draw(axes: Axes, line: Line, number: int, published_name: str) -> list[Any]:
    """Draw one line and its published counterpart, and return their legend handles in that order."""
    handles: list[Any] = []
    colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
    for name, x, values in (
        ("mean", line.x, line.mean),
        ("error bar", line.x, line.interval),
        ("published value", line.published_x, line.published),
    ):
        if values is not None and len(values) != len(x):
            raise ArgumentError(
                f"line {line.label!r} has {counted(len(values), name)} at {counted(len(x), 'position')}"
            )
    mean = _numbers(line.mean)
    ends = [(np.nan, np.nan) if one is None else one for one in line.interval or [None] * len(line.x)]
    low, high = np.array(ends, dtype=np.float64).reshape(-1, 2).T
    errors = np.nan_to_num(np.stack([mean - low, high - mean]))
    known = ~np.isnan(mean)
    if known.any():
        drawn = axes.errorbar(
            np.asarray(line.x, float)[known],
            mean[known],
            yerr=errors[:, known] if errors.any() else None,
            color=colour,
            marker=marker,
            linestyle=LINE_STYLES[0],
            capsize=2.5,
            label=line.label,
            zorder=3,
        )
        handles.append(drawn)
    published = _numbers(line.published)
    known = ~np.isnan(published)
    if known.any():
        handles += axes.plot(
            np.asarray(line.published_x, float)[known],
            published[known],
            color=colour,
            marker=marker,
            markerfacecolor="white",
            linestyle=LINE_STYLES[1],
            linewidth=1.1,
            label=f"{line.label}, {published_name}",
            zorder=2,
        )
    return handles


def _numbers(values: Values) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)

"""Lines with error bars, next to published ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator, StrMethodFormatter

from rotnet_fast.errors import ArgumentError
from rotnet_fast.plots.style import COLOURS, LINE_STYLES, MARKERS, WIDTH, new_figure, styled

Values = Sequence[float | None]


@dataclass(frozen=True)
class Line:
    """Describe one line of a figure; None stands for a missing value.

    Attributes:
        label: name in the legend.
        x, mean: positions and values, in order.
        std: standard deviation of each value, drawn as error bars; None for no error bars.
        published_x, published: the published line, drawn dashed with hollow markers.
    """

    label: str
    x: Sequence[float]
    mean: Values
    std: Values | None = None
    published_x: Sequence[float] = ()
    published: Values = ()


@dataclass(frozen=True)
class Panel:
    """Describe one pair of axes.

    Attributes:
        y_label: label of the vertical axis.
        lines: lines to draw.
        title: title of the panel.
    """

    y_label: str
    lines: Sequence[Line]
    title: str = ""


LEGEND_ROW = 0.18
"""Height of a row of the legend in inches."""


@styled
def curves(
    panels: Sequence[Panel],
    *,
    x_label: str,
    title: str = "",
    log_x: bool = False,
    x_ticks: Sequence[float] = (),
    published_name: str = "published",
) -> Figure:
    """Draw panels side by side, whose horizontal axes have the same label.

    Args:
        panels: one or more panels.
        x_label: label of the horizontal axes.
        title: title of the figure.
        log_x: whether horizontal axes are logarithmic.
        x_ticks: positions of ticks; empty for matplotlib's choice.
        published_name: name of the published lines in the legend.

    Raises:
        ArgumentError: no panel, or a line with other numbers of positions and values.
    """
    if not panels:
        raise ArgumentError("panels is empty; pass at least one")
    width = WIDTH if len(panels) > 1 else 5.0
    entries = max(sum(1 + bool(line.published) for line in panel.lines) for panel in panels)
    columns = 2 if len(panels) == 1 else 1
    figure = new_figure(3.2 + LEGEND_ROW * -(-entries // columns), width)
    if title:
        figure.suptitle(title)
    number = 0
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        handles: list[Any] = []
        for line in panel.lines:
            handles += _draw(axes, line, number, published_name)
            number += 1
        if log_x:
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        if x_ticks:
            axes.set_xticks(x_ticks, [f"{tick:g}" for tick in x_ticks])
            axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlabel(x_label)
        axes.set_ylabel(panel.y_label)
        axes.set_title(panel.title)
        axes.grid(axis="y")
        if handles:
            # Below: lines that go up and down leave no room for it between them.
            axes.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=columns)
    return figure


def _draw(axes: Axes, line: Line, number: int, published_name: str) -> list[Any]:
    """Draw one line and its published counterpart, and return their legend handles in that order."""
    handles: list[Any] = []
    colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
    for name, x, values in (
        ("means", line.x, line.mean),
        ("standard deviations", line.x, line.std),
        ("published values", line.published_x, line.published),
    ):
        if values is not None and len(values) != len(x):
            raise ArgumentError(f"line {line.label!r} has {len(values)} {name} at {len(x)} positions")
    mean, std = _numbers(line.mean), _numbers(line.std or [None] * len(line.x))
    known = ~np.isnan(mean)
    if known.any():
        drawn = axes.errorbar(
            np.asarray(line.x, float)[known],
            mean[known],
            yerr=np.nan_to_num(std[known]) if not np.isnan(std[known]).all() else None,
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

"""Roofline of the stages of a training step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, NullFormatter, StrMethodFormatter

from rotnet_fast.errors import ArgumentError
from rotnet_fast.plain import counted
from rotnet_fast.plots.style import BLACK, COLOURS, GREY, LINE_STYLES, MARKERS, new_figure, styled

KINDS = ("convolution", "BN + ReLU", "pool", "loss", "optimiser")
"""Kinds of stages, each with its own colour and marker."""

TITLES = {"forward": "Forward", "backward": "Backward, and update"}

LABEL_HEIGHT = 0.165
"""Height of a label next to a panel in inches."""


@styled
def roofline(
    rows: Sequence[Mapping[str, Any]],
    *,
    copy_bytes_per_second: float,
    matrix_flops_per_second: Mapping[str, float],
    title: str = "",
) -> Figure:
    """Draw FLOP per byte against FLOP per second, both logarithmic, with one panel per direction.

    Labels form a column on the right, ordered by the height of their points, so that they are readable
    however close the points are.

    Args:
        rows: rows of `rotnet_fast.benchmarking.stages.measure_stages`.
        copy_bytes_per_second: memory bandwidth, the sloped roof.
        matrix_flops_per_second: arithmetic rates by number format, the flat roofs.
        title: title of the figure.

    Raises:
        ArgumentError: no rows.
    """
    if not rows:
        raise ArgumentError("rows is empty; pass at least one stage")
    panels = {
        "forward": [row for row in rows if row["direction"] == "forward"],
        "backward": [row for row in rows if row["direction"] != "forward"],
    }
    panels = {name: found for name, found in panels.items() if found}
    heights = [max(3.0, LABEL_HEIGHT * len(found) + 0.6) for found in panels.values()]
    figure = new_figure(sum(heights) + 0.7)
    if title:
        figure.suptitle(title)
    grid = figure.subplots(len(panels), 1, squeeze=False, gridspec_kw={"height_ratios": heights}, sharex=True)
    intensities = [row["flops"] / row["bytes"] for row in rows]
    low, high = min(intensities) / 2, max(intensities) * 2
    for axes, (name, found) in zip(grid[:, 0], panels.items(), strict=True):
        axes.set_title(TITLES[name], loc="left")
        _draw_roofs(axes, low, high, copy_bytes_per_second, matrix_flops_per_second)
        _draw_points(axes, found)
        axes.set_ylabel("FLOP/s")
        axes.grid()
        axes.tick_params(labelbottom=True)
    grid[-1, 0].set_xlabel("FLOP per byte")
    handles = [_handle(kind) for kind in KINDS if any(row["kind"] == kind for row in rows)]
    roofs = ["copy bandwidth", *(f"matrix rate, {name}" for name in matrix_flops_per_second)]
    for label, line in zip(roofs, LINE_STYLES, strict=False):
        handles += grid[0, 0].plot([], [], linestyle=line, color=BLACK, label=label)
    figure.legend(handles=handles, loc="outside lower center", ncols=4)
    return figure


def _draw_roofs(axes: Axes, low: float, high: float, copy: float, matrix: Mapping[str, float]) -> None:
    """Draw both roofs, each only where it is the lower one."""
    top = max(matrix.values())
    x = np.geomspace(low, high, 100)
    under = x[x * copy <= top] if low * copy <= top else x[:1]
    axes.plot(under, under * copy, color=BLACK, linestyle=LINE_STYLES[0], zorder=1)
    for number, rate in enumerate(matrix.values()):
        start = max(low, min(rate / copy, high))
        axes.plot([start, high], [rate, rate], color=BLACK, linestyle=LINE_STYLES[1 + number % 3], zorder=1)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(low, high)
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_major_formatter(EngFormatter(sep=" "))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_minor_formatter(NullFormatter())


def _draw_points(axes: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    """Draw the points, and a label to the right of each."""
    ordered = sorted(rows, key=lambda row: row["flops"] / row["seconds"], reverse=True)
    for place, row in enumerate(ordered):
        number = KINDS.index(row["kind"])
        x, y = row["flops"] / row["bytes"], row["flops"] / row["seconds"]
        axes.plot(
            x,
            y,
            marker=MARKERS[number],
            color=COLOURS[number],
            linestyle="",
            markeredgecolor="white",
            zorder=3,
        )
        axes.annotate(
            row["stage"] if row.get("count", 1) == 1 else f"{row['stage']} ({counted(row['count'], 'time')})",
            (x, y),
            xytext=(1.03, 1 - (place + 0.5) / len(ordered)),
            textcoords="axes fraction",
            fontsize=8,
            va="center",
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": GREY,
                "linewidth": 0.4,
                "relpos": (0, 0.5),  # from the middle of the text's left edge
                "shrinkA": 2,
                "shrinkB": 3,
            },
        )


def _handle(kind: str) -> Line2D:
    number = KINDS.index(kind)
    return Line2D([], [], marker=MARKERS[number], color=COLOURS[number], linestyle="", label=kind)

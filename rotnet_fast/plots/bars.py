"""Horizontal bars with error bars, next to published values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.artist import Artist
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from rotnet_fast.errors import ArgumentError
from rotnet_fast.plots.style import COLOURS, HATCHES, MARKERS, WIDTH, new_figure, styled


@dataclass(frozen=True)
class Bar:
    """Describe one row; None stands for a missing value.

    Attributes:
        label: label to the left of the bar.
        mean, std: length of the bar and of its error bar.
        published: the published value, drawn as a hollow marker.
        group: rows of a group share colour and hatch; the legend names the groups if there are several.
    """

    label: str
    mean: float | None
    std: float | None = None
    published: float | None = None
    group: str = ""


@styled
def bars(
    rows: Sequence[Bar],
    *,
    x_label: str,
    title: str = "",
    start: float = 0.0,
    published_name: str = "published",
) -> Figure:
    """Draw rows from top to bottom in the given order, with their values as text.

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
    figure = new_figure(0.3 * len(rows) + 1.1, WIDTH)
    axes = figure.add_subplot()
    for place, row in enumerate(rows):
        number = groups.index(row.group)
        end = row.mean
        if row.mean is not None:
            colour, hatch = COLOURS[number % len(COLOURS)], HATCHES[number % len(HATCHES)]
            if start == 0:
                axes.barh(place, row.mean, height=0.66, color=colour, hatch=hatch, edgecolor="white")
            else:
                axes.plot(row.mean, place, marker=MARKERS[number % len(MARKERS)], linestyle="", color=colour)
            if row.std is not None:
                axes.errorbar(
                    row.mean, place, xerr=row.std, color="black", capsize=2.5, linewidth=1.0, zorder=4
                )
            end = row.mean + (row.std or 0.0)
        if row.published is not None:
            axes.plot(
                row.published,
                place,
                marker="D",
                markersize=6,
                linestyle="",
                markerfacecolor="none",
                markeredgecolor="black",
                zorder=5,
            )
            end = row.published if end is None else max(end, row.published)
        text = "not measured" if row.mean is None else f"{row.mean:.2f}"
        if row.mean is not None and row.std is not None:
            text += f" ± {row.std:.2f}"
        if row.published is not None:
            text += f"  ({row.published:.2f})"
        if end is not None and end < start:
            text = f"← {text}"
        axes.annotate(
            text,
            (start if end is None else max(start, end), place),
            xytext=(7, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
            annotation_clip=False,
        )
    axes.set_yticks(range(len(rows)), [row.label for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.set_xlim(left=start)
    axes.set_xlabel(x_label)
    if title:
        axes.set_title(title, loc="left")
    axes.grid(axis="x")
    handles: list[Artist] = []
    if len(groups) > 1:
        handles += [_group_handle(name, number, start == 0) for number, name in enumerate(groups) if name]
    if any(row.published is not None for row in rows):
        handles.append(
            Line2D(
                [],
                [],
                marker="D",
                linestyle="",
                markerfacecolor="none",
                markeredgecolor="black",
                label=f"{published_name} (in parentheses)",
            )
        )
    if handles:
        figure.legend(handles=handles, loc="outside lower center", ncols=min(4, len(handles)))
    return figure


def _group_handle(name: str, number: int, is_bar: bool) -> Artist:
    colour = COLOURS[number % len(COLOURS)]
    if is_bar:
        return Patch(facecolor=colour, edgecolor="white", hatch=HATCHES[number % len(HATCHES)], label=name)
    return Line2D([], [], marker=MARKERS[number % len(MARKERS)], linestyle="", color=colour, label=name)

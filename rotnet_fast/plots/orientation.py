"""Picture of how many photos are decided on at a confidence, and how many of the decisions are wrong."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure

from rotnet_fast.analysis.orientation import Point, advised
from rotnet_fast.plots.style import BLUE, PAGE, VERMILION, new_figure, title_of


def coverage(points: Sequence[Point]) -> Figure:
    """Draw the error among the decisions over the share of photos that are decided on.

    Args:
        points: result of `rotnet_fast.analysis.orientation.coverage_points`.
    """
    figure = new_figure(3.6, PAGE)
    best = advised(points)
    decided = [point for point in points if point.decided]
    whole = points[0]  # at the lowest threshold
    decision = "none of the thresholds brings that to 1 % or less"
    if best is not None:
        decision = f"of those on {100 * best.coverage:.0f} %, {100 * best.error:.2f} % are"
    title_of(
        figure,
        f"{100 * whole.error:.2f} % of the decisions on {100 * whole.coverage:.0f} % of photos are wrong; "
        f"{decision}",
    )
    axes = figure.subplots()
    axes.plot(
        [100 * point.coverage for point in decided],
        [100 * point.error for point in decided],
        color=BLUE,
        marker="o",
        markersize=4,
    )
    if best is not None:
        axes.plot(
            [100 * best.coverage],
            [100 * best.error],
            color=VERMILION,
            marker="D",
            linestyle="",
            label=f"--min-confidence {best.min_confidence:g}",
        )
        axes.legend(loc="upper left")
    axes.set_xlim(0, 102)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("decided on, % of the photos")
    axes.set_ylabel("wrong, % of the decisions")
    return figure

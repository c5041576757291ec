"""Picture of how many photos are decided on at a confidence, and how many of the decisions are wrong."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure

from rotnet_fast.plots.style import BLUE, PAGE, VERMILION, new_figure, title_of


def coverage(rows: Sequence[tuple[float, float, float]], advised: float | None) -> Figure:
    """Draw the error among the decisions over the share of photos that are decided on.

    Args:
        rows: confidence threshold, and shares of photos decided on and of wrong decisions, in percent; by
            ascending threshold.
        advised: threshold to mark; None if there is none.
    """
    figure = new_figure(3.6, PAGE)
    _, whole, wrong = rows[0]
    marked = [row for row in rows if row[0] == advised]
    decision = "none of the thresholds brings that to 1 % or less"
    for _, share, error in marked:
        decision = f"of those on {share:.0f} %, {error:.2f} % are"
    title_of(figure, f"{wrong:.2f} % of the decisions on {whole:.0f} % of photos are wrong; {decision}")
    axes = figure.subplots()
    _, shares, errors = zip(*rows, strict=True)
    axes.plot(shares, errors, color=BLUE, marker="o", markersize=4)
    for threshold, share, error in marked:
        axes.plot(
            [share],
            [error],
            color=VERMILION,
            marker="D",
            linestyle="",
            label=f"--min-confidence {threshold:g}",
        )
        axes.legend(loc="upper left")
    axes.set_xlim(0, 102)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("decided on, % of the photos")
    axes.set_ylabel("wrong, % of the decisions")
    return figure

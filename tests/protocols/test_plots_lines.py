"""Curves and bars beside published values."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.figure import Figure
from plot_inputs import check_legible, texts

from rotnet_fast import paper
from rotnet_fast.errors import ArgumentError
from rotnet_fast.plots.bars import Bar, bars
from rotnet_fast.plots.curves import Line, Panel, curves


def label_scarcity() -> Figure:
    lines = []
    for name, values in paper.LABEL_SCARCITY.items():
        counts, published = list(values), list(values.values())
        lines.append(Line(name, counts, [value - 1 for value in published], [0.5] * 5, counts, published))
    return curves(
        [Panel("object accuracy (%)", lines)], x_label="labels per class", log_x=True, x_ticks=[20, 100, 400]
    )


def correlation(mean: list[float | None]) -> Figure:
    panels = [
        Panel(f"{name} accuracy (%)", [Line(name, [1, 20, 40], mean, None, [1, 21], [60.0, 70.0])], name)
        for name in ("rotation", "object")
    ]
    return curves(panels, x_label="pretext epochs", title="Figure 5a")


def test_curves_are_legible() -> None:
    check_legible(label_scarcity())
    check_legible(correlation([50.0, None, 90.0]))


def test_published_lines_are_dashed_and_hollow_in_the_colour_of_ours() -> None:
    axes = label_scarcity().axes[0]
    assert axes.get_xscale() == "log"
    dashed = [line for line in axes.lines if line.get_linestyle() == "--"]
    solid = [line for line in axes.lines if line.get_linestyle() == "-"]
    assert len(dashed) == len(solid) == 2
    for published, ours in zip(dashed, solid, strict=True):
        assert published.get_color() == ours.get_color()
        assert published.get_markerfacecolor() == "white"
    assert dashed[0].get_color() != dashed[1].get_color()
    assert dashed[0].get_marker() != dashed[1].get_marker()


def test_values_that_there_are_not_are_left_out() -> None:
    axes = correlation([50.0, None, 90.0]).axes[0]
    (ours,) = (line for line in axes.lines if line.get_linestyle() == "-")
    np.testing.assert_array_equal(np.asarray(ours.get_xdata()), [1, 40])
    empty = correlation([None, None, None]).axes[0]
    assert [line.get_linestyle() for line in empty.lines] == ["--"]


def test_a_legend_names_ours_before_the_published() -> None:
    legend = correlation([50.0, 60.0, 90.0]).axes[0].get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["rotation", "rotation, published"]


def test_positions_and_values_must_go_together() -> None:
    with pytest.raises(ArgumentError, match="line 'a' has 1 means at 2 positions"):
        curves([Panel("y", [Line("a", [1, 2], [3])])], x_label="x")
    with pytest.raises(ArgumentError, match="line 'a' has 2 published values at 0 positions"):
        curves([Panel("y", [Line("a", [1], [3], published=[4, 5])])], x_label="x")
    with pytest.raises(ArgumentError, match="panels is empty"):
        curves([], x_label="x")


ROWS = [
    Bar("Supervised NIN", 92.61, 0.12, 92.8, "supervised"),
    Bar("Random init + conv, BatchNorm with running statistics", 71.2, 0.5, 72.5, "untrained"),
    Bar("RotNet + conv", 91.04, None, 91.16, "frozen"),
    Bar("RotNet + conv, fine-tuned, lr 0.1", None, None, 92.17, "fine-tuned"),
    Bar("Raw pixels", 39.1, group="classical"),
    Bar("To come", None),
]


@pytest.mark.parametrize("start", [0.0, 60.0])
def test_bars_are_legible_and_say_their_values(start: float) -> None:
    figure = bars(ROWS, x_label="test accuracy (%)", title="Table 3", start=start)
    check_legible(figure)
    said = [text.get_text() for text in texts(figure)]
    for text in ("92.61 ± 0.12  (92.80)", "91.04  (91.16)", "not measured  (92.17)", "not measured"):
        assert text in said
    assert ("39.10" if start == 0 else "← 39.10") in said
    assert "published (in parentheses)" in said


def test_only_bars_from_zero_are_bars() -> None:
    assert len(bars(ROWS, x_label="x").axes[0].patches) == 4
    assert len(bars(ROWS, x_label="x", start=50).axes[0].patches) == 0


def test_rows_come_from_top_to_bottom() -> None:
    axes = bars(ROWS, x_label="x").axes[0]
    bottom, top = axes.get_ylim()
    assert bottom > top
    assert [label.get_text() for label in axes.get_yticklabels()] == [row.label for row in ROWS]


def test_one_group_needs_no_legend() -> None:
    assert bars([Bar("a", 1.0)], x_label="x").legends == []
    with pytest.raises(ArgumentError, match="rows is empty"):
        bars([], x_label="x")

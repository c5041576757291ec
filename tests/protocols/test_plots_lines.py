"""Curves and bars beside published values."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from plot_inputs import check_legible, texts

from rotnet_fast import paper
from rotnet_fast.errors import ArgumentError
from rotnet_fast.plots.bars import LABEL, Bar, bars
from rotnet_fast.plots.curves import Line, curves
from rotnet_fast.plots.style import wrapped


def label_scarcity() -> Figure:
    lines = []
    for name, values in paper.LABEL_SCARCITY.items():
        counts, published = list(values), list(values.values())
        intervals = [(value - 2, value + 1) for value in published]
        lines.append(Line(name, counts, [value - 1 for value in published], intervals, counts, published))
    return curves(
        lines, x_label="labels per class", y_label="object accuracy (%)", log_x=True, x_ticks=[20, 100, 400]
    )


def correlation(mean: list[float | None]) -> Figure:
    lines = [Line(name, [1, 20, 40], mean, None, [1, 21], [60.0, 70.0]) for name in ("rotation", "object")]
    return curves(
        lines,
        x_label="pretext epochs",
        y_label="accuracy (%)",
        title="Figure 5a",
        levels={"rotation,\nguessed": 25.0, "object,\nguessed": 10.0},
    )


def test_curves_are_legible() -> None:
    check_legible(label_scarcity())
    check_legible(correlation([50.0, None, 90.0]))


@pytest.mark.parametrize("ends", [(22, 72), (0.5, 700)])
def test_a_logarithmic_axis_needs_no_ticks_to_have_plain_numbers(ends: tuple[float, float]) -> None:
    figure = curves([Line("a", ends, [50.0, 60.0])], x_label="minutes", y_label="y", log_x=True)
    check_legible(figure)
    axis = figure.axes[0].xaxis
    labels = [label.get_text() for minor in (False, True) for label in axis.get_ticklabels(minor=minor)]
    shown = [float(label) for label in labels if label]
    assert sum(ends[0] <= number <= ends[1] for number in shown) >= 2


def test_guessing_is_a_dotted_line_with_its_name() -> None:
    figure = correlation([50.0, 60.0, 90.0])
    dotted = [line for line in figure.axes[0].lines if line.get_linestyle() == ":"]
    assert [line.get_ydata()[0] for line in dotted] == [25.0, 10.0]  # type: ignore[index]
    assert {"rotation,\nguessed", "object,\nguessed"} <= {text.get_text() for text in texts(figure)}


def test_error_bars_reach_from_the_lower_to_the_upper_end_of_their_interval() -> None:
    figure = curves([Line("a", [1, 2], [50.0, 60.0], [(40.0, 55.0), None])], x_label="x", y_label="y")
    (bars_,) = [c for c in figure.axes[0].containers if hasattr(c, "has_yerr") and c.has_yerr]
    segments = bars_[2][0].get_segments()
    np.testing.assert_allclose(segments[0][:, 1], [40, 55])
    np.testing.assert_allclose(segments[1][:, 1], [60, 60])


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
    solid = [line for line in correlation([50.0, None, 90.0]).axes[0].lines if line.get_linestyle() == "-"]
    for ours in solid:
        np.testing.assert_array_equal(np.asarray(ours.get_xdata()), [1, 40])
    empty = correlation([None, None, None]).axes[0]
    assert {line.get_linestyle() for line in empty.lines} == {"--", ":"}


def test_a_legend_names_ours_before_the_published() -> None:
    (legend,) = correlation([50.0, 60.0, 90.0]).legends
    named = [text.get_text() for text in legend.get_texts()]
    assert named == ["rotation", "rotation, published", "object", "object, published"]


def test_positions_and_values_must_go_together() -> None:
    with pytest.raises(ArgumentError, match="line 'a' has 1 mean at 2 positions"):
        curves([Line("a", [1, 2], [3])], x_label="x", y_label="y")
    with pytest.raises(ArgumentError, match="line 'a' has 2 published values at 0 positions"):
        curves([Line("a", [1], [3], published=[4, 5])], x_label="x", y_label="y")
    with pytest.raises(ArgumentError, match="line 'a' has 2 error bars at 1 position"):
        curves([Line("a", [1], [3], [None, None])], x_label="x", y_label="y")
    with pytest.raises(ArgumentError, match="lines is empty"):
        curves([], x_label="x", y_label="y")


ROWS = [
    Bar("Supervised NIN", 92.61, 0.12, None, 92.8, "supervised"),
    Bar("Random init + conv, BatchNorm with running statistics", 71.2, 0.5, None, 72.5, "untrained"),
    Bar("RotNet + conv", 91.04, None, (90.5, 91.6), 91.16, "frozen"),
    Bar("RotNet + conv, fine-tuned, lr 0.1", None, None, None, 92.17, "fine-tuned"),
    Bar("Raw pixels", 39.1, group="classical"),
    Bar("To come", None),
    Bar("DCGAN (quoted)", None, published=82.8, is_quoted=True),
]


@pytest.mark.parametrize("start", [0.0, 60.0])
def test_bars_are_legible_and_say_their_values(start: float) -> None:
    figure = bars(ROWS, x_label="test accuracy (%)", title="Table 3", start=start)
    check_legible(figure)
    said = [text.get_text() for text in texts(figure)]
    for text in ("92.61 ± 0.12", "92.80", "91.04", "91.16", "92.17", "82.80"):
        assert text in said
    assert said.count("not measured") == 2
    assert ("39.10" if start == 0 else "← 39.10") in said
    assert "published" in said


def test_each_number_stands_at_what_it_belongs_to() -> None:
    """Ours begins right of our error bar, and the published one right of its diamond, on its own line."""
    figure = bars(
        [Bar("close", 61.2, None, (58, 64), 61.6), Bar("below", 54.2, None, None, 44.8)], x_label="x"
    )
    check_legible(figure)
    places = {text.get_text(): text.xy for text in texts(figure) if isinstance(text, Annotation)}
    assert {name: x for name, (x, _) in places.items()} == {
        "61.20": 64,
        "61.60": 61.6,
        "54.20": 54.2,
        "44.80": 44.8,
    }
    diamonds = {tuple(line.get_xydata()[0]) for line in figure.axes[0].lines if line.get_marker() == "D"}
    assert diamonds == {places["61.60"], places["44.80"]}
    for ours, theirs, patch in (("61.20", "61.60", 0), ("54.20", "44.80", 1)):
        bar = figure.axes[0].patches[patch]
        assert bar.get_y() < places[ours][1] < bar.get_y() + bar.get_height() < places[theirs][1]


def test_only_bars_from_zero_are_bars() -> None:
    assert len(bars(ROWS, x_label="x").axes[0].patches) == 4
    assert len(bars(ROWS, x_label="x", start=50).axes[0].patches) == 0


def test_rows_come_from_top_to_bottom() -> None:
    axes = bars(ROWS, x_label="x").axes[0]
    bottom, top = axes.get_ylim()
    assert bottom > top
    assert [label.get_text() for label in axes.get_yticklabels()] == [
        wrapped(row.label, LABEL) for row in ROWS
    ]


def test_one_group_needs_no_legend() -> None:
    assert bars([Bar("a", 1.0)], x_label="x").legends == []
    with pytest.raises(ArgumentError, match="rows is empty"):
        bars([], x_label="x")

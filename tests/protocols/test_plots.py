"""Every figure is legible: nothing cut off, nothing overlapping, no small print; and says what it should."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from plot_inputs import (
    CLASSES,
    LONG,
    attention_result,
    check_legible,
    embedding_result,
    filters_result,
    neighbours_result,
    rotation_result,
    stage_rows,
    texts,
)

from rotnet_fast.arrays import encode_array
from rotnet_fast.errors import ArgumentError
from rotnet_fast.plots import attention as attention_plots
from rotnet_fast.plots.confusion import confusion
from rotnet_fast.plots.embedding import embedding
from rotnet_fast.plots.filters import filters, mosaic
from rotnet_fast.plots.neighbours import neighbours
from rotnet_fast.plots.overview import overview
from rotnet_fast.plots.roofline import KINDS, roofline
from rotnet_fast.plots.rotation import calibration, hardest, rotations

FOUR, EIGHT, TWO = [0, 90, 180, 270], list(range(0, 360, 45)), [90, 270]
BOTH = [
    ("rotation network", attention_result(("conv1", "conv2", "conv4"))),
    ("supervised network", attention_result(("conv1", "conv2", "conv3"))),
]

FIGURES: dict[str, Callable[[], Figure]] = {
    "attention": lambda: attention_plots.attention(BOTH),
    "attention of four images": lambda: attention_plots.attention(
        [
            ("rotation network", attention_result(("conv1", "conv2", "conv4"), shown=4)),
            ("supervised network", attention_result(("conv1", "conv2", "conv3"), shown=4)),
        ]
    ),
    "attention of one network": lambda: attention_plots.attention(BOTH[:1]),
    "attention of one grey image": lambda: attention_plots.attention(
        [("rotation network", attention_result(("conv1", "conv2"), shown=1, channels=1))]
    ),
    "equivariance": lambda: attention_plots.equivariance(BOTH),
    "filters": lambda: filters([("rotation network", filters_result()), ("supervised", filters_result())]),
    "filters of one network": lambda: filters([("rotation network", filters_result(8))]),
    "grey filters": lambda: filters([("rotation network", filters_result(96, channels=1))]),
    "four rotations": lambda: rotations(rotation_result(FOUR, shown=10)),
    "eight rotations": lambda: rotations(rotation_result(EIGHT, shown=8)),
    "two rotations of one grey image": lambda: rotations(rotation_result(TWO, shown=1, channels=1)),
    "hardest": lambda: hardest(rotation_result(FOUR)),
    "hardest of eight rotations": lambda: hardest(rotation_result(EIGHT)),
    "hardest of few images": lambda: hardest(rotation_result(FOUR, hardest=3)),
    "calibration": lambda: calibration(rotation_result(FOUR)),
    "calibration of two": lambda: calibration(rotation_result(TWO)),
    "confusion": lambda: confusion(neighbours_result()["confusion"], CLASSES, "Votes of 20 neighbours"),
    "confusion of two": lambda: confusion([[5, 0], [0, 0]], ["90°", "270°"], "Rotations", what="rotation"),
    "confusion of many": lambda: confusion(
        np.eye(30, dtype=int).tolist(), [str(number) for number in range(30)], "Thirty classes"
    ),
    "confusion of two long names": lambda: confusion([[5, 1], [3, 2]], LONG[:2], "Two classes"),
    "confusion of twelve long names": lambda: confusion(np.eye(12, dtype=int).tolist(), LONG[:12], "Twelve"),
    "confusion of a hundred": lambda: confusion(np.eye(100, dtype=int).tolist(), LONG, "A hundred classes"),
    "hardest with long names": lambda: hardest(rotation_result(EIGHT, classes=LONG)),
    "hardest image alone": lambda: hardest(rotation_result(FOUR, hardest=1)),
    "hardest without classes": lambda: hardest(rotation_result(FOUR, classes=[""])),
    "rotations with long names": lambda: rotations(rotation_result(FOUR, classes=LONG)),
    "neighbours with long names": lambda: neighbours(neighbours_result(classes=LONG)),
    "overview with long names": lambda: overview(rotation_result(FOUR), neighbours_result(classes=LONG)),
    "embedding": lambda: embedding(embedding_result()),
    "embedding of two classes": lambda: embedding(embedding_result(classes=2)),
    "embedding of twelve long names": lambda: embedding(embedding_result(classes=12, names=LONG)),
    "embedding of a hundred classes": lambda: embedding(embedding_result(classes=100, names=LONG)),
    "embedding without classes": lambda: embedding({**embedding_result(), "classes": []}),
    "embedding without t-SNE": lambda: embedding(embedding_result(tsne=False, images=4)),
    "embedding of many classes": lambda: embedding(embedding_result(classes=25)),
    "roofline": lambda: roofline(
        stage_rows(KINDS, 4),
        copy_bytes_per_second=4e12,
        matrix_flops_per_second={"fp32": 5e13, "bf16": 8e14, "tf32": 4e14},
        title="Stages of a NIN-4 step of 128 images, bf16, NVIDIA Something with a Long Name 80GB HBM3",
    ),
    "roofline of one stage": lambda: roofline(
        stage_rows(("optimiser",), 1), copy_bytes_per_second=5e10, matrix_flops_per_second={"fp32": 1e11}
    ),
    "overview": lambda: overview(rotation_result(FOUR), neighbours_result()),
    "overview of eight rotations": lambda: overview(rotation_result(EIGHT, shown=2), neighbours_result(2)),
    "overview of two grey views": lambda: overview(
        rotation_result(TWO, shown=1, channels=1), neighbours_result(1, columns=2, channels=1)
    ),
    "neighbours": lambda: neighbours(neighbours_result(shown=6)),
    "two neighbours of a grey image": lambda: neighbours(neighbours_result(1, columns=2, channels=1)),
}


@pytest.mark.parametrize("name", FIGURES)
def test_figure_is_legible(name: str) -> None:
    figure = FIGURES[name]()
    assert figure.get_figwidth() <= 7.01
    assert figure.get_figheight() <= 10
    check_legible(figure)


def words(figure: Figure) -> str:
    return " | ".join(text.get_text() for text in texts(figure))


def test_attention_shows_layer_i_with_power_i_and_says_where_there_is_no_number() -> None:
    said = words(attention_plots.attention(BOTH))
    for part in ("conv1, p = 1", "conv2, p = 2", "conv4, p = 4", "conv3, p = 4", "conv4 / conv3"):
        assert part in said
    assert "none" in said
    assert "-0.12" in said


def test_right_and_wrong_predictions_are_told_apart_without_colour() -> None:
    result = rotation_result(FOUR, shown=1)
    result["shown"]["predicted"] = [[0, 90, 0, 270]]
    figure = rotations(result)
    said = words(figure)
    assert (said.count("✓"), said.count("✗ 0° (100 %)")) == (3, 1)
    widths = [axes.spines["left"].get_linewidth() for axes in figure.axes]
    assert widths[2] > 2 * widths[0]


def test_hardest_images_name_only_what_was_missed() -> None:
    result = rotation_result(FOUR, hardest=2)
    result["hardest"]["predicted"] = [[0, 270, 180, 90], FOUR]
    said = words(hardest(result))
    assert "90→270   270→90" in said
    assert "all right" in said


def test_confusion_is_in_percent_of_the_true_class() -> None:
    said = words(confusion([[1, 2], [0, 5]], ["cat", "dog"], "A title")).split(" | ")
    assert {"33.3", "66.7", "100", "A title"} <= set(said)
    assert not {"0", "0.0"} & set(said) - {"0"}


def test_every_class_of_the_embedding_has_a_look_of_its_own() -> None:
    figure = embedding(embedding_result(classes=60))
    looks = {
        (tuple(points.get_facecolor()[0]), points.get_paths()[0].vertices.tobytes())  # type: ignore[union-attr]
        for points in figure.axes[0].collections
    }
    assert len(looks) == 60


def test_ten_classes_have_ten_colours_and_are_named_at_their_medians() -> None:
    result = embedding_result()
    rng, labels = np.random.default_rng(0), np.arange(200) % 10
    points = 100.0 * np.stack([labels % 3, labels // 3], axis=1) + rng.normal(size=(200, 2))
    figure = embedding({**result, "tsne": encode_array(points.astype(np.float32))})
    axes = figure.axes[1]
    assert len({tuple(group.get_facecolor()[0]) for group in axes.collections}) == 10  # type: ignore[union-attr]
    for label, name in enumerate(CLASSES):
        (written,) = [text for text in axes.texts if text.get_text() == name]
        median = np.median(points[labels == label], axis=0)
        np.testing.assert_allclose(written.get_position(), median, atol=12)  # within the margin of the axes
    check_legible(figure)


def test_names_of_classes_at_one_place_are_moved_apart() -> None:
    result = embedding_result()
    figure = embedding({**result, "tsne": encode_array(np.ones((200, 2), np.float32))})
    check_legible(figure)


def test_an_embedding_says_how_often_the_nearest_image_is_of_the_same_class() -> None:
    labels = np.arange(200) % 10
    points = np.stack([labels, labels], axis=1) + np.random.default_rng(0).normal(scale=1e-3, size=(200, 2))
    said = words(embedding({**embedding_result(), "tsne": encode_array(points.astype(np.float32))}))
    assert "for\n100\N{NO-BREAK SPACE}% (by chance 10\N{NO-BREAK SPACE}%)" in said.replace(" 100", "\n100")


def test_a_cell_of_zero_is_white() -> None:
    for classes in (2, 10, 30):
        matrix = 50 * np.eye(classes, dtype=int)
        (image,) = confusion(matrix.tolist(), LONG[:classes], "").axes[0].images
        assert image.cmap(image.norm(0.0)) == (1.0, 1.0, 1.0, 1.0)
        assert sum(image.cmap(image.norm(100.0))[:3]) < 0.6


def test_attention_ends_just_above_one_and_no_value_crosses_that_line() -> None:
    for value in (0.0, 0.3, 0.5, 0.85, 0.99, 1.0):
        result = attention_result(("conv1", "conv2"))
        result["equivariance"] = {layer: {"1": value, "2": value, "4": value} for layer in result["layers"]}
        figure = attention_plots.equivariance([("one", result), ("two", result)])
        written = [
            text for text in texts(figure) if text.get_text() == f"{value:.2f}" and text.get_rotation()
        ]
        (axes,) = figure.axes
        assert axes.get_ylim()[1] == 1.05
        assert len(written) == 12
        renderer = FigureCanvasAgg(figure).get_renderer()
        for text in written:
            box = axes.transData.inverted().transform_bbox(Text.get_window_extent(text, renderer))
            assert box.y1 < 1.0


@pytest.mark.parametrize(("number", "columns"), [(96, 12), (192, 16), (64, 8), (32, 8), (7, 4), (1, 1)])
def test_filters_fill_whole_rows_in_landscape(number: int, columns: int) -> None:
    height, width = mosaic(np.ones((number, 3, 5, 5), np.float32)).shape[:2]
    assert (width + 1) // 6 == columns
    assert (height + 1) // 6 == -(-number // columns)


def test_filters_of_two_channels_are_drawn_as_their_sums() -> None:
    kernels = np.zeros((1, 2, 1, 2), np.float32)
    kernels[0, :, 0] = [[3, -1], [-3, 5]]  # sums 0 and 4
    np.testing.assert_allclose(mosaic(kernels), [[0.5, 1.0]])


def test_titles_say_what_the_numbers_show() -> None:
    rank = [("rotation network", {**filters_result(), "effective_rank": rank}) for rank in (50.0, 60.0)]
    assert "less varied than those of the rotation network: effective rank 50.0 against 60.0" in words(
        filters(rank)
    ).replace("\n", " ")
    result = attention_result(("conv1",))
    result["equivariance"] = {"conv1": {"1": 0.9, "2": 0.7, "4": None}}
    other = {**result, "equivariance": {"conv1": {"1": 0.5, "2": 0.5, "4": 0.5}}}
    said = words(attention_plots.attention([("rotation network", result), ("supervised network", other)]))
    assert "more exactly in the rotation network than in the supervised network" in said.replace("\n", " ")
    assert "0.80 against 0.50" in said.replace("\n", " ")
    sure = {**rotation_result(FOUR), "mean_confidence": 0.8, "accuracy": 90.0}
    assert "Too unsure by 10.0 points" in words(calibration(sure))


def test_filters_are_sorted_by_norm_and_stretched_to_their_own_range() -> None:
    kernels = np.zeros((3, 1, 1, 2), np.float32)
    kernels[1, 0, 0] = [3, -6]
    kernels[2, 0, 0] = [1, 0.5]
    expected = np.ones((1, 8))
    expected[0, 0:2] = [0.75, 0]
    expected[0, 3:5] = [1, 0.75]
    expected[0, 6:8] = [0.5, 0.5]
    np.testing.assert_allclose(mosaic(kernels), expected)


@pytest.mark.parametrize(
    ("draw", "sentence"),
    [
        (lambda: attention_plots.attention([]), "networks is empty"),
        (
            lambda: attention_plots.attention([("one", attention_result(("conv1",), shown=0))]),
            "has no images to show",
        ),
        (
            lambda: attention_plots.attention(
                [("one", attention_result(("conv1",))), ("other", attention_result(("conv1",), shown=2))]
            ),
            "of the other has other images",
        ),
        (
            lambda: attention_plots.equivariance([BOTH[0], ("other", attention_result(("conv1",)))]),
            "of the other has another number of layers",
        ),
        (lambda: filters([]), "networks is empty"),
        (lambda: rotations(rotation_result(FOUR, shown=0)), "has no images to show"),
        (lambda: hardest(rotation_result(FOUR, hardest=0)), "has no hardest images"),
        (lambda: neighbours(neighbours_result(shown=0)), "has no queries to show"),
        (
            lambda: confusion([[1, 2]], ["cat"], ""),
            "for 1 class name, it must be a square of 1",
        ),
        (lambda: filters([("one", {**filters_result(), "filters": {}})]), "lacks dtype"),
    ],
)
def test_what_cannot_be_drawn_is_named(draw: Callable[[], Any], sentence: str) -> None:
    with pytest.raises(ArgumentError, match=sentence):
        draw()


def test_an_image_of_two_channels_is_drawn_grey() -> None:
    result = rotation_result(TWO, shown=1)
    result["shown"]["views"] = encode_array(np.zeros((1, 2, 4, 4, 2), np.uint8))
    check_legible(rotations(result))


def test_a_roofline_names_every_stage_in_its_panel_and_every_roof() -> None:
    rows = stage_rows(("convolution", "BN + ReLU"), 2)
    figure = roofline(rows, copy_bytes_per_second=1e12, matrix_flops_per_second={"bf16": 1e15})
    written = [text.get_text() for text in texts(figure)]
    assert written.count("convolution 192→160, 32²") == 2
    assert written.count("BN + ReLU 192→161, 32² (2 times)") == 2
    assert {"copy bandwidth", "matrix rate, bf16", "Forward", "FLOP per byte"} <= set(written)
    with pytest.raises(ArgumentError, match="rows is empty"):
        roofline([], copy_bytes_per_second=1e12, matrix_flops_per_second={"bf16": 1e15})


def test_the_points_and_roofs_of_a_roofline_lie_where_their_numbers_say() -> None:
    row = {**stage_rows(("pool",), 1)[0], "flops": 1e6}
    figure = roofline([row], copy_bytes_per_second=1e10, matrix_flops_per_second={"fp32": 1e9})
    lines = [line.get_xydata() for line in figure.axes[0].lines]
    assert [[0.1, 1e9]] in [np.round(line, 6).tolist() for line in lines if len(line) == 1]
    rising = next(line for line in lines if len(line) > 2)
    np.testing.assert_allclose(rising[:, 1], 1e10 * rising[:, 0])


def test_an_overview_is_of_the_same_images() -> None:
    for shown in (2, 0):
        with pytest.raises(ArgumentError, match="compute both for the same images"):
            overview(rotation_result(FOUR, shown=shown), neighbours_result(0 if shown == 0 else 3))

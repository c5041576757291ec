"""Galleries of predicted rotations, and the reliability diagram."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator, StrMethodFormatter

from rotnet_fast.arrays import decode_array
from rotnet_fast.errors import ArgumentError
from rotnet_fast.plain import counted
from rotnet_fast.plots.style import (
    BLUE,
    GREY,
    PAGE,
    SKY,
    WIDTH,
    frame,
    marked,
    new_figure,
    shortened,
    show_image,
    styled,
    title_of,
)
from rotnet_fast.verdict import wilson


@styled
def rotations(result: Mapping[str, Any]) -> Figure:
    """Draw images, one per row, in all K rotations, each with the prediction and its probability.

    Args:
        result: result of `rotnet_fast.analysis.rotation.rotation`.

    Raises:
        ArgumentError: the result has no images to show.
    """
    shown, angles = result["shown"], result["rotations"]
    views = decode_array(shown["views"])  # [S,K,H,W,C]
    if len(views) == 0:
        raise ArgumentError("the rotation result has no images to show; compute it with some")
    turned = len(angles)
    # Eight columns leave no room for a prediction on one line.
    separator = " " if turned <= 5 else "\n"
    # Fits a page's width, and with up to ten images its height.
    cell = min(0.9, (WIDTH - 0.9) / turned - 0.15, max(0.5, 9.2 / len(views) - 0.42))
    height = len(views) * (cell + (0.28 if turned <= 5 else 0.42)) + 0.7
    figure = new_figure(height, max(4.5, turned * (cell + 0.15) + 0.9))
    views_of = f"{counted(turned, 'view')} of {counted(result['images'], 'test image')}"
    title_of(figure, f"{result['accuracy']:.1f} % of the rotations are right, over {views_of}")
    grid = figure.subplots(len(views), turned, squeeze=False)
    for row, predicted, confidence, image, name in zip(
        grid, shown["predicted"], shown["confidence"], views, shown["class_names"], strict=True
    ):
        row[0].set_ylabel(shortened(name, ROW_NAME), rotation=0, ha="right", va="center", fontsize=8)
        for axes, angle, guess, probability, view in zip(
            row, angles, predicted, confidence, image, strict=True
        ):
            show_image(axes, view)
            frame(axes, guess == angle)
            axes.set_xlabel(
                marked(f"{guess}°{separator}({100 * probability:.0f} %)", guess == angle),
                fontsize=8,
                labelpad=2,
            )
    for axes, angle in zip(grid[0], angles, strict=True):
        axes.set_title(f"turned {angle}°" if turned <= 5 else f"{angle}°")
    return figure


@styled
def hardest(result: Mapping[str, Any]) -> Figure:
    """Draw the images whose rotation is hardest to predict, hardest first.

    Args:
        result: result of `rotnet_fast.analysis.rotation.rotation`.

    Raises:
        ArgumentError: the result has no such images.
    """
    gallery, angles = result["hardest"], result["rotations"]
    images = decode_array(gallery["images"])  # [M,H,W,C]
    if len(images) == 0:
        raise ArgumentError("the rotation result has no hardest images; compute it with some")
    columns = min(4, len(images))
    rows = math.ceil(len(images) / columns)
    missed_rows = math.ceil(len(angles) / 2)
    figure = new_figure(rows * (1.2 + 0.16 * (2.4 + missed_rows)) + 0.75, PAGE)
    easiest, hardest = 100 * max(gallery["probability"]), 100 * min(gallery["probability"])
    low, high = _percent(hardest), _percent(easiest)
    share = f"{high} %" if low == high else f"{low} to {high} %"
    title_of(
        figure,
        f"The true rotation of {'this image' if len(images) == 1 else 'these images'} gets a mean "
        f"probability of {share}: the lowest of {counted(result['images'], 'test image')}",
    )
    figure.get_layout_engine().set(h_pad=0.06, w_pad=0.04)  # type: ignore[union-attr, call-arg]
    cells = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in cells[len(images) :]:
        axes.set_axis_off()
    for axes, image, name, probability, predicted in zip(
        cells, images, gallery["class_names"], gallery["probability"], gallery["predicted"], strict=False
    ):
        show_image(axes, image)
        percent = f"{_percent(100 * probability)} %"
        axes.set_title("\n".join(filter(None, [shortened(name, CELL_NAME), percent])), fontsize=8, pad=3)
        missed = [
            f"{angle}→{guess}" for angle, guess in zip(angles, predicted, strict=True) if angle != guess
        ]
        lines = ["   ".join(missed[start : start + 2]) for start in range(0, len(missed), 2)]
        axes.set_xlabel("\n".join(lines) or "all right", fontsize=8, labelpad=2)
    figure.supxlabel("below each image: true rotation → predicted one, where they differ", fontsize=8)
    return figure


ROW_NAME, CELL_NAME = 14, 17
"""Characters of a class name beside a row of images, and above an image."""


def _percent(value: float) -> str:
    """Format a small percentage, which is not 0 if it is not exactly 0."""
    return f"{value:.0f}" if value >= 10 or value == 0 else "<0.1" if value < 0.1 else f"{value:.1f}"


@styled
def calibration(result: Mapping[str, Any]) -> Figure:
    """Draw the reliability diagram of the predicted rotations, and the number of predictions per bin.

    Args:
        result: result of `rotnet_fast.analysis.rotation.rotation`.
    """
    bins = result["calibration"]
    edges = np.array(bins["edges"])
    centres, width = (edges[1:] + edges[:-1]) / 2, edges[1] - edges[0]
    figure = new_figure(5.2, PAGE)
    confidence, accuracy = f"{100 * result['mean_confidence']:.1f}", f"{result['accuracy']:.1f}"
    gap = 100 * result["mean_confidence"] - result["accuracy"]
    sure = (
        "As sure as right"
        if confidence == accuracy
        else f"Too {'sure' if gap > 0 else 'unsure'} by {abs(gap):.1f} points"
    )
    title_of(
        figure,
        f"{sure}: mean confidence {confidence} %, accuracy {accuracy} %; expected calibration error "
        f"{100 * bins['expected_calibration_error']:.1f} points",
    )
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    filled = [place for place, count in enumerate(bins["counts"]) if count]
    shares = np.array([bins["accuracy"][place] for place in filled])
    upper.bar(centres[filled], shares, width=0.92 * width, color=SKY, label="right, by bin of confidence")
    upper.plot([0, 1], [0, 1], color="black", linestyle="--", linewidth=1.2, label="perfect calibration")
    # Views of one image are no independent tests: the interval is that of as many images.
    images = [max(1, bins["counts"][place] // len(result["rotations"])) for place in filled]
    ends = [wilson(100 * bins["accuracy"][place], count) for place, count in zip(filled, images, strict=True)]
    low, high = np.array(ends).T / 100
    upper.errorbar(
        [bins["confidence"][place] for place in filled],
        shares,
        yerr=np.maximum([shares - low, high - shares], 0),
        ecolor="black",
        elinewidth=1.0,
        capsize=2.5,
        linestyle="",
        marker="o",
        color=BLUE,
        markeredgecolor="black",
        label="at the bin's mean confidence, with 95 % interval",
        clip_on=False,
        zorder=4,
    )
    chance = 1 / len(result["rotations"])
    upper.axvline(chance, color=GREY, linestyle=":", linewidth=1.2)
    upper.text(chance - 0.01, 0.98, "chance", rotation=90, ha="right", va="top", color=GREY, fontsize=8)
    upper.set_xlim(0, 1)
    upper.set_ylim(0, 1.02)
    upper.set_ylabel("share that is right")
    lower.bar(centres, bins["counts"], width=0.92 * width, color=GREY)
    lower.set_yscale("log")
    lower.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    lower.yaxis.set_minor_locator(NullLocator())
    lower.set_yticks([10**power for power in range(len(str(max(bins["counts"]))))])
    lower.set_ylim(bottom=0.8)
    lower.set_ylabel("predictions")
    lower.set_xlabel("confidence: probability of the predicted rotation")
    figure.legend(loc="outside lower center", ncols=1)
    return figure

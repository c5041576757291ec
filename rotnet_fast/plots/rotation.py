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
from rotnet_fast.plots.style import (
    BLUE,
    GREY,
    SKY,
    WIDTH,
    frame,
    marked,
    new_figure,
    show_image,
    styled,
)


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
    figure.suptitle(
        f"Predicted rotation (probability)\n{result['accuracy']:.1f} % right over {turned} views of "
        f"{result['images']:,} test images",
        fontsize=9,
    )
    grid = figure.subplots(len(views), turned, squeeze=False)
    for row, predicted, confidence, image, name in zip(
        grid, shown["predicted"], shown["confidence"], views, shown["class_names"], strict=True
    ):
        row[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8)
        for axes, angle, guess, probability, view in zip(
            row, angles, predicted, confidence, image, strict=True
        ):
            show_image(axes, view)
            frame(axes, guess == angle)
            axes.set_xlabel(
                marked(f"{guess}°{separator}({100 * probability:.0f} %)", guess == angle),
                fontsize=8,
                weight="normal" if guess == angle else "bold",
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
    figure = new_figure(rows * (1.45 + 0.16 * (1 + math.ceil(len(angles) / 2))) + 0.7, 6.0)
    figure.suptitle("Images whose rotation is hardest to predict: mean probability of the true rotation")
    cells = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in cells[len(images) :]:
        axes.set_axis_off()
    wrap = 4
    for axes, image, name, probability, predicted in zip(
        cells, images, gallery["class_names"], gallery["probability"], gallery["predicted"], strict=False
    ):
        show_image(axes, image)
        axes.set_title(f"{name + ', ' if name else ''}{100 * probability:.0f} %", pad=3)
        guesses = [f"{angle}→{guess}" for angle, guess in zip(angles, predicted, strict=True)]
        missed = [
            text for text, angle, guess in zip(guesses, angles, predicted, strict=True) if angle != guess
        ]
        lines = [", ".join(missed[start : start + wrap // 2]) for start in range(0, len(missed), wrap // 2)]
        axes.set_xlabel("\n".join(lines) or "all right", fontsize=8, labelpad=2)
    figure.supxlabel("below each image: true rotation → predicted one, where they differ", fontsize=8)
    return figure


@styled
def calibration(result: Mapping[str, Any]) -> Figure:
    """Draw the reliability diagram of the predicted rotations, and the number of predictions per bin.

    Args:
        result: result of `rotnet_fast.analysis.rotation.rotation`.
    """
    bins = result["calibration"]
    edges = np.array(bins["edges"])
    centres, width = (edges[1:] + edges[:-1]) / 2, edges[1] - edges[0]
    figure = new_figure(5.0, 4.6)
    figure.suptitle(
        f"Expected calibration error {100 * bins['expected_calibration_error']:.2f} %\n"
        f"mean confidence {100 * result['mean_confidence']:.1f} %, accuracy {result['accuracy']:.1f} %",
        fontsize=9,
    )
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    filled = [place for place, count in enumerate(bins["counts"]) if count]
    accuracy = [bins["accuracy"][place] for place in filled]
    confidence = [bins["confidence"][place] for place in filled]
    upper.bar(centres[filled], accuracy, width=0.92 * width, color=SKY, label="right, by bin of confidence")
    upper.plot([0, 1], [0, 1], color="black", linestyle="--", linewidth=1.2, label="perfect calibration")
    upper.plot(
        confidence,
        accuracy,
        linestyle="",
        marker="o",
        color=BLUE,
        markeredgecolor="black",
        label="at the bin's mean confidence",
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

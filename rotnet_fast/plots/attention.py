"""Attention maps of a rotation network next to those of a supervised one.

Source: Gidaris et al., ICLR 2018, Figure 3, which shows powers 1, 2 and 4 for an early, a middle and a late
layer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec

from rotnet_fast.arrays import decode_array
from rotnet_fast.errors import ArgumentError
from rotnet_fast.plain import counted
from rotnet_fast.plots.style import (
    COLOURS,
    DENSITY,
    HATCHES,
    WIDTH,
    bare,
    new_figure,
    show_image,
    styled,
    title_of,
)

Networks = Sequence[tuple[str, Mapping[str, Any]]]
"""(name, result of `rotnet_fast.analysis.attention.attention`) per network, all on the same images."""


@styled
def attention(networks: Networks) -> Figure:
    """Draw the maps of each network, and below them their equivariance.

    There is one column per image and rotation, and one row per layer. Layer i is shown with power i, as in
    the published figure. Each map is scaled to its own range.

    Raises:
        ArgumentError: there are no networks, or their results are for different images.
    """
    first = _check(networks)
    images = decode_array(first["shown"]["images"])  # [S,H,W,C]
    count, turns = len(images), first["turns"]
    if count == 0:
        raise ArgumentError("the attention result has no images to show; compute it with some")
    rows = 1 + sum(len(result["layers"]) for _, result in networks)
    label_width, gap = 1.15, 0.25
    cell = (WIDTH - label_width) / (count * (len(turns) + gap) - gap)
    figure = new_figure(cell * (rows + 0.3 * len(networks)) + 0.9 + 1.9)
    parts = figure.subfigures(2, 1, squeeze=False, height_ratios=[figure.get_figheight() - 1.9, 1.9])
    pictures, bars = parts[:, 0]
    title_of(pictures, finding(networks))
    heights, widths = [1.0], [label_width / cell]
    for _, result in networks:
        heights += [0.3, *[1.0] * len(result["layers"])]
    for image in range(count):
        widths += [*([gap] if image else []), *[1.0] * len(turns)]
    grid: GridSpec = pictures.add_gridspec(
        len(heights), len(widths), height_ratios=heights, width_ratios=widths, hspace=0.0, wspace=0.0
    )
    pictures.get_layout_engine().set(h_pad=0.015, w_pad=0.015, hspace=0, wspace=0)  # type: ignore[union-attr, call-arg]
    column_of = {
        (image, turn): 1 + image * (len(turns) + 1) + turn
        for image in range(count)
        for turn in range(len(turns))
    }
    for (image, turn), column in column_of.items():
        axes = pictures.add_subplot(grid[0, column])
        show_image(axes, np.rot90(images[image], turns[turn] // 90))
        axes.set_title(f"{turns[turn]}°", fontsize=8, pad=2)
    _row_label(pictures.add_subplot(grid[0, 0]), "image, turned")
    row = 1
    for name, result in networks:
        title = pictures.add_subplot(grid[row, 1:])
        bare(title)
        explained = ": activations to the power p, summed over channels (bright: highest)" if row == 1 else ""
        title.text(0, 0.15, f"{name[0].upper()}{name[1:]}{explained}", ha="left", va="bottom")
        for position, layer in enumerate(result["layers"]):
            row += 1
            power = min(position, len(result["powers"]) - 1)
            maps = decode_array(result["shown"]["maps"][layer])[:, :, power].astype(np.float32)  # [S,4,h,w]
            _row_label(pictures.add_subplot(grid[row, 0]), f"{layer}, p = {result['powers'][power]}")
            for (image, turn), column in column_of.items():
                axes = pictures.add_subplot(grid[row, column])
                axes.imshow(maps[image, turn], cmap=DENSITY, vmin=0, vmax=1)
                bare(axes)
        row += 1
    draw_equivariance(bars.add_subplot(), networks)
    return figure


@styled
def equivariance(networks: Networks) -> Figure:
    """Draw only the equivariance numbers."""
    _check(networks)
    figure = new_figure(2.2)
    draw_equivariance(figure.add_subplot(), networks)
    return figure


def draw_equivariance(axes: Axes, networks: Networks) -> None:
    """Draw bars of the equivariance numbers, grouped by layer (in order) and power."""
    first = networks[0][1]
    powers = first["powers"]
    bar = 0.8 / len(networks)
    for number, (name, result) in enumerate(networks):
        for position, layer in enumerate(result["layers"]):
            for place, power in enumerate(powers):
                value = result["equivariance"][layer][str(power)]
                x = position * (len(powers) + 0.6) + place + (number - (len(networks) - 1) / 2) * bar
                is_first = position == place == 0
                axes.bar(
                    x,
                    0 if value is None else value,
                    width=bar,
                    color=COLOURS[number],
                    hatch=HATCHES[number],
                    edgecolor="white",
                    label=name if is_first else None,
                )
                _write_value(axes, x, value, COLOURS[number])
    ticks, labels = [], []
    for position in range(len(first["layers"])):
        layers = list(dict.fromkeys(result["layers"][position] for _, result in networks))
        left = position * (len(powers) + 0.6)
        for place, power in enumerate(powers):
            ticks.append(left + place)
            labels.append(f"p = {power}")
        axes.annotate(
            " / ".join(layers),
            (left + (len(powers) - 1) / 2, 0),
            xycoords=axes.get_xaxis_transform(),
            xytext=(0, -18),
            textcoords="offset points",
            ha="center",
            va="top",
            fontsize=8,
            weight="bold",
        )
    axes.set_xticks(ticks, labels)
    axes.tick_params(axis="x", length=0)
    axes.set_ylim(min(0.0, axes.get_ylim()[0]), 1.05)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1])
    axes.axhline(1, color="black", linewidth=0.8, linestyle=":", zorder=0)
    axes.axhline(0, color="black", linewidth=0.8)
    axes.spines["bottom"].set_visible(False)
    axes.set_ylabel("correlation")
    images = counted(first["images"], "test image")
    axes.set_title(f"Correlation with the map of the upright image (1: turns exactly), {images}", loc="left")
    if len(networks) > 1:
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1))


def finding(networks: Networks) -> str:
    """Say whose attention turns more exactly with the image, by the mean over layers and powers."""
    means = []
    for _, result in networks:
        known = [value for powers in result["equivariance"].values() for value in powers.values()]
        known = [value for value in known if value is not None]
        means.append(sum(known) / len(known) if known else None)
    name, mean = networks[0][0], means[0]
    if mean is None:
        return "How exactly attention turns with the image"
    if len(networks) == 1 or means[1] is None:
        return f"Attention of the {name} turns with the image: correlation {mean:.2f} on average"
    other, theirs = networks[1][0], means[1]
    how = "as exactly in the {} as"
    if f"{mean:.2f}" != f"{theirs:.2f}":
        how = f"{'more' if mean > theirs else 'less'} exactly in the {{}} than"
    values = f"correlation {mean:.2f} against {theirs:.2f}"
    return f"Attention turns with the image {how.format(name)} in the {other}: {values}"


def _write_value(axes: Axes, x: float, value: float | None, colour: str) -> None:
    """Write a value into its bar, or above a short one, so that none comes near the line at 1."""
    is_inside = value is not None and value >= 0.45
    axes.text(
        x,
        max(value or 0.0, 0.0) + (-0.03 if is_inside else 0.03),
        "none" if value is None else f"{value:.2f}",
        ha="center",
        va="top" if is_inside else "bottom",
        fontsize=8,
        rotation=90,
        color="white" if is_inside else "black",
        weight="bold" if is_inside else "normal",
        bbox={"facecolor": colour if is_inside else "white", "edgecolor": "none", "pad": 0.6},
    )


def _check(networks: Networks) -> Mapping[str, Any]:
    """Return the first network's result, or raise an ArgumentError if the results do not match."""
    if not networks:
        raise ArgumentError("networks is empty; pass at least one attention result")
    first = networks[0][1]
    for name, result in networks[1:]:
        same = all(result[key] == first[key] for key in ("powers", "turns", "images"))
        if not same or result["shown"]["images"] != first["shown"]["images"]:
            raise ArgumentError(f"the attention result of the {name} has other images, turns or powers")
        if len(result["layers"]) != len(first["layers"]):
            raise ArgumentError(f"the attention result of the {name} has another number of layers")
    return first


def _row_label(axes: Axes, text: str) -> None:
    bare(axes)
    axes.text(1, 0.5, text, ha="right", va="center", fontsize=8, transform=axes.transAxes)

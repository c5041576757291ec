"""First-layer filters of one network, or of several side by side."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from rotnet_fast.arrays import decode_array
from rotnet_fast.errors import ArgumentError
from rotnet_fast.plain import counted
from rotnet_fast.plots.style import PAGE, bare, new_figure, styled, title_of

_GAP = 1  # pixels between two filters


@styled
def filters(networks: Sequence[tuple[str, Mapping[str, Any]]]) -> Figure:
    """Draw all filters by decreasing norm; each is scaled to its own range, with zero as grey.

    The title compares how varied the filters of two networks are.

    Args:
        networks: (name, result of `rotnet_fast.analysis.filters.filters`) per network.

    Raises:
        ArgumentError: there are no networks.
    """
    if not networks:
        raise ArgumentError("networks is empty; pass at least one result of filters")
    side = (PAGE - 0.1) / len(networks)
    mosaics = [mosaic(decode_array(result["filters"])) for _, result in networks]
    tallest = max(picture.shape[0] / picture.shape[1] for picture in mosaics)
    figure = new_figure(side * tallest + 1.0, PAGE)
    figure.get_layout_engine().set(wspace=0.06, h_pad=0.1)  # type: ignore[union-attr, call-arg]
    title_of(figure, finding(networks))
    for axes, (name, result), picture in zip(
        figure.subplots(1, len(networks), squeeze=False)[0], networks, mosaics, strict=True
    ):
        axes.imshow(picture, cmap="gray", vmin=0, vmax=1)
        bare(axes)
        cosine = result["mean_abs_cosine"]
        axes.set_title(
            f"{name[0].upper()}{name[1:]}, {counted(result['count'], 'filter')}\n"
            f"effective rank {result['effective_rank']:.1f} of {result['full_rank']}\n"
            f"mean |cosine| {'none' if cosine is None else f'{cosine:.3f}'}",
            fontsize=8,
        )
    return figure


def finding(networks: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
    """Say what the effective ranks of the networks show."""
    (name, first), *others = networks
    rank = f"{first['effective_rank']:.1f}"
    if not others:
        return f"The filters of the {name} use {rank} of {counted(first['full_rank'], 'direction')}"
    other, second = others[0]
    theirs = f"{second['effective_rank']:.1f}"
    how = "as varied as"
    if rank != theirs:
        how = f"{'more' if first['effective_rank'] > second['effective_rank'] else 'less'} varied than"
    return f"Filters of the {name} are {how} those of the {other}: effective rank {rank} against {theirs}"


def columns_of(number: int) -> int:
    """Return in how many columns so many filters are tiled: full rows if possible, in a 3:2 landscape."""
    full = [columns for columns in range(1, number + 1) if number <= columns**2 <= 2.3 * number]
    full = [columns for columns in full if number % columns == 0]
    as_wide = math.ceil(math.sqrt(1.5 * number))
    return min(full, key=lambda columns: abs(columns**2 / number - 1.5), default=as_wide)


def mosaic(kernels: NDArray[np.float32]) -> NDArray[np.float32]:
    """Tile filters [N,C,k,k] by decreasing norm to [H,W,3] in [0, 1], or for C not 3 their sums to [H,W].

    The largest magnitude of a filter becomes white or black (per colour), and zero becomes mid-grey.
    """
    number, channels, height, width = kernels.shape
    if channels != 3:
        kernels, channels = kernels.sum(axis=1, keepdims=True), 1
    norms = np.linalg.norm(kernels.reshape(number, -1), axis=1)
    ordered = kernels[np.argsort(-norms, kind="stable")]
    peaks = np.abs(ordered).max(axis=(1, 2, 3), keepdims=True)
    levels = 0.5 + 0.5 * ordered / np.where(peaks > 0, peaks, 1)
    columns = columns_of(number)
    rows = math.ceil(number / columns)
    picture = np.ones(
        (rows * (height + _GAP) - _GAP, columns * (width + _GAP) - _GAP, levels.shape[1]), np.float32
    )
    for place, kernel in enumerate(levels):
        top, left = (place // columns) * (height + _GAP), (place % columns) * (width + _GAP)
        picture[top : top + height, left : left + width] = kernel.transpose(1, 2, 0)
    return picture if channels == 3 else picture[..., 0]

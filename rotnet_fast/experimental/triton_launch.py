"""Launches of the Triton kernels on tensors; nothing waits for the device, so that graphs can be captured.

Imported only where the kernels are used, because Triton is not there on every machine. Rows are tensors
[P,C], contiguous; state, slopes and partials are as described in `triton_batchnorm`.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import nn
from triton import cdiv, knobs

from rotnet_fast.experimental import triton_batchnorm, triton_matmul
from rotnet_fast.experimental.triton_tiles import Tiles, column_tiles, matmul_tiles, weight_tiles

_GROUPS_AT_ONCE = 64  # when partial sums are put together


class Sums(NamedTuple):
    """Partial sums of a layer, and how its rows were divided for them."""

    partials: torch.Tensor
    tiles: Tiles
    rows: int


@lru_cache
def _capability(device: torch.device) -> int:
    """Major number of a device's compute capability; 0 of the interpreter."""
    return torch.cuda.get_device_capability(device)[0] if device.type == "cuda" else 0


def is_interpreted() -> bool:
    """Whether kernels run on the CPU, in Triton's interpreter (TRITON_INTERPRET=1)."""
    return bool(knobs.runtime.interpret)


def column_statistics(y: torch.Tensor) -> Sums:
    """Statistics of y per group."""
    rows, channels = y.shape
    tiles = column_tiles(rows, channels)
    partials = _partials(tiles, y)
    triton_batchnorm.column_statistics[tiles.groups, channels // tiles.columns](
        y, partials, rows, tiles.rows_per_group, channels, tiles.rows, tiles.columns, **_options(tiles)
    )
    return Sums(partials, tiles, rows)


def finish_statistics(sums: Sums, norm: nn.BatchNorm2d) -> torch.Tensor:
    """State of a layer; the running statistics of its BatchNorm move along."""
    partials, tiles, rows = sums
    channels = partials.shape[2]
    state = partials.new_empty(4, channels)
    block = _divisor(channels)
    triton_batchnorm.finish_statistics[(channels // block,)](
        partials,
        norm.weight,
        norm.bias,
        norm.running_mean,
        norm.running_var,
        norm.num_batches_tracked,
        state,
        tiles.groups,
        rows,
        tiles.rows_per_group,
        norm.eps,
        norm.momentum,
        channels,
        _GROUPS_AT_ONCE,
        block,
    )
    return state


def normalise(y: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
    """relu(batchnorm(y))."""
    rows, channels = y.shape
    tiles = column_tiles(rows, channels)
    out = torch.empty_like(y)
    triton_batchnorm.normalise[cdiv(rows, tiles.rows), channels // tiles.columns](
        y, state, out, rows, channels, tiles.rows, tiles.columns, **_options(tiles)
    )
    return out


def convolve(x: torch.Tensor, state: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, Sums]:
    """relu(batchnorm(x)) weight^T for x [P,I] and weight [O,I]: y [P,O] and its statistics per group."""
    rows, inputs = x.shape
    outputs = weight.shape[0]
    tiles = matmul_tiles(rows, inputs, outputs, x.element_size(), _capability(x.device))
    y = x.new_empty(rows, outputs)
    partials = _partials(tiles, y)
    triton_matmul.convolve[tiles.groups, cdiv(outputs, tiles.columns)](
        x,
        state,
        weight,
        y,
        partials,
        rows,
        tiles.rows_per_group,
        inputs,
        outputs,
        tiles.rows,
        tiles.columns,
        tiles.chunk,
        **_options(tiles),
    )
    return y, Sums(partials, tiles, rows)


def gradient_sums(g: torch.Tensor, y: torch.Tensor, state: torch.Tensor) -> Sums:
    """Sums of the gradient g behind the ReLU, per group."""
    rows, channels = y.shape
    tiles = column_tiles(rows, channels)
    partials = _partials(tiles, y)
    triton_batchnorm.gradient_sums[tiles.groups, channels // tiles.columns](
        g,
        y,
        state,
        partials,
        rows,
        tiles.rows_per_group,
        channels,
        tiles.rows,
        tiles.columns,
        **_options(tiles),
    )
    return Sums(partials, tiles, rows)


def finish_gradients(sums: Sums, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Slopes of a layer, and the gradients of gamma and beta."""
    partials, tiles, rows = sums
    channels = state.shape[1]
    slopes = state.new_empty(2, channels)
    grad_gamma, grad_beta = state.new_empty(channels), state.new_empty(channels)
    block = _divisor(channels)
    triton_batchnorm.finish_gradients[(channels // block,)](
        partials, state, slopes, grad_gamma, grad_beta, tiles.groups, rows, channels, _GROUPS_AT_ONCE, block
    )
    return slopes, grad_gamma, grad_beta


def batchnorm_backward(
    g: torch.Tensor, y: torch.Tensor, state: torch.Tensor, slopes: torch.Tensor, masked: bool
) -> torch.Tensor:
    """Gradient of y. A g that is masked already is ours, and is overwritten."""
    rows, channels = y.shape
    tiles = column_tiles(rows, channels)
    grad = g if masked else torch.empty_like(g)
    triton_batchnorm.batchnorm_backward[cdiv(rows, tiles.rows), channels // tiles.columns](
        g, y, state, slopes, grad, rows, channels, not masked, tiles.rows, tiles.columns, **_options(tiles)
    )
    return grad


def convolve_backward(
    g: torch.Tensor,
    y: torch.Tensor,
    state: torch.Tensor,
    slopes: torch.Tensor,
    weight: torch.Tensor,
    x: torch.Tensor,
    state_below: torch.Tensor,
    masked: bool,
) -> tuple[torch.Tensor, Sums]:
    """Masked gradient [P,I] of the layer below, and its sums per group."""
    rows, inputs = x.shape
    outputs = y.shape[1]
    tiles = matmul_tiles(rows, outputs, inputs, x.element_size(), _capability(x.device))
    g_below = torch.empty_like(x)
    partials = _partials(tiles, x)
    triton_matmul.convolve_backward[tiles.groups, cdiv(inputs, tiles.columns)](
        g,
        y,
        state,
        slopes,
        weight,
        x,
        state_below,
        g_below,
        partials,
        rows,
        tiles.rows_per_group,
        inputs,
        outputs,
        not masked,
        tiles.rows,
        tiles.columns,
        tiles.chunk,
        **_options(tiles),
    )
    return g_below, Sums(partials, tiles, rows)


def weight_gradient(
    g: torch.Tensor,
    y: torch.Tensor,
    state: torch.Tensor,
    slopes: torch.Tensor,
    x: torch.Tensor,
    state_below: torch.Tensor,
    masked: bool,
    weight: torch.Tensor,
) -> torch.Tensor:
    """Gradient of a weight, fp32 [O,I,1,1], in the layout of the weight."""
    (rows, inputs), outputs = x.shape, y.shape[1]
    tiles = weight_tiles(rows, outputs, inputs, x.element_size(), _capability(x.device))
    partials = x.new_empty(tiles.groups, outputs, inputs, dtype=torch.float32)
    triton_matmul.weight_gradient[tiles.groups, cdiv(outputs, tiles.chunk), cdiv(inputs, tiles.columns)](
        g,
        y,
        state,
        slopes,
        x,
        state_below,
        partials,
        rows,
        tiles.rows_per_group,
        inputs,
        outputs,
        not masked,
        tiles.rows,
        tiles.chunk,
        tiles.columns,
        **_options(tiles),
    )
    grad = torch.empty_like(weight)
    size, block = weight.numel(), 64
    triton_matmul.add_groups[(cdiv(size, block),)](partials, grad, tiles.groups, size, _GROUPS_AT_ONCE, block)
    return grad


def _partials(tiles: Tiles, like: torch.Tensor) -> torch.Tensor:
    return like.new_empty(2, tiles.groups, like.shape[1], dtype=torch.float32)


def _divisor(channels: int) -> int:
    """Channels per program that puts partial sums together: many programs, as each has little to read."""
    return min(16, channels & -channels)


def _options(tiles: Tiles) -> dict[str, int]:
    return {"num_warps": tiles.warps, "num_stages": tiles.stages}

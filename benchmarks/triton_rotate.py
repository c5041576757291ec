"""``rotate_batch`` for four rotations as one Triton kernel: what Triton gives without effort.

It draws with Triton's own generator, so that crops and flips differ from those of ``rotate_batch``; without
them, views are the same up to rounding.
"""

from __future__ import annotations

import itertools

import torch
import triton
import triton.language as tl

from benchmarks.peers import PAD, Peer
from rotnet_fast.paper import CIFAR10_MEAN, CIFAR10_STD

_BLOCK = 1024  # numbers per program


@triton.jit(do_not_specialize=["seed"])
def _rotate(
    images,
    indices,
    scale,
    shift,
    views,
    labels,
    seed,
    SIDE: tl.constexpr,
    CHANNELS: tl.constexpr,
    PAD: tl.constexpr,
    AUGMENT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A block of one view. Grid: 4 * B views, blocks of a view."""
    view = tl.program_id(0)
    sample, turn = view // 4, view % 4
    place = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = place < SIDE * SIDE * CHANNELS
    channel = place % CHANNELS
    j = place // CHANNELS % SIDE
    i = place // (CHANNELS * SIDE)
    last = SIDE - 1
    row = tl.where(turn == 0, i, tl.where(turn == 1, j, tl.where(turn == 2, last - i, last - j)))
    column = tl.where(turn == 0, j, tl.where(turn == 1, last - i, tl.where(turn == 2, last - j, i)))
    shown = inside
    if AUGMENT:
        # One crop and one flip for all views of an image.
        row += (tl.rand(seed, sample * 3) * (2 * PAD + 1)).to(tl.int32) - PAD
        column = tl.where(tl.rand(seed, sample * 3 + 1) < 0.5, last - column, column)
        column += (tl.rand(seed, sample * 3 + 2) * (2 * PAD + 1)).to(tl.int32) - PAD
        shown = inside & (row >= 0) & (row <= last) & (column >= 0) & (column <= last)
    stored = tl.load(indices + sample) * (SIDE * SIDE * CHANNELS)  # int64
    pixel = tl.load(images + stored + (row * SIDE + column) * CHANNELS + channel, mask=shown, other=0)
    value = pixel.to(tl.float32) * tl.load(scale + channel) + tl.load(shift + channel)
    start = view.to(tl.int64) * (SIDE * SIDE * CHANNELS)
    tl.store(views + start + place, value.to(views.dtype.element_ty), mask=inside)
    if tl.program_id(1) == 0:
        tl.store(labels + view, turn.to(tl.int64))


def triton_kernel(augment: bool, dtype: torch.dtype, device: torch.device) -> Peer:
    """One kernel for gather, crop, flip, rotations, normalisation, cast and labels."""
    std = torch.tensor(CIFAR10_STD, device=device)
    scale, shift = 1 / (255 * std), -torch.tensor(CIFAR10_MEAN, device=device) / std
    seeds = itertools.count()

    def run(images: torch.Tensor, indices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        number, (side, _, channels) = 4 * len(indices), images.shape[1:]
        views = torch.empty(number, side, side, channels, dtype=dtype, device=device)
        labels = torch.empty(number, dtype=torch.int64, device=device)
        _rotate[number, triton.cdiv(side * side * channels, _BLOCK)](
            images, indices, scale, shift, views, labels, next(seeds), side, channels, PAD, augment, _BLOCK
        )
        return views.permute(0, 3, 1, 2), labels

    return run

"""Philox4x32-10, the counter-based generator behind every random choice, in plain torch.

A draw is a pure function of (seed, epoch, sample id, purpose). So an exact resume needs no generator state,
and draws are the same on every device and for every batch size, loader, worker and rank. The compiled kernels
use the same maths from ``csrc/rotnet/philox.h``.

Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
"""

from __future__ import annotations

import torch

PURPOSE_AUGMENTATION = 0
PURPOSE_SHUFFLE = 1
PURPOSE_ABLATION = 2
PURPOSE_RESIZED_CROP = 3  # and the next nine numbers, one per attempt
PURPOSE_JIGSAW_ORDER = 13
PURPOSE_JIGSAW_CROP = 14

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10


def philox4x32(
    counter: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor],
    key: tuple[torch.Tensor, torch.Tensor],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Compute ten rounds of Philox4x32.

    Args:
        counter: four int64 tensors of one (broadcastable) shape, values in [0, 2**32).
        key: two int64 tensors, values in [0, 2**32).

    Returns:
        Four int64 tensors with uniform values in [0, 2**32).
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        # int64 products wrap modulo 2**64, so shift and mask yield the two unsigned halves exactly.
        product0 = c0 * _MULTIPLIERS[0]
        product1 = c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            ((product1 >> 32) & _MASK) ^ c1 ^ k0,
            product1 & _MASK,
            ((product0 >> 32) & _MASK) ^ c3 ^ k1,
            product0 & _MASK,
        )
        k0 = (k0 + _WEYL[0]) & _MASK
        k1 = (k1 + _WEYL[1]) & _MASK
    return c0, c1, c2, c3


def draw(
    sample_ids: torch.Tensor,
    seed: int | torch.Tensor,
    epoch: int | torch.Tensor,
    purpose: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Draw four uniform 32-bit numbers per sample.

    Args:
        sample_ids: int64 [B], any values.
        seed: int64, the key (both halves are used).
        epoch: int64; its low 32 bits are used.
        purpose: the random stream, one of the ``PURPOSE_*`` constants.

    Returns:
        Four int64 tensors [B] with values in [0, 2**32).
    """
    device = sample_ids.device
    seed = torch.as_tensor(seed, dtype=torch.int64, device=device)
    epoch = torch.as_tensor(epoch, dtype=torch.int64, device=device)
    counter = (
        sample_ids & _MASK,
        (sample_ids >> 32) & _MASK,
        (epoch & _MASK).expand_as(sample_ids),
        torch.full_like(sample_ids, purpose),
    )
    return philox4x32(counter, (seed & _MASK, (seed >> 32) & _MASK))


def crop_and_flip_draws(
    sample_ids: torch.Tensor,
    seed: int | torch.Tensor,
    epoch: int | torch.Tensor,
    pad: int,
    flip_prob: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Draw the crop offset and the flip of each sample.

    Args:
        sample_ids: int64 [B].
        seed, epoch: see :func:`draw`.
        pad: zero padding on each side, in pixels.
        flip_prob: probability of a horizontal flip, in [0, 1].

    Returns:
        ``(top, left, flip)``: int64 [B] and int64 [B] in [0, 2 * pad], the crop's corner in the
        padded image, and bool [B].
    """
    r0, r1, r2, _ = draw(sample_ids, seed, epoch, PURPOSE_AUGMENTATION)
    cells = 2 * pad + 1
    top = (r0 * cells) >> 32
    left = (r1 * cells) >> 32
    flip = r2 < int(flip_prob * 2.0**32)
    return top, left, flip

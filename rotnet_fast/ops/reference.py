"""The rotate-and-batch step in plain torch: the definition, and the fallback without a compiler.

The compiled kernels give the same result bit for bit in all three output types.
"""

from __future__ import annotations

import torch

from rotnet_fast.philox import augmentation_draws


def normalisation_coefficients(
    mean: tuple[float, ...], std: tuple[float, ...], device: torch.device | str = "cpu"
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and shift of the normalisation, rounded to float32 and held as float64 [C].

    A pixel value v in 0..255 becomes float32(v * scale + shift) with one rounding: a fused
    multiply-add. In float64 the expression is exact before that rounding, so every backend agrees.
    """
    mean64 = torch.tensor(mean, dtype=torch.float64, device=device)
    std64 = torch.tensor(std, dtype=torch.float64, device=device)
    scale = (1.0 / (255.0 * std64)).float().double()
    shift = (-mean64 / std64).float().double()
    return scale, shift


def crop_and_flip(
    images: torch.Tensor, top: torch.Tensor, left: torch.Tensor, flip: torch.Tensor, pad: int
) -> torch.Tensor:
    """Zero-pad by ``pad``, crop back to H x W at (top, left), then flip left-right where asked.

    Args:
        images: uint8 [B,H,W,C].
        top, left: int64 [B] in [0, 2 * pad].
        flip: bool [B].

    Returns:
        uint8 [B,H,W,C].
    """
    _, height, width, _ = images.shape
    device = images.device
    rows = torch.arange(height, device=device)[None, :] + top[:, None] - pad  # [B,H]
    columns = torch.arange(width, device=device)[None, :].expand(images.shape[0], width)
    columns = torch.where(flip[:, None], width - 1 - columns, columns)
    columns = columns + left[:, None] - pad  # [B,W]
    inside = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[:, None, :]
    samples = torch.arange(images.shape[0], device=device)[:, None, None]
    rows = rows.clamp(0, height - 1)[:, :, None]
    columns = columns.clamp(0, width - 1)[:, None, :]
    return images[samples, rows, columns] * inside[..., None]


def rotate_batch_reference(
    images: torch.Tensor,
    indices: torch.Tensor | None,
    sample_ids: torch.Tensor | None,
    seed: int | torch.Tensor,
    epoch: int | torch.Tensor,
    turns: list[int],
    pad: int,
    flip_prob: float,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    dtype: torch.dtype,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Plain-torch definition of :func:`rotnet_fast.rotate_batch`; arguments must be valid.

    Args:
        turns: quarter turns counter-clockwise, one per view.

    Returns:
        views ``dtype`` [B*K,H,W,C] contiguous, image-major, and rotation_labels int64 [B*K].
    """
    if indices is None:
        indices = torch.arange(images.shape[0], device=images.device)
    if sample_ids is None:
        sample_ids = indices
    top, left, flip = augmentation_draws(sample_ids, seed, epoch, pad, flip_prob)
    upright = crop_and_flip(images[indices], top, left, flip, pad)  # [B,H,W,C]
    scale, shift = normalisation_coefficients(mean, std, images.device)
    normalised = (upright.double() * scale + shift).float().to(dtype)
    views = torch.stack([torch.rot90(normalised, turn, (1, 2)) for turn in turns], dim=1)  # [B,K,H,W,C]
    labels = torch.arange(len(turns), device=images.device).repeat(len(indices))
    return views.flatten(0, 1), labels

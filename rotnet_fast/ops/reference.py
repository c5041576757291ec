"""Plain-torch definition of the rotate-and-batch op, also used as the fallback without compiled kernels.

The compiled kernels match it bit for bit in all three output types.
"""

from __future__ import annotations

import math

import torch

from rotnet_fast.philox import crop_and_flip_draws


def normalisation_coefficients(
    mean: tuple[float, ...], std: tuple[float, ...], device: torch.device | str = "cpu"
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return scale and shift of the normalisation, rounded to float32 and stored as float64 [C].

    A pixel value v in 0..255 becomes float32(v * scale + shift) with one rounding, like a fused
    multiply-add. In float64 the expression is exact before that rounding, so every backend agrees.
    Warped pixels have eight more fractional bits, and the sum is exact for means up to 4112.
    """
    mean64 = torch.tensor(mean, dtype=torch.float64, device=device)
    std64 = torch.tensor(std, dtype=torch.float64, device=device)
    scale = (1.0 / (255.0 * std64)).float().double()
    shift = (-mean64 / std64).float().double()
    return scale, shift


def crop_and_flip(
    images: torch.Tensor,
    top: torch.Tensor,
    left: torch.Tensor,
    flip: torch.Tensor,
    pad: int,
    mirrored: bool = False,
) -> torch.Tensor:
    """Pad by ``pad``, crop back to H x W at (top, left), then flip left-right where ``flip`` is True.

    Args:
        images: uint8 [B,H,W,C].
        top, left: int64 [B] in [0, 2 * pad].
        flip: bool [B].
        mirrored: pad with the mirror image (its edge pixels twice) instead of black.

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
    if mirrored:
        return images[samples, mirror(rows, height)[:, :, None], mirror(columns, width)[:, None, :]]
    rows = rows.clamp(0, height - 1)[:, :, None]
    columns = columns.clamp(0, width - 1)[:, None, :]
    return images[samples, rows, columns] * inside[..., None]


def mirror(positions: torch.Tensor, size: int) -> torch.Tensor:
    """Map any positions to those in [0, size) of the mirrored image: 1 0 | 0 1 2 ... | size-1 ..."""
    folded = positions % (2 * size)
    return torch.where(folded < size, folded, 2 * size - 1 - folded)


def upright_crops(
    images: torch.Tensor,
    indices: torch.Tensor | None,
    sample_ids: torch.Tensor | None,
    seed: int | torch.Tensor,
    epoch: int | torch.Tensor,
    pad: int,
    flip_prob: float,
    mirrored: bool = False,
) -> torch.Tensor:
    """Gather, crop and flip images: uint8 [B,H,W,C], from which all views of an image are made."""
    if indices is None:
        indices = torch.arange(images.shape[0], device=images.device)
    if sample_ids is None:
        sample_ids = indices
    top, left, flip = crop_and_flip_draws(sample_ids, seed, epoch, pad, flip_prob)
    return crop_and_flip(images[indices], top, left, flip, pad, mirrored)


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
    """Define :func:`rotnet_fast.rotate_batch` in plain torch for multiples of 90 degrees.

    Args:
        turns: quarter turns counter-clockwise, one per view. All arguments must be valid.

    Returns:
        views ``dtype`` [B*K,H,W,C] contiguous, image-major, and rotation_labels int64 [B*K].
    """
    upright = upright_crops(images, indices, sample_ids, seed, epoch, pad, flip_prob)  # [B,H,W,C]
    scale, shift = normalisation_coefficients(mean, std, images.device)
    normalised = (upright.double() * scale + shift).float().to(dtype)
    views = torch.stack([torch.rot90(normalised, turn, (1, 2)) for turn in turns], dim=1)  # [B,K,H,W,C]
    labels = torch.arange(len(turns), device=images.device).repeat(len(upright))
    return views.flatten(0, 1), labels


def warp_coefficients(degrees: int) -> tuple[int, int]:
    """Return cos and sin of whole degrees in 0..359, each divided by 2 sqrt(2), times 2**40 and rounded.

    They are derived from the first quadrant, so that quarter turns swap and negate them exactly.
    """

    def sine(angle: int) -> int:
        return round(math.sin(angle * (math.pi / 180)) / (2 * math.sqrt(2)) * 2**40)

    cosine, sine_ = sine(90 - degrees % 90), sine(degrees % 90)
    for _ in range(degrees // 90):
        cosine, sine_ = -sine_, cosine
    return cosine, sine_


def warp_taps(
    degrees: int, width: int, device: torch.device | str = "cpu"
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the position in the upright crop of each pixel of a view, in integers.

    The view shows the central square of side W / sqrt(2), rotated counter-clockwise and enlarged to
    W x W. Positions are those of pixel centres, rounded to 1/2048 pixel.

    Returns:
        ``(row, column, down, right)``, int64 [W,W] each: the upper left of the 2 x 2 pixels around the
        position, in [0, W-2] (0 if W is 1), and the weights of the lower and the right pixels, in
        [0, 2048].
    """
    cosine, sine = warp_coefficients(degrees)
    offset = 2 * torch.arange(width, device=device) + 1 - width  # half pixels right of or below the centre
    right_of, below = offset[None, :], offset[:, None]
    centre = (width - 1) << 39
    x = centre + cosine * right_of - sine * below
    y = centre + sine * right_of + cosine * below
    x, y = (x + 2**28) >> 29, (y + 2**28) >> 29
    column, row = (x >> 11).clamp(max=max(width - 2, 0)), (y >> 11).clamp(max=max(width - 2, 0))
    return row, column, y - (row << 11), x - (column << 11)


def warp_batch_reference(
    images: torch.Tensor,
    indices: torch.Tensor | None,
    sample_ids: torch.Tensor | None,
    seed: int | torch.Tensor,
    epoch: int | torch.Tensor,
    degrees: list[int],
    pad: int,
    flip_prob: float,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    dtype: torch.dtype,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Define :func:`rotnet_fast.rotate_batch` in plain torch for any rotations, by a bilinear warp.

    Args:
        degrees: counter-clockwise in 0..359, one per view. Images must be square. All arguments must
            be valid.

    Returns:
        The same as :func:`rotate_batch_reference`.
    """
    upright = upright_crops(images, indices, sample_ids, seed, epoch, pad, flip_prob, mirrored=True)
    upright = upright.int()  # [B,W,W,C]
    scale, shift = normalisation_coefficients(mean, std, images.device)
    width = images.shape[2]
    last = width - 1
    views = []
    for angle in degrees:
        row, column, down, right = warp_taps(angle, width, images.device)
        level = torch.zeros_like(upright)
        # Weights add up to 2**22, levels stay below 2**30.
        for lower, vertical in ((0, 2048 - down), (1, down)):
            for other, horizontal in ((0, 2048 - right), (1, right)):
                weight = (vertical * horizontal).int()[..., None]  # [W,W,1]
                level += weight * upright[:, (row + lower).clamp(max=last), (column + other).clamp(max=last)]
        level = (level + 2**13) >> 14  # 256ths of a grey level, 0..65280
        views.append((level.double() * (scale / 256) + shift).float().to(dtype))
    labels = torch.arange(len(degrees), device=images.device).repeat(len(upright))
    return torch.stack(views, dim=1).flatten(0, 1), labels

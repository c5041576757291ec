"""What a backbone takes: the form of images, and whether floating ones can be normalised at all."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch

from rotnet_fast.errors import ArgumentError

_LEAST_CONTRAST = 0.5
"""Images of 0..1 span more than this; all pixels of normalised ones lie that close together only where they
show nearly nothing."""


def check_images(images: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> None:
    """Check images for a backbone.

    Floating images are looked at, too, except in compiled and captured graphs:

    * Values more than twice as far from 0 as those of any normalised pixel are an error: these are 0..255.
    * A warning is given where all values lie in 0..1, or in -1..1 with one of these ends reached, and are not
      all close together. Normalised images have dark pixels below 0 and bright ones above 1, unless none of
      the batch shows any contrast.

    Args:
        images: uint8 [N,H,W,C] or normalised floating [N,C,H,W].
        mean, std: per channel, what the backbone normalises with.

    Raises:
        TypeError: images that are no tensor, or of another type.
        ArgumentError: a wrong shape or number of channels, or values that are not normalised.
    """
    if not isinstance(images, torch.Tensor):
        raise TypeError(
            f"images must be a tensor, got {type(images).__name__}: use torch.from_numpy or torch.stack"
        )
    if images.dtype == torch.uint8:
        layout, position = "uint8 [N,H,W,C]", 3
    elif images.is_floating_point():
        layout, position = "normalised [N,C,H,W]", 1
    else:
        raise TypeError(
            f"images must be uint8 [N,H,W,C] with values 0..255, or normalised and floating [N,C,H,W]; "
            f"got {images.dtype}"
        )
    channels = len(mean)
    if images.dim() != 4:
        raise ArgumentError(
            f"images of type {images.dtype} must be {layout}, got shape {list(images.shape)}"
            + ("; add the first dimension with images[None]" if images.dim() == 3 else "")
        )
    if images.shape[position] != channels:
        raise ArgumentError(
            f"images of type {images.dtype} must be {layout} with {channels} channels, got shape "
            f"{list(images.shape)}, which has {images.shape[position]}"
        )
    if 0 in images.shape[1:]:
        raise ArgumentError(f"images must have at least one row and column, got {list(images.shape)}")
    if images.is_floating_point() and len(images) > 0 and _can_be_read(images):
        _check_values(images, mean, std)


def _check_values(images: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> None:
    """See :func:`check_images`; waits for the device."""
    low, high = (value.item() for value in images.detach().aminmax())
    lowest = min(-m / s for m, s in zip(mean, std, strict=True))
    highest = max((1 - m) / s for m, s in zip(mean, std, strict=True))
    remedy = (
        "give uint8 images [N,H,W,C] with values 0..255, which are normalised here, or floating ones as "
        "(pixels / 255 - mean) / std, with the backbone's mean and std"
    )
    found = f"images hold values from {low:.4g} to {high:.4g}"
    if low < 2 * lowest or high > 2 * highest:
        raise ArgumentError(
            f"{found}, and floating images are taken as normalised, between {lowest:.2f} and "
            f"{highest:.2f}: {remedy}"
        )
    is_narrow = low >= -1 and high <= 1 and high - low > _LEAST_CONTRAST
    if is_narrow and (low >= 0 or low == -1 or high == 1):
        warnings.warn(f"{found}, which do not look normalised, but are taken so: {remedy}", stacklevel=6)


def _can_be_read(images: torch.Tensor) -> bool:
    """Whether values are there to be looked at: not in graphs that are made now, nor under torch.func."""
    if torch.compiler.is_compiling() or images.is_meta or torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
        return False
    if torch._C._functorch.is_functorch_wrapped_tensor(images):
        return False
    return not (images.is_cuda and torch.cuda.is_current_stream_capturing())

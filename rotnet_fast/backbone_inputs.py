"""What a backbone takes: the form of images, and whether floating ones can be normalised at all."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch

from rotnet_fast.errors import ArgumentError
from rotnet_fast.plain import as_sequence, as_whole, shown

_LEAST_CONTRAST = 0.5
"""Images of 0..1 span more than this; all pixels of normalised ones lie that close together only where they
show nearly nothing."""


def checked_count(name: str, value: int) -> int:
    """A whole number as an int.

    Raises:
        ArgumentError: it is none, or below 1.
    """
    number = as_whole(value)
    if number is None:
        raise ArgumentError(f"{name} is {shown(value)}; it must be a whole number: give an int")
    if number < 1:
        raise ArgumentError(f"{name} is {shown(value)}; it must be at least 1")
    return number


def checked_numbers(name: str, values: Any, count: int, convert: Callable[[object], Any]) -> tuple[Any, ...]:
    """As many numbers as a network needs, as Python's own.

    Args:
        values: a sequence, or an array or tensor [count].
        convert: `as_whole` or `as_real` of `rotnet_fast.plain`.

    Raises:
        ArgumentError: another number of them, or something else.
    """
    listed = as_sequence(values)
    if listed is None:
        raise ArgumentError(f"{name} is {shown(values)}; it must be a sequence of {count} numbers")
    if len(listed) != count:
        raise ArgumentError(f"{name} has {len(listed)} values; this network needs {count}")
    for value in listed:
        if convert(value) is None:
            what = "integer degrees" if convert is as_whole else "numbers"
            raise ArgumentError(f"{name} holds {shown(value)}; it must hold {what}")
    return tuple(map(convert, listed))


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
        ArgumentError: a wrong shape, layout or number of channels, or values that are not normalised.
    """
    if isinstance(images, torch.fx.Proxy):
        raise TypeError(
            "images is a Proxy of torch.fx, and a backbone goes by the type of its images, which a Proxy has "
            "not: trace its network, which takes normalised [N,C,H,W], or use torch.export.export"
        )
    if not isinstance(images, torch.Tensor):
        raise TypeError(
            f"images must be a tensor, got {type(images).__name__}: use torch.from_numpy or torch.stack"
        )
    if images.is_nested or images.layout is not torch.strided:
        kind = "nested" if images.is_nested else str(images.layout)
        raise ArgumentError(f"images must be a dense tensor, got a {kind} one: make it one before the call")
    is_floating = images.is_floating_point()
    if images.dtype != torch.uint8 and not is_floating:
        raise TypeError(
            f"images must be uint8 [N,H,W,C] with values 0..255, or normalised and floating [N,C,H,W]; "
            f"got {images.dtype}: convert whole numbers of 0..255 by images.to(torch.uint8)"
        )
    layout, position, other = ("[N,C,H,W]", 1, 3) if is_floating else ("[N,H,W,C]", 3, 1)
    kind = "floating" if is_floating else "uint8"
    channels = len(mean)
    if images.dim() != 4:
        raise ArgumentError(
            f"{kind} images must be {layout}, got shape {list(images.shape)}"
            + ("; add the first dimension with images[None]" if images.dim() == 3 else "")
        )
    found = images.shape[position]
    if found != channels:
        remedy = f"give images of {channels}"
        if images.shape[other] == channels:
            remedy = f"move the channels, images.permute({'0, 3, 1, 2' if is_floating else '0, 2, 3, 1'})"
        elif found == 1:
            sizes = f"-1, {channels}, -1, -1" if is_floating else f"-1, -1, -1, {channels}"
            remedy = f"repeat grey images, images.expand({sizes})"
        raise ArgumentError(
            f"{kind} images must be {layout} with {channels} channel{'s' * (channels > 1)} here, "
            f"got shape {list(images.shape)}, which has {found}: {remedy}"
        )
    if 0 in images.shape[1:]:
        raise ArgumentError(f"images must have at least one row and column, got {list(images.shape)}")
    if images.is_floating_point() and images.shape[0] > 0 and _can_be_read(images):
        _check_values(images, mean, std)


def _check_values(images: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> None:
    """See :func:`check_images`; waits for the device."""
    values = images.detach()
    if values.element_size() == 1:  # types of 8 bits are there to be stored, not to be compared
        values = values.float()
    low, high = (value.item() for value in values.aminmax())
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

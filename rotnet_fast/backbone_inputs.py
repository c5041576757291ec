"""Checks of a backbone's inputs: the form of images, and whether floating ones can be normalised."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch

from rotnet_fast.errors import ArgumentError
from rotnet_fast.plain import as_sequence, as_whole, counted, shown

_LEAST_CONTRAST = 0.5
"""Images in 0..1 span more than this; normalised images span less only if they show almost nothing."""


def checked_count(name: str, value: int) -> int:
    """Check an integer of at least 1 and return it as an int.

    Raises:
        ArgumentError: the value is not an integer, or is below 1.
    """
    number = as_whole(value)
    if number is None:
        raise ArgumentError(f"{name} is {shown(value)}; it must be an integer")
    if number < 1:
        raise ArgumentError(f"{name} is {shown(value)}; it must be at least 1")
    return number


def checked_numbers(name: str, values: Any, count: int, convert: Callable[[object], Any]) -> tuple[Any, ...]:
    """Check a sequence of numbers and return them as Python numbers.

    Args:
        name: name of the argument, for the message.
        values: a sequence, or an array or tensor [count].
        count: the number of values that the network needs.
        convert: `as_whole` or `as_real` of `rotnet_fast.plain`.

    Raises:
        ArgumentError: values is not a sequence of that many numbers.
    """
    listed = as_sequence(values)
    if listed is None:
        raise ArgumentError(f"{name} is {shown(values)}; it must be a sequence of {counted(count, 'number')}")
    if len(listed) != count:
        raise ArgumentError(f"{name} has {counted(len(listed), 'value')}; this network needs {count}")
    for value in listed:
        if convert(value) is None:
            what = "integer degrees" if convert is as_whole else "numbers"
            raise ArgumentError(f"{name} holds {shown(value)}; it must hold {what}")
    return tuple(map(convert, listed))


def check_images(images: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> None:
    """Check images for a backbone.

    The values of floating images are checked, too, except in compiled and captured graphs:

    * Values more than twice as far from 0 as those of any normalised pixel are an error: they are in 0..255.
    * A warning is given if all values lie in 0..1, or in -1..1 and reach one of these ends, and are not all
      close together. Normalised images have dark pixels below 0 and bright ones above 1, unless the whole
      batch lacks contrast.

    Args:
        images: uint8 [N,H,W,C] or normalised floating [N,C,H,W].
        mean, std: the backbone's normalisation, per channel.

    Raises:
        TypeError: images is not a tensor, or has an unsupported dtype.
        ArgumentError: images has the wrong shape, layout or number of channels, or is not normalised.
    """
    if isinstance(images, torch.fx.Proxy):
        raise TypeError(
            "images is a Proxy of torch.fx, which lacks the dtype that a backbone depends on: trace its "
            "network, which takes normalised [N,C,H,W], or use torch.export.export"
        )
    if not isinstance(images, torch.Tensor):
        raise TypeError(
            f"images must be a tensor, got {type(images).__name__}: use torch.from_numpy or torch.stack"
        )
    if images.is_nested or images.layout is not torch.strided:
        kind = "nested" if images.is_nested else str(images.layout)
        raise ArgumentError(f"images must be a dense tensor, got a {kind} one: convert it before the call")
    is_floating = images.is_floating_point()
    if images.dtype != torch.uint8 and not is_floating:
        raise TypeError(
            f"images must be uint8 [N,H,W,C] with values 0..255, or normalised and floating [N,C,H,W]; "
            f"got {images.dtype}: convert integers in 0..255 by images.to(torch.uint8)"
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
        remedy = f"pass images with {channels}"
        if images.shape[other] == channels:
            remedy = f"move the channels, images.permute({'0, 3, 1, 2' if is_floating else '0, 2, 3, 1'})"
        elif found == 1:
            sizes = f"-1, {channels}, -1, -1" if is_floating else f"-1, -1, -1, {channels}"
            remedy = f"repeat grey images, images.expand({sizes})"
        raise ArgumentError(
            f"{kind} images must be {layout} with {counted(channels, 'channel')} here, "
            f"got shape {list(images.shape)}, which has {found}: {remedy}"
        )
    if 0 in images.shape[1:]:
        raise ArgumentError(f"images must have at least one row and column, got {list(images.shape)}")
    if images.is_floating_point() and images.shape[0] > 0 and _can_be_read(images):
        _check_values(images, mean, std)


def _check_values(images: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> None:
    """Check the values as described in :func:`check_images`; waits for the device."""
    values = images.detach()
    if values.element_size() == 1:  # 8-bit floats can be stored, but not compared
        values = values.float()
    low, high = (value.item() for value in values.aminmax())
    lowest = min(-m / s for m, s in zip(mean, std, strict=True))
    highest = max((1 - m) / s for m, s in zip(mean, std, strict=True))
    remedy = (
        "pass uint8 images [N,H,W,C] with values 0..255, which are normalised here, or floating ones as "
        "(pixels / 255 - mean) / std, with the backbone's mean and std"
    )
    found = f"images hold values from {low:.4g} to {high:.4g}"
    if low < 2 * lowest or high > 2 * highest:
        raise ArgumentError(
            f"{found}, but floating images must be normalised, between {lowest:.2f} and {highest:.2f}: "
            f"{remedy}"
        )
    is_narrow = low >= -1 and high <= 1 and high - low > _LEAST_CONTRAST
    if is_narrow and (low >= 0 or low == -1 or high == 1):
        warnings.warn(f"{found}, which do not look normalised, but are used as such: {remedy}", stacklevel=6)


def _can_be_read(images: torch.Tensor) -> bool:
    """Return whether the values are accessible: not while tracing a graph, nor under torch.func."""
    if torch.compiler.is_compiling() or images.is_meta or torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
        return False
    if torch._C._functorch.is_functorch_wrapped_tensor(images):
        return False
    return not (images.is_cuda and torch.cuda.is_current_stream_capturing())

"""Tell images [N,H,W,C] from images [N,C,H,W].

Importing this module imports neither torch nor numpy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeVar

from rotnet_fast.errors import ArgumentError
from rotnet_fast.plain import counted, shown

Layout = Literal["NHWC", "NCHW"]
"""Order of the dimensions of images; of a single image, the N does not count."""

ArrayT = TypeVar("ArrayT", bound=Any)


def check_layout(layout: object) -> None:
    """Check the value of an argument ``layout``.

    Raises:
        ArgumentError: it is neither a layout nor None.
    """
    if layout not in (None, "NHWC", "NCHW"):
        raise ArgumentError(f"layout is {shown(layout)}; it must be NHWC, NCHW, or None to tell it")


def channels_last(
    images: ArrayT,
    layout: Layout | None,
    name: str,
    channels: int = 3,
    remedy: str = "pass RGB images",
    is_single: bool = False,
) -> ArrayT:
    """Return images as [N,H,W,C], or one image as [H,W,C], in the same memory.

    Args:
        images: array of NumPy or tensor.
        layout: its layout. None: told from which dimension is as long as there are channels.
        name: name of the argument in error messages.
        channels: C.
        remedy: what to do where no dimension is as long as that.
        is_single: whether this is one image.

    Raises:
        ArgumentError: the shape is another one, or fits both layouts.
    """
    shape = list(images.shape)
    if len(shape) != 4 - is_single:
        raise ArgumentError(f"{name} has the shape {shape}; {_dimensions(shape, name, channels, is_single)}")
    fitting: list[Layout] = []
    if shape[-1] == channels:
        fitting.append("NHWC")
    if shape[-3] == channels:
        fitting.append("NCHW")
    if not fitting:
        raise ArgumentError(
            f"{name} has the shape {shape}, without {counted(channels, 'channel')} last or "
            f"{'first' if is_single else 'second'}; {remedy}"
        )
    if layout is None and len(fitting) == 2:
        raise ArgumentError(
            f"{name} has the shape {shape}, which may be NHWC or NCHW; pass layout='NHWC' or layout='NCHW'"
        )
    if layout is not None and layout not in fitting:
        raise ArgumentError(f"layout is {layout}, but {name} has the shape {shape}; pass {fitting[0]}")
    if (layout or fitting[0]) == "NHWC":
        return images
    order = (1, 2, 0) if is_single else (0, 2, 3, 1)
    is_tensor = hasattr(images, "permute")
    turned: ArrayT = images.permute(order) if is_tensor else images.transpose(order)
    return turned


def _dimensions(shape: Sequence[int], name: str, channels: int, is_single: bool) -> str:
    """Return what to do about a wrong number of dimensions."""
    if is_single:
        return f"it must be an image [H,W,{channels}] or [{channels},H,W]"
    if len(shape) == 3 and channels in (shape[0], shape[2]):
        return f"add the first dimension with {name}[None]"
    if len(shape) == 3 and channels == 3:
        return f"repeat grey images [N,H,W] with np.stack([{name}] * 3, axis=3)"
    return f"pass [N,H,W,{channels}] or [N,{channels},H,W]"

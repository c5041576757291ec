"""Check the arguments of `rotnet_fast.rotate_batch` and convert them to what the kernels take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch

from rotnet_fast.ops.limits import MAX_PAD, MAX_SIDE, VIEW_TYPES
from rotnet_fast.paper import CIFAR10_MEAN, CIFAR10_STD
from rotnet_fast.plain import as_real, as_sequence, as_whole, shown, wrapped_seed

_DEFAULTS = {"mean": CIFAR10_MEAN, "std": CIFAR10_STD}


def check_memory(name: str, tensor: torch.Tensor) -> None:
    """Refuse tensors that are nested, sparse or negated, so that their elements are not plain memory."""
    kind = "nested" if tensor.is_nested else "" if tensor.layout is torch.strided else str(tensor.layout)
    if not torch.compiler.is_compiling() and tensor.is_neg():
        kind = "negated"
    if kind:
        raise ValueError(
            f"{name} must be a dense tensor in memory, got a {kind} one: convert it before the call"
        )


def check_images(images: torch.Tensor) -> None:
    """Refuse images that are not a uint8 tensor [N,H,W,C]."""
    if not isinstance(images, torch.Tensor):
        remedy = "torch.from_numpy" if isinstance(images, np.ndarray) else "torch.stack"
        raise TypeError(f"images must be a uint8 tensor [N,H,W,C], got {type(images).__name__}: use {remedy}")
    check_memory("images", images)
    if images.dtype != torch.uint8:
        remedy = ".to(torch.uint8)"
        if images.is_floating_point():
            remedy = ".mul(255).round().to(torch.uint8) if they are in 0..1"
        raise TypeError(
            f"images must be uint8 with values 0..255, got {images.dtype}: convert them by images{remedy}"
        )
    if images.dim() != 4:
        raise ValueError(
            f"images must be [N,H,W,C], got shape {list(images.shape)}"
            + ("; add the first dimension with images[None]" if images.dim() == 3 else "")
        )
    channels = images.shape[3]
    if not 1 <= channels <= 4:
        raise ValueError(
            f"images has {channels} channels in its last dimension; 1 to 4 are supported "
            f"(channels come last: [N,H,W,C])"
        )


def check_layout(images: torch.Tensor, degrees: list[int]) -> None:
    """Refuse images with an unsupported size, memory layout or device for these angles."""
    _, height, width, _ = images.shape
    if height < 1 or width < 1:
        raise ValueError(f"images must have at least one row and column, got shape {list(images.shape)}")
    if height > MAX_SIDE or width > MAX_SIDE:
        raise ValueError(f"images are {height} x {width}; at most {MAX_SIDE} rows and columns are supported")
    if height != width and any(angle % 180 for angle in degrees):
        raise ValueError(
            f"images are {height} x {width}, not square: they can only be rotated by 0 and 180 degrees; "
            f"crop them to a square or pass rotations=(0, 180)"
        )
    if not images.is_contiguous():
        raise ValueError(
            "images must be contiguous [N,H,W,C]; call images.contiguous() once, before the loop"
        )
    if images.device.type not in ("cpu", "cuda", "mps"):
        raise ValueError(f"images must be on the CPU, a CUDA device or mps, got {images.device}")


def checked_pad(pad: int) -> int:
    """Check the pixels of border and return them as an int in 0..32767."""
    number = as_whole(pad)
    if number is None:
        raise TypeError(f"pad must be an integer number of pixels, got {shown(pad)}: pass an int, such as 4")
    if not 0 <= number <= MAX_PAD:
        raise ValueError(f"pad is {number}; it must lie in [0, {MAX_PAD}]")
    return number


def checked_probability(flip_prob: float) -> float:
    """Check the probability of a flip and return it as a float in [0, 1]."""
    number = as_real(flip_prob)
    if number is None:
        raise TypeError(f"flip_prob must be a number, got {shown(flip_prob)}: pass a float, such as 0.5")
    if not 0 <= number <= 1:
        raise ValueError(f"flip_prob is {flip_prob}; it must lie in [0, 1]")
    return float(number)


def check_dtype(dtype: torch.dtype) -> None:
    """Refuse a dtype that views cannot have."""
    if dtype not in VIEW_TYPES:
        remedy = "; use float32 and convert the views by .double()" if dtype is torch.float64 else ""
        raise TypeError(
            f"dtype must be torch.float32, torch.bfloat16 or torch.float16, got {shown(dtype)}{remedy}"
        )


def checked_normalisation(
    mean: Sequence[float], std: Sequence[float], channels: int, warped: bool
) -> tuple[list[float], list[float]]:
    """Check mean and std and return them as lists [C] of floats."""
    # Within these bounds, v * scale + shift is exact in float64, so that every backend rounds the same
    # number to float32 (see normalisation_coefficients).
    limit, where = (1e3, " for rotations that are not all multiples of 90") if warped else (1e5, "")
    means, stds = _per_channel("mean", mean, channels), _per_channel("std", std, channels)
    for value in means:
        if not (value == 0 or 1e-8 <= abs(value) <= limit):
            raise ValueError(
                f"mean holds {value}; each value must be 0 or have a magnitude in [1e-8, {limit:g}]{where}"
            )
    for value in stds:
        if not 1e-6 <= value <= 1e6:
            raise ValueError(f"std holds {value}; each value must be in [1e-6, 1e6]")
    # Converted last, because an int may be larger than any float.
    return [float(value) for value in means], [float(value) for value in stds]


def _per_channel(name: str, values: Sequence[float], channels: int) -> list[Any]:
    listed = as_sequence(values)
    if listed is None:
        raise TypeError(
            f"{name} must be a sequence of one number per channel, such as (0.5,) * {channels}, "
            f"got {shown(values)}"
        )
    found = list(islice(listed, channels + 1))
    if len(found) != channels:
        count = len(found) if len(found) < channels else "more"
        whose = (
            f" (CIFAR-10's, the default): pass {name} with {channels}" if listed == _DEFAULTS[name] else ""
        )
        if whose and channels == 1:
            whose += (
                f", such as {name}=(0.5,), or repeat grey images, images.expand(-1, -1, -1, 3).contiguous()"
            )
        raise ValueError(
            f"{name} needs one value per channel: images has {channels} channel{'s' * (channels > 1)}, "
            f"{name} has {count} values{whose}"
        )
    for position, value in enumerate(found):
        if type(value) is not float:
            number = as_real(value)
            if number is None:
                raise TypeError(f"{name} must hold plain numbers, found {shown(value)}: pass floats")
            found[position] = number
    return found


def checked_seed(
    seed: int | torch.Tensor, epoch: int, beside: torch.Tensor, name: str = "images"
) -> tuple[torch.Tensor | None, int, int]:
    """Check seed and epoch and return a tensor [2] that holds both or None, the seed and the epoch.

    Args:
        beside: tensor whose device a seed tensor must share.
        name: name of ``beside`` in error messages.
    """
    number, epoch_number = as_whole(seed), as_whole(epoch)
    if epoch_number is None:
        raise TypeError(f"epoch must be an integer, got {shown(epoch)}: pass an int")
    if not 0 <= epoch_number < 2**32:
        raise ValueError(f"epoch is {epoch_number}; it must lie in [0, {2**32})")
    if number is not None:
        return None, wrapped_seed(number), epoch_number
    if not isinstance(seed, torch.Tensor):
        raise TypeError(
            f"seed must be an integer, or an int64 tensor [2] that holds (seed, epoch), "
            f"got {shown(seed)}: pass an int"
        )
    check_memory("seed", seed)
    if seed.dtype != torch.int64:
        raise TypeError(
            f"seed as a tensor must be int64 and hold (seed, epoch), got {seed.dtype}: "
            f"convert it by seed.long()"
        )
    if seed.shape != (2,):
        raise ValueError(
            f"seed as a tensor must have shape [2] and hold (seed, epoch), got {list(seed.shape)}"
        )
    if seed.device != beside.device:
        raise ValueError(
            f"seed is on {seed.device}; as a tensor it must be on the device of {name}, {beside.device}: "
            f"move it there"
        )
    if not seed.is_contiguous():
        raise ValueError(
            f"seed must be contiguous, got strides {list(seed.stride())}: call seed.contiguous()"
        )
    if epoch_number != 0:
        raise ValueError(f"epoch is {epoch_number}, but the seed tensor already holds it: omit epoch")
    return seed, 0, 0


def checked_ids(name: str, ids: Any, device: torch.device) -> torch.Tensor:
    """Check rows or sample ids and return a contiguous int64 tensor [B] on the device of images.

    Args:
        ids: a tensor [B] of any integer type on that device; or a sequence or an array of integers, which is
            copied there.
    """
    if not isinstance(ids, torch.Tensor):
        return torch.from_numpy(_whole_numbers(name, ids)).to(device)
    check_memory(name, ids)
    if ids.dtype is not torch.int64:
        if ids.dtype is torch.bool:
            raise TypeError(
                f"{name} must hold integers, got torch.bool: convert a mask by mask.nonzero().flatten()"
            )
        if ids.is_floating_point() or ids.is_complex():
            raise TypeError(f"{name} must hold integers, got {ids.dtype}: convert them by {name}.long()")
        if ids.dtype is torch.uint64:
            raise TypeError(f"{name} must fit in int64, got torch.uint64: convert them by {name}.long()")
    if ids.dim() != 1:
        raise ValueError(f"{name} must have shape [B], got {list(ids.shape)}")
    if ids.device != device:
        raise ValueError(f"{name} is on {ids.device}, images on {device}: move one of them")
    if ids.dtype is torch.int64 and ids.is_contiguous():
        return ids
    _check_stored(name, ids)
    return ids.to(torch.int64).contiguous()


def _whole_numbers(name: str, ids: Any) -> Any:
    """Convert a sequence or an array to a new int64 array [B]."""
    sentence = f"{name} must be a tensor, an array or a sequence [B] of integers, got "
    if not isinstance(ids, np.ndarray) and as_sequence(ids) is None:
        raise TypeError(f"{sentence}{shown(ids)}: use torch.tensor(...)")
    try:
        array = np.asarray(ids if len(ids) else np.empty(0, np.int64))
    except (TypeError, ValueError, RuntimeError):  # rows of different lengths, tensors on a GPU, ...
        raise TypeError(
            f"{sentence}a {type(ids).__name__} of something else: use torch.tensor(...)"
        ) from None
    if array.dtype.kind == "u" and array.dtype.itemsize == 8 and (array >> np.uint64(63)).any():
        raise TypeError(f"{sentence}numbers beyond int64")
    if array.dtype.kind == "f" and array.ndim == 1 and all(as_whole(number) is not None for number in ids):
        raise TypeError(f"{sentence}numbers beyond int64")  # which NumPy mixes with others as float64
    if array.dtype.kind == "O":
        raise TypeError(f"{sentence}a {type(ids).__name__} of other things, or of numbers beyond int64")
    if array.dtype.kind not in "iu":
        raise TypeError(f"{sentence}{array.dtype}: use torch.tensor(..., dtype=torch.int64)")
    if array.ndim != 1:
        raise ValueError(f"{name} must have shape [B], got {list(array.shape)}")
    return array.astype(np.int64)


def _check_stored(name: str, ids: torch.Tensor) -> None:
    """Check the storage of a tensor [B], as the kernels do, before torch copies it and reads beyond it."""
    if torch.compiler.is_compiling() or ids.numel() == 0:
        return
    last = ids.storage_offset() + (ids.numel() - 1) * ids.stride(0)
    needed, found = (last + 1) * ids.element_size(), ids.untyped_storage().nbytes()
    if needed > found:
        raise ValueError(
            f"{name} needs {needed} bytes of its storage, which has {found}: pass a tensor whose storage was "
            f"not resized"
        )


def checked_out(
    out: torch.Tensor, shape: tuple[int, int, int, int], dtype: torch.dtype, images: torch.Tensor
) -> torch.Tensor:
    """Check the buffer to overwrite and return it as [B*K,H,W,C]."""
    if not isinstance(out, torch.Tensor) or out.dtype != dtype:
        found = out.dtype if isinstance(out, torch.Tensor) else type(out).__name__
        raise TypeError(f"out must be a tensor of dtype {dtype}, got {found}")
    check_memory("out", out)
    views, height, width, channels = shape
    if out.shape != (views, channels, height, width):
        raise ValueError(f"out must have shape {[views, channels, height, width]}, got {list(out.shape)}")
    if out.device != images.device:
        raise ValueError(f"out is on {out.device}, images on {images.device}: move one of them")
    if out.requires_grad:
        raise ValueError("out requires grad; pass a buffer that does not (views are data, not parameters)")
    try:
        buffer = out.permute(0, 2, 3, 1)
    except RuntimeError:
        # Everything else that permute requires was checked above; the op checks the storage of other tensors.
        raise ValueError(
            "out has less memory than it needs: pass a tensor whose storage was not resized"
        ) from None
    if not buffer.is_contiguous():
        raise ValueError(
            "out must be dense in channels_last memory format; "
            "create it with torch.empty(..., memory_format=torch.channels_last)"
        )
    return buffer


def check_apart(out: torch.Tensor, given: Mapping[str, Any]) -> None:
    """Refuse a buffer that shares memory with an argument, even one of which the kernels only see a copy."""
    if torch.compiler.is_compiling() or type(out) is not torch.Tensor:
        return
    for name, value in given.items():
        if type(value) is not torch.Tensor or value.device != out.device or not value.numel() * out.numel():
            continue
        (begin, end), (first, last) = _extent(out), _extent(value)
        if begin < last and first < end:
            raise ValueError(f"out shares memory with {name}: pass a buffer of its own")


def _extent(tensor: torch.Tensor) -> tuple[int, int]:
    """Return the addresses of the first byte of a tensor and of the first one after it."""
    reach = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr(), tensor.data_ptr() + (reach + 1) * tensor.element_size()

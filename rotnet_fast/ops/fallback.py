"""Plain-torch fallbacks of the two ops of the data path, for devices without compiled kernels.

They refuse what csrc/checks.h refuses, so that a call that fails on one machine fails on every other; torch
itself would silently broadcast, convert and overwrite its own input.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch

from rotnet_fast.ops.limits import MAX_ELEMENTS, MAX_PAD, MAX_SIDE, VIEW_TYPES
from rotnet_fast.ops.reference import rotate_batch_reference, warp_batch_reference
from rotnet_fast.rotations import MAX_ROTATIONS


def _run(
    reference: Callable[..., tuple[torch.Tensor, torch.Tensor]],
    views: torch.Tensor,
    labels: torch.Tensor,
    images: torch.Tensor,
    indices: torch.Tensor | None,
    sample_ids: torch.Tensor | None,
    key: torch.Tensor | None,
    seed: int,
    epoch: int,
    rotations: list[int],
    pad: int,
    flip_prob: float,
    mean: list[float],
    std: list[float],
) -> None:
    _check_numbers(images, pad, flip_prob, mean, std, rotations, warped=reference is warp_batch_reference)
    _check_tensors(views, labels, images, indices, sample_ids, key, len(rotations))
    inside = None
    rows = indices
    if indices is not None:
        inside = _rows_inside(indices, len(images), are_checked=images.device.type == "cpu")
        rows = torch.where(inside, indices, 0)
    if len(labels) == 0:
        return  # skip the W x W numbers per angle that all images share
    if len(images) == 0:
        images = images.new_zeros(1, *images.shape[1:])  # read for the indices that are outside
    made, made_labels = reference(
        images,
        rows,
        indices if sample_ids is None else sample_ids,
        seed if key is None else key[0],
        epoch if key is None else key[1],
        rotations,
        pad,
        flip_prob,
        tuple(mean),
        tuple(std),
        views.dtype,
    )
    if inside is not None:
        # The CUDA kernels mark the indices that the host did not check in the same way.
        made = torch.where(inside.repeat_interleave(len(rotations))[:, None, None, None], made, torch.nan)
    with torch.inference_mode():  # inference tensors are only writable in this mode
        views.copy_(made)
        labels.copy_(made_labels)


def _rows_inside(indices: torch.Tensor, stored: int, are_checked: bool) -> torch.Tensor:
    """Return which indices [B] are rows of the images, as bool [B]; where they are checked, all must be."""
    inside = (indices >= 0) & (indices < stored)
    if are_checked and not inside.all():
        position = int((~inside).nonzero()[0])
        raise RuntimeError(
            f"indices[{position}] is {int(indices[position])}, outside [0, {stored}): "
            f"pass rows that images has"
        )
    return inside


def _require(is_allowed: bool, rule: str, op: str = "rotate_batch_out") -> None:
    if not is_allowed:
        raise RuntimeError(f"{op}: {rule}")


def _check_numbers(
    images: torch.Tensor,
    pad: int,
    flip_prob: float,
    mean: list[float],
    std: list[float],
    rotations: list[int],
    warped: bool,
) -> None:
    _require(
        images.dim() == 4 and images.dtype == torch.uint8 and images.is_contiguous(),
        "images must be a contiguous uint8 tensor [N,H,W,C]",
    )
    _, height, width, channels = images.shape
    _require(
        1 <= height <= MAX_SIDE and 1 <= width <= MAX_SIDE and 1 <= channels <= 4,
        f"images must have 1 to {MAX_SIDE} rows and columns and 1 to 4 channels",
    )
    _require(0 <= pad <= MAX_PAD, f"pad must lie in [0, {MAX_PAD}]")
    _require(0 <= flip_prob <= 1, "flip_prob must lie in [0, 1]")
    _require(len(mean) == len(std) == channels, "mean and std need one value per channel")
    number = len(rotations)
    _require(1 <= number <= MAX_ROTATIONS, f"1 to {MAX_ROTATIONS} rotations are supported, got {number}")
    if warped:
        _require(height == width, "only square images can be rotated by any angle", "warp_batch_out")
        _require(all(0 <= angle < 360 for angle in rotations), "degrees must lie in 0..359", "warp_batch_out")
    else:
        _require(all(0 <= turn <= 3 for turn in rotations), "turns must lie in 0..3")
        _require(
            height == width or not any(turn % 2 for turn in rotations),
            "only square images can be rotated by 90 or 270 degrees",
        )


def _check_tensors(
    views: torch.Tensor,
    labels: torch.Tensor,
    images: torch.Tensor,
    indices: torch.Tensor | None,
    sample_ids: torch.Tensor | None,
    key: torch.Tensor | None,
    number: int,
) -> None:
    stored, *pixels = images.shape
    batch = stored if indices is None or indices.dim() != 1 else len(indices)
    read = {"images": images}
    for name, ids, length in (
        ("indices", indices, batch),
        ("sample_ids", sample_ids, batch),
        ("seed", key, 2),
    ):
        if ids is not None:
            _require(
                ids.dtype == torch.int64 and ids.shape == (length,) and ids.is_contiguous(),
                f"{name} must be a contiguous int64 tensor of the expected length",
            )
            read[name] = ids
    per_image = number * math.prod(pixels)
    _require(batch * per_image <= MAX_ELEMENTS, "at most 2**31 - 1 output elements are supported")
    _require(
        views.shape == (batch * number, *pixels) and views.is_contiguous(),
        "views must be a contiguous tensor [B*K,H,W,C]",
    )
    _require(views.dtype in VIEW_TYPES, "views must be float32, bfloat16 or float16")
    _require(
        labels.shape == (batch * number,) and labels.dtype == torch.int64 and labels.is_contiguous(),
        "labels must be a contiguous int64 tensor [B*K]",
    )
    written = {"out": views, "labels": labels}
    devices = {tensor.device for tensor in (*written.values(), *read.values())}
    _require(len(devices) == 1, "all tensors must be on the device of images")
    _check_memory(written, read)


def _check_memory(written: dict[str, torch.Tensor], read: dict[str, torch.Tensor]) -> None:
    """Check the memory of contiguous tensors, by name, as csrc/memory.h does."""
    spans: dict[str, tuple[int, int]] = {}
    for name, tensor in (*written.items(), *read.items()):
        element, begin = tensor.element_size(), tensor.data_ptr()
        size = tensor.numel() * element
        if size == 0:
            continue
        needed = int(tensor.storage_offset()) * element + size
        found = int(tensor.untyped_storage().nbytes())
        _require(
            needed <= found,
            f"{name} needs {needed} bytes of its storage, which has {found}: "
            f"pass a tensor whose storage was not resized",
            "rotate_batch",
        )
        _require(
            begin % element == 0,
            f"{name} lies at an address that is no multiple of its {element}-byte elements: pass a copy",
            "rotate_batch",
        )
        spans[name] = (begin, begin + size)
    names = list(spans)
    for i, name in enumerate(names):
        for other in names[i + 1 :]:
            apart = spans[name][0] >= spans[other][1] or spans[other][0] >= spans[name][1]
            _require(
                name not in written or apart,
                f"{name} shares memory with {other}: pass a buffer of its own",
                "rotate_batch",
            )


def _run_on_cpu(
    name: str,
    views: torch.Tensor,
    labels: torch.Tensor,
    images: torch.Tensor,
    indices: torch.Tensor | None,
    sample_ids: torch.Tensor | None,
    key: torch.Tensor | None,
    *numbers: object,
) -> None:
    """Make the views on the CPU, by its kernels, and copy them: for a device that has no float64."""
    made, made_labels = torch.empty_like(views, device="cpu"), torch.empty_like(labels, device="cpu")
    if indices is not None:  # of a whole set, only the images of the batch are copied
        _rows_inside(indices, len(images), are_checked=True)
        images, indices, sample_ids = images[indices], None, indices if sample_ids is None else sample_ids
    read = (None if tensor is None else tensor.cpu() for tensor in (images, indices, sample_ids, key))
    getattr(torch.ops.rotnet_fast, name)(made, made_labels, *read, *numbers)
    with torch.inference_mode():
        views.copy_(made)
        labels.copy_(made_labels)


FALLBACKS: dict[str, Callable[..., None]] = {
    "rotate_batch_out": partial(_run, rotate_batch_reference),
    "warp_batch_out": partial(_run, warp_batch_reference),
}
"""Implementations by name of the op; the arguments are those of its schema."""

ON_CPU = {name: partial(_run_on_cpu, name) for name in FALLBACKS}
"""Implementations that compute on the CPU, whatever the device."""

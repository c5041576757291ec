"""What the documentation of ``rotate_batch`` allows, read without the op's code: an oracle for any call."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import islice
from numbers import Integral, Real
from typing import Any, NamedTuple

import numpy as np
import torch
from odd_tensors import has_memory, is_plain, is_stored, overlap

VIEW_TYPES = (torch.float32, torch.bfloat16, torch.float16)
MOST_ELEMENTS = 2**31 - 1


class Violation(NamedTuple):
    """A rule that a call breaks: the class of its error, and what the message must name."""

    error: type[Exception]
    name: str


def violations(arguments: dict[str, Any]) -> list[Violation]:
    """Every rule that a call breaks; it must be refused for one of them. Empty: it must be done."""
    found = [*_settings(arguments), *_images(arguments), *_per_channel(arguments), *_ids(arguments)]
    if not found and math.prod(views_shape(arguments)) > MOST_ELEMENTS:
        found.append(Violation(ValueError, "views"))
    if not found and arguments.get("out") is not None:
        found.extend(_out(arguments))
    return found or [*_memory(arguments)]


def views_shape(arguments: dict[str, Any]) -> tuple[int, int, int, int]:
    """[B*K,H,W,C] of a call whose images, indices and rotations are right."""
    number, height, width, channels = arguments["images"].shape
    batch = number if arguments["indices"] is None else len(arguments["indices"])
    return batch * len(arguments["rotations"]), height, width, channels


def is_warped(rotations: Any) -> bool:
    return any(whole % 90 for whole in map(whole_number, listed(rotations, 64)) if whole is not None)


def plain(arguments: dict[str, Any]) -> dict[str, Any]:
    """A call without violations in Python's own numbers and int64 tensors."""
    seed = arguments["seed"]
    if whole_number(seed) is not None:
        seed = (whole_number(seed) + 2**63) % 2**64 - 2**63  # modulo 2**64
    as_ids = {
        name: None if ids is None else torch.tensor([int(i) for i in ids], dtype=torch.int64)
        for name, ids in ((name, arguments[name]) for name in ("indices", "sample_ids"))
    }
    return {
        **arguments,
        **as_ids,
        "seed": seed,
        **{name: whole_number(arguments[name]) for name in ("epoch", "pad")},
        "flip_prob": float(_number(arguments["flip_prob"])),
        **{name: tuple(float(_number(v)) for v in listed(arguments[name], 4)) for name in ("mean", "std")},
        "rotations": [whole_number(angle) for angle in listed(arguments["rotations"], 64)],
    }


def _number(value: Any) -> Any:
    """What a number of numpy, or an array or tensor without dimensions, holds."""
    is_single = isinstance(value, (np.generic, np.ndarray, torch.Tensor)) and value.ndim == 0
    return value.item() if is_single and getattr(value, "device", None) != torch.device("meta") else value


def whole_number(value: Any) -> int | None:
    number = _number(value)
    return int(number) if isinstance(number, Integral) and not isinstance(number, bool) else None


def _is_real(value: Any) -> bool:
    number = _number(value)
    return isinstance(number, Real) and not isinstance(number, bool)


def _is_list(values: object) -> bool:
    is_row = isinstance(values, (np.ndarray, torch.Tensor)) and values.ndim == 1
    return is_row or (isinstance(values, Sequence) and not isinstance(values, (str, bytes)))


def listed(values: object, most: int) -> list[Any]:
    """The first values of a sequence; none of what is no sequence of numbers."""
    return list(islice(values, most)) if _is_list(values) else []


def _settings(arguments: dict[str, Any]) -> Iterator[Violation]:
    rotations = arguments["rotations"]
    angles = listed(rotations, 65)
    if not _is_list(rotations):
        yield Violation(TypeError, "rotations")
    elif not 1 <= len(angles) <= 64:
        yield Violation(ValueError, "rotations")
    if any(whole_number(angle) is None for angle in angles):
        yield Violation(TypeError, "rotations")
    pad, flip_prob = whole_number(arguments["pad"]), _number(arguments["flip_prob"])
    if pad is None:
        yield Violation(TypeError, "pad")
    elif not 0 <= pad <= 32767:
        yield Violation(ValueError, "pad")
    if not _is_real(flip_prob):
        yield Violation(TypeError, "flip_prob")
    elif not 0 <= flip_prob <= 1:
        yield Violation(ValueError, "flip_prob")
    if arguments["dtype"] not in VIEW_TYPES:
        yield Violation(TypeError, "dtype")
    seed, epoch = arguments["seed"], whole_number(arguments["epoch"])
    by_tensor = isinstance(seed, torch.Tensor) and whole_number(seed) is None
    if by_tensor:
        if seed.dtype != torch.int64:
            yield Violation(TypeError, "seed")
        yield from _in_place("seed", seed, arguments["images"])
        if not is_plain(seed) or not seed.is_contiguous() or seed.shape != (2,):
            yield Violation(ValueError, "seed")
    elif whole_number(seed) is None:
        yield Violation(TypeError, "seed")
    if epoch is None:
        yield Violation(TypeError, "epoch")
    elif not 0 <= epoch < 2**32 or (epoch != 0 and by_tensor):
        yield Violation(ValueError, "epoch")


def _images(arguments: dict[str, Any]) -> Iterator[Violation]:
    images = arguments["images"]
    if not isinstance(images, torch.Tensor):
        yield Violation(TypeError, "images")
        return
    if images.dtype != torch.uint8:
        yield Violation(TypeError, "images")
    if not is_plain(images) or images.dim() != 4:
        yield Violation(ValueError, "images")
        return
    _, height, width, channels = images.shape
    if not (
        1 <= channels <= 4
        and 1 <= height <= 32767
        and 1 <= width <= 32767
        and (
            height == width
            or not any((whole_number(r) or 0) % 180 for r in listed(arguments["rotations"], 64))
        )
        and images.is_contiguous()
        and images.device.type in ("cpu", "cuda")
    ):
        yield Violation(ValueError, "images")


def _per_channel(arguments: dict[str, Any]) -> Iterator[Violation]:
    images = arguments["images"]
    is_known = isinstance(images, torch.Tensor) and is_plain(images) and images.dim() == 4
    most = 1e3 if is_warped(arguments["rotations"]) else 1e5
    for name, low, high in (("mean", 1e-8, most), ("std", 1e-6, 1e6)):
        values = [_number(value) for value in listed(arguments[name], 5)]
        if not _is_list(arguments[name]):
            yield Violation(TypeError, name)
        elif is_known and len(values) != images.shape[3]:
            yield Violation(ValueError, name)
        for value in values:
            if not _is_real(value):
                yield Violation(TypeError, name)
            elif name == "mean" and value == 0:
                continue
            elif not low <= (abs(value) if name == "mean" else value) <= high:
                yield Violation(ValueError, name)


def _in_place(name: str, tensor: torch.Tensor, images: Any) -> Iterator[Violation]:
    """Of seed, indices and sample_ids alike."""
    if not is_plain(tensor) or (isinstance(images, torch.Tensor) and tensor.device != images.device):
        yield Violation(ValueError, name)


def _ids(arguments: dict[str, Any]) -> Iterator[Violation]:
    images = arguments["images"]
    batch = len(images) if isinstance(images, torch.Tensor) and is_plain(images) and images.dim() else None
    for name in ("indices", "sample_ids"):
        ids = arguments[name]
        if ids is None:
            continue
        if isinstance(ids, torch.Tensor):
            if ids.dtype is torch.bool or ids.is_floating_point():
                yield Violation(TypeError, name)
            yield from _in_place(name, ids, images)
            is_row = is_plain(ids) and ids.dim() == 1
        elif isinstance(ids, np.ndarray) and ids.dtype.kind in "iu":
            is_row = ids.ndim == 1
        elif not _is_list(ids) or any(whole_number(i) is None and not _is_list(i) for i in ids):
            yield Violation(TypeError, name)
            batch = None
            continue
        else:
            is_row = not any(map(_is_list, ids))
        if not is_row:
            yield Violation(ValueError, name)
            batch = None
        elif name == "indices":
            batch = len(ids)
        elif batch is not None and len(ids) != batch:
            yield Violation(ValueError, name)


def _out(arguments: dict[str, Any]) -> Iterator[Violation]:
    """Of a call that is right but for `out`."""
    out = arguments["out"]
    views, height, width, channels = views_shape(arguments)
    if not isinstance(out, torch.Tensor) or out.dtype != arguments["dtype"]:
        yield Violation(TypeError, "out")
    elif not (
        is_plain(out)
        and out.shape == (views, channels, height, width)
        and out.device == arguments["images"].device
        and not out.requires_grad
        and _is_channels_last(out)
    ):
        yield Violation(ValueError, "out")


def _is_channels_last(out: torch.Tensor) -> bool:
    """Dense in the order of rows, columns and channels; strides along a single element do not count."""
    _, channels, _, width = out.shape
    dense = (channels * width * out.shape[2], 1, channels * width, channels)
    steps = zip(out.shape, out.stride(), dense, strict=True)
    return out.numel() == 0 or all(length == 1 or found == wanted for length, found, wanted in steps)


def _memory(arguments: dict[str, Any]) -> Iterator[Violation]:
    """What shows only in memory, of a call that is right otherwise."""
    given = {
        name: arguments[name]
        for name in ("images", "indices", "sample_ids", "seed", "out")
        if isinstance(arguments.get(name), torch.Tensor) and has_memory(arguments[name])
    }
    for name, tensor in given.items():
        if not is_stored(tensor):
            yield Violation(ValueError, name)
    read = [tensor for name, tensor in given.items() if name != "out"]
    if "out" in given and any(overlap(given["out"], other) for other in read):
        yield Violation(ValueError, "out")
    indices = arguments["indices"]
    if indices is not None and (not isinstance(indices, torch.Tensor) or is_stored(indices)):
        rows = len(arguments["images"])
        if not all(0 <= int(index) < rows for index in indices):
            yield Violation(IndexError, "indices")

"""What the documentation of ``rotate_batch`` allows, read without the op's code: an oracle for any call."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import islice
from numbers import Real
from typing import Any, NamedTuple

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
    return any(_is_whole(angle) and angle % 90 for angle in _listed(rotations, 64))


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _listed(values: object, most: int) -> list[Any]:
    """The first values of a sequence; none of what is no sequence of numbers."""
    is_text = isinstance(values, (str, bytes))
    return list(islice(values, most)) if isinstance(values, Sequence) and not is_text else []


def _settings(arguments: dict[str, Any]) -> Iterator[Violation]:
    rotations = arguments["rotations"]
    angles = _listed(rotations, 65)
    if not isinstance(rotations, Sequence) or isinstance(rotations, (str, bytes)):
        yield Violation(TypeError, "rotations")
    elif not 1 <= len(angles) <= 64:
        yield Violation(ValueError, "rotations")
    if not all(_is_whole(angle) for angle in angles):
        yield Violation(TypeError, "rotations")
    pad, flip_prob = arguments["pad"], arguments["flip_prob"]
    if not _is_whole(pad):
        yield Violation(TypeError, "pad")
    elif not 0 <= pad <= 32767:
        yield Violation(ValueError, "pad")
    if isinstance(flip_prob, bool) or not isinstance(flip_prob, Real):
        yield Violation(TypeError, "flip_prob")
    elif not 0 <= flip_prob <= 1:
        yield Violation(ValueError, "flip_prob")
    if arguments["dtype"] not in VIEW_TYPES:
        yield Violation(TypeError, "dtype")
    seed, epoch = arguments["seed"], arguments["epoch"]
    if isinstance(seed, torch.Tensor):
        yield from _int64("seed", seed, arguments["images"])
        if is_plain(seed) and seed.shape != (2,):
            yield Violation(ValueError, "seed")
    elif not _is_whole(seed):
        yield Violation(TypeError, "seed")
    elif not -(2**63) <= seed < 2**63:
        yield Violation(ValueError, "seed")
    if not _is_whole(epoch):
        yield Violation(TypeError, "epoch")
    elif not 0 <= epoch < 2**32 or (epoch != 0 and isinstance(seed, torch.Tensor)):
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
            height == width or not any(_is_whole(r) and r % 180 for r in _listed(arguments["rotations"], 64))
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
        values = _listed(arguments[name], 5)
        if not isinstance(arguments[name], Sequence) or isinstance(arguments[name], (str, bytes)):
            yield Violation(TypeError, name)
        elif is_known and len(values) != images.shape[3]:
            yield Violation(ValueError, name)
        for value in values:
            if isinstance(value, bool) or not isinstance(value, Real):
                yield Violation(TypeError, name)
            elif name == "mean" and value == 0:
                continue
            elif not low <= (abs(value) if name == "mean" else value) <= high:
                yield Violation(ValueError, name)


def _int64(name: str, tensor: torch.Tensor, images: Any) -> Iterator[Violation]:
    """Of seed, indices and sample_ids alike."""
    if tensor.dtype != torch.int64:
        yield Violation(TypeError, name)
    if (
        not is_plain(tensor)
        or (isinstance(images, torch.Tensor) and tensor.device != images.device)
        or not tensor.is_contiguous()
    ):
        yield Violation(ValueError, name)


def _ids(arguments: dict[str, Any]) -> Iterator[Violation]:
    images = arguments["images"]
    batch = len(images) if isinstance(images, torch.Tensor) and is_plain(images) and images.dim() else None
    for name in ("indices", "sample_ids"):
        tensor = arguments[name]
        if tensor is None:
            continue
        if not isinstance(tensor, torch.Tensor):
            yield Violation(TypeError, name)
            batch = None
            continue
        yield from _int64(name, tensor, images)
        if not is_plain(tensor) or tensor.dim() != 1:
            yield Violation(ValueError, name)
            batch = None
        elif name == "indices":
            batch = len(tensor)
        elif batch is not None and len(tensor) != batch:
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
    if "out" in given and any(overlap(given["out"], other) for name, other in given.items() if name != "out"):
        yield Violation(ValueError, "out")
    indices = given.get("indices")
    if indices is not None and is_stored(indices):
        rows = len(arguments["images"])
        if not all(0 <= index < rows for index in indices.tolist()):
            yield Violation(IndexError, "indices")

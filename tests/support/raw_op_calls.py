"""Calls of the ops themselves, below what checks arguments for users: they refuse, or they are right.

A call starts out sound; up to two of its arguments are then damaged. No list says what must be refused:
whatever an op accepts must come out as from undamaged copies of the arguments, and change no other byte.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from hypothesis import strategies as st
from odd_tensors import ODDITIES, describe, has_memory, is_stored, placed, shifts, side_by_side, stored_bytes
from op_calls import FAR_ROWS, INT64, VIEW_TYPES, ids, some_images

from rotnet_fast.ops.fallback import FALLBACKS
from rotnet_fast.ops.reference import rotate_batch_reference, warp_batch_reference

DATA_OPS = tuple(FALLBACKS)
DAMAGES = [name for name in ODDITIES if name != "negated"]  # which torch resolves before an op sees it
ODD_NUMBERS: dict[str, tuple[Any, ...]] = {
    "seed": (2**63, None, 0.5),
    "epoch": (2**63, -1, None),
    "rotations": ([], [4], [-1], [0] * 64, [0] * 65, [360], [2**20], [1, 3], [1.5], None),
    "pad": (-1, 32767, 32768, 2**31, 2**62, -(2**63), 2**63, None),
    "flip_prob": (math.nan, -0.1, 1.1, math.inf, None),
    "mean": ([], [0.5], [0.5] * 5, None, 0.5),
    "std": ([], [0.5], [0.5] * 5, None, 0.5),
}


class RawCall:
    """An op by name, its arguments by name, and how many of them are damaged."""

    def __init__(self, op: str, arguments: dict[str, Any], damaged: list[str]) -> None:
        self.op, self.arguments, self.damaged = op, arguments, damaged

    def __repr__(self) -> str:
        shown = [f"{name}={describe(value)}" for name, value in self.arguments.items()]
        return "\n".join([self.op, f"damaged: {self.damaged}", *shown])


@st.composite
def raw_calls(draw: st.DrawFn, ops: tuple[str, ...]) -> RawCall:
    op = draw(st.sampled_from(ops))
    arguments = data_arguments(draw, op) if op in DATA_OPS else batch_norm_arguments(draw, op)
    most = draw(st.sampled_from([0, 1, 2, 2]))
    damaged = draw(st.lists(st.sampled_from(list(arguments)), min_size=most, max_size=most, unique=True))
    for name in damaged:
        value = arguments[name]
        if not isinstance(value, torch.Tensor):
            arguments[name] = draw(st.sampled_from(ODD_NUMBERS.get(name, (None, math.nan, -1.0))))
        elif name == "indices" and draw(st.booleans()):
            arguments[name] = ids([*value.tolist()[1:], draw(st.sampled_from([*FAR_ROWS, -1, 3]))])
        elif draw(st.booleans()):
            arguments[name] = ODDITIES[draw(st.sampled_from(DAMAGES))](value)
        else:
            share_memory(draw, arguments, name)
    return RawCall(op, arguments, damaged)


def data_arguments(draw: st.DrawFn, op: str) -> dict[str, Any]:
    side, channels = draw(st.sampled_from([1, 2, 7, 16, 17])), draw(st.integers(1, 4))
    rotations = draw(st.lists(st.integers(0, 3 if op == "rotate_batch_out" else 359), min_size=1, max_size=4))
    batch = draw(st.integers(1, 3))
    rows = batch * len(rotations)
    some = st.lists(INT64, min_size=batch, max_size=batch).map(ids)
    return {
        "views": placed(
            torch.full((rows, side, side, channels), 7.0, dtype=draw(st.sampled_from(VIEW_TYPES)))
        ),
        "labels": placed(torch.full((rows,), -7)),
        "images": some_images(3, side, side, channels, draw(st.integers(0, 255))),
        "indices": ids([2, 0, 1][:batch]),
        "sample_ids": draw(st.one_of(st.none(), some)),
        "key": draw(st.one_of(st.none(), st.lists(INT64, min_size=2, max_size=2).map(ids))),
        "seed": draw(INT64),
        "epoch": draw(INT64),
        "rotations": rotations,
        "pad": draw(st.integers(0, 9)),
        "flip_prob": 0.5,
        "mean": [0.5] * channels,
        "std": [0.25] * channels,
    }


def batch_norm_arguments(draw: st.DrawFn, op: str) -> dict[str, Any]:
    # The second shape is shared out to threads.
    shape = draw(st.sampled_from([(2, 3, 1, 5), (3, 40, 41, 16), (1, 2, 2, 300), (2, 2, 2, 16)]))
    dtype = draw(st.sampled_from([torch.float32, torch.bfloat16]))
    wave = torch.linspace(-3, 3, math.prod(shape)).sin().view(shape).to(dtype)
    channel = torch.linspace(0.5, 2, shape[3])
    written = placed(torch.full(shape, 7.0, dtype=dtype)), placed(channel + 7), placed(channel + 8)
    running = {"running_mean": placed(channel - 1), "running_var": placed(channel)}
    inputs = {"x": wave, "weight": channel.clone(), "bias": channel - 1}
    if op == "batch_norm_relu_backward_out":
        found = dict(zip(("grad_x", "grad_weight", "grad_bias"), written, strict=True))
        statistics = {"mean": channel / 9, "inverse_std": channel.clone()}
        return {**found, "grad_y": wave.cos(), **inputs, **statistics, "training": draw(st.booleans())}
    found = dict(zip(("y", "mean", "inverse_std"), written, strict=True))
    if op == "batch_norm_relu_eval_out":
        return {**found, **running, **inputs, "eps": 1e-5}
    if draw(st.booleans()):
        running = dict.fromkeys(running)
    return {**found, **running, **inputs, "momentum": 0.1, "eps": 1e-5}


def share_memory(draw: st.DrawFn, arguments: dict[str, Any], name: str) -> None:
    """Lay an argument and another one over each other, or so that they just do not touch."""
    others = [
        other for other, value in arguments.items() if isinstance(value, torch.Tensor) and other != name
    ]
    other = draw(st.sampled_from(others))
    one, two = arguments[name], arguments[other]
    if not all(has_memory(tensor) and is_stored(tensor) and tensor.is_contiguous() for tensor in (one, two)):
        return
    arguments[name], arguments[other] = side_by_side(one, two, draw(shifts(one, two)))


def written_by(op: str) -> tuple[str, ...]:
    names = {
        "batch_norm_relu_train_out": ("y", "mean", "inverse_std", "running_mean", "running_var"),
        "batch_norm_relu_eval_out": ("y", "mean", "inverse_std"),
        "batch_norm_relu_backward_out": ("grad_x", "grad_weight", "grad_bias"),
    }
    return names.get(op, ("views", "labels"))


def run(op: str, arguments: dict[str, Any]) -> None:
    getattr(torch.ops.rotnet_fast, op)(*arguments.values())


def expected(call: RawCall) -> dict[str, torch.Tensor] | None:
    """What an accepted call must have written, by name; None where it cannot be accepted."""
    tensors = [value for value in call.arguments.values() if isinstance(value, torch.Tensor)]
    if not all(has_memory(tensor) and is_stored(tensor) for tensor in tensors):
        return None
    copies = {
        name: value.clone(memory_format=torch.contiguous_format) if isinstance(value, torch.Tensor) else value
        for name, value in call.arguments.items()
    }
    try:
        if call.op not in DATA_OPS:
            run(call.op, copies)
            return {name: copies[name] for name in written_by(call.op) if copies[name] is not None}
        reference = rotate_batch_reference if call.op == "rotate_batch_out" else warp_batch_reference
        views, _, images, indices, sample_ids, key, seed, epoch, *settings, mean, std = copies.values()
        seed, epoch = (seed, epoch) if key is None else key.tolist()
        by = indices if sample_ids is None else sample_ids
        made = reference(images, indices, by, seed, epoch, *settings, tuple(mean), tuple(std), views.dtype)
    except Exception:
        return None
    return dict(zip(("views", "labels"), made, strict=True))


def check_raw(call: RawCall, tally: Counter[str]) -> bool:
    """Make a call and demand that it is refused or right; whether it was accepted."""
    wanted = expected(call)
    before = {name: stored_bytes(value) for name, value in call.arguments.items()}
    try:
        run(call.op, call.arguments)
    except Exception as error:
        if not call.damaged:
            raise AssertionError("a sound call was refused") from error
        tally["invalid"] += 1
        is_accepted = False
    else:
        assert wanted is not None, "the call was accepted"
        tally["valid"] += 1
        is_accepted = True
        for name, tensor in wanted.items():
            found = call.arguments[name]
            torch.testing.assert_close(found, tensor, rtol=0, atol=0, equal_nan=True)
            found.copy_(bytes_of(before[name], found))
    for name, value in call.arguments.items():
        after = stored_bytes(value)
        assert after is None or torch.equal(after, before[name]), f"memory of {name} was written to"
    return is_accepted


def bytes_of(memory: torch.Tensor | None, like: torch.Tensor) -> torch.Tensor:
    """What a tensor was, out of a copy of its whole storage."""
    assert memory is not None
    whole = len(memory) - len(memory) % like.element_size()
    return memory[:whole].view(like.dtype).as_strided(like.shape, like.stride(), like.storage_offset())


@contextmanager
def plain_torch() -> Iterator[None]:
    """The two ops of the data path as on a machine without a compiler."""
    with torch.library._scoped_library("rotnet_fast", "IMPL") as library:
        for name, fallback in FALLBACKS.items():
            library.impl(name, fallback, "CPU")
        yield

"""Tensors as callers should not pass them, and what to ask of any tensor before its memory is touched."""

from __future__ import annotations

from collections.abc import Callable

import torch
from hypothesis import strategies as st

GUARD = 0xA5
"""Every byte around a tensor that `placed` made."""


def placed(tensor: torch.Tensor, offset: int = 64) -> torch.Tensor:
    """A copy that begins ``offset`` bytes (a multiple of the element's) into memory filled with `GUARD`."""
    size = tensor.numel() * tensor.element_size()
    memory = torch.full((offset + size + 64,), GUARD, dtype=torch.uint8)
    made = memory[offset : offset + size].view(tensor.dtype).view(tensor.shape)
    return made.copy_(tensor)


def misaligned(tensor: torch.Tensor) -> torch.Tensor:
    """A copy at an odd address."""
    size = tensor.numel() * tensor.element_size()
    if size == 0:
        return tensor
    buffer = bytearray(size + 1)
    made = torch.frombuffer(buffer, dtype=tensor.dtype, offset=1, count=tensor.numel())
    return made.view(tensor.shape).copy_(tensor)


def resized(tensor: torch.Tensor, missing: int | None = None) -> torch.Tensor:
    """A copy whose storage lost its last ``missing`` bytes, or all of them."""
    made = tensor.clone(memory_format=torch.contiguous_format)
    storage = made.untyped_storage()
    storage.resize_(0 if missing is None else max(0, storage.nbytes() - missing))
    return made


def negated(tensor: torch.Tensor) -> torch.Tensor:
    """The same numbers by way of torch's negative bit."""
    return torch._neg_view(-tensor)


def nested(tensor: torch.Tensor) -> torch.Tensor:
    rows = list(tensor) if tensor.dim() else [tensor]
    return torch.nested.nested_tensor(rows, layout=torch.jagged) if rows and tensor.dim() > 1 else tensor


def shifts(one: torch.Tensor, other: torch.Tensor) -> st.SearchStrategy[int]:
    """Distances in bytes from one tensor to another: where they overlap, and where they just do not touch."""
    step = max(one.element_size(), other.element_size())
    low, high = -(other.nbytes // step), -(-one.nbytes // step)
    edges = st.sampled_from([low, low + 1, high - 1, high])
    return st.one_of(edges, st.integers(low, high)).map(lambda steps: steps * step)


def side_by_side(one: torch.Tensor, other: torch.Tensor, shift: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Copies in one memory, ``shift`` bytes from each other."""
    start = 8 * (other.nbytes // 8 + 2)
    memory = torch.full((start + one.nbytes + other.nbytes + 64,), GUARD, dtype=torch.uint8)
    pieces = []
    for tensor, at in ((one, start), (other, start + shift)):
        pieces.append(memory[at : at + tensor.nbytes].view(tensor.dtype).view(tensor.shape))
        pieces[-1].copy_(tensor)
    return pieces[0], pieces[1]


ODDITIES: dict[str, Callable[[torch.Tensor], object]] = {
    "another type": lambda t: t.to(torch.int32),
    "floats": lambda t: t.double(),
    "flags": lambda t: t.bool(),
    "strided": lambda t: torch.stack([t, t], dim=-1)[..., 0],
    "expanded": lambda t: t[:1].expand(t.shape) if t.dim() and len(t) else t,
    "turned around": lambda t: t.mT.contiguous().mT if t.dim() > 1 else t.flip(0),
    "on meta": lambda t: t.to("meta"),
    "sparse": lambda t: t.to_sparse() if t.dim() else t,
    "nested": nested,
    "negated": negated,
    "without memory": resized,
    "one byte short": lambda t: resized(t, 1),
    "misaligned": misaligned,
    "a list": lambda t: t.tolist(),
    "a number": lambda t: 1,
    "one less": lambda t: t[:-1].clone() if t.dim() else t,
    "one more": lambda t: torch.cat([t, t[-1:]]) if t.dim() and len(t) else t,
    "a dimension less": lambda t: t[0] if t.dim() and len(t) else t,
    "a dimension more": lambda t: t[None],
    # Sound, though it may not look so:
    "inside of other memory": lambda t: placed(t, 3 * t.element_size()),
    "with strides that do not count": lambda t: odd_strides(t),
}
"""What can be wrong with a tensor; where it does not apply, the tensor stays as it was."""


def odd_strides(tensor: torch.Tensor) -> torch.Tensor:
    """The same tensor, with strides of no meaning in its dimensions of length 1."""
    strides = [777 if n == 1 else s for n, s in zip(tensor.shape, tensor.stride(), strict=True)]
    return tensor.as_strided(tensor.shape, strides, tensor.storage_offset())


def is_plain(tensor: torch.Tensor) -> bool:
    return tensor.layout is torch.strided and not tensor.is_nested and not tensor.is_neg()


def has_memory(tensor: torch.Tensor) -> bool:
    return is_plain(tensor) and tensor.device.type != "meta"


def is_stored(tensor: torch.Tensor) -> bool:
    """Whether the storage of a dense tensor holds all of its elements, each at a multiple of its size."""
    if tensor.numel() == 0:
        return True
    size, storage = tensor.element_size(), tensor.untyped_storage()
    return (
        tensor.storage_offset() + tensor.numel()
    ) * size <= storage.nbytes() and tensor.data_ptr() % size == 0


def overlap(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two dense tensors share a byte."""
    spans = [(t.data_ptr(), t.data_ptr() + t.numel() * t.element_size()) for t in (one, other)]
    return max(begin for begin, _ in spans) < min(end for _, end in spans)


def stored_bytes(tensor: object) -> torch.Tensor | None:
    """A copy of a tensor's whole storage, with what lies around it; None where there is none to look at."""
    if not isinstance(tensor, torch.Tensor) or not has_memory(tensor):
        return None
    return torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage()).clone()


def describe(value: object) -> str:
    """A value in a falsifying example."""
    if not isinstance(value, torch.Tensor):
        return repr(value)
    if not is_plain(value):
        return f"<{value.layout}, nested {value.is_nested}>"
    text = f"<{value.dtype} {list(value.shape)} strides {value.stride()} offset {value.storage_offset()}"
    if has_memory(value):
        text += f" of {value.untyped_storage().nbytes()} bytes"
        if value.dtype == torch.int64 and value.numel() < 8 and is_stored(value):
            text += f" {value.tolist()}"
    return f"{text} {value.device}>"

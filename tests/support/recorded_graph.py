"""What a CUDA graph does, on the CPU: ops are recorded once and done again as they were.

As in a graph, everything that the host decided while recording is fixed from then on: numbers that came from
Python, sizes, branches, and which tensors outside the work were read and written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.aten._local_scalar_dense.default:
            raise AssertionError("the work reads a number off the device, which a CUDA graph cannot")
        self.calls.append((func, args, kwargs or {}, result))
        return result


class RecordingCapture:
    """How training steps are captured, with the recorder instead of a CUDA graph."""

    @contextmanager
    def stream(self) -> Iterator[None]:
        yield

    def __call__(self, work: Callable[[], None]) -> Callable[[], None]:
        return record(work)


def record(work: Callable[[], None]) -> Callable[[], None]:
    """Record what the work does, which does it; the first replay is therefore left out."""
    with _Recorder() as recorder:
        work()
    replays = 0

    def replay() -> None:
        nonlocal replays
        replays += 1
        if replays == 1:
            return
        made: dict[
            int, torch.Tensor
        ] = {}  # by the recorded tensor, which is kept alive: what it is this time

        def now(value: Any) -> Any:
            return made.get(id(value), value) if isinstance(value, torch.Tensor) else value

        with torch.no_grad():
            for func, args, kwargs, recorded in recorder.calls:
                result = func(*tree_map(now, args), **tree_map(now, kwargs))
                for old, new in zip(_tensors(recorded), _tensors(result), strict=True):
                    made[id(old)] = new

    return replay


def _tensors(result: Any) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []
    tree_map(lambda value: found.append(value) if isinstance(value, torch.Tensor) else None, result)
    return found

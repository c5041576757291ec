"""Throughput of the fused op from stored images to rotated views."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from rotnet_fast.benchmarking.timing import Effort, Timing, Work, in_a_graph, measure
from rotnet_fast.ops import rotate_batch
from rotnet_fast.rotations import EIGHT_ROTATIONS, FOUR_ROTATIONS

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
CHANNELS = 3
CALLS_IN_A_GRAPH = 32

_LARGEST_OUTPUTS = 2**29
"""Number of bytes of views above which calls in a graph share buffers."""


@dataclass(frozen=True)
class OpCase:
    """Define a call of the op: crop, flip and K rotations of B images.

    Attributes:
        batch: images per call.
        side: height and width in pixels.
        rotations: rotations in degrees.
        dtype: ``fp32`` or ``bf16``.
        mode: ``epoch`` if one call makes all views of an epoch, else ``batch``.
    """

    batch: int
    side: int
    rotations: tuple[int, ...]
    dtype: str
    mode: str = "batch"

    @property
    def view_bytes(self) -> int:
        """Return the number of bytes written per call, without labels."""
        element = DTYPES[self.dtype].itemsize
        return self.batch * len(self.rotations) * self.side**2 * CHANNELS * element

    @property
    def bytes_moved(self) -> int:
        """Return the minimum number of bytes read or written per call: images, indices, views and labels."""
        return self.view_bytes + self.batch * (self.side**2 * CHANNELS + 8 + 8 * len(self.rotations))


def op_cases(epoch: int, batches: Sequence[tuple[int, int]]) -> list[OpCase]:
    """Return all cases to measure.

    Args:
        epoch: number of images per call in epoch mode.
        batches: (images, side) of the other calls.
    """
    found = []
    for rotations, dtype in itertools.product((FOUR_ROTATIONS, EIGHT_ROTATIONS), DTYPES):
        found += [OpCase(batch, side, rotations, dtype) for batch, side in batches]
        found.append(OpCase(epoch, 32, rotations, dtype, "epoch"))
    return found


def measure_op(
    cases: Sequence[OpCase], device: torch.device, effort: Effort, copy_rate: float
) -> list[dict[str, Any]]:
    """Measure images and bytes per second of each case.

    Every call gathers different rows, as in an epoch. On a GPU, many calls are captured in one graph, to
    exclude the launch overhead, which a replayed training step does not have.

    Args:
        cases: the cases to measure.
        device: device to measure.
        effort: how long to measure.
        copy_rate: bytes per second, read and written, that a copy reaches.
    """
    return [_row(case, _timing(case, device, effort), copy_rate, device) for case in cases]


def op_calls(case: OpCase, device: torch.device, calls: int) -> list[Work]:
    """Return ``calls`` calls with different rows and, within reason, different buffers."""
    stored = case.batch if case.mode == "epoch" else max(2 * case.batch, 2 * 10**7 // case.side**2)
    shape = (stored, case.side, case.side, CHANNELS)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, device=device)
    key = torch.zeros(2, dtype=torch.int64, device=device)
    dtype, rotations = DTYPES[case.dtype], case.rotations
    outs = [
        rotate_batch(images[: case.batch], rotations=rotations, dtype=dtype)[0]
        for _ in range(
            max(1, min(calls, _LARGEST_OUTPUTS // case.view_bytes)) if device.type == "cuda" else 1
        )
    ]

    def make(number: int) -> Work:
        rows = torch.randperm(stored, device=device)[: case.batch].clone()
        out = outs[number % len(outs)]
        return lambda: rotate_batch(images, rows, rotations=rotations, seed=key, dtype=dtype, out=out)

    return [make(number) for number in range(calls)]


def _timing(case: OpCase, device: torch.device, effort: Effort) -> Timing:
    """Measure the seconds per call."""
    calls = 1 if case.mode == "epoch" else CALLS_IN_A_GRAPH
    turn = itertools.cycle(op_calls(case, device, calls))
    if device.type == "cuda":
        return measure(in_a_graph(lambda: next(turn)(), device, calls), device, effort).divided(calls)
    return measure(lambda: next(turn)(), device, effort)


def _row(case: OpCase, timing: Timing, copy_rate: float, device: torch.device) -> dict[str, Any]:
    rate = case.bytes_moved / timing.seconds
    return {
        "mode": case.mode,
        "batch": case.batch,
        "side": case.side,
        "rotations": len(case.rotations),
        "dtype": case.dtype,
        "in_graph": device.type == "cuda",
        "seconds": timing.seconds,
        "spread": timing.spread,
        "images_per_second": case.batch / timing.seconds,
        "bytes_per_second": rate,
        "share_of_copy": rate / copy_rate,
    }

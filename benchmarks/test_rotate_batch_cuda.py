"""The CUDA kernels alone: captured in a graph, without the cost of launching, against the copy ceiling."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from rotnet_fast.benchmarking.op import CALLS_IN_A_GRAPH, OpCase, op_calls, op_cases
from rotnet_fast.benchmarking.timing import in_a_graph

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")

CASES = op_cases(50_000, ((128, 32), (1024, 32), (16384, 32), (64, 224), (512, 224)))


def name(case: OpCase) -> str:
    return f"{case.mode}-{case.batch}x{case.side}-{len(case.rotations)}-{case.dtype}"


@pytest.mark.parametrize("case", CASES, ids=name)
def test_kernel_in_a_graph(benchmark: Any, record: Any, case: OpCase) -> None:
    device = torch.device("cuda")
    calls = 1 if case.mode == "epoch" else CALLS_IN_A_GRAPH
    made = op_calls(case, device, calls)
    turn = itertools.cycle(made)
    graph = in_a_graph(lambda: next(turn)(), device, calls)

    def replay() -> None:
        graph()
        torch.cuda.synchronize()

    benchmark.group = f"cuda kernel in a graph, {calls} calls"
    benchmark(replay)
    record(
        what="kernel",
        device="cuda",
        mode=case.mode,
        batch=case.batch,
        side=case.side,
        rotations=len(case.rotations),
        dtype=case.dtype,
        calls=calls,
        bytes_per_call=case.bytes_moved,
    )

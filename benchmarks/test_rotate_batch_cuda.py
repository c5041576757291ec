"""The CUDA kernel alone: captured in a graph, without the cost of launching, against the copy ceiling."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from rotnet_fast.ops import rotate_batch

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")

STORED = 50_000
CALLS = 32  # per replay
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("batch", [128, 1024, 16384])
def test_kernel_in_a_graph(benchmark: Any, record: Any, batch: int, dtype: str) -> None:
    images = torch.randint(0, 256, (STORED, 32, 32, 3), dtype=torch.uint8, device="cuda")
    key = torch.tensor([0, 0], device="cuda")
    view_bytes = batch * 4 * 32 * 32 * 3 * torch.empty((), dtype=DTYPES[dtype]).element_size()
    # Small outputs take turns, so that what is measured is not one buffer in the second-level cache.
    outs = [
        rotate_batch(images[:batch], dtype=DTYPES[dtype])[0]
        for _ in range(max(1, min(CALLS, 2**29 // view_bytes)))
    ]
    rows = [torch.randint(0, STORED, (batch,), device="cuda") for _ in range(CALLS)]
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        for call, indices in enumerate(rows):
            rotate_batch(images, indices, seed=key, dtype=DTYPES[dtype], out=outs[call % len(outs)])

    def replay() -> None:
        graph.replay()
        torch.cuda.synchronize()

    benchmark.group = f"cuda kernel in a graph, {CALLS} calls"
    benchmark(replay)
    record(
        what="kernel",
        device="cuda",
        batch=batch,
        dtype=dtype,
        calls=CALLS,
        bytes_per_call=view_bytes + batch * 32 * 32 * 3,
    )


def test_ceiling_of_copies(benchmark: Any, record: Any) -> None:
    """Device-to-device copy of 1 GiB; bytes read and bytes written both count."""
    source = torch.randint(0, 256, (2**30,), dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)

    def copy() -> None:
        target.copy_(source)
        torch.cuda.synchronize()

    benchmark.group = "cuda ceiling: copy"
    benchmark(copy)
    record(what="copy ceiling", device="cuda", bytes_moved=2 * 2**30)

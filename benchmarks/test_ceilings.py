"""What the hardware gives to the simplest work: all other results are read against this."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from rotnet_fast.benchmarking.ceilings import COPIED, MATRIX_SIDES
from rotnet_fast.benchmarking.op import DTYPES


@pytest.mark.parametrize("megabytes", [6, 25, 50, 154])
def test_ceiling_of_streaming_stores(benchmark: Any, record: Any, megabytes: int) -> None:
    core = pytest.importorskip("rotnet_fast._core", reason="the compiled header core was not built")
    size = megabytes * 2**20
    raw = np.zeros(size + 64, dtype=np.uint8)
    start = -raw.ctypes.data % 64
    buffer = raw[start : start + size]
    threads = torch.get_num_threads()
    benchmark.group = "cpu ceiling: streaming stores"
    benchmark(core.streaming_store_rate, buffer, threads, 1)
    rates = [core.streaming_store_rate(buffer, threads, 4) for _ in range(15)]
    record(what="ceiling", device="cpu", megabytes=megabytes, bytes_per_second=sorted(rates)[len(rates) // 2])


def test_ceiling_of_copies(benchmark: Any, record: Any, device: torch.device) -> None:
    """Bytes read and bytes written both count."""
    size = 2**20 if benchmark.disabled else COPIED[device.type]
    source = torch.randint(0, 256, (size,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)

    def copy() -> None:
        target.copy_(source)
        if device.type == "cuda":
            torch.cuda.synchronize()

    benchmark.group = f"{device.type} ceiling: copy"
    benchmark(copy)
    record(what="copy ceiling", device=device.type, bytes_moved=2 * size)


@pytest.mark.parametrize("dtype", DTYPES)
def test_ceiling_of_matrix_products(benchmark: Any, record: Any, device: torch.device, dtype: str) -> None:
    """A multiplication and an addition are two operations."""
    side = 64 if benchmark.disabled else MATRIX_SIDES[device.type][-1]
    one, other = (torch.randn(side, side, device=device).to(DTYPES[dtype]) for _ in range(2))
    product = torch.empty_like(one)

    def multiply() -> None:
        torch.mm(one, other, out=product)
        if device.type == "cuda":
            torch.cuda.synchronize()

    benchmark.group = f"{device.type} ceiling: matrix products"
    benchmark(multiply)
    record(what="matrix ceiling", device=device.type, dtype=dtype, flops=2 * side**3)

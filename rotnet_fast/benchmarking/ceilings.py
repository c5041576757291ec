"""Ceilings of the hardware for the simplest operations: copies, streaming stores and matrix products."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.nn import functional

from rotnet_fast.benchmarking.timing import Effort, measure

MATRIX_SIDES = {"cpu": (1024, 2048), "cuda": (4096, 8192, 16384)}
"""Sides of the square matrices; the fastest one differs between machines."""

COPIED = {"cpu": 2**28, "cuda": 2**30}
"""Number of bytes to copy, far larger than any cache."""

STORED = (6, 25, 50, 154)
"""Sizes of the buffers for streaming stores in MiB; those that fit into the cache are faster."""


def measure_ceilings(device: torch.device, effort: Effort, is_quick: bool = False) -> dict[str, Any]:
    """Measure the ceilings as the best of all windows, so that fractions of them are not overestimated.

    Args:
        device: device to measure.
        effort: how long to measure.
        is_quick: use small buffers and matrices, which say little.

    Returns:
        ``copy_bytes_per_second``: bytes read and written. ``matrix_flops_per_second``: by number format; on a
        CPU, the better of a product and a convolution; on a GPU, ``tf32`` is what fp32 convolutions use.
        ``streaming_store_bytes_per_second``: by MiB of the buffer, only on the CPU; empty if the compiled
        core was not built.
    """
    kind = device.type
    sides = (256,) if is_quick else MATRIX_SIDES[kind]
    return {
        "copy_bytes_per_second": _copy_rate(device, effort, 2**24 if is_quick else COPIED[kind]),
        "matrix_flops_per_second": _matrix_rates(device, effort, sides),
        "streaming_store_bytes_per_second": (
            {} if kind == "cuda" else _store_rates(STORED[:1] if is_quick else STORED)
        ),
    }


def _copy_rate(device: torch.device, effort: Effort, size: int) -> float:
    # Random values, because some memory is faster for zeros.
    source = torch.randint(0, 256, (size,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / measure(lambda: target.copy_(source), device, effort).best


def _matrix_rates(device: torch.device, effort: Effort, sides: tuple[int, ...]) -> dict[str, float]:
    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16}
    rates = {name: _matrix_rate(device, effort, sides, dtype) for name, dtype in dtypes.items()}
    if device.type == "cuda":
        before = torch.backends.cuda.matmul.fp32_precision
        torch.backends.cuda.matmul.fp32_precision = "tf32"
        try:
            rates["tf32"] = _matrix_rate(device, effort, sides, torch.float32)
        finally:
            torch.backends.cuda.matmul.fp32_precision = before
    return rates


def _matrix_rate(device: torch.device, effort: Effort, sides: tuple[int, ...], dtype: torch.dtype) -> float:
    """Return the best rate over all sizes, counting a multiplication and an addition as two operations."""
    best = 0.0
    for side in sides:
        one, other = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        product = torch.empty_like(one)

        def multiply(
            one: torch.Tensor = one, other: torch.Tensor = other, product: torch.Tensor = product
        ) -> torch.Tensor:
            return torch.mm(one, other, out=product)

        best = max(best, 2 * side**3 / measure(multiply, device, effort).best)
    if device.type == "cpu":
        # On a CPU, products and convolutions use different libraries, and convolutions may be faster.
        best = max(best, _convolution_rate(device, effort, sides[0] // 4, dtype))
    return best


def _convolution_rate(device: torch.device, effort: Effort, channels: int, dtype: torch.dtype) -> float:
    """Return the rate of a 3x3 convolution on 32 maps of 32x32, channels_last."""
    maps, weight = (
        torch.randn(size, device=device).to(dtype, memory_format=torch.channels_last)
        for size in ((32, channels, 32, 32), (channels, channels, 3, 3))
    )
    work = 2 * 32 * 32**2 * 9 * channels**2
    return work / measure(lambda: functional.conv2d(maps, weight, padding=1), device, effort).best


def _store_rates(megabytes: tuple[int, ...]) -> dict[str, float]:
    try:
        from rotnet_fast import _core
    except ImportError:
        return {}
    rates = {}
    for size in megabytes:
        raw = np.zeros(size * 2**20 + 64, dtype=np.uint8)
        start = -raw.ctypes.data % 64
        buffer = raw[start : start + size * 2**20]
        threads = torch.get_num_threads()
        rates[str(size)] = max(float(_core.streaming_store_rate(buffer, threads, 4)) for _ in range(15))
    return rates

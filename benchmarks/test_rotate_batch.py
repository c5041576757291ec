"""The fused op against other ways to make the same batch, in the same run."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.peers import PEERS, PER_IMAGE
from rotnet_fast.ops import rotate_batch

SIZES = [(128, 32), (1024, 32), (64, 224)]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
STORED = {32: 20_000, 224: 400}  # images to gather from: 60 MB
OURS = "rotnet_fast"


def cases() -> list[Any]:
    found = []
    for augment in (True, False):
        for batch, side in SIZES:
            for dtype in DTYPES:
                for name in (OURS, *PEERS):
                    if name in PER_IMAGE and (dtype != "fp32" or not augment):
                        continue  # far behind: one row each is enough
                    workload = "crop, flip" if augment else "plain"
                    label = f"{name}-{workload}-{batch}x{side}-{dtype}"
                    found.append(pytest.param(name, augment, batch, side, dtype, id=label))
    return found


def _images(side: int, device: torch.device) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    shape = (STORED[side], side, side, 3)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator).to(device)


@pytest.mark.parametrize(("name", "augment", "batch", "side", "dtype"), cases())
def test_rotate_batch(
    benchmark: Any,
    record: Any,
    device: torch.device,
    name: str,
    augment: bool,
    batch: int,
    side: int,
    dtype: str,
) -> None:
    if name == "numpy per image" and device.type == "cuda":
        pytest.skip("numpy works on the CPU alone")
    images = _images(side, device)
    # All stored images in turn, as in an epoch: a batch is not in the cache from the call before.
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(1)).to(device)
    batches = [part.clone() for part in order.split(batch) if len(part) == batch]
    indices = batches[0]
    call: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
    if name == OURS:
        pad, flip_prob = (4, 0.5) if augment else (0, 0.0)
        settings: dict[str, Any] = {"pad": pad, "flip_prob": flip_prob, "dtype": DTYPES[dtype]}
        out, _ = rotate_batch(images, indices, **settings)

        def call(indices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return rotate_batch(images, indices, out=out, **settings)
    else:
        peer = PEERS[name](augment, DTYPES[dtype], device)

        def call(indices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return peer(images, indices)

    with torch.no_grad():
        views, labels = call(indices)
        assert views.shape == (4 * batch, 3, side, side)
        assert views.dtype == DTYPES[dtype]
        if not augment:
            # All do the same work: up to rounding, the same views.
            expected, _ = rotate_batch(images, indices, pad=0, flip_prob=0.0)
            torch.testing.assert_close(views.float(), expected, atol=0.02, rtol=0)
        assert labels.tolist() == [0, 1, 2, 3] * batch

        turn = itertools.cycle(batches)

        def synchronised() -> None:
            call(next(turn))
            if device.type == "cuda":
                torch.cuda.synchronize()

        benchmark.group = f"{device.type} {batch} x {side}x{side} {dtype}, " + (
            "crop, flip, four rotations" if augment else "four rotations"
        )
        benchmark(synchronised)
    record(
        what="rotate_batch",
        way=name,
        device=device.type,
        workload="crop, flip, four rotations" if augment else "four rotations",
        batch=batch,
        side=side,
        dtype=dtype,
        view_bytes=views.numel() * views.element_size(),
    )


@pytest.mark.parametrize("megabytes", [6, 25, 50, 154])
def test_ceiling_of_streaming_stores(benchmark: Any, record: Any, megabytes: int) -> None:
    """What the memory takes: the op's results are read against this."""
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

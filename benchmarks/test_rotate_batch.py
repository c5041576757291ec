"""The fused op against other ways to make the same batch, in the same run."""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch

from benchmarks.peers import CUDA_ONLY, EIGHT_ROTATION_PEERS, PEERS, PER_IMAGE
from rotnet_fast.benchmarking.op import CALLS_IN_A_GRAPH
from rotnet_fast.benchmarking.timing import in_a_graph
from rotnet_fast.ops import rotate_batch
from rotnet_fast.rotations import EIGHT_ROTATIONS, FOUR_ROTATIONS

SIZES = [(128, 32), (1024, 32), (64, 224)]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
STORED = {32: 20_000, 224: 400}  # images to gather from: 60 MB
OURS = "rotnet_fast"
NEVER_CAPTURED = (*PER_IMAGE, "kornia", "torchvision v2 affine")  # they copy from the host


WORKLOADS: dict[str, tuple[bool, tuple[int, ...]]] = {
    "crop, flip, four rotations": (True, FOUR_ROTATIONS),
    "four rotations": (False, FOUR_ROTATIONS),
    "crop, flip, eight rotations": (True, EIGHT_ROTATIONS),
}
"""Name -> whether images are augmented, and the rotations."""


def cases() -> list[Any]:
    found = []
    for workload, (augment, rotations) in WORKLOADS.items():
        peers = PEERS if rotations == FOUR_ROTATIONS else EIGHT_ROTATION_PEERS
        for batch, side in SIZES:
            for dtype in DTYPES:
                for name in (OURS, *peers):
                    if name in PER_IMAGE and (dtype != "fp32" or not augment):
                        continue  # far behind: one row each is enough
                    label = f"{name}-{workload}-{batch}x{side}-{dtype}"
                    found.append(pytest.param(name, workload, batch, side, dtype, id=label))
    return found


def _images(side: int, device: torch.device) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    shape = (STORED[side], side, side, 3)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator).to(device)


def _batches(images: torch.Tensor, batch: int) -> list[torch.Tensor]:
    """All stored images in turn, as in an epoch: a batch is not in the cache from the call before."""
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(1)).to(images.device)
    return [part.clone() for part in order.split(batch) if len(part) == batch]


Call = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


def way(name: str, workload: str, images: torch.Tensor, indices: torch.Tensor, dtype: torch.dtype) -> Call:
    """One way to turn indices like ``indices`` into views and labels."""
    augment, rotations = WORKLOADS[workload]
    if name != OURS:
        peer = {**PEERS, **EIGHT_ROTATION_PEERS}[name](augment, dtype, images.device)
        return lambda indices: peer(images, indices)
    plain: dict[str, Any] = {} if augment else {"pad": 0, "flip_prob": 0.0}
    out, _ = rotate_batch(images, indices, rotations=rotations, dtype=dtype, **plain)
    return lambda indices: rotate_batch(images, indices, rotations=rotations, dtype=dtype, out=out, **plain)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
@pytest.mark.parametrize(
    ("name", "workload", "batch", "side", "dtype"),
    [case for case in cases() if case.values[0] not in NEVER_CAPTURED and case.values[2] != 1024],
)
def test_rotate_batch_in_a_graph(
    benchmark: Any, record: Any, name: str, workload: str, batch: int, side: int, dtype: str
) -> None:
    """On a GPU without the host's cost of launching, which hides what the kernels of small batches cost."""
    device = torch.device("cuda")
    images = _images(side, device)
    batches = itertools.cycle(_batches(images, batch))
    call = way(name, workload, images, next(batches), DTYPES[dtype])
    with torch.no_grad():
        for _ in range(3):
            call(next(batches))  # compilers compile before the capture
        graph = in_a_graph(lambda: call(next(batches)), device, CALLS_IN_A_GRAPH)

    def replay() -> None:
        graph()
        torch.cuda.synchronize()

    benchmark.group = f"cuda {batch} x {side}x{side} {dtype}, {workload}, {CALLS_IN_A_GRAPH} calls in a graph"
    benchmark(replay)
    record(
        what="rotate_batch in a graph",
        way=name,
        device=device.type,
        workload=workload,
        batch=batch,
        side=side,
        dtype=dtype,
        calls=CALLS_IN_A_GRAPH,
    )


@pytest.mark.parametrize(("name", "workload", "batch", "side", "dtype"), cases())
def test_rotate_batch(
    benchmark: Any,
    record: Any,
    device: torch.device,
    name: str,
    workload: str,
    batch: int,
    side: int,
    dtype: str,
) -> None:
    if name == "numpy per image" and device.type == "cuda":
        pytest.skip("numpy works on the CPU alone")
    if name == "kornia" and importlib.util.find_spec("kornia") is None:
        pytest.skip("kornia is not installed")
    if benchmark.disabled and side == 224 and device.type == "cpu":
        batch = 4  # once, to see that it works
    if name in CUDA_ONLY:
        pytest.importorskip("triton", reason="Triton is not installed on this machine")
        if device.type != "cuda":
            pytest.skip("Triton compiles for GPUs alone")
    augment, rotations = WORKLOADS[workload]
    images = _images(side, device)
    batches = _batches(images, batch)
    indices = batches[0]
    plain: dict[str, Any] = {"pad": 0, "flip_prob": 0.0, "rotations": rotations}
    peers = {**PEERS, **EIGHT_ROTATION_PEERS}
    call = way(name, workload, images, indices, DTYPES[dtype])
    with torch.no_grad():
        views, labels = call(indices)
        assert views.shape == (len(rotations) * batch, 3, side, side)
        assert views.dtype == DTYPES[dtype]
        assert labels.tolist() == list(range(len(rotations))) * batch
        if not augment or rotations == EIGHT_ROTATIONS:
            # All do the same work: up to rounding, the same views (without the draws, which differ).
            expected, _ = rotate_batch(images, indices, **plain)
            compared = views
            if augment and name != OURS:
                compared, _ = peers[name](False, DTYPES[dtype], device)(images, indices)
            if not augment or name != OURS:
                torch.testing.assert_close(compared.float(), expected, atol=0.02, rtol=0)

        turn = itertools.cycle(batches)

        def synchronised() -> None:
            call(next(turn))
            if device.type == "cuda":
                torch.cuda.synchronize()

        benchmark.group = f"{device.type} {batch} x {side}x{side} {dtype}, {workload}"
        benchmark(synchronised)
    record(
        what="rotate_batch",
        way=name,
        device=device.type,
        workload=workload,
        batch=batch,
        side=side,
        dtype=dtype,
        view_bytes=views.numel() * views.element_size(),
    )

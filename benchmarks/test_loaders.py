"""Loaders: images per second from JPEG files to batches and to rotated views, and time to the first batch.

Windows are two seconds long and begin after a warm-up, as short ones count what was prefetched.
"""

from __future__ import annotations

import gc
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import loader_peers
from rotnet_fast.data.crop import RandomResizedCrop
from rotnet_fast.data.dali import DaliLoader
from rotnet_fast.data.decode import decode_images
from rotnet_fast.data.resident import ResidentLoader
from rotnet_fast.data.sampling import WHOLE, BatchShare
from rotnet_fast.data.source import FileSource
from rotnet_fast.data.split import EncodedSplit, Split
from rotnet_fast.ops import rotate_batch

CPU = torch.device("cpu")
WINDOW_SECONDS = 2.0
ROUNDS = 3
REPEATS = 8  # an epoch of files that lie in memory, long enough to be one

LARGE = {"224x224 crops of 500x375": (375, 500), "224x224 crops of 1024x768": (768, 1024)}
"""Workload -> height and width of the files."""

Batches = Iterator[torch.Tensor]


class Workload:
    """Files, and how to load them."""

    def __init__(
        self, paths: list[str], data: str, sides: tuple[int, int], crop: int | None, batch: int
    ) -> None:
        self.paths = paths * REPEATS
        self.data = data
        self.crop = crop
        self.side = crop or sides[0]
        self.batch = batch
        count = len(self.paths)
        lengths = np.array([Path(path).stat().st_size for path in paths] * REPEATS)
        self.split = EncodedSplit(
            FileSource("", self.paths, lengths),
            torch.zeros(count, dtype=torch.int64),
            np.tile(np.array([sides], dtype=np.int32), (count, 1)),
            np.zeros(count, dtype=bool),
            self.side,
        )

    def dali_loader(self, device: torch.device, share: BatchShare = WHOLE) -> DaliLoader:
        crop = None if self.crop is None else RandomResizedCrop()
        return DaliLoader(self.split, device, self.batch, seed=0, crop=crop, share=share)

    def resident_loader(self, device: torch.device) -> ResidentLoader:
        source = self.split.source
        images = torch.from_numpy(decode_images(source, self.side, progress=False))
        return ResidentLoader(Split(images, self.split.labels), device, self.batch, seed=0)


@pytest.fixture(autouse=True)
def all_workers_end() -> Iterator[None]:
    """Workers that wait for a garbage collection take time from the next measurement, or die in it."""
    gc.disable()
    yield
    left = multiprocessing.active_children()
    gc.enable()
    assert not left


@pytest.fixture(scope="module")
def workloads(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> dict[str, Workload]:
    small, *large = (tmp_path_factory.mktemp(name) for name in ("small", *LARGE))
    few = request.config.getoption("benchmark_disable")
    chosen = request.config.getoption("small_images")
    paths = (
        loader_peers.make_small(small, 64 if few else 4000)
        if chosen is None
        else sorted(str(path) for path in Path(chosen).rglob("*.jpg"))
    )
    data = "made" if chosen is None else Path(chosen).name
    return {
        "32x32": Workload(paths, data, (32, 32), None, 128),
        **{
            name: Workload(
                loader_peers.make_large(folder, *sides, 16 if few else 192), "made", sides, 224, 64
            )
            for (name, sides), folder in zip(LARGE.items(), large, strict=True)
        },
    }


def resident(work: Workload, views: bool, device: torch.device) -> Batches:
    loader = work.resident_loader(device)
    if views:
        return _views(loader)
    rows = (batch.images[batch.indices] for batch in loader_peers.epochs_of(loader))  # a copy, as others give
    return rows


def dali(work: Workload, views: bool, device: torch.device) -> Batches:
    loader = work.dali_loader(device)
    return _views(loader) if views else (batch.images for batch in loader_peers.epochs_of(loader))


def _views(loader: Any) -> Batches:
    out: torch.Tensor | None = None
    for batch in loader_peers.epochs_of(loader):
        whole = len(batch) == loader.batch_size
        images, _ = rotate_batch(
            *batch.source, sample_ids=batch.sample_ids, pad=0, out=out if whole else None
        )
        out = images if whole else out
        yield images


def data_loader(work: Workload, views: bool, device: torch.device) -> Batches:
    return loader_peers.data_loader(work.paths, work.batch, work.crop, views)


def dali_alone(work: Workload, views: bool, device: torch.device) -> Batches:
    assert views
    return loader_peers.dali_views(work.paths, work.batch, work.crop)


WAYS: dict[str, Callable[[Workload, bool, torch.device], Batches]] = {
    "rotnet_fast, resident": resident,
    "rotnet_fast, DALI": dali,
    "DALI, flips and transposes": dali_alone,
    "DataLoader, PIL, torchvision": data_loader,
}
CASES = [
    (workload, way, views)
    for workload in ("32x32", *LARGE)
    for views in (False, True)
    for way in WAYS
    if not (way == "DALI, flips and transposes" and not views)
    if not (way == "rotnet_fast, resident" and workload != "32x32")
]


@pytest.mark.parametrize(("workload", "way", "views"), CASES)
def test_loader(
    benchmark: Any,
    record: Any,
    workloads: dict[str, Workload],
    device: torch.device,
    workload: str,
    way: str,
    views: bool,
) -> None:
    if device.type == "cuda" and not way.startswith("rotnet_fast"):
        pytest.skip("this way was written for the CPU")
    work = workloads[workload]
    batches = WAYS[way](work, views, device)
    share = 4 if views else 1
    for _ in range(1 if benchmark.disabled else 12):  # files into memory, queues to their usual length
        batch = next(batches)
    assert len(batch) == share * work.batch
    assert sorted(batch.shape[1:])[-2:] == [work.side, work.side]
    rates = []

    def window() -> None:
        images, start = 0, time.perf_counter()
        while (seconds := time.perf_counter() - start) < (0 if benchmark.disabled else WINDOW_SECONDS):
            images += len(next(batches)) // share
            if device.type == "cuda":
                torch.cuda.synchronize()
        if not benchmark.disabled:
            rates.append(images / seconds)

    stage = "four rotated views" if views else "uint8 batches"
    benchmark.group = f"{device.type} {workload} JPEG to {stage}"
    benchmark.pedantic(window, rounds=ROUNDS, iterations=1)
    record(
        what="loader rate",
        device=device.type,
        way=way,
        workload=workload,
        stage=stage,
        data=work.data,
        batch=work.batch,
        images_per_second=statistics.median(rates) if rates else 0.0,
    )


@pytest.mark.parametrize(
    "way", ["rotnet_fast, resident", "rotnet_fast, DALI", "DataLoader, PIL, torchvision"]
)
def test_time_to_the_first_batch(
    benchmark: Any, record: Any, workloads: dict[str, Workload], way: str
) -> None:
    """From paths to the first batch; the resident loader decodes everything before it, once per folder."""
    work = workloads["32x32"]
    benchmark.group = "cpu time to the first batch"
    benchmark.pedantic(lambda: next(WAYS[way](work, False, CPU)), rounds=3, iterations=1)
    record(what="first batch", way=way, data=work.data, images=len(work.paths))


def _rate(work: Workload, share: BatchShare, seconds: float, begin: Any, results: Any) -> None:
    """One process of several: images per second of its share."""
    torch.set_num_threads(1)
    batches = loader_peers.epochs_of(work.dali_loader(CPU, share))
    for _ in range(12 if seconds >= 1 else 1):
        next(batches)
    begin.wait()
    images, start = 0, time.perf_counter()
    while (passed := time.perf_counter() - start) < seconds:
        images += len(next(batches))
    results.put(images / passed)


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("workload", ["32x32", *LARGE])
def test_processes(
    benchmark: Any,
    record: Any,
    workloads: dict[str, Workload],
    monkeypatch: pytest.MonkeyPatch,
    workload: str,
    world: int,
) -> None:
    """The DALI loader in one and two processes that share the cores and the global batch."""
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(world))
    context = multiprocessing.get_context("spawn")
    rates = []

    def run() -> None:
        begin, results = context.Barrier(world), context.Queue()
        seconds = 0.05 if benchmark.disabled else WINDOW_SECONDS
        processes = [
            context.Process(
                target=_rate, args=(workloads[workload], BatchShare(rank, world), seconds, begin, results)
            )
            for rank in range(world)
        ]
        for process in processes:
            process.start()
        rates.append(sum(results.get(timeout=120) for _ in processes))
        for process in processes:
            process.join()

    benchmark.group = f"cpu {workload}, DALI, processes"
    benchmark.pedantic(run, rounds=1 if benchmark.disabled else ROUNDS, iterations=1)
    record(
        what="loader processes", workload=workload, world=world, images_per_second=statistics.median(rates)
    )

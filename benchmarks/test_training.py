"""Loader, and whole training steps at every level: images per second, and the data path's share of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from rotnet_fast.benchmarking.levels import LEVELS, Level
from rotnet_fast.benchmarking.steps import Step, synthetic_dataset
from rotnet_fast.benchmarking.timing import in_a_graph
from rotnet_fast.config import PretrainConfig
from rotnet_fast.data.resident import ResidentLoader
from rotnet_fast.errors import ArgumentError, CaptureError

STORED = 10_000
PARTS = ("whole step", "data", "step without data")


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


@pytest.mark.parametrize("batch", [128, 1024])
def test_resident_loader(benchmark: Any, record: Any, device: torch.device, batch: int) -> None:
    """Order and index batches of one epoch."""
    loader = ResidentLoader(synthetic_dataset(STORED).train, device, batch, seed=0)

    def epoch() -> int:
        seen = sum(len(batch) for batch in loader.epoch(0))
        _wait(device)
        return seen

    benchmark.group = f"{device.type} resident loader, one epoch of {STORED} images"
    assert benchmark(epoch) == STORED
    record(what="loader", device=device.type, batch=batch, images=STORED)


class Steps:
    """The steps of one level at a time, made when asked for: they take memory, and time to compile."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._made: dict[bool, Step] = {}
        self._key: object = None
        self._number = 0

    def get(self, level: Level, config: PretrainConfig, device: torch.device, is_fixed: bool) -> Step:
        if self._key != (key := (level, config, device)):
            self.close()
            self._key = key
        if is_fixed not in self._made:
            self._number += 1
            dataset = synthetic_dataset(STORED)
            folder = self._folder / str(self._number)
            self._made[is_fixed] = Step(level, config, dataset, device, folder, is_fixed)
        return self._made[is_fixed]

    def close(self) -> None:
        for step in self._made.values():
            step.close()
        self._made.clear()
        torch.backends.cudnn.benchmark = False  # a level may have set it


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Steps]:
    made = Steps(tmp_path_factory.mktemp("runs"))
    yield made
    made.close()


@pytest.mark.parametrize("part", PARTS)  # varies first, so that each level is made once
@pytest.mark.parametrize("level", LEVELS, ids=lambda level: level.name.replace(", ", " "))
@pytest.mark.parametrize("blocks", [3, 4, 5])
def test_training_step(
    benchmark: Any, record: Any, steps: Steps, device: torch.device, part: str, level: Level, blocks: Any
) -> None:
    """128 images per step, at full width."""
    is_cuda, is_trial = device.type == "cuda", benchmark.disabled
    if device.type not in level.devices:
        pytest.skip(f"{level.name} is for {' and '.join(level.devices)}")
    if part == "step without data" and not is_cuda:
        pytest.skip("nothing overlaps on a CPU, where the data path is timed alone")
    if is_trial and level.is_compiled and (blocks != 3 or part != "whole step"):
        pytest.skip("compiling takes half a minute: done once where nothing is measured")
    batch, width = (8, 0.25) if is_trial else (128, 1.0)
    config = PretrainConfig(blocks=blocks, width=width, batch_size=batch, lr=0.01)
    try:
        step = steps.get(level, config, device, part == "step without data")
    except ArgumentError as error:
        pytest.skip(str(error))
    calls = 10 if is_cuda else 1
    work: Callable[[], object] = step
    if part == "data":
        work = in_a_graph(step.data, device, calls) if is_cuda else step.data

    def run() -> None:
        try:
            for _ in range(1 if part == "data" else calls):
                work()
            _wait(device)
        except CaptureError as error:
            # Whatever is measured in this process from now on is worthless.
            pytest.exit(f"{level.name}: {error}; measure the others with -k, or by rotnet_fast.benchmark")

    benchmark.group = f"{device.type} NIN-{blocks}, {batch} images, {part}"
    benchmark.pedantic(run, rounds=1 if is_trial else 50 if part == "data" or is_cuda else 5, warmup_rounds=2)
    record(
        what="training step",
        part=part,
        device=device.type,
        level=level.name,
        precision=step.precision.name,
        blocks=blocks,
        batch=batch,
        width=width,
        steps=calls,
    )

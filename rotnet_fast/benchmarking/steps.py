"""Whole training steps, as pretraining does them: images per second, and where the time goes."""

from __future__ import annotations

import itertools
import statistics
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from rotnet_fast.benchmarking.levels import BASELINE, WITHOUT_DATA, Level
from rotnet_fast.benchmarking.stages import convolution_flops
from rotnet_fast.benchmarking.timing import Effort, Timing, Work, in_a_graph, interleaved
from rotnet_fast.config import PretrainConfig
from rotnet_fast.data.datasets import Dataset
from rotnet_fast.data.split import Split
from rotnet_fast.engine.precision import resolve_precision
from rotnet_fast.engine.rotation_task import RotationTask
from rotnet_fast.engine.run_folder import RunFolder
from rotnet_fast.errors import ArgumentError
from rotnet_fast.files import followed
from rotnet_fast.models.nin import NetworkInNetwork
from rotnet_fast.protocols.pretext import pretraining

IMAGES_OF_100_EPOCHS = 100 * 50_000
"""What the paper's schedule trains on."""

CALLS_IN_A_GRAPH = 10


def synthetic_dataset(images: int) -> Dataset:
    """Random images of CIFAR-10's size: as much work as real ones, and nothing to learn."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (images, 32, 32, 3), dtype=torch.uint8, generator=generator)
    split = Split(pixels, torch.zeros(images, dtype=torch.int64))
    return Dataset("folder", "synthetic images", (), split, split, "synthetic")


class Step:
    """One training step after the other, at one level.

    Args:
        level: how.
        config: the other settings; ``batch_size`` images per step.
        dataset: at least one whole batch.
        device: where.
        folder: for the run folder; nothing of importance is written.
        is_fixed: all steps train on the views of the first batch.

    Raises:
        ArgumentError: pretraining refuses the level's settings here.
    """

    def __init__(
        self,
        level: Level,
        config: PretrainConfig,
        dataset: Dataset,
        device: torch.device,
        folder: Path,
        is_fixed: bool = False,
    ) -> None:
        config = level.config(config)
        self.precision = resolve_precision(config.precision, device)
        self._run = RunFolder(folder)
        task_type = WITHOUT_DATA[level.task] if is_fixed else level.task
        self.trainer = pretraining(
            config, dataset, device, self.precision, self._run, task_type=task_type, progress=False
        )
        task = self.trainer.task
        assert isinstance(task, RotationTask)
        self.task = task
        task.begin_epoch(0)
        self._cudnn_benchmark = level.cudnn_benchmark
        batches = [batch for batch in self.trainer.loader.epoch(0) if len(batch) == config.batch_size]
        self._batches = itertools.cycle(batches)

    def __call__(self) -> None:
        """Train on the next batch, as in training."""
        torch.backends.cudnn.benchmark = self._cudnn_benchmark
        self.trainer.progress.step = 0  # the schedule has no more than one epoch
        self.trainer.train_step(next(self._batches))

    def data(self) -> None:
        """The data path alone: gather, crop, flip, rotations and all."""
        self.task.views(next(self._batches))

    def close(self) -> None:
        """Let go of the run folder."""
        self._run.close()


def measure_steps(
    levels: Sequence[Level],
    config: PretrainConfig,
    dataset: Dataset,
    device: torch.device,
    effort: Effort,
    matrix_rates: dict[str, float],
) -> list[dict[str, Any]]:
    """One row per level.

    The share of the data path is measured in two ways: alone, over the whole step; and on a GPU also as what
    a step gains from views that are there already, which tells what cannot overlap with anything. The
    difference of two noisy numbers may come out negative.

    Args:
        levels: of this kind of device. One that cannot be measured here is skipped, and its row says why.
        config: network, width, rotations and images per step.
        dataset: to train on.
        device: where.
        effort: how long to measure.
        matrix_rates: floating-point operations per second of matrix products, by number format.
    """
    network = NetworkInNetwork(len(config.rotations), config.blocks, config.width)
    flops = convolution_flops(network, config.batch_size, len(config.rotations))
    cudnn_benchmark = torch.backends.cudnn.benchmark
    steps: dict[str, Step] = {}
    works: dict[str, Work] = {}
    skipped: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        try:
            for number, level in enumerate(levels):
                try:
                    made = _works(level, config, dataset, device, followed(Path(folder)) / str(number), stack)
                except (ArgumentError, RuntimeError) as error:  # refused, does not compile, out of memory
                    skipped[level.name] = (str(error).strip() or type(error).__name__).splitlines()[0]
                    continue
                steps[level.name] = made[level.name]
                works |= made
            timings = interleaved(works, device, effort)
            watts = {name: average_power(step, device) for name, step in steps.items()}
        finally:
            torch.backends.cudnn.benchmark = cudnn_benchmark
    return [
        {"level": level.name, "blocks": config.blocks, "skipped": skipped[level.name]}
        if level.name in skipped
        else _row(level.name, steps[level.name], config, timings, flops, watts[level.name], matrix_rates)
        for level in levels
    ]


def _works(
    level: Level,
    config: PretrainConfig,
    dataset: Dataset,
    device: torch.device,
    folder: Path,
    stack: ExitStack,
) -> dict[str, Any]:
    """What is timed of a level: the step under its name, its data path, and on a GPU the step without it."""

    def make(name: str, is_fixed: bool) -> Step:
        step = Step(level, config, dataset, device, folder / name, is_fixed)
        stack.callback(step.close)
        step()  # compiles where it is to be compiled
        return step

    step = make("step", False)
    if device.type != "cuda":
        return {level.name: step, f"{level.name} data": step.data}
    data = in_a_graph(step.data, device, CALLS_IN_A_GRAPH)
    return {level.name: step, f"{level.name} data": data, f"{level.name} fixed": make("fixed", True)}


def _row(
    name: str,
    step: Step,
    config: PretrainConfig,
    timings: dict[str, Timing],
    flops: float,
    watts: float | None,
    matrix_rates: dict[str, float],
) -> dict[str, Any]:
    timing, baseline = timings[name], timings.get(BASELINE)
    fixed, is_cuda = timings.get(f"{name} fixed"), step.trainer.loader.device.type == "cuda"
    data = timings[f"{name} data"].divided(CALLS_IN_A_GRAPH if is_cuda else 1)
    rate = config.batch_size / timing.seconds
    precision = step.precision.name
    # On a GPU, convolutions of fp32 tensors compute in TF32 unless torch is told otherwise.
    matrix = "tf32" if precision == "fp32" and is_cuda else precision
    return {
        "level": name,
        "blocks": config.blocks,
        "width": config.width,
        "batch": config.batch_size,
        "precision": precision,
        "compile": step.task.compile,
        "graph": step.trainer.training_step.is_replayed,
        "seconds": timing.seconds,
        "spread": timing.spread,
        "cpu_seconds": timing.cpu_seconds,
        "images_per_second": rate,
        "seconds_per_100_epochs": IMAGES_OF_100_EPOCHS / rate,
        "times_baseline": None if baseline is None else baseline.seconds / timing.seconds,
        "times_baseline_by_cpu_seconds": (
            None if baseline is None else baseline.cpu_seconds / max(timing.cpu_seconds, 1e-9)
        ),
        "data_seconds": data.seconds,
        "data_share": data.seconds / timing.seconds,
        "fixed_views_seconds": None if fixed is None else fixed.seconds,
        "data_share_of_difference": None if fixed is None else 1 - fixed.seconds / timing.seconds,
        "convolution_flops": flops,
        "share_of_matrix_rate": flops / timing.seconds / matrix_rates[matrix],
        "joules_per_step": None if watts is None else watts * timing.seconds,
    }


def average_power(work: Work, device: torch.device, seconds: float = 2.0) -> float | None:
    """Watts that a GPU draws while it repeats its work; None where nothing tells it.

    The sensor averages over up to a second, so that the first half of the time does not count.
    """
    if device.type != "cuda":
        return None
    watts = []
    start = time.perf_counter()
    while (passed := time.perf_counter() - start) < seconds:
        for _ in range(10):
            work()
        torch.cuda.synchronize(device)
        try:
            drawn = torch.cuda.power_draw(device) / 1e3
        except (ImportError, RuntimeError, AttributeError):  # no NVML, or none that knows this GPU
            return None
        if passed > seconds / 2:
            watts.append(drawn)
    return statistics.median(watts) if watts else None

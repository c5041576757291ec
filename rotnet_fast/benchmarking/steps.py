"""Throughput of whole training steps as in pretraining, and where their time goes."""

from __future__ import annotations

import itertools
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import torch

from rotnet_fast.benchmarking.levels import BASELINE, WITHOUT_DATA, Level
from rotnet_fast.benchmarking.stages import convolution_flops
from rotnet_fast.benchmarking.timing import Effort, Timing, Work, in_a_graph, interleaved
from rotnet_fast.config import PretrainConfig
from rotnet_fast.data.datasets import Dataset
from rotnet_fast.data.split import Split
from rotnet_fast.engine.metrics import means
from rotnet_fast.engine.precision import resolve_precision
from rotnet_fast.engine.rotation_task import RotationTask
from rotnet_fast.engine.run_folder import RunFolder
from rotnet_fast.files import resolve_path
from rotnet_fast.models.nin import NetworkInNetwork
from rotnet_fast.protocols.pretext import pretraining

IMAGES_OF_100_EPOCHS = 100 * 50_000
"""Number of images that the paper's schedule trains on."""

CALLS_IN_A_GRAPH = 10

WARMUP_STEPS = {"cpu": 2, "cuda": 20}
"""Number of steps before the timing. On a GPU, they include the capture, and their loss shows whether levels
compute the same."""

LEVEL_LIMIT = 600.0
"""Time limit of a level in seconds; the longest search of the compiler takes minutes."""

Row = dict[str, Any]


def synthetic_dataset(images: int) -> Dataset:
    """Make noise of CIFAR-10's size that gets brighter from top to bottom.

    It takes as much work as real images, and has a rotation to learn.
    """
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 128, (images, 32, 32, 3), dtype=torch.uint8, generator=generator)
    pixels += torch.arange(0, 128, 4, dtype=torch.uint8)[:, None, None]
    split = Split(pixels, torch.zeros(images, dtype=torch.int64))
    return Dataset("folder", "synthetic images", (), split, split, "synthetic")


class Step:
    """Run training steps at one level.

    Args:
        level: the level.
        config: the other settings, with ``batch_size`` images per step.
        dataset: at least one full batch.
        device: device to train on.
        folder: the run folder, to which nothing important is written.
        is_fixed: whether all steps train on the views of the first batch.

    Attributes:
        warmup_loss: mean loss of the first steps; None until it is read.

    Raises:
        ArgumentError: pretraining does not support the level's settings on this machine.
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
        self.warmup_loss: float | None = None

    def __call__(self) -> None:
        """Train on the next batch as in pretraining."""
        torch.backends.cudnn.benchmark = self._cudnn_benchmark
        self.trainer.progress.step = 0  # the schedule only has one epoch
        self.trainer.train_step(next(self._batches))

    def read_loss(self) -> None:
        """Store the mean loss of the steps so far; waits for the device."""
        self.warmup_loss = means(self.trainer.training_step.sums.read_interval())["loss"]

    def data(self) -> None:
        """Run only the data path: gather, crop, flip, rotate, normalise and cast."""
        self.task.views(next(self._batches))

    def close(self) -> None:
        """Release the run folder."""
        self._run.close()


def measure_steps(
    levels: Sequence[Level],
    config: PretrainConfig,
    images: int,
    device: torch.device,
    effort: Effort,
    matrix_rates: dict[str, float],
    *,
    apart: bool | None = None,
    warmup: int | None = None,
    level_limit: float = LEVEL_LIMIT,
    report: Callable[[list[Row]], None] = lambda rows: None,
) -> list[Row]:
    """Measure the levels and return one row per level.

    On a GPU, the levels are measured one after the other in separate processes, because a failed capture
    leaves its process on the capture stream and with a separate memory pool, which invalidates all later
    numbers of that process. On the CPU, all levels take turns in this process.

    The data path's share is measured in two ways: the time of the data path divided by that of the whole
    step; and, on a GPU, also the time that a step saves with precomputed views, which is what cannot overlap
    with anything. As the difference of two noisy numbers, the latter may be negative.

    Args:
        levels: levels for this type of device. Unsupported ones are skipped, and their row says why.
        config: network, width, rotations and images per step.
        images: number of synthetic images to train on, at least one full batch.
        device: device to measure.
        effort: how long to measure.
        matrix_rates: floating-point operations per second of matrix products, by number format.
        apart: whether each level has its own process; None chooses by device.
        warmup: number of steps before the timing; None chooses by device.
        level_limit: seconds after which such a process is killed.
        report: called with all rows so far whenever a row is added or extended.
    """
    rows: dict[str, Row] = {}

    def add(row: Row) -> None:
        rows[row["level"]] = row
        baseline = rows.get(BASELINE, {})
        for other in rows.values():
            if "seconds" in other and "seconds" in baseline:
                other["times_baseline"] = baseline["seconds"] / other["seconds"]
                cpu_seconds = max(other["cpu_seconds"], 1e-9)
                other["times_baseline_by_cpu_seconds"] = baseline["cpu_seconds"] / cpu_seconds
        report(list(rows.values()))

    warmup = WARMUP_STEPS[device.type] if warmup is None else warmup
    conditions = Conditions(config, images, device, effort, matrix_rates, warmup)
    if device.type == "cuda" if apart is None else apart:
        for level in levels:
            _measure_apart(level, conditions, level_limit, add)
    else:
        _measure_in_turn(levels, conditions, add)
    return list(rows.values())


class Conditions(NamedTuple):
    """Hold what all levels share, see :func:`measure_steps`."""

    config: PretrainConfig
    images: int
    device: torch.device
    effort: Effort
    matrix_rates: dict[str, float]
    warmup: int

    def skipped(self, level: Level, reason: str) -> Row:
        """Return the row of a level that was skipped."""
        return {"level": level.name, "blocks": self.config.blocks, "skipped": reason}


def _measure_in_turn(levels: Sequence[Level], conditions: Conditions, add: Callable[[Row], None]) -> None:
    """Measure all levels interleaved in this process, so that disturbances affect all of them."""
    steps: dict[str, Step] = {}
    works: dict[str, Work] = {}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack, _cudnn_settings_kept():
        for number, level in enumerate(levels):
            try:
                step = _ready(level, conditions, resolve_path(Path(folder)) / str(number), stack)
            except Exception as error:  # unsupported, out of memory, or any compiler error
                add(conditions.skipped(level, _reason(error)))
                continue
            steps[level.name] = step
            works |= {level.name: step, f"{level.name} data": step.data}
        timings = interleaved(works, conditions.device, conditions.effort)
        for name, step in steps.items():
            row = _row(name, step, conditions, timings[name])
            add(row | _data_shares(timings[name], timings[f"{name} data"], None))


def _measure_apart(level: Level, conditions: Conditions, limit: float, add: Callable[[Row], None]) -> None:
    """Measure one level in a new process for at most ``limit`` seconds, and keep partial results."""
    spawn = multiprocessing.get_context("spawn")
    receiver, sender = spawn.Pipe(duplex=False)
    process = spawn.Process(target=_send_level, args=(level, conditions, sender))
    process.start()
    sender.close()  # so that recv() raises EOFError when the process ends
    deadline = time.monotonic() + limit
    row: Row | None = None
    reason: str | None = f"took more than {limit:g} s"
    try:
        while receiver.poll(max(0.0, deadline - time.monotonic())):
            message = receiver.recv()
            if not isinstance(message, dict):  # the last message: None, or the reason for stopping early
                reason = message
                break
            row = message
            add(row)
    except EOFError:
        process.join()
        reason = f"its process ended with exit code {process.exitcode}"
    finally:
        process.kill()
        process.join()
        receiver.close()
    if reason is not None:
        add(conditions.skipped(level, reason) if row is None else row | {"incomplete": reason})


def _send_level(level: Level, conditions: Conditions, sender: Connection) -> None:
    """Measure a level and send its row as it grows, then None or the reason for stopping early."""
    device, effort = conditions.device, conditions.effort
    try:
        with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
            step = _ready(level, conditions, resolve_path(Path(folder)) / "step", stack)
            timing = interleaved({level.name: step}, device, effort)[level.name]
            row = _row(level.name, step, conditions, timing)
            sender.send(row)
            row["joules_per_step"] = joules(step, device, timing)
            sender.send(row)
            works: dict[str, Work] = {"data": step.data}
            if device.type == "cuda":
                works["data"] = in_a_graph(step.data, device, CALLS_IN_A_GRAPH)
                works["fixed"] = _ready(
                    level, conditions, resolve_path(Path(folder)) / "fixed", stack, is_fixed=True
                )
            timings = interleaved(works, device, effort)
            calls = CALLS_IN_A_GRAPH if device.type == "cuda" else 1
            sender.send(row | _data_shares(timing, timings["data"].divided(calls), timings.get("fixed")))
            sender.send(None)
    except Exception as error:
        sender.send(_reason(error))
    sender.close()


def _ready(
    level: Level, conditions: Conditions, folder: Path, stack: ExitStack, is_fixed: bool = False
) -> Step:
    """Create a step and warm it up, which includes its compilation and capture."""
    dataset = synthetic_dataset(conditions.images)
    step = Step(level, conditions.config, dataset, conditions.device, folder, is_fixed)
    stack.callback(step.close)
    for _ in range(conditions.warmup):
        step()
    step.read_loss()  # waits for the device, which then reports its errors
    return step


def _reason(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


@contextmanager
def _cudnn_settings_kept() -> Iterator[None]:
    before = torch.backends.cudnn.benchmark
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def _row(name: str, step: Step, conditions: Conditions, timing: Timing) -> Row:
    """Make the row of a level, without its data path."""
    config = conditions.config
    rate = config.batch_size / timing.seconds
    precision = step.precision.name
    # On a GPU, convolutions of fp32 tensors compute in TF32 by default.
    matrix = "tf32" if precision == "fp32" and conditions.device.type == "cuda" else precision
    network = NetworkInNetwork(len(config.rotations), config.blocks, config.width)
    flops = convolution_flops(network, config.batch_size, len(config.rotations))
    return {
        "level": name,
        "blocks": config.blocks,
        "width": config.width,
        "batch": config.batch_size,
        "precision": precision,
        "compile": step.task.compile,
        "graph": step.trainer.training_step.is_replayed,
        "warmup_loss": step.warmup_loss,
        "seconds": timing.seconds,
        "spread": timing.spread,
        "cpu_seconds": timing.cpu_seconds,
        "images_per_second": rate,
        "seconds_per_100_epochs": IMAGES_OF_100_EPOCHS / rate,
        "times_baseline": None,
        "times_baseline_by_cpu_seconds": None,
        "data_seconds": None,
        "data_share": None,
        "fixed_views_seconds": None,
        "data_share_of_difference": None,
        "convolution_flops": flops,
        "share_of_matrix_rate": flops / timing.seconds / conditions.matrix_rates[matrix],
        "joules_per_step": None,
    }


def _data_shares(step: Timing, data: Timing, fixed: Timing | None) -> Row:
    """Return the data path's share of a step, from its own time and from that of a step without it."""
    return {
        "data_seconds": data.seconds,
        "data_share": data.seconds / step.seconds,
        "fixed_views_seconds": None if fixed is None else fixed.seconds,
        "data_share_of_difference": None if fixed is None else 1 - fixed.seconds / step.seconds,
    }


def joules(work: Work, device: torch.device, timing: Timing) -> float | None:
    """Return the energy of one piece of work on a GPU in joules, or None if it cannot be measured."""
    watts = average_power(work, device)
    return None if watts is None else watts * timing.seconds


def average_power(work: Work, device: torch.device, seconds: float = 2.0) -> float | None:
    """Return the watts that a GPU draws while repeating its work, or None if they cannot be measured.

    The sensor averages over up to a second, so the first half of the time is discarded.
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
        except (ImportError, RuntimeError, AttributeError):  # no NVML, or one that does not support this GPU
            return None
        if passed > seconds / 2:
            watts.append(drawn)
    return statistics.median(watts) if watts else None

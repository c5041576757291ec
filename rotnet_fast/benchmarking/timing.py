"""Robust timing of calls on machines that are never quite idle."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

Work = Callable[[], object]


@dataclass(frozen=True)
class Effort:
    """Define how long to measure.

    Attributes:
        rounds: number of windows per piece of work; the median window counts.
        window_seconds: minimum length of a window, to make the clock's overhead and resolution negligible.
    """

    rounds: int
    window_seconds: float


@dataclass(frozen=True)
class Timing:
    """Hold the seconds per call over several windows.

    Attributes:
        seconds: median over the windows.
        best: minimum over the windows.
        spread: interquartile range of the windows, as a fraction of the median.
        cpu_seconds: median processor time of all threads of this process. If other processes use the cores,
            it is a better measure of work on a CPU than elapsed time.
    """

    seconds: float
    best: float
    spread: float
    cpu_seconds: float

    @classmethod
    def of(cls, windows: Sequence[tuple[float, float]]) -> Timing:
        """Summarise one or more windows of (elapsed seconds, seconds of processor time)."""
        seconds, cpu_seconds = zip(*windows, strict=True)
        median = statistics.median(seconds)
        quartiles = statistics.quantiles(seconds, n=4) if len(seconds) > 1 else [median] * 3
        spread = (quartiles[2] - quartiles[0]) / median
        return cls(median, min(seconds), spread, statistics.median(cpu_seconds))

    def divided(self, calls: int) -> Timing:
        """Return the timing per part of a call that consists of ``calls`` equal parts."""
        return Timing(self.seconds / calls, self.best / calls, self.spread, self.cpu_seconds / calls)


def interleaved(works: Mapping[str, Work], device: torch.device, effort: Effort) -> dict[str, Timing]:
    """Time several pieces of work in turns, so that disturbances of the machine affect all of them alike.

    Args:
        works: map from name to the work to time; on a GPU, it launches on the current stream and may be
            asynchronous.
        device: device to synchronise with.
        effort: how long to measure.

    Returns:
        Map from name to seconds per call, in the same order.
    """
    calls = {}
    for name, work in works.items():
        # A replayed training step runs three times before the capture, and once more during it.
        for _ in range(5 if device.type == "cuda" else 2):
            work()
        calls[name] = max(1, math.ceil(effort.window_seconds / max(window(work, 1, device)[0], 1e-9)))
    windows: dict[str, list[tuple[float, float]]] = {name: [] for name in works}
    for _ in range(effort.rounds):
        for name, work in works.items():
            seconds, cpu_seconds = window(work, calls[name], device)
            windows[name].append((seconds / calls[name], cpu_seconds / calls[name]))
    return {name: Timing.of(found) for name, found in windows.items()}


def measure(work: Work, device: torch.device, effort: Effort) -> Timing:
    """Time a single piece of work."""
    return interleaved({"": work}, device, effort)[""]


def window(work: Work, calls: int, device: torch.device) -> tuple[float, float]:
    """Return the elapsed seconds and the processor time of ``calls`` calls together.

    On a GPU, elapsed time is measured between two events, before and after which the GPU is idle. If the host
    is slower than the GPU, the time that the GPU waits for it counts.
    """
    cpu_start = time.process_time()
    if device.type != "cuda":
        start = time.perf_counter()
        for _ in range(calls):
            work()
        return time.perf_counter() - start, time.process_time() - cpu_start
    with torch.cuda.device(device):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(device)
        begin.record()
        for _ in range(calls):
            work()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) / 1e3, time.process_time() - cpu_start


def in_a_graph(work: Work, device: torch.device, calls: int) -> Work:
    """Capture calls in one CUDA graph, to measure the GPU without the host's launch overhead.

    Args:
        work: work that launches on the current stream, does not synchronise, and may allocate.
        device: a CUDA device.
        calls: number of calls per replay.
    """
    with torch.cuda.device(device):
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            work()  # lets libraries choose their algorithms and allocate before the capture
        torch.cuda.synchronize(device)
        with torch.cuda.graph(graph):
            for _ in range(calls):
                work()
    replay: Work = graph.replay
    return replay

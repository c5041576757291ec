"""Seconds per call, on machines that are never quite idle."""

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
    """How long to measure.

    Attributes:
        rounds: windows per piece of work; the median window counts.
        window_seconds: the least length of a window, so that the clock's own cost and resolution vanish.
    """

    rounds: int
    window_seconds: float


@dataclass(frozen=True)
class Timing:
    """Seconds per call in several windows.

    Attributes:
        seconds: of the median window.
        best: of the fastest one.
        spread: interquartile range of the windows, as a share of the median.
        cpu_seconds: processor time of all threads of this process, in the median window. Where other
            processes take the cores, it says more about work on a CPU than the clock does.
    """

    seconds: float
    best: float
    spread: float
    cpu_seconds: float

    @classmethod
    def of(cls, windows: Sequence[tuple[float, float]]) -> Timing:
        """The timing of one or more windows: seconds by the clock, and of processor time."""
        seconds, cpu_seconds = zip(*windows, strict=True)
        median = statistics.median(seconds)
        quartiles = statistics.quantiles(seconds, n=4) if len(seconds) > 1 else [median] * 3
        spread = (quartiles[2] - quartiles[0]) / median
        return cls(median, min(seconds), spread, statistics.median(cpu_seconds))

    def divided(self, calls: int) -> Timing:
        """The same per one of so many parts of a call."""
        return Timing(self.seconds / calls, self.best / calls, self.spread, self.cpu_seconds / calls)


def interleaved(works: Mapping[str, Work], device: torch.device, effort: Effort) -> dict[str, Timing]:
    """Time several pieces of work in turns, so that what disturbs the machine disturbs all of them alike.

    Args:
        works: name -> what to time; on a GPU it launches on the current stream and need not wait.
        device: whose work is waited for.
        effort: how long to measure.

    Returns:
        name -> seconds per call, in the same order.
    """
    calls = {}
    for name, work in works.items():
        # A replayed training step runs three times before it is captured, and once more as it is.
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
    """Time one piece of work alone."""
    return interleaved({"": work}, device, effort)[""]


def window(work: Work, calls: int, device: torch.device) -> tuple[float, float]:
    """Seconds that so many calls take together, by the clock and of processor time.

    On a GPU, the clock runs between two events, around which it is idle. Where the host is slower than the
    GPU, the time that the GPU waits for it counts.
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
    """So many calls in one CUDA graph: what the GPU takes, without the host's cost of launching.

    Args:
        work: launches on the current stream, does not wait, and may allocate.
        calls: per replay.
    """
    with torch.cuda.device(device):
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            work()  # libraries choose their algorithms and allocate before the capture
        torch.cuda.synchronize(device)
        with torch.cuda.graph(graph):
            for _ in range(calls):
                work()
    replay: Work = graph.replay
    return replay

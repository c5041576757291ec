"""Notices when other programs hold the processor that a training needs.

Importing this module does not import torch.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import ClassVar

from rotnet_fast.plain import counted
from rotnet_fast.system import waits_for_memory

WINDOW_SECONDS = 20.0
"""Time of training steps over which waiting is measured."""

LEAST_STEPS = 3
"""Least number of steps that are measured."""

MOST_WAITING = 3.0
"""Steps may take this many times their processor time; on an idle machine it is about once."""

MOST_FAULTS_PER_SECOND = 10.0
"""Above this, the steps wait for memory that is read from a disk, and the processor is not to blame."""


class Contention:
    """Compares how long training steps take on a CPU with the processor time that they get.

    What counts is the time of the thread that runs the steps, because it takes part in whatever several
    threads do together: it works or, where another thread is held up, waits. Loading a batch is no part of a
    step. It is said once per process.

    Args:
        threads: number of threads that compute.
        wall: returns the time, in seconds.
        processor: returns the processor time of the calling thread, in seconds.
        page_faults: returns how often the process had to wait for memory to be read from a disk.
    """

    is_told: ClassVar[bool] = False

    def __init__(
        self,
        threads: int,
        wall: Callable[[], float] = time.perf_counter,
        processor: Callable[[], float] = time.thread_time,
        page_faults: Callable[[], int] = waits_for_memory,
    ) -> None:
        self._threads = threads
        self._clocks = (wall, processor, page_faults)
        self._began = (0.0, 0.0, 0)
        self._is_first = True
        self._steps: list[tuple[float, float, int]] = []

    def begin(self) -> None:
        """Begin a step."""
        wall, processor, page_faults = self._clocks
        self._began = (wall(), processor(), page_faults())

    def end(self) -> str | None:
        """End a step; returns a sentence for the user where one is due."""
        if Contention.is_told:
            return None
        wall, processor, page_faults = self._clocks
        begun = self._began
        if self._is_first:  # it loads code and asks for memory
            self._is_first = False
            return None
        self._steps.append((wall() - begun[0], processor() - begun[1], page_faults() - begun[2]))
        seconds = sum(step[0] for step in self._steps)
        if seconds < WINDOW_SECONDS or len(self._steps) < LEAST_STEPS:
            return None
        # The median, because a program that is suspended for a while has one endless step.
        times = statistics.median(step[0] / max(step[1], 1e-6) for step in self._steps)
        is_disk = sum(step[2] for step in self._steps) > MOST_FAULTS_PER_SECOND * seconds
        self._steps = []
        if times < MOST_WAITING or is_disk:
            return None
        Contention.is_told = True
        return (
            f"training steps take {times:.0f} times their CPU time, because other programs use the "
            f"processor; {self._remedy()}"
        )

    def _remedy(self) -> str:
        if self._threads == 1:
            return "close them"
        fewer = max(1, self._threads // 2)
        return (
            f"close them, or stop, and resume with OMP_NUM_THREADS={fewer} in place of "
            f"{counted(self._threads, 'thread')}: fewer threads wait less for each other"
        )

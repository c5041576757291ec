"""What users see while something takes long: one status line, and the time that is left.

On a terminal the line is redrawn in place and never reaches the terminal's last column. Elsewhere, as in a
log file, it is printed at most once a minute.

Importing this module does not import torch.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple, TextIO, TypeVar

from rotnet_fast.plain import duration

PLAIN_SECONDS = 60.0
"""Least time between two status lines where there is no terminal."""

NARROW = 80
"""Columns of a terminal that does not say how wide it is."""


class Part(NamedTuple):
    """A piece of a status line.

    Attributes:
        text: the piece; empty if it is unknown yet.
        rank: pieces with the largest rank are left out first where the line is too long.
    """

    text: str
    rank: int


class Status(NamedTuple):
    """What a status line says.

    Attributes:
        what: the work, such as ``epoch 3/100``.
        fraction: how much of it is done, in [0, 1].
        parts: everything else, in the order shown.
    """

    what: str
    fraction: float
    parts: Sequence[Part]


class Pace:
    """Measures how fast this process works; earlier measurements count half as much after a minute."""

    def __init__(self) -> None:
        self._units = self._seconds = 0.0

    def add(self, units: float, seconds: float) -> None:
        """Count units of work done in some seconds."""
        kept = 0.5 ** (seconds / 60.0)
        self._units = kept * self._units + units
        self._seconds = kept * self._seconds + seconds

    @property
    def per_second(self) -> float:
        """Units per second; 0 if nothing was measured yet."""
        return self._units / self._seconds if self._seconds > 0 else 0.0

    def seconds(self, units: float) -> float | None:
        """Return how long units of work will take; None if nothing was measured yet."""
        return units * self._seconds / self._units if self._units > 0 else None


_Line = TypeVar("_Line", bound="StatusLine")


class StatusLine:
    """One line that says what is going on; a context manager that removes it at the end.

    Args:
        describe: returns what the line is to say now.
        is_shown: whether to show anything.
        clock: returns the time in seconds.
    """

    def __init__(
        self, describe: Callable[[], Status], is_shown: bool, clock: Callable[[], float] = time.monotonic
    ) -> None:
        from rotnet_fast.progress_bar import Bar

        self._describe = describe
        self._clock = clock
        self._bar = Bar(describe, is_shown)
        self._is_plain = is_shown and self._bar.disable
        self._printed_at = clock()

    def __enter__(self: _Line) -> _Line:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._bar.close()

    def update(self, *, at_once: bool = False) -> None:
        """Show the present state; on a terminal at most ten times per second, unless ``at_once``."""
        if at_once:
            self._bar.refresh()
        else:
            self._bar.update(0)
        if self._is_plain and self._clock() - self._printed_at >= PLAIN_SECONDS:
            what, fraction, parts = self._describe()
            text = "  ".join([f"{what} {fraction:4.0%}", *(part.text for part in parts if part.text)])
            self.print(text, sys.stderr)

    def print(self, text: str, file: TextIO | None = None) -> None:
        """Print a line of its own above the status line; None is standard output."""
        self._bar.write(text, file=file)
        (file or sys.stdout).flush()
        self._printed_at = self._clock()


class CountingLine(StatusLine):
    """The status line of work that consists of many alike units.

    Args:
        what: the work, as in ``decoding``.
        total: number of units.
        unit: what is counted, in the plural.
        is_shown, clock: see `StatusLine`.
        scale: how many units are shown as one, as in 1e6 bytes per MB.
        done: number of units that an earlier process has finished.
    """

    def __init__(
        self,
        what: str,
        total: int,
        unit: str,
        is_shown: bool,
        clock: Callable[[], float] = time.monotonic,
        scale: float = 1,
        done: int = 0,
    ) -> None:
        self._done, self._total, self._unit, self._scale = done, total, unit, scale
        self._what, self._pace, self._counted_at = what, Pace(), clock()
        super().__init__(self._status, is_shown, clock)

    def count(self, units: int) -> None:
        """Count finished units."""
        now = self._clock()
        self._pace.add(units, now - self._counted_at)
        self._counted_at = now
        self._done += units
        self.update()

    def _status(self) -> Status:
        done, total = self._done / self._scale, self._total / self._scale
        rate, left = self._pace.per_second / self._scale, self._pace.seconds(self._total - self._done)
        parts = [
            Part(f"{done:,.0f}/{total:,.0f} {self._unit}", 1),
            Part(f"{rate:,.3g} {self._unit}/s" if 0 < rate < 100 else f"{rate:,.0f} {self._unit}/s", 2),
            Part("" if left is None else f"{duration(left)} left", 0),
        ]
        return Status(self._what, self._done / max(self._total, 1), parts)


def terminal_columns() -> int | None:
    """Return the width of the terminal that standard output is; None if it is no terminal."""
    return shutil.get_terminal_size((NARROW, 24)).columns if sys.stdout.isatty() else None


def fitted(parts: Sequence[Part], width: int) -> str:
    """Join the known parts, without those of the largest ranks where all of them are wider than ``width``."""
    kept = [part for part in parts if part.text]
    while kept and len(text := "  ".join(part.text for part in kept)) > width:
        kept.remove(max(kept, key=lambda part: part.rank))
    return text if kept else ""

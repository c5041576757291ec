"""Ctrl-C, SIGTERM and their like as requests to save and stop, instead of a death in the middle of a step."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from rotnet_fast.engine.distributed import is_under_torchrun

REQUESTS = (signal.SIGINT, signal.SIGTERM)
"""Signals that ask a program to stop, whatever it was told to do about them before."""

WARNINGS = tuple(
    getattr(signal, name) for name in ("SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU") if hasattr(signal, name)
)
"""Signals that come when a terminal closes or a cluster's time is nearly over, and that end a program where
nothing else was said: under nohup, which ignores SIGHUP, and in programs that listen themselves, they keep
their effect."""


class Interrupted(BaseException):
    """A signal asks to stop; like KeyboardInterrupt, nothing should catch it by accident."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signal_number).name}")
        self.exit_code = 128 + signal_number


class StopSignals:
    """Context in which the first signal of ``REQUESTS`` or ``WARNINGS`` is noted, for the loop to obey.

    The second Ctrl-C or SIGTERM acts as if this context were not there, so that a hanging program can be
    stopped. Under torchrun it is ignored: torchrun passes every signal on, so that Ctrl-C comes twice, and
    kills what has not ended after half a minute. ``WARNINGS`` may come as often as they like: the system and
    the shell both send SIGHUP when a terminal closes.

    Outside the main thread, where Python allows no handlers, signals keep their usual effect.
    """

    def __init__(self) -> None:
        self._interruptible = False
        self._received: int | None = None
        self._previous: dict[int, Any] = {}
        self._is_patient = is_under_torchrun()

    @property
    def received(self) -> int:
        """Number of the signal that has come; 0 for none."""
        return self._received or 0

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            numbers = (*REQUESTS, *(number for number in WARNINGS if _is_ours(number)))
            self._previous = {number: signal.signal(number, self._handle) for number in numbers}
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._restore(set(self._previous))
        if self._received is not None and exc_info == (None, None, None):
            # Nobody has asked since it came: it is for whoever listens around this context.
            os.kill(os.getpid(), self._received)

    def forget(self) -> None:
        """Take a signal that has come as obeyed."""
        self._received = None

    def check(self) -> None:
        """Raise :class:`Interrupted` if a signal has come."""
        if self._received is not None:
            raise Interrupted(self._received)

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Context for long work that changes nothing: a signal raises :class:`Interrupted` at once."""
        self.check()
        self._interruptible = True
        try:
            yield
        finally:
            self._interruptible = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number in REQUESTS and not self._is_patient:
            self._restore(REQUESTS)
        if self._received is not None:
            return
        self._received = number
        if self._interruptible:
            raise Interrupted(number)

    def _restore(self, numbers: Collection[int]) -> None:
        for number in self._previous.keys() & numbers:
            signal.signal(number, self._previous.pop(number))


def _is_ours(number: int) -> bool:
    """Whether nobody else has said what a signal does: it ends the program, or an outer context notes it."""
    handler = signal.getsignal(number)
    return handler is signal.SIG_DFL or isinstance(getattr(handler, "__self__", None), StopSignals)

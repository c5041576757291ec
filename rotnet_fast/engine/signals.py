"""Turns Ctrl-C, SIGTERM and similar signals into requests to save and stop, not to die within a step."""

from __future__ import annotations

import signal
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from rotnet_fast.engine.distributed import is_under_torchrun

REQUESTS = (signal.SIGINT, signal.SIGTERM)
"""Signals that ask a program to stop, whatever their handlers were before."""

WARNINGS = tuple(
    getattr(signal, name) for name in ("SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU") if hasattr(signal, name)
)
"""Signals that arrive when a terminal closes or a job's time is nearly over, and that end a program by
default. Where another handler is set (under nohup, which ignores SIGHUP, and in programs that listen
themselves), they keep their effect."""


_PAUSE = 0.05
"""Seconds until a signal that arrives during an import is looked at again."""

_LONGEST_IMPORT = 10.0
"""Seconds after which a signal interrupts even an import."""


class Interrupted(KeyboardInterrupt):
    """A signal asks to stop, Ctrl-C or another. This is no Exception: nothing catches it by accident."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signal_number).name}")
        self.exit_code = 128 + signal_number


class StopSignals:
    """Context in which the first signal of ``REQUESTS`` or ``WARNINGS`` is recorded, for the loop to obey.

    A second Ctrl-C or SIGTERM acts as if this context did not exist, so that a hanging program can be
    stopped. Under torchrun it is ignored: torchrun passes every signal on, so that Ctrl-C arrives twice, and
    kills what has not ended after half a minute. Repeated ``WARNINGS`` are ignored: the system and the
    shell both send SIGHUP when a terminal closes.

    Outside the main thread, where Python allows no handlers, signals keep their usual effect.
    """

    def __init__(self) -> None:
        self._interruptible = False
        self._deferrals = 0
        self._received: int | None = None
        self._previous: dict[int, Any] = {}
        self._ignores_repeats = is_under_torchrun()

    @property
    def received(self) -> int:
        """Number of the signal that has arrived; 0 for none."""
        return self._received or 0

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            numbers = (*REQUESTS, *(number for number in WARNINGS if _is_ours(number)))
            # A handler that is None was not set by Python, which could not set it again afterwards.
            known = [number for number in numbers if signal.getsignal(number) is not None]
            self._previous = {number: signal.signal(number, self._handle) for number in known}
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._restore(set(self._previous))
        if self._received is not None and exc_info == (None, None, None):
            # Nothing has obeyed it: pass it on to the handlers outside this context.
            signal.raise_signal(self._received)

    def forget(self) -> None:
        """Discard the recorded signal, because it has been obeyed."""
        self._received = None

    def check(self) -> None:
        """Raise :class:`Interrupted` if a signal has arrived."""
        if self._received is not None:
            raise Interrupted(self._received)

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Context for long work without side effects: a signal raises :class:`Interrupted` at once.

        During an import, which torch does within its functions, too, it does so afterwards: a module that is
        half executed stays broken, and the errors that follow from it hide the interruption.
        """
        self.check()
        self._interruptible = True
        try:
            yield
        finally:
            self._interruptible = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        is_deferrable = self._interruptible and self._received is None
        if is_deferrable and self._deferrals < _LONGEST_IMPORT / _PAUSE and _is_importing(frame):
            self._deferrals += 1
            again = threading.Timer(_PAUSE, signal.raise_signal, (number,))
            again.daemon = True
            again.start()
            return
        if number in REQUESTS and not self._ignores_repeats:
            self._restore(REQUESTS)
        if self._received is not None:
            return
        self._received = number
        if self._interruptible:
            raise Interrupted(number)

    def _restore(self, numbers: Collection[int]) -> None:
        for number in self._previous.keys() & numbers:
            signal.signal(number, self._previous.pop(number))


def _is_importing(frame: FrameType | None) -> bool:
    """Whether an import is going on in a frame or in one that called it."""
    while frame is not None:
        if frame.f_globals.get("__name__") == "importlib._bootstrap":
            return True
        frame = frame.f_back
    return False


def _is_ours(number: int) -> bool:
    """Whether a signal has its default effect, or is recorded by an outer context of ours."""
    handler = signal.getsignal(number)
    return handler is signal.SIG_DFL or isinstance(getattr(handler, "__self__", None), StopSignals)

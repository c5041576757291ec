"""Standard output and error that nothing has to fear: what cannot be shown is lost, and nothing else.

A reader may leave (``| head``), a disk may be full, a terminal may close, and a program may have been started
without any of the three standard streams. No epoch is to be lost by that.

Importing this module does not import torch.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO, cast


class Shown:
    """A text stream whose methods never raise; all others are those of the stream.

    Args:
        stream: that is written to.
        is_nowhere: whether it stands for one that there is not.

    Attributes:
        loss: why something could not be written; None for nothing, or where its reader left.
    """

    def __init__(self, stream: TextIO, is_nowhere: bool = False) -> None:
        self.stream = stream
        self.is_nowhere = is_nowhere
        self.loss: OSError | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        """Write as much as can be written; always the length of the text."""
        try:
            self.stream.write(text)
        except UnicodeEncodeError:
            return self.write(text.encode("ascii", "backslashreplace").decode("ascii"))
        except (OSError, ValueError) as error:
            self._note(error)
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write one after another."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Pass on what was written."""
        try:
            self.stream.flush()
        except AttributeError:  # what a program has put in the stream's place may be able to write alone
            pass
        except (OSError, ValueError) as error:
            self._note(error)

    def isatty(self) -> bool:
        """Whether it is a terminal; no where nobody knows."""
        try:
            return self.stream.isatty()
        except (AttributeError, OSError, ValueError):
            return False

    def _note(self, error: OSError | ValueError) -> None:
        # A ValueError: the stream was closed. A reader that left, or is slow, has chosen so.
        if isinstance(error, OSError) and error.errno not in (errno.EPIPE, errno.EAGAIN):
            self.loss = self.loss or error

    def finish(self) -> None:
        """Pass on what is left; where that fails, let it go nowhere, as Python would complain at its exit."""
        self.flush()
        try:
            self.stream.flush()
        except AttributeError:
            pass
        except (OSError, ValueError):
            with suppress(OSError, ValueError), open(os.devnull, "w") as nowhere:
                os.dup2(nowhere.fileno(), self.stream.fileno())
                self.stream.flush()


@contextmanager
def shown() -> Iterator[tuple[Shown, Shown]]:
    """Context in which standard output and error, which it gives, never raise.

    One context may lie in another. Streams that are missing or closed go nowhere.
    """
    before = sys.stdout, sys.stderr
    out, err = (_shown(stream) for stream in before)
    sys.stdout, sys.stderr = cast(TextIO, out), cast(TextIO, err)
    try:
        yield out, err
    finally:
        sys.stdout, sys.stderr = before
        for stream in (out, err):
            if stream.is_nowhere and stream not in before:  # which is that of an outer context
                stream.close()


def _shown(stream: TextIO | Shown | None) -> Shown:
    if isinstance(stream, Shown):
        return stream
    if stream is None or getattr(stream, "closed", False):
        return Shown(open(os.devnull, "w"), is_nowhere=True)
    return Shown(stream)


def open_standard_descriptors() -> None:
    """Open those that the program was started without, so that no file of ours gets their numbers: what
    libraries print by themselves would be written into it."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free: this one

"""Standard output and error whose failures cost only the text that cannot be shown.

A reader may leave (``| head``), a disk may be full, a terminal may close, and a program may have been started
without any of the three standard streams. None of these must cost an epoch.

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
    """A text stream whose writing methods never raise; all other attributes are the stream's.

    Args:
        stream: the stream to write to.
        is_nowhere: whether it is a stand-in for a stream that does not exist.

    Attributes:
        loss: why something could not be written; None if everything was, or if the reader left.
    """

    def __init__(self, stream: TextIO, is_nowhere: bool = False) -> None:
        self.stream = stream
        self.is_nowhere = is_nowhere
        self.loss: OSError | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        """Write as much as possible; returns the length of the text."""
        try:
            self.stream.write(text)
        except UnicodeEncodeError:
            return self.write(text.encode("ascii", "backslashreplace").decode("ascii"))
        except (OSError, ValueError) as error:
            self._note(error)
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write lines one after another."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Flush the stream."""
        try:
            self.stream.flush()
        except AttributeError:  # a program's replacement of the stream may only have write()
            pass
        except (OSError, ValueError) as error:
            self._note(error)

    def isatty(self) -> bool:
        """Whether the stream is a terminal; False if unknown."""
        try:
            return self.stream.isatty()
        except (AttributeError, OSError, ValueError):
            return False

    def _note(self, error: OSError | ValueError) -> None:
        # A ValueError means that the stream was closed. A reader that left, or is slow, is no loss.
        if isinstance(error, OSError) and error.errno not in (errno.EPIPE, errno.EAGAIN):
            self.loss = self.loss or error

    def finish(self) -> None:
        """Flush the stream; if that fails, redirect it to the null device, so that Python exits quietly."""
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
def robust_streams() -> Iterator[tuple[Shown, Shown]]:
    """Context in which writing to standard output and error never raises.

    Contexts may be nested. Text for streams that are missing or closed is dropped.

    Yields:
        Standard output and standard error.
    """
    before = sys.stdout, sys.stderr
    out, err = (_shown(stream) for stream in before)
    sys.stdout, sys.stderr = cast(TextIO, out), cast(TextIO, err)
    try:
        yield out, err
    finally:
        sys.stdout, sys.stderr = before
        for stream in (out, err):
            if stream.is_nowhere and stream not in before:  # those before belong to an outer context
                stream.close()


def _shown(stream: TextIO | Shown | None) -> Shown:
    if isinstance(stream, Shown):
        return stream
    if stream is None or getattr(stream, "closed", False):
        return Shown(open(os.devnull, "w"), is_nowhere=True)
    return Shown(stream)


def open_standard_descriptors() -> None:
    """Open the standard descriptors that the program was started without.

    Otherwise one of our files would get such a number, and what libraries print would be written into it.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is this one

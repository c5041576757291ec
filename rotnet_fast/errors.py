"""Errors that a command reports as one sentence, each with its documented exit code.

Library code raises them; the commands print the message and exit with ``exit_code``. A message names the
argument, the value found and the remedy.
"""

from __future__ import annotations


def printable(text: str) -> str:
    """Escape the control characters of a text, so that no name from a data set can control a terminal."""
    return "".join(
        letter if letter.isprintable() or letter == "\n" else letter.encode("unicode_escape").decode()
        for letter in text
    )


class RotnetError(Exception):
    """Base class of all errors that a user can act on."""

    exit_code = 1


class ArgumentError(RotnetError, ValueError):
    """An option or argument has an invalid value."""

    exit_code = 2


class MissingLibraryError(RotnetError, ModuleNotFoundError):
    """A library is needed that is not installed."""


class DataError(RotnetError):
    """A data set is missing, incomplete or damaged."""

    exit_code = 3


class CheckpointError(RotnetError):
    """A checkpoint is missing, damaged or belongs to another configuration."""

    exit_code = 4


class NonFiniteError(RotnetError):
    """The loss became NaN or infinite."""

    exit_code = 5


def diverged(what: str) -> NonFiniteError:
    """Return the error of values that overflow in a trained network, such as its features."""
    return NonFiniteError(
        f"{what} are not finite, as those of a network that diverged; pretrain it again with a lower --lr"
    )


class OutOfMemoryError(RotnetError):
    """The device ran out of memory."""

    exit_code = 6


class CannotWriteError(RotnetError):
    """A file of the run folder could not be written (full disk, read-only file system, quota)."""

    exit_code = 7


class PeerLostError(RotnetError):
    """Another process of the same job died before its work was done."""

    exit_code = 8


class CaptureError(RotnetError):
    """A training step could not be captured in a CUDA graph; this process can no longer rely on the GPU."""

    exit_code = 9


class ElsewhereError(RotnetError):
    """Another process of the same job reports an error; this one exits silently with the same code.

    Args:
        exit_code: exit code of that error.
    """

    def __init__(self, exit_code: int) -> None:
        super().__init__("another process of this job met an error and reports it")
        self.exit_code = exit_code

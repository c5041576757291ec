"""How the command-line programs end: exit codes, and one sentence instead of a traceback.

0 done; 1 a library is missing, or `doctor` found something to fix; 2 arguments; 3 data; 4 checkpoint; 5
non-finite loss; 6 out of memory; 7 cannot write; 8 another process of the job ended; 9 a training step that
no CUDA graph can capture; 130 and 143 stopped by Ctrl-C and SIGTERM; 129, 138, 140 and 152 by SIGHUP,
SIGUSR1, SIGUSR2 and SIGXCPU. Anything else is a bug and shows its traceback.

Importing this module does not import torch.
"""

from __future__ import annotations

import errno
import io
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout

from rotnet_fast.dependencies import named_if_missing
from rotnet_fast.engine.distributed import is_main, is_under_torchrun
from rotnet_fast.engine.signals import Interrupted
from rotnet_fast.engine.streams import open_standard_descriptors, robust_streams
from rotnet_fast.errors import (
    ArgumentError,
    CannotWriteError,
    DataError,
    ElsewhereError,
    OutOfMemoryError,
    RotnetError,
    printable,
)
from rotnet_fast.files import cannot_read, cannot_write, is_out_of_descriptors
from rotnet_fast.memory import is_out_of_memory, reuse_freed_memory

_CANNOT_WRITE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)
"""From a library that writes by itself, such as TensorBoard."""

_CANNOT_USE = (errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR)
"""From looking at a path that an argument gave, and that the system does not even look up."""


def run_command(command: Callable[[], object], *, is_shown_only: bool = False) -> int:
    """Run the body of a command, before torch has been imported.

    A closed or full output stream does not end it, see `rotnet_fast.engine.streams`.

    Args:
        command: the body. If it returns a number, that is the exit code.
        is_shown_only: the command does nothing but print, so that it fails if its output is lost.

    Returns:
        The exit code. If it is not 0, a message has been printed to stderr.
    """
    open_standard_descriptors()
    # By default, OpenMP's threads spin while they wait for each other. Beside one other busy process,
    # that made a training step of two threads five times slower; sleeping costs microseconds.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if isinstance(sys.stdout, io.TextIOWrapper) and not sys.stdout.closed:
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr has it: names of files may be any bytes
    reuse_freed_memory()
    with robust_streams() as (out, err), _printed_warnings():
        try:
            code = _run(command)
            out.finish()
            if out.loss is not None and is_shown_only and code == 0:
                code = _fail(CannotWriteError(f"cannot write standard output: {_reason(out.loss)}"))
            elif out.loss is not None:
                print(f"WARNING: some of the output is lost: {_reason(out.loss)}", file=sys.stderr)
            return code
        finally:
            out.finish()
            err.finish()


@contextmanager
def _printed_warnings() -> Iterator[None]:
    """Context in which a command prints the package's warnings."""
    logger, handler = logging.getLogger("rotnet_fast"), _Warnings()
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


class _Warnings(logging.Handler):
    """Prints the package's warnings to the present sys.stderr, which may be silenced."""

    def emit(self, record: logging.LogRecord) -> None:
        print(printable(f"{record.levelname}: {record.getMessage()}"), file=sys.stderr)


def _reason(error: OSError) -> str:
    return error.strerror or str(error)


def _run(command: Callable[[], object]) -> int:
    """Exit code of a command, after a message where it is not 0."""
    try:
        with named_if_missing("this command"):
            code = command()
        return code if isinstance(code, int) else 0
    except ElsewhereError as error:
        return error.exit_code
    except RotnetError as error:
        return _fail(error)
    except Interrupted as interruption:
        if is_main():
            print(interruption, file=sys.stderr)
        return interruption.exit_code
    except KeyboardInterrupt:
        if is_main():
            print("stopped; what had been saved before is kept", file=sys.stderr)
        return 130
    except OSError as error:
        if is_out_of_descriptors(error):
            return _fail(DataError(cannot_read(str(error.filename or "a file"), error, "")))
        if error.errno in _CANNOT_USE and error.filename is not None:
            path, reason = os.fsdecode(error.filename), os.strerror(error.errno)
            return _fail(ArgumentError(f"{path} cannot be used: {reason}; give another path"))
        if error.errno not in _CANNOT_WRITE:
            raise
        return _fail(cannot_write(error.filename or "to the run folder", error))
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        said = str(error).partition("\n")[0]  # how much was asked for, or by what library
        said = f" ({said})" if said else ""
        return _fail(
            OutOfMemoryError(f"the device ran out of memory{said}; use a smaller --batch-size or --width")
        )


@contextmanager
def rank0_only() -> Iterator[None]:
    """Context for what all processes of a job do alike before they are connected: only rank 0 prints.

    Raises:
        ElsewhereError: in the other processes, in place of the error that rank 0 raises, too.
    """
    with silenced(not is_main()):
        try:
            yield
        except RotnetError as error:
            if is_main():
                raise
            raise ElsewhereError(error.exit_code) from error


@contextmanager
def silenced(is_silent: bool = True) -> Iterator[None]:
    """Context that discards prints and warnings, unless ``is_silent`` is False."""
    if not is_silent:
        yield
        return
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        yield


def announce(work: str) -> None:
    """Print what is about to happen, in rank 0 only, before torch is imported, which takes seconds.

    Args:
        work: as in ``evaluating runs/quickstart``.
    """
    if is_main():
        print(f"{work} ...", flush=True)


def program_as_started(program: str) -> str:
    """``python -m NAME``, with torchrun and its number of processes where that was used."""
    if not is_under_torchrun():
        return program
    local_world = os.environ.get("LOCAL_WORLD_SIZE", "1")
    return f"torchrun --nproc-per-node {local_world} {program.removeprefix('python ')}"


def _fail(error: RotnetError) -> int:
    print(f"error: {printable(str(error))}", file=sys.stderr)
    return error.exit_code

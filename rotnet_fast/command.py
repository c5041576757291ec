"""How the command-line programs end: exit codes, and one sentence instead of a traceback.

0 done; 2 arguments; 3 data; 4 checkpoint; 5 loss not finite; 6 out of memory; 7 cannot write;
130 and 143 stopped by Ctrl-C and SIGTERM. Anything else is a bug and shows its traceback.

Importing this module does not import torch.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable

from rotnet_fast.engine.atomic import cannot_write
from rotnet_fast.engine.signals import Interrupted
from rotnet_fast.errors import OutOfMemoryError, RotnetError

_CANNOT_WRITE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)
"""From a library that writes by itself, such as TensorBoard."""

_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")
"""What torch's RuntimeErrors say, on CUDA devices and on the CPU."""


def run_command(command: Callable[[], object]) -> int:
    """Run a program's body, which must not have imported torch before.

    Returns:
        The exit code; a message has been printed to stderr where it is not 0.
    """
    # By default, OpenMP's threads spin while they wait for each other. Beside one other busy process,
    # that made a training step of two threads five times slower; sleeping costs microseconds.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        command()
    except RotnetError as error:
        return _fail(error)
    except Interrupted as interruption:
        print(interruption, file=sys.stderr)
        return interruption.exit_code
    except KeyboardInterrupt:
        print("stopped; what had been saved before is kept", file=sys.stderr)
        return 130
    except OSError as error:
        if error.errno not in _CANNOT_WRITE:
            raise
        return _fail(cannot_write(error.filename or "to the run folder", error))
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not any(text in str(error) for text in _OUT_OF_MEMORY):
            raise
        return _fail(OutOfMemoryError("the device ran out of memory; use a smaller --batch-size or --width"))
    return 0


def _fail(error: RotnetError) -> int:
    print(f"error: {error}", file=sys.stderr)
    return error.exit_code

"""Memory of the process: reuse of freed memory, and recognition of errors that say there is none left.

Importing this module does not import torch.
"""

from __future__ import annotations

import ctypes
import os
import sys

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h

_OUT_OF_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "not enough memory",
    "allocation failed",
    "bad_alloc",
)
"""Parts of the messages of torch's RuntimeErrors, on CUDA devices and on the CPU, and of DALI's."""

_OUT_OF_MEMORY_IN_ONEDNN = "could not create a primitive"
"""The whole message of oneDNN if it gets no memory for a convolution; longer ones have other causes."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that the host or the device has no memory left."""
    said = str(error)
    is_said = said == _OUT_OF_MEMORY_IN_ONEDNN or any(text in said for text in _OUT_OF_MEMORY)
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and is_said)


def reuse_freed_memory() -> None:
    """Make the C library keep freed memory for the next allocation instead of returning it to the system.

    A training step on a CPU frees and allocates hundreds of megabytes, and the system zeroes every page that
    it hands out: a fifth of the step's time. After this call, the process keeps the most memory that it ever
    needed. Hundreds of small tensors that are kept from each batch would cost much more: they are put into
    the blocks just freed, which are then too small for the next batch.

    The call is a no-op if the C library is not glibc, or if the user has configured it.
    """
    is_set_up = any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ)
    if is_set_up or not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)

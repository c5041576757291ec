"""How the process treats memory that it has freed, and how it tells that there is none left.

Importing this module does not import torch.
"""

from __future__ import annotations

import ctypes
import os
import sys

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h

_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")
"""What torch's RuntimeErrors say, on CUDA devices and on the CPU."""

_OUT_OF_MEMORY_IN_ONEDNN = "could not create a primitive"
"""All that oneDNN says where it gets no memory for a convolution. Longer messages are of something else."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the host or the device has no memory left."""
    said = str(error)
    is_said = said == _OUT_OF_MEMORY_IN_ONEDNN or any(text in said for text in _OUT_OF_MEMORY)
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and is_said)


def reuse_freed_memory() -> None:
    """Let the C library keep what is freed for the next allocation, instead of giving it back to the system.

    A training step on a CPU frees and allocates hundreds of megabytes, and the system hands out every page
    anew and zeroed: a fifth of the step's time. The process then keeps the most memory that it ever needed.
    Nothing happens where the C library is not glibc, or where the user has set it up already.
    """
    is_set_up = any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ)
    if is_set_up or not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)

"""What differs between operating systems, in one place: Linux, macOS and Windows have different parts of it.

Importing this module does not import torch.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import IO, Any

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]
try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]


def _flags(*names: str) -> int:
    """Flags of os.open; those that the system does not know are left out."""
    return sum(getattr(os, name, 0) for name in names)


PLAIN_FILE = _flags("O_NONBLOCK", "O_CLOEXEC", "O_BINARY")
"""Flags of a file that is neither inherited nor waited for: opening a FIFO would wait for its other end."""

NO_LINK = _flags("O_NOFOLLOW")
"""Flag that refuses a symbolic link."""

HAS_FOLDER_DESCRIPTORS = os.open in os.supports_dir_fd and hasattr(os, "O_DIRECTORY")
"""Whether a folder can be opened, and files within it by its descriptor; Windows has paths alone."""

LISTED_FOLDER = _flags("O_DIRECTORY", "O_NOFOLLOW", "O_CLOEXEC", "O_RDONLY")
"""Flags of a folder whose descriptor can be flushed."""

PASSED_FOLDER = _flags("O_DIRECTORY", "O_NOFOLLOW", "O_CLOEXEC", "O_PATH")
"""Flags of a folder to pass through, which does not take the right to list it where there is O_PATH."""

_LOCKED_BYTE = 1 << 30
"""Windows locks bytes, and nobody else can read them: this one lies behind the end of every lock file."""

MEMINFO = Path("/proc/meminfo")
"""Where Linux tells of its memory."""

_seeking = threading.Lock()


def available_cores() -> int:
    """Return the number of cores that this process may use, given its affinity and its container's quota."""
    try:
        import joblib
    except ImportError:  # which knows of quotas, and which the op and backbones do without
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    cores: int = joblib.cpu_count()
    return cores


def most_open_files() -> tuple[int, int | None]:
    """Return how many files this process may open, and to what it may raise that; None: without limit."""
    if resource is None:
        return 8192, 8192  # of the C library of Windows
    limit, most = (
        None if value == resource.RLIM_INFINITY else value
        for value in resource.getrlimit(resource.RLIMIT_NOFILE)
    )
    return 1 << 20 if limit is None else limit, most


def waits_for_memory() -> int:
    """Return how often this process had to wait for memory to be read from a disk; 0 if nobody counts."""
    return 0 if resource is None else resource.getrusage(resource.RUSAGE_SELF).ru_majflt


def lock(file: IO[Any]) -> bool:
    """Try to lock a file, until it is closed or its process ends; return False if another holder has it.

    Raises:
        OSError: the file system has no locks.
    """
    try:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        else:
            import msvcrt

            place = file.tell()
            file.seek(_LOCKED_BYTE)
            try:
                msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined, unused-ignore]
            finally:
                file.seek(place)
    except (BlockingIOError, PermissionError):  # of Linux and macOS, and of Windows
        return False
    return True


def available_memory() -> int | None:
    """Return how many bytes of memory the system has left, None where it does not say."""
    if MEMINFO.exists():
        for line in MEMINFO.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    if hasattr(os, "sysconf"):  # of macOS, which tells of all memory alone
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    return None


def read_at(descriptor: int, count: int, offset: int) -> bytes:
    """Read ``count`` bytes at an offset of a file that several threads may read at once.

    Returns:
        Fewer bytes at the end of the file alone: a network folder may need several requests.

    Raises:
        OSError: the file cannot be read.
    """
    content = read_once(descriptor, count, offset)
    while len(content) < count and (
        more := read_once(descriptor, count - len(content), offset + len(content))
    ):
        content += more
    return content


def read_once(descriptor: int, count: int, offset: int) -> bytes:
    """Read like :func:`read_at` by one request, which may return less than there is.

    Raises:
        OSError: the file cannot be read.
    """
    if hasattr(os, "pread"):
        return os.pread(descriptor, count, offset)
    with _seeking:
        os.lseek(descriptor, offset, os.SEEK_SET)
        return os.read(descriptor, count)

"""Runs a module of the package on this machine as far as possible as on another operating system.

    python tests/support/other_system.py windows|macos MODULE [ARGUMENT ...]

What the other system's Python lacks is taken away before anything else is imported. Modules are missing, and
there, for this package alone: others import what ``sys.platform`` says, which stays what it is.
"""

from __future__ import annotations

import builtins
import errno
import fcntl
import importlib
import os
import signal
import sys
import types
from typing import Any

LACKS = {
    "macos": (["O_PATH", "O_DIRECT", "O_TMPFILE", "sched_getaffinity", "posix_fadvise", "memfd_create"], []),
    "windows": (
        [
            *("O_DIRECTORY", "O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_PATH", "O_DIRECT", "O_TMPFILE"),
            *("pread", "pwrite", "preadv", "posix_fadvise", "sched_getaffinity", "fchmod", "getpgid"),
            *("killpg", "setsid", "memfd_create", "statvfs", "nice"),
        ],
        [
            *("SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU", "SIGKILL", "SIGALRM", "SIGSTOP", "SIGCONT"),
            "setitimer",
        ],
    ),
}
"""Attributes of os, and of signal."""

UNIX_MODULES = ("fcntl", "resource", "termios", "pwd", "grp", "pty", "tty")


def become(system: str) -> None:
    """Take away what a system lacks."""
    for module, names in zip((os, signal), LACKS[system], strict=True):
        for name in names:
            if hasattr(module, name):
                delattr(module, name)
    missing, added = {"nvidia.dali"}, {}
    if system == "windows":
        missing |= set(UNIX_MODULES)
        os.supports_dir_fd.clear()
        os.supports_follow_symlinks.discard(os.link)
        os.open = without_folders(os.open)  # type: ignore[assignment]
        added["msvcrt"] = msvcrt()
    real_import = builtins.__import__

    def import_(name: str, globals: Any = None, *others: Any, **named: Any) -> Any:
        importer = (globals or {}).get("__name__", "")
        if importer.startswith("rotnet_fast"):
            if name in missing:
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)
            if name in added:
                return added[name]
        return real_import(name, globals, *others, **named)

    builtins.__import__ = import_


def without_folders(real_open: Any) -> Any:
    def open_(path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        if dir_fd is not None:
            raise NotImplementedError("dir_fd unavailable on this platform")
        if os.path.isdir(path):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return real_open(path, flags, mode)

    return open_


def msvcrt() -> types.ModuleType:
    """The module by which Windows locks bytes, at the position of the descriptor."""
    found = types.ModuleType("msvcrt")

    def locking(descriptor: int, mode: int, count: int) -> None:
        assert mode == found.LK_NBLCK
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, count, 0, os.SEEK_CUR)

    found.LK_NBLCK, found.locking = 2, locking  # type: ignore[attr-defined]
    return found


if __name__ == "__main__":
    become(sys.argv[1])
    sys.exit(importlib.import_module(sys.argv[2]).main(sys.argv[3:]))

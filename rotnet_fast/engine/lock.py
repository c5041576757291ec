"""Locks that the system releases when their holder ends, however it ends.

Importing this module does not import torch.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from rotnet_fast.engine.atomic import cannot_write
from rotnet_fast.files import open_to_append


class FileLock:
    """A lock on a file, held by one process at a time.

    Works between processes, and between machines where the file system passes locks on (local disks
    and NFS 4 do).

    Args:
        path: file to make where it is missing; it names its holder's process while it is held. A symbolic
            link there is refused.

    Raises:
        CannotWriteError: the file cannot be made.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._file = os.fdopen(open_to_append(path), "a+")
        except OSError as error:
            raise cannot_write(path, error) from error

    def take(self) -> bool:
        """Whether the lock is ours now; does not wait for another holder.

        A file that its last holder has removed, with the folder that it lay in, is not a lock any more.

        Raises:
            CannotWriteError: the file system has no locks.
        """
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            raise cannot_write(self._path, error) from error
        try:
            is_in_place = os.path.samestat(os.fstat(self._file.fileno()), os.lstat(self._path))
        except FileNotFoundError:
            is_in_place = False
        if not is_in_place:
            return False
        self._file.truncate(0)
        self._file.write(f"{os.getpid()}\n")
        self._file.flush()
        return True

    def holder(self) -> str:
        """Process that holds the lock, as text."""
        self._file.seek(0)
        return self._file.read().strip()

    def close(self) -> None:
        """Give the lock back."""
        self._file.close()

"""Files that are either whole or not there."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Write a file under a temporary name in the same folder and give it its own name when it is whole.

    Whatever ends the block early (an error, Ctrl-C) leaves the old file, or none, and no partial one.

    Args:
        path: the file to make or replace; its folder is made where it is missing.

    Yields:
        The temporary file, open for writing.

    Raises:
        OSError: the folder or file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(8)}.part")
    try:
        # Not tempfile.mkstemp: its files are readable by their owner alone, and data folders are shared.
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)

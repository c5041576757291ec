"""On-disk cache of what is known about a data folder, so that only the first run has to find it out.

Each entry has two files: ``<name>.npy``, an array, and ``<name>.json``, a manifest with a hash of the
folder's listing and the SHA-256 of the array file. An entry that does not match both is rebuilt, so that
neither an altered folder nor a damaged file goes unnoticed. An entry whose array has the wrong dtype or shape
is rejected whatever its hash, because data folders come from anywhere; nothing is ever unpickled. The names
are ``<size>px``, the decoded images; ``<size>px-limited``, those that a limit keeps; ``scan``, the result of
checking each file, keyed by its name, size and modification time; ``index`` and ``index-names``, where images
lie in tar shards, and ``index-others``, what else the shards contain.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import warnings
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from rotnet_fast.files import make_folder, open_plain, replacing, resolve_path

FOLDER_NAME = ".rotnet_fast_cache"
_CHUNK_BYTES = 1 << 22
_MANIFEST_BYTES = 1 << 12


def cache_places(data_dir: Path) -> list[Path]:
    """Return the folders that may hold the cache of a data folder, in the order in which they are tried.

    The first is in the data folder itself. If that is read-only, the cache goes to the user's cache folder
    ($XDG_CACHE_HOME/rotnet_fast, or ~/.cache/rotnet_fast), with one subfolder per data folder.
    """
    resolved = data_dir.resolve()
    inside = resolve_path(data_dir) / FOLDER_NAME
    user_cache = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not user_cache.is_absolute():
        try:
            user_cache = Path.home() / ".cache"
        except RuntimeError:  # some containers have users without a home
            return [inside]
    key = hashlib.sha256(os.fsencode(resolved)).hexdigest()[:16]
    return [
        inside,
        resolve_path(user_cache / "rotnet_fast") / f"{resolved.name}-{key}",
    ]


def read_cache(
    places: list[Path], name: str, listing: str, dtype: npt.DTypeLike, shape: tuple[int | None, ...]
) -> npt.NDArray[Any] | None:
    """Return the cached array of this name, or None if it is damaged or was made from another listing.

    Args:
        dtype, shape: required dtype and shape; None in the shape matches any length.
    """
    for place in places:
        data, manifest = _names(place, name)
        try:
            with open(manifest, "rb", opener=_open_plain) as file:
                known = json.loads(file.read(_MANIFEST_BYTES))
            if known["listing"] != listing:
                continue
            with open(data, "rb", opener=_open_plain) as file:
                if known["sha256"] == _sha256(file):
                    file.seek(0)
                    return read_array(file, np.dtype(dtype), shape)
        except (OSError, ValueError, KeyError, TypeError, MemoryError, RecursionError):
            continue  # absent, unreadable or malformed: the same as no cache
    return None


def read_array(file: BinaryIO, dtype: np.dtype[Any], shape: tuple[int | None, ...]) -> npt.NDArray[Any]:
    """Read what np.save wrote, without np.load, which allocates whatever the file's header claims.

    Args:
        file: a file on a disk, at its start.
        dtype, shape: required dtype and shape; None in the shape matches any length.

    Raises:
        ValueError: the file holds no array, or one of another dtype or shape.
    """
    try:
        if np.lib.format.read_magic(file) != (1, 0):
            raise ValueError("the array file has another version")
        found, is_fortran, kind = np.lib.format.read_array_header_1_0(file)
    except Exception as error:  # numpy raises many types on damaged headers
        raise ValueError("the file is not an array") from error
    fits = len(found) == len(shape) and all(b in (None, a) for a, b in zip(found, shape, strict=True))
    count = math.prod(found)
    size = os.fstat(file.fileno()).st_size - file.tell()
    if is_fortran or kind != dtype or not fits or size != count * dtype.itemsize:
        raise ValueError("the array has another dtype, shape or size")
    return np.fromfile(file, dtype, count).reshape(found)


def write_cache(places: list[Path], name: str, listing: str, array: npt.NDArray[Any], what: str) -> None:
    """Write an array to the first writable place, and warn if there is none.

    Args:
        what: description of the array's contents for the warning.
    """
    for place in places:
        data, manifest = _names(place, name)
        try:
            make_folder(place)
            with replacing(data, is_shared=True) as file:
                np.save(file, array, allow_pickle=False)
                file.seek(0)
                digest = _sha256(file)  # before another process can put its own in this place
            # The manifest is written last: a crash in between leaves one whose hash does not match.
            with replacing(manifest, is_shared=True) as file:
                file.write(json.dumps({"listing": listing, "sha256": digest}).encode())
            return
        except OSError as error:
            problem = error
    warnings.warn(f"cannot cache {what} ({problem}); the next run will recompute them", stacklevel=2)


def write_text(places: Sequence[Path], name: str, text: str) -> Path | None:
    """Write a text for the user to the first writable place and return its path, or None if there is none."""
    for place in places:
        with suppress(OSError):
            make_folder(place)
            with replacing(place / name, is_shared=True) as file:
                file.write(text.encode())
            return place / name
    return None


def _names(place: Path, name: str) -> tuple[Path, Path]:
    return place / f"{name}.npy", place / f"{name}.json"


def _open_plain(path: str, _: int) -> int:
    return open_plain(path)


def _sha256(file: BinaryIO) -> str:
    digest = hashlib.sha256()
    while chunk := file.read(_CHUNK_BYTES):
        digest.update(chunk)
    return digest.hexdigest()

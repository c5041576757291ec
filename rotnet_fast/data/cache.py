"""What is known of a data folder, kept on disk so that only the first run has to find it out.

Two files: ``<name>.npy``, an array, and ``<name>.json``, what it was made from (a hash of the folder's
listing) and the SHA-256 of the first file. A cache that does not match on both counts is not used but made
again, so that neither an altered folder nor a damaged file goes unnoticed. The names: ``<size>px``, the
decoded images; ``scan``, what their headers say; ``index`` and ``index-names``, where they lie in tar shards.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rotnet_fast.files import followed, make_folder, replacing

FOLDER_NAME = ".rotnet_fast_cache"
_CHUNK_BYTES = 1 << 22


def cache_places(data_dir: Path) -> list[Path]:
    """Folders that may hold the cache of a data folder, in the order in which they are tried.

    In the data folder itself; where that is read-only, in the user's cache folder
    ($XDG_CACHE_HOME/rotnet_fast, or ~/.cache/rotnet_fast), one sub-folder per data folder.
    """
    resolved = data_dir.resolve()
    configured = Path(os.environ.get("XDG_CACHE_HOME", ""))
    user_cache = configured if configured.is_absolute() else Path.home() / ".cache"
    key = hashlib.sha256(os.fsencode(resolved)).hexdigest()[:16]
    return [followed(data_dir) / FOLDER_NAME, followed(user_cache / "rotnet_fast") / f"{resolved.name}-{key}"]


def read_cache(places: list[Path], name: str, listing: str) -> npt.NDArray[Any] | None:
    """The array of this name, made from this very listing and undamaged, or None."""
    for place in places:
        data, manifest = _names(place, name)
        try:
            known = json.loads(manifest.read_text(encoding="utf-8"))
            if known["listing"] == listing and known["sha256"] == _file_sha256(data):
                array: npt.NDArray[Any] = np.load(data, allow_pickle=False)
                return array
        except (OSError, ValueError, KeyError, TypeError):
            continue  # absent, unreadable, or a manifest that is not one: as good as no cache
    return None


def write_cache(places: list[Path], name: str, listing: str, array: npt.NDArray[Any], what: str) -> None:
    """Keep an array in the first place that can be written; warn where none can.

    Args:
        what: the array holds, for the warning.
    """
    for place in places:
        data, manifest = _names(place, name)
        try:
            make_folder(place)
            with replacing(data, is_shared=True) as file:
                np.save(file, array, allow_pickle=False)
            # Written last: a crash in between leaves a manifest whose hash does not match.
            with replacing(manifest, is_shared=True) as file:
                file.write(json.dumps({"listing": listing, "sha256": _file_sha256(data)}).encode())
            return
        except OSError as error:
            problem = error
    warnings.warn(f"{what} cannot be kept ({problem}); the next run will make them again", stacklevel=2)


def _names(place: Path, name: str) -> tuple[Path, Path]:
    return place / f"{name}.npy", place / f"{name}.json"


def _file_sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()

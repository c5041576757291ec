"""List of the images that a run uses, kept in its folder to report later which of them have changed."""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rotnet_fast.data.datasets import Dataset
from rotnet_fast.data.split import AnySplit, EncodedSplit
from rotnet_fast.errors import printable
from rotnet_fast.files import write_atomically
from rotnet_fast.plain import counted

_SHOWN = 5
_DIGEST_BYTES = 8  # per image: enough to notice that its contents changed


def pack(files: Sequence[EncodedSplit]) -> bytes:
    """Return the split, name, label and digest of each image as compressed JSON.

    Args:
        files: the training split and, unless there is one split alone, the test split.
    """
    return gzip.compress(json.dumps(list(_images(files))).encode(), mtime=0)


def _images(files: Sequence[EncodedSplit]) -> Iterator[tuple[str, str, int, str]]:
    for half, split in zip(("train", "test"), files, strict=False):
        labels = split.labels.tolist()
        for index in range(len(split)):
            digest = "" if split.contents is None else split.contents[index].tobytes()[:_DIGEST_BYTES].hex()
            yield half, split.source.relative_name(index), labels[index], digest


def changes(packed: bytes, files: Sequence[EncodedSplit]) -> dict[str, list[str]]:
    """Compare a list with the current images and return a map from kind of change to sorted names.

    Args:
        packed: the list, from :func:`pack`.
        files: the current images.

    Raises:
        ValueError: ``packed`` is not such a list.
    """
    try:
        listed = json.loads(gzip.decompress(packed))
        before = {name: (half, label, digest) for half, name, label, digest in listed}
    except (OSError, EOFError, zlib.error, TypeError) as error:
        raise ValueError("not a list of images") from error
    now = {name: (half, label, digest) for half, name, label, digest in _images(files)}
    both = sorted(before.keys() & now.keys())
    found = {
        "removed": sorted(before.keys() - now.keys()),
        "added": sorted(now.keys() - before.keys()),
        "with changed contents": [name for name in both if before[name][2] != now[name][2]],
        "moved to the other split": [name for name in both if before[name][0] != now[name][0]],
        "with another label": [name for name in both if before[name][1] != now[name][1]],
    }
    return {kind: names for kind, names in found.items() if names}


def told(found: dict[str, list[str]]) -> str:
    """Describe the changes in a phrase, with the first names of each kind."""
    parts = []
    for kind, names in found.items():
        more = f" and {counted(len(names) - _SHOWN, 'other')}" if len(names) > _SHOWN else ""
        parts.append(f"{len(names)} {kind} ({', '.join(names[:_SHOWN])}{more})")
    return ", ".join(parts)


def is_told_in_full(found: dict[str, list[str]]) -> bool:
    """Return whether :func:`told` names all of the changes."""
    return all(len(names) <= _SHOWN for names in found.values())


def keep(run: Path, dataset: Dataset[AnySplit]) -> None:
    """Record the files that a run trains on; earlier lists, of other images, stay."""
    path = run / file_name(dataset.identity())
    if dataset.files is not None and not path.exists():
        write_atomically(path, pack(dataset.files))


def what_changed(saved: Mapping[str, Any], dataset: Dataset[AnySplit], origin: Path, run: Path) -> str:
    """Say which images have changed, as the end of a sentence; empty if that is unknown.

    Args:
        saved: what a checkpoint says of its data, among others.
        dataset: the images as they are now.
        origin: folder of the run that the checkpoint comes from.
        run: folder in which to list what has changed, if that is too much for a sentence.
    """
    if dataset.files is None:
        return ""
    try:
        found = changes((origin / file_name(saved)).read_bytes(), dataset.files)
    except (OSError, ValueError):
        return ""
    sentence = told(found)
    if sentence and not is_told_in_full(found):
        path = run / "changed-images.txt"
        lines = [f"{kind}: {printable(name)}" for kind, names in found.items() for name in names]
        write_atomically(path, "".join(f"{line}\n" for line in lines).encode())
        sentence += f"; {path} lists all of them"
    return f": {sentence}" if sentence else ""


def file_name(identity: Mapping[str, Any]) -> str:
    """Return the file name of the list of images that a checkpoint identifies."""
    known = f"{identity.get('data_fingerprint')} {identity.get('data_contents')}"
    return f"images-{hashlib.sha256(known.encode()).hexdigest()[:12]}.json.gz"

"""Which images a run is on, kept in its folder, so that it can be said later which of them have changed."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator

from rotnet_fast.data.split import EncodedSplit

Halves = tuple[EncodedSplit, EncodedSplit]

_SHOWN = 5
_DIGEST_BYTES = 8  # of each image: enough to tell that it is another one


def pack(files: Halves) -> bytes:
    """Half, name, label and a digest of each image, as compressed JSON."""
    return gzip.compress(json.dumps(list(_images(files))).encode(), mtime=0)


def _images(files: Halves) -> Iterator[tuple[str, str, int, str]]:
    for half, split in zip(("train", "test"), files, strict=True):
        labels = split.labels.tolist()
        for index in range(len(split)):
            digest = "" if split.contents is None else split.contents[index].tobytes()[:_DIGEST_BYTES].hex()
            yield half, split.source.relative_name(index), labels[index], digest


def changes(packed: bytes, files: Halves) -> dict[str, list[str]]:
    """What became of the images of a list: kind of change -> names, in order.

    Args:
        packed: the list, from :func:`pack`.
        files: the images that are there now.

    Raises:
        ValueError: it is no such list.
    """
    try:
        listed = json.loads(gzip.decompress(packed))
        before = {name: (half, label, digest) for half, name, label, digest in listed}
    except (OSError, EOFError, TypeError) as error:
        raise ValueError("no list of images") from error
    now = {name: (half, label, digest) for half, name, label, digest in _images(files)}
    both = sorted(before.keys() & now.keys())
    found = {
        "removed": sorted(before.keys() - now.keys()),
        "added": sorted(now.keys() - before.keys()),
        "with other contents": [name for name in both if before[name][2] != now[name][2]],
        "in the other half": [name for name in both if before[name][0] != now[name][0]],
        "with another label": [name for name in both if before[name][1] != now[name][1]],
    }
    return {kind: names for kind, names in found.items() if names}


def told(found: dict[str, list[str]]) -> str:
    """The changes in half a sentence, with the first names of each kind."""
    parts = []
    for kind, names in found.items():
        more = f" and {len(names) - _SHOWN} others" if len(names) > _SHOWN else ""
        parts.append(f"{len(names)} {kind} ({', '.join(names[:_SHOWN])}{more})")
    return ", ".join(parts)


def is_told_in_full(found: dict[str, list[str]]) -> bool:
    """Whether :func:`told` names all of them."""
    return all(len(names) <= _SHOWN for names in found.values())

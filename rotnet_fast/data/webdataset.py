"""Index the images and labels in WebDataset tar shards.

A sample consists of all members of a shard that share their name up to the first dot of its last part: one
image (with a suffix in :mod:`rotnet_fast.data.kinds`) and, optionally, its label (.cls, an integer as text);
other members are ignored and counted. Shards are never unpacked: an image is a byte range of a file. An index
of NVIDIA's wds2idx next to a shard (.idx) is not used: verifying that it is complete would take reading all
headers, which yields the index anyway.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from rotnet_fast.data.cache import read_cache, write_cache
from rotnet_fast.data.ignored import IgnoredFiles
from rotnet_fast.data.kinds import IMAGE_SUFFIXES, SUFFIXES_TEXT
from rotnet_fast.data.source import TarSource
from rotnet_fast.data.tar import Member, list_members
from rotnet_fast.errors import DataError
from rotnet_fast.files import cannot_read, open_plain
from rotnet_fast.progress import CountingLine
from rotnet_fast.system import read_at

DOTTED = "images with a dot in their names, which WebDataset cuts off at the first dot: rename them"
_FORMAT = "3"  # increment it when the same shards would be indexed differently
_MOST_CLASSES = 1_000_000  # names of all classes are kept, and a wrong number must not fill the memory
_NO_LABEL = -1


@dataclass(frozen=True)
class Index:
    """Hold the index of some shards.

    Attributes:
        source: all images, shard by shard, in file order.
        labels: int64 [N], or None if no sample has a label.
        ignored: all other members.
    """

    source: TarSource
    labels: npt.NDArray[np.int64] | None
    ignored: IgnoredFiles


def index_shards(
    root: str,
    shards: Sequence[str],
    digest: str,
    places: list[Path],
    progress: bool,
    times: Sequence[int] | None = None,
) -> Index:
    """Index the images of some shards and their labels.

    Args:
        root: the data folder.
        shards: paths of uncompressed tar files.
        digest: digest of the shards' listing.
        places: folders for the result, see :mod:`rotnet_fast.data.cache`.
        progress: show a progress bar.
        times: modification times of the shards, see :class:`rotnet_fast.data.source.TarSource`.

    Raises:
        DataError: a shard is damaged or truncated, or a sample has two images, a label that is not an
            integer, or no label while others have one.
    """
    key = f"{_FORMAT}-{digest}"
    table = read_cache(places, "index", key, np.int64, (None, 4))
    names, ignored = _unpacked(read_cache(places, "index-names", key, np.uint8, (None,)))
    if table is None or len(names) != len(table) or not _is_index(table, len(shards)):
        rows: list[tuple[int, int, int, int]] = []
        names, ignored = [], IgnoredFiles()
        with CountingLine("indexing", len(shards), "shards", progress) as line:
            for number, shard in enumerate(shards):
                for image, label in _read_shard(shard, ignored):
                    rows.append((number, image.offset, image.size, label))
                    names.append(image.name)
                line.count(1)
        if not rows:
            but = f", but {ignored}" if ignored else ""
            raise DataError(f"the shards of {root} hold no images ({SUFFIXES_TEXT}){but}; add some")
        table = np.array(rows, dtype=np.int64)
        packed = np.frombuffer(json.dumps([names, ignored.found]).encode(), dtype=np.uint8)
        write_cache(places, "index", key, table, "the index of the shards")
        write_cache(places, "index-names", key, packed, "the index of the shards")
    numbers, offsets, sizes, labels = table.T
    full_names = [f"{shards[number]}/{name}" for number, name in zip(numbers.tolist(), names, strict=True)]
    without = np.flatnonzero(labels == _NO_LABEL)
    if 0 < len(without) < len(labels):
        raise DataError(
            f"{full_names[without[0]]} has no label (.cls), but other samples have one; label all samples "
            f"of all shards, or none"
        )
    source = TarSource(root, full_names, sizes.copy(), shards, numbers.copy(), offsets.copy(), times)
    return Index(source, labels.copy() if len(without) == 0 else None, ignored)


def _unpacked(packed: npt.NDArray[np.uint8] | None) -> tuple[list[str], IgnoredFiles]:
    """Read image names and ignored members from the cache; both are empty if its contents are invalid."""
    try:
        names, found = [[], {}] if packed is None else json.loads(packed.tobytes())
        ignored = IgnoredFiles({str(kind): (int(count), str(name)) for kind, (count, name) in found.items()})
    except (ValueError, TypeError, AttributeError, RecursionError):
        return [], IgnoredFiles()
    is_list = isinstance(names, list) and all(isinstance(name, str) for name in names)
    return (names if is_list else []), ignored


def _is_index(table: npt.NDArray[np.int64], shards: int) -> bool:
    """Return whether the rows of a table are valid byte ranges in this number of shards, and labels."""
    return len(table) > 0 and bool(
        ((table >= (0, 0, 0, _NO_LABEL)) & (table < (shards, 2**62, 2**62, _MOST_CLASSES))).all()
    )


def _read_shard(shard: str, ignored: IgnoredFiles) -> Iterator[tuple[Member, int]]:
    """Yield the images and labels of one shard, in file order."""
    try:
        with open(shard, "rb", opener=_open_plain) as file:
            yield from _samples(shard, file, list_members(file), ignored)
    except OSError as error:
        raise DataError(cannot_read(shard, error, "create or fetch it again, or remove it")) from error


def _open_plain(path: str, _: int) -> int:
    return open_plain(path)


def _samples(
    shard: str, file: BinaryIO, members: list[Member], ignored: IgnoredFiles
) -> Iterator[tuple[Member, int]]:
    images: dict[str, Member] = {}
    labels: dict[str, Member] = {}
    dotted: list[tuple[str, str]] = []
    for member in members:
        place = f"{os.path.basename(shard)}/{member.name}"
        if member.is_link:
            ignored.add("links", place)
            continue
        folder, _, base = member.name.rpartition("/")
        stem, dot, extension = base.partition(".")
        sample = f"{folder}/{stem}"
        if stem and dot + extension.lower() in IMAGE_SUFFIXES:
            found = images
        elif stem and extension.lower() == "cls":
            found = labels
        else:
            if stem and extension.lower().endswith(IMAGE_SUFFIXES):
                dotted.append((sample, place))
            else:
                ignored.add_file(place)
            continue
        if sample in found:
            raise DataError(
                f"{shard} holds {found[sample].name} and {member.name}, two of one kind for one sample; "
                f"give each sample its own name"
            )
        found[sample] = member
    for sample, place in dotted:  # for example a mask next to the image, or an image that would be lost
        ignored.add("further images of samples" if sample in images else DOTTED, place)
    for sample, image in images.items():
        yield image, _label(shard, file, labels[sample]) if sample in labels else _NO_LABEL


def _label(shard: str, file: BinaryIO, member: Member) -> int:
    text = read_at(file.fileno(), min(member.size, 32), member.offset).strip()
    if not text.isdigit() or member.size > 32 or int(text) >= _MOST_CLASSES:
        raise DataError(
            f"{shard}/{member.name} holds {text.decode(errors='replace')!r}; a label must be an integer in "
            f"[0, {_MOST_CLASSES - 1}]"
        )
    return int(text)

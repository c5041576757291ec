"""Where images and labels lie in WebDataset tar shards.

A sample is all members of a shard that share their name up to the first dot of its last part: one image
(.jpg, .jpeg or .png) and, optionally, its label (.cls, a whole number as text); other members are passed
over. Nothing is ever unpacked: an image is a place in a file.
"""

from __future__ import annotations

import json
import os
import tarfile
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from rotnet_fast.data.cache import read_cache, write_cache
from rotnet_fast.data.source import TarSource
from rotnet_fast.errors import DataError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
_FORMAT = "1"  # raise it when the same shards would be indexed otherwise
_BLOCK = 512
_MOST_CLASSES = 1_000_000  # names of all classes are kept, and a wrong number should not fill the memory
_NO_LABEL = -1


@dataclass(frozen=True)
class _Member:
    """A file inside a shard: its name and where its bytes lie."""

    name: str
    offset: int
    size: int


def index_shards(
    root: str, shards: Sequence[str], digest: str, places: list[Path], progress: bool
) -> tuple[TarSource, npt.NDArray[np.int64] | None]:
    """All images of some shards, shard after shard, in file order, and their labels.

    Args:
        root: the data folder.
        shards: paths of uncompressed tar files.
        digest: of the shards' listing.
        places: for the result, see :mod:`rotnet_fast.data.cache`.
        progress: show a progress bar.

    Returns:
        The images, and labels int64 [N], or None where no sample has one.

    Raises:
        DataError: a shard is damaged or cut off, or a sample has two images, a label that is no whole number,
            or none while others have one.
    """
    key = f"{_FORMAT}-{digest}"
    table, packed = read_cache(places, "index", key), read_cache(places, "index-names", key)
    if table is None or packed is None:
        rows: list[tuple[int, int, int, int]] = []
        names: list[str] = []
        for number, shard in enumerate(tqdm(shards, unit="shard", desc="indexing", disable=not progress)):
            for image, label in _read_shard(shard):
                rows.append((number, image.offset, image.size, label))
                names.append(image.name)
        if not rows:
            raise DataError(f"the shards of {root} hold no members named .jpg, .jpeg or .png; add some")
        table = np.array(rows, dtype=np.int64)
        packed = np.frombuffer(json.dumps(names).encode(), dtype=np.uint8)
        write_cache(places, "index", key, table, "the index of the shards")
        write_cache(places, "index-names", key, packed, "the index of the shards")
    else:
        names = json.loads(packed.tobytes())
    numbers, offsets, sizes, labels = table.T
    full_names = [f"{shards[number]}/{name}" for number, name in zip(numbers.tolist(), names, strict=True)]
    without = np.flatnonzero(labels == _NO_LABEL)
    if 0 < len(without) < len(labels):
        raise DataError(
            f"{full_names[without[0]]} has no label (.cls), but other samples have one; give all samples "
            f"of all shards a label, or none"
        )
    source = TarSource(root, full_names, sizes.copy(), shards, numbers.copy(), offsets.copy())
    return source, labels.copy() if len(without) == 0 else None


def index_file(shard: str) -> str:
    """Where NVIDIA's wds2idx writes the index of a shard, unless told otherwise."""
    folder, name = os.path.split(shard)
    return os.path.join(folder, name.partition(".")[0] + ".idx")


def _read_shard(shard: str) -> Iterator[tuple[_Member, int]]:
    """Images and labels of one shard, in file order."""
    try:
        with open(shard, "rb") as file:
            members = _read_index(shard, file)
            if members is None:
                members = _walk(file)
            yield from _samples(shard, file, members)
    except (OSError, tarfile.TarError, ValueError, OverflowError) as error:
        raise DataError(
            f"{shard} cannot be read as a tar shard ({error}); make or fetch it anew, or remove it"
        ) from error


def _samples(shard: str, file: BinaryIO, members: list[_Member]) -> Iterator[tuple[_Member, int]]:
    images: dict[str, _Member] = {}
    labels: dict[str, _Member] = {}
    for member in members:
        folder, _, base = member.name.rpartition("/")
        stem, dot, extension = base.partition(".")
        if not stem:
            continue  # a dot file
        sample = f"{folder}/{stem}"
        if dot + extension.lower() in IMAGE_SUFFIXES:
            found = images
        elif extension.lower() == "cls":
            found = labels
        else:
            continue
        if sample in found:
            raise DataError(
                f"{shard} holds {found[sample].name} and {member.name}, two of one kind for one sample; "
                f"give each sample a name of its own"
            )
        found[sample] = member
    for sample, image in images.items():
        yield image, _label(shard, file, labels[sample]) if sample in labels else _NO_LABEL


def _label(shard: str, file: BinaryIO, member: _Member) -> int:
    text = os.pread(file.fileno(), min(member.size, 32), member.offset).strip()
    if not text.isdigit() or member.size > 32 or int(text) >= _MOST_CLASSES:
        raise DataError(
            f"{shard}/{member.name} holds {text.decode(errors='replace')!r}; a label is a whole number "
            f"from 0 to {_MOST_CLASSES - 1}"
        )
    return int(text)


def _walk(file: BinaryIO) -> list[_Member]:
    """Every file of a shard, from the headers; hard and soft links, folders and the like are left out."""
    members = []
    end = 0
    file.seek(0)
    with tarfile.open(fileobj=file, mode="r:") as tar:  # "r:" unpacks no compression
        for member in tar:
            if member.size < 0 or member.offset_data < end:
                raise DataError(f"{file.name} is damaged: the header of {member.name} points backwards")
            end = member.offset_data
            if member.isreg():
                if member.issparse():
                    raise DataError(
                        f"{file.name}: {member.name} is stored as a sparse file, whose bytes do not lie in "
                        f"one piece; make the shard without this option of tar"
                    )
                members.append(_Member(member.name, member.offset_data, member.size))
                end += _whole_blocks(member.size)
    # tarfile takes a damaged header for the end.
    if not _is_end(file, end):
        raise DataError(
            f"{file.name} is damaged or cut off: behind {members[-1].name if members else 'its start'} comes "
            f"neither a file nor the end of the archive; make or fetch it anew, or remove it"
        )
    return members


def _read_index(shard: str, file: BinaryIO) -> list[_Member] | None:
    """The files that the wds2idx index beside a shard lists; None where there is none that fits."""
    path = index_file(shard)
    try:
        with open(path, encoding="utf-8", errors="surrogateescape", newline="\n") as index:
            header, *lines = index.read().removesuffix("\n").split("\n")
    except FileNotFoundError:
        return None
    try:
        version, count = header.split(" ")
        if version != "v1.2" or int(count) != len(lines):
            raise ValueError(f"its first line is {header!r} before {len(lines)} lines")
        members = [member for line in lines for member in _listed(line)]
        for member in members:
            _check_header(file, member)
        members.sort(key=lambda member: member.offset)
        last = members[-1]
        if not _is_end(file, last.offset + _whole_blocks(last.size)):
            raise ValueError("it ends before the shard does")
    except (ValueError, IndexError, OverflowError, OSError, tarfile.TarError) as error:
        warnings.warn(
            f"{path} does not fit its shard ({error}); the shard's own headers are read instead. "
            f"Make it anew with wds2idx, or remove it",
            stacklevel=2,
        )
        return None
    return members


def _listed(line: str) -> Iterator[_Member]:
    """The files of one sample: ``extension offset size name``, once for each."""
    words = line.split(" ")
    if len(words) % 4:
        raise ValueError(f"it has the line {line!r}")
    for _, offset, size, name in zip(*(words[first::4] for first in range(4)), strict=True):
        yield _Member(name, int(offset), int(size))


def _check_header(file: BinaryIO, member: _Member) -> None:
    """The header before a file's bytes is a valid one and says the same as the index.

    Raises:
        ValueError, OSError, tarfile.TarError: it is not.
    """
    if member.offset < _BLOCK or member.size < 0:
        raise ValueError(f"it has {member.name} at {member.offset}")
    block = os.pread(file.fileno(), _BLOCK, member.offset - _BLOCK)
    found = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    # Names of more than 100 bytes stand before this header, which repeats their beginning.
    is_name = found.name == member.name or (
        len(os.fsencode(found.name)) == 100 and member.name.startswith(found.name)
    )
    if not found.isreg() or found.size != member.size or not is_name:
        raise ValueError(f"it has {member.name} with {member.size} bytes at {member.offset}")


def _is_end(file: BinaryIO, position: int) -> bool:
    """Whether the archive's end, a block of zeros, stands there."""
    return os.pread(file.fileno(), _BLOCK, position) == bytes(_BLOCK)


def _whole_blocks(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK

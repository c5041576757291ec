"""Ten thousand damaged copies of a real checkpoint, of which none is accepted."""

from __future__ import annotations

import random
import zipfile
from pathlib import Path

import pytest
from conftest import FaultLog
from tiny import read_digits_once, tiny_config

from rotnet_fast.engine import checkpoint
from rotnet_fast.errors import CheckpointError
from rotnet_fast.pretrain import pretrain

PER_KIND = 2_500
TRAILER_BYTES = 98


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The last checkpoint of a tiny run."""
    run = tmp_path_factory.mktemp("run")
    with read_digits_once():
        pretrain(tiny_config(run, epochs=1))
    return (run / "checkpoints" / "last.pt").read_bytes()


def regions(whole: bytes, path: Path) -> dict[str, list[range]]:
    """What lies where in a checkpoint; together, all of its bytes."""
    path.write_bytes(whole)
    found: dict[str, list[range]] = {"headers": []}
    position = 0
    with zipfile.ZipFile(path) as archive:
        for member in sorted(archive.infolist(), key=lambda member: member.header_offset):
            # Not what the directory says: the extra field of the header itself pads tensors to 64 bytes.
            lengths = whole[member.header_offset + 26 : member.header_offset + 30]
            name_length, extra = (int.from_bytes(lengths[at : at + 2], "little") for at in (0, 2))
            start = member.header_offset + 30 + name_length + extra
            found["headers"].append(range(position, start))
            position = start + member.file_size
            parent, _, name = member.filename.rpartition("/")
            kind = "tensors" if parent.endswith("/data") else name
            found.setdefault(kind, []).append(range(start, position))
    end = len(whole) - TRAILER_BYTES
    return {**found, "directory": [range(position, end)], "trailer": [range(end, len(whole))]}


def flip_bits(content: bytearray, place: int, choices: random.Random) -> None:
    for _ in range(choices.choice((1, 1, 2, 8))):
        content[place] ^= 1 << choices.randrange(8)
        place = choices.randrange(len(content))


def cut_short(content: bytearray, place: int, choices: random.Random) -> None:
    del content[place:]


def zero_a_page(content: bytearray, place: int, choices: random.Random) -> None:
    page = choices.choice((512, 4096))
    start = place // page * page
    content[start : start + page] = bytes(len(content[start : start + page]))


def overwrite(content: bytearray, place: int, choices: random.Random) -> None:
    """With another part of the file, as a disk does that mixes up its blocks."""
    length = min(choices.choice((16, 512)), len(content) - place)
    other = choices.randrange(len(content) - length + 1)
    content[place : place + length] = content[other : other + length]


@pytest.mark.faults
def test_none_of_ten_thousand_damaged_checkpoints_is_accepted(
    whole: bytes, tmp_path: Path, fault_log: FaultLog
) -> None:
    path = tmp_path / "last.pt"
    places = regions(whole, path)
    assert sum(len(part) for parts in places.values() for part in parts) == len(whole)
    checkpoint.load(path)
    choices = random.Random(0)
    for damage in (flip_bits, cut_short, zero_a_page, overwrite):
        tried, refused = 0, 0
        while tried < PER_KIND:
            region = list(places.values())[tried % len(places)]  # small ones as often as large ones
            part = choices.choices(region, [len(part) for part in region])[0]
            damaged = bytearray(whole)
            damage(damaged, choices.choice(part), choices)
            if damaged == whole:
                continue  # zeros, or a block, in place of themselves
            path.write_bytes(damaged)
            tried += 1
            try:
                checkpoint.load(path)
            except CheckpointError:
                refused += 1
        fault_log(f"damaged checkpoint: {damage.__name__.replace('_', ' ')}", tried, refused)

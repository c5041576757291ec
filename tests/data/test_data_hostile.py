"""Archives made to do harm, or damaged in any way, are refused by name and in little memory, or read."""

from __future__ import annotations

import io
import os
import random
import tarfile
import tracemalloc
import warnings
from pathlib import Path

import pytest
from image_files import write_tar

from rotnet_fast.data.tar import list_members
from rotnet_fast.data.webdataset import index_shards
from rotnet_fast.errors import DataError

END = bytes(1024)
GIGABYTES = 1 << 33
MUTANTS = 300
NO_PLACE = Path("/dev/null/cache")


def header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    """One block, with a size that may be too large for octal digits, or negative."""
    member = tarfile.TarInfo(name)
    member.size, member.type = size, kind
    return member.tobuf(tarfile.GNU_FORMAT)


def extended(kind: bytes, content: bytes) -> bytes:
    """A header that is about the next one, and its content."""
    return header("extension", len(content), kind) + content + bytes(-len(content) % 512)


def record(key: bytes, value: bytes) -> bytes:
    """Of a pax header."""
    length = len(key) + len(value) + 3
    length += len(str(length + len(str(length))))
    return b"%d %s=%s\n" % (length, key, value)


IMAGE = header("0.jpg", 5) + b"image" + bytes(507)
X, L = tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME


def read(path: Path) -> dict[str, bytes]:
    """Images of a shard; without a cache, of which a warning tells."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        source = index_shards(str(path.parent), [str(path)], "listing", [NO_PLACE], False).source
    return {source.relative_name(number): source.read(number) for number in range(len(source))}


def outcome(path: Path) -> dict[str, bytes] | str:
    """What is read, or what is said instead."""
    try:
        return read(path)
    except DataError as error:
        return str(error)


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(header("a", GIGABYTES, L), id="long name"),
        pytest.param(header("a", GIGABYTES, tarfile.GNUTYPE_LONGLINK), id="long link"),
        pytest.param(header("a", GIGABYTES, X), id="attributes"),
        pytest.param(header("a", GIGABYTES, tarfile.XGLTYPE), id="attributes of all files"),
        pytest.param(header("a", 1 << 80, L), id="longer than any file"),
        pytest.param(header("a.jpg", 1 << 80), id="larger than any file"),
        pytest.param(header("a.jpg", 1 << 62), id="larger than the shard"),
        pytest.param(header("a.jpg", -1), id="negative"),
        pytest.param(header("a.jpg", -(1 << 70)), id="very negative"),
        pytest.param(header("a", -512, L), id="negative long name"),
        pytest.param(header("a", -512, b"?"), id="negative and unknown"),
        pytest.param(extended(L, b"a.jpg\0") * 5000 + IMAGE, id="chain of long names"),
        pytest.param(extended(X, record(b"path", b"a.jpg")) * 5000 + IMAGE, id="chain of attributes"),
        pytest.param((extended(X, b"") + extended(L, b"a\0")) * 5000 + IMAGE, id="chain of both"),
        pytest.param(extended(X, record(b"size", b"9" * 18)) + IMAGE, id="size in the attributes"),
        pytest.param(extended(X, record(b"size", b"9" * 5000)) + IMAGE, id="many digits"),
        pytest.param(extended(X, record(b"size", b"-1")) + IMAGE, id="negative in the attributes"),
        pytest.param(extended(X, b"0 path=a\n") + IMAGE, id="record of no length"),
        pytest.param(extended(X, b"99 path=a\n") + IMAGE, id="record longer than all"),
        pytest.param(extended(X, b"5 abc" * 200) + IMAGE, id="records without a value"),
        pytest.param(extended(X, record(b"path", b"a\0.jpg")) + IMAGE, id="zero byte in a name"),
        pytest.param(extended(tarfile.XGLTYPE, record(b"path", b"a.jpg")) + IMAGE, id="one name for all"),
        pytest.param(extended(tarfile.XGLTYPE, record(b"size", b"0")) + IMAGE, id="one size for all"),
        pytest.param(extended(L, b"a.jpg\0"), id="long name of nothing"),
        pytest.param(extended(L, b"a.jpg\0") + extended(X, record(b"path", b"b")) + IMAGE, id="two names"),
        pytest.param(extended(X, record(b"GNU.sparse.map", b"0,1" * 1000)) + IMAGE, id="sparse"),
        pytest.param(header("a.jpg", 5, tarfile.GNUTYPE_SPARSE), id="sparse as of old"),
    ],
)
@pytest.mark.parametrize("place", ["first", "last"])
def test_headers_that_were_made_to_do_harm_cost_neither_memory_nor_a_traceback(
    content: bytes, place: str, tmp_path: Path
) -> None:
    path = tmp_path / "x.tar"
    path.write_bytes(content + END if place == "first" else IMAGE + content + END)
    if GIGABYTES.to_bytes(8, "big") in content:
        os.truncate(path, GIGABYTES + 4096)  # a file with holes: there is as much to read as is claimed
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=r"x\.tar"):
            read(path)
        assert tracemalloc.get_traced_memory()[1] < 40 << 20
    finally:
        tracemalloc.stop()


def test_what_is_no_file_has_no_bytes_whatever_its_header_claims(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    kinds = (tarfile.DIRTYPE, tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE)
    path.write_bytes(b"".join(header("a.jpg", 5000, kind) for kind in kinds) + IMAGE + END)
    assert read(path) == {"x.tar/0.jpg": b"image"}


def test_of_a_list_of_attributes_the_name_and_the_size_count(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    records = [(b"mtime", b"1.5"), (b"path", b"a=b \xe4.jpg"), (b"size", b"3"), (b"SCHILY.xattr.x", b"\0\n9")]
    about_all = extended(tarfile.XGLTYPE, record(b"comment", b"made by git"))
    path.write_bytes(about_all * 20 + extended(X, b"".join(record(*pair) for pair in records)) + IMAGE + END)
    assert read(path) == {"x.tar/a=b \udce4.jpg": b"ima"}


def test_shards_that_were_joined_with_cat_do_not_lose_their_second_half(tmp_path: Path) -> None:
    for name in ("x", "y"):
        write_tar(tmp_path / f"{name}.tar", {f"{name}.jpg": b"image"})
    joined = tmp_path / "joined.tar"
    joined.write_bytes(b"".join((tmp_path / f"{name}.tar").read_bytes() for name in "xy"))
    with pytest.raises(DataError, match=r"joined\.tar continues after the end .*tar --concatenate"):
        read(joined)


def test_zeros_behind_the_end_are_no_harm_unless_they_never_end(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    path.write_bytes(IMAGE + END + bytes(1 << 20))
    assert read(path) == {"x.tar/0.jpg": b"image"}
    os.truncate(path, GIGABYTES)
    with pytest.raises(DataError, match="continues after the end"):
        read(path)


def mutated(content: bytes, choices: random.Random, repair: bool) -> bytes:
    """A few bytes changed, pieces doubled, moved or cut; headers get right checksums where asked for."""
    changed = bytearray(content)
    for _ in range(choices.randint(1, 4)):
        at = choices.randrange(len(changed))
        kind = choices.randrange(8)
        if kind < 4:  # in the fields of a header that matter most
            at = at // 512 * 512 + choices.choice([0, 3, *range(124, 136), 156, 257, 345])
            if at < len(changed):
                changed[at] = choices.choice([0, 32, 48, 55, 120, 128, 255, choices.randrange(256)])
        elif kind == 4:
            changed[at] ^= 1 << choices.randrange(8)
        elif kind == 5:
            at, length = at // 512 * 512, 512 * choices.randint(1, 3)
            changed[at:at] = changed[at : at + length]
        elif kind == 6:
            at = at // 512 * 512
            del changed[at : at + 512 * choices.randint(1, 3)]
        else:
            del changed[at:]
        if not changed:
            break
    for at in range(0, len(changed) - 511, 512) if repair else ():
        if changed[at + 257 : at + 262] == b"ustar":
            changed[at + 148 : at + 156] = b" " * 8
            changed[at + 148 : at + 156] = b"%06o\0 " % sum(changed[at : at + 512])
    return bytes(changed)


def listed_by_tarfile(path: Path) -> list[tuple[str, int, int]]:
    with tarfile.open(path, "r:") as tar:
        return [(member.name, member.offset_data, member.size) for member in tar if member.isreg()]


@pytest.mark.parametrize("kind", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
@pytest.mark.parametrize("repair", [False, True])
def test_a_mutated_shard_is_refused_or_read_as_tar_reads_it(kind: int, repair: bool, tmp_path: Path) -> None:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=kind) as tar:
        for name in ("0.jpg", "ä/" * 60 + "1.jpg", "2.png"):
            for suffix, content in (("", b"image" * 150), (".cls", b"7")):
                member = tarfile.TarInfo(name.rpartition(".")[0] + suffix if suffix else name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    valid, choices = stream.getvalue()[:-8192], random.Random(0)
    outcomes = {"refused": 0, "read": 0}
    path = tmp_path / "x.tar"
    for _ in range(MUTANTS):
        path.write_bytes(mutated(valid, choices, repair))
        found = outcome(path)
        if isinstance(found, str):
            assert "x.tar" in found or "shards of" in found
            outcomes["refused"] += 1
        else:
            with path.open("rb") as file:
                members = [(member.name, member.offset, member.size) for member in list_members(file)]
            assert members == listed_by_tarfile(path)
            outcomes["read"] += 1
    assert outcomes["refused"] > MUTANTS // 10  # and the other outcome comes up, too
    assert outcomes["read"] > 0 or not repair

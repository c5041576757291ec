"""WebDataset tar shards: where images and labels lie, with an index beside them or without."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from image_files import encoded, pixels, write_tar

from rotnet_fast.data import webdataset, workers
from rotnet_fast.data.layout import list_folder
from rotnet_fast.data.source import TarSource
from rotnet_fast.data.tar import Member
from rotnet_fast.data.webdataset import index_shards
from rotnet_fast.errors import DataError

Members = dict[str, bytes]

SAMPLES: Members = {
    "a/0.jpg": b"first image",
    "a/0.cls": b"3",
    "a/0.json": b"{}",
    "a/1.cls": b" 0\n",
    "a/1.PNG": b"second image" * 100,
    "a/2.jpeg": b"",
    "a/2.cls": b"11",
}


def index(folder: Path, *names: str) -> tuple[TarSource, list[int] | None]:
    """Of shards of a folder; a shard that an index beside it does not fit is an error here."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        paths = [str(folder / name) for name in names]
        found = index_shards(str(folder), paths, "listing", [folder / "cache"], progress=False)
    return found.source, None if found.labels is None else found.labels.tolist()


def contents(source: TarSource) -> dict[str, bytes]:
    return {source.relative_name(number): source.read(number) for number in range(len(source))}


def test_images_and_labels_come_in_the_order_of_the_shards_and_their_files(tmp_path: Path) -> None:
    write_tar(tmp_path / "x.tar", SAMPLES)
    write_tar(tmp_path / "y.tar", {"0.jpg": b"last image", "0.cls": b"1"})
    source, labels = index(tmp_path, "x.tar", "y.tar")
    assert contents(source) == {
        "x.tar/a/0.jpg": b"first image",
        "x.tar/a/1.PNG": b"second image" * 100,
        "x.tar/a/2.jpeg": b"",
        "y.tar/0.jpg": b"last image",
    }
    assert labels == [3, 0, 11, 1]


def test_images_without_labels_have_none(tmp_path: Path) -> None:
    write_tar(tmp_path / "x.tar", {"0.jpg": b"one", "0.txt": b"text", "1.jpg": b"two"})
    source, labels = index(tmp_path, "x.tar")
    assert len(source) == 2
    assert labels is None


def test_other_members_are_passed_over(tmp_path: Path) -> None:
    members = {
        ".0.jpg": b"?",
        "a/.hidden.jpg": b"?",
        "b.seg.png": b"mask",
        "b.jpg": b"image",
        "c.json": b"{}",
    }
    write_tar(tmp_path / "x.tar", members)
    assert contents(index(tmp_path, "x.tar")[0]) == {"x.tar/b.jpg": b"image"}


@settings(deadline=None)  # writing to a disk that others use takes its time
@given(
    names=st.lists(
        st.text(st.characters(exclude_characters="./\0", exclude_categories=["Cs"]), min_size=1, max_size=40),
        unique=True,
        min_size=1,
        max_size=5,
    ),
    folder=st.sampled_from(["", "long/" * 60, "ä/"]),
    images=st.lists(st.binary(max_size=2000), min_size=5, max_size=5),
    kind=st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]),
)
def test_whatever_is_put_into_a_shard_comes_out_again(
    names: list[str],
    folder: str,
    images: list[bytes],
    kind: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    place = tmp_path_factory.mktemp("shards")
    expected = {}
    with tarfile.open(place / "x.tar", "w", format=kind) as tar:
        for number, (name, image) in enumerate(zip(names, images, strict=False)):
            for suffix, content in ((".jpg", image), (".cls", str(number).encode())):
                member = tarfile.TarInfo(folder + name + suffix)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
            expected[f"x.tar/{folder}{name}.jpg"] = image
    for _ in range(2):  # the second time from the cache
        source, labels = index(place, "x.tar")
        assert contents(source) == expected
        assert labels == list(range(len(names)))


@pytest.fixture
def walks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the shards whose headers are read one after another."""
    walked: list[str] = []
    walk = webdataset.list_members

    def counted(file: BinaryIO) -> list[Member]:
        walked.append(os.path.basename(file.name))
        return walk(file)

    monkeypatch.setattr(webdataset, "list_members", counted)
    return walked


def test_an_index_that_lacks_images_hides_none(tmp_path: Path) -> None:
    write_tar(tmp_path / "x.tar", SAMPLES)
    (tmp_path / "x.idx").write_text("v1.2 1\njpg 512 11 a/0.jpg cls 1536 1 a/0.cls\n")
    assert len(index(tmp_path, "x.tar")[0]) == 3


def test_the_index_is_kept(tmp_path: Path, walks: list[str]) -> None:
    write_tar(tmp_path / "x.tar", SAMPLES)
    first, labels = index(tmp_path, "x.tar")
    second, again = index(tmp_path, "x.tar")
    assert walks == ["x.tar"]
    assert contents(second) == contents(first)
    assert again == labels


def header(tar: bytes, name: str) -> int:
    """Where the header of a member begins."""
    return next(at for at in range(0, len(tar), 512) if tar[at:].startswith(name.encode() + b"\0"))


def flip_header_of(name: str) -> Callable[[bytes], bytes]:
    def flip(tar: bytes) -> bytes:
        at = header(tar, name) + 3
        return tar[:at] + bytes([tar[at] ^ 1]) + tar[at + 1 :]

    return flip


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda tar: b"", id="empty"),
        pytest.param(lambda tar: tar[:700], id="cut off inside the first image"),
        pytest.param(lambda tar: tar[: header(tar, "a/2.jpeg")], id="cut off between members"),
        pytest.param(lambda tar: tar[: header(tar, "a/2.jpeg") + 100], id="cut off inside a header"),
        pytest.param(lambda tar: tar[: header(tar, "a/1.PNG") + 600], id="cut off inside an image"),
        pytest.param(lambda tar: tar[: header(tar, "a/2.cls") + 1024], id="end of the archive missing"),
        pytest.param(flip_header_of("a/0.jpg"), id="damaged first header"),
        pytest.param(flip_header_of("a/1.PNG"), id="damaged header"),
        pytest.param(flip_header_of("a/2.cls"), id="damaged last header"),
        pytest.param(lambda tar: b"no archive at all" * 100, id="something else"),
        pytest.param(lambda tar: encoded(pixels(0)), id="an image"),
    ],
)
def test_a_damaged_shard_is_named(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    write_tar(tmp_path / "good.tar", SAMPLES)
    write_tar(tmp_path / "x.tar", SAMPLES)
    (tmp_path / "x.tar").write_bytes(damage((tmp_path / "x.tar").read_bytes()))
    with pytest.raises(DataError, match=r"x\.tar (cannot be read as a tar shard|is damaged or truncated)"):
        index(tmp_path, "good.tar", "x.tar")
    assert not (tmp_path / "cache").exists()


def test_no_cut_of_a_shard_passes_for_a_whole_one(tmp_path: Path) -> None:
    write_tar(tmp_path / "x.tar", {"0.jpg": b"image" * 200, "1.jpg": b"another"})
    tar = (tmp_path / "x.tar").read_bytes()
    end = header(tar, "1.jpg") + 1024
    for length in [*range(0, end, 128), end - 1, end]:
        (tmp_path / "x.tar").write_bytes(tar[:length])
        with pytest.raises(DataError, match=r"x\.tar"):
            index(tmp_path, "x.tar")


@pytest.mark.parametrize(("kind", "command"), [("gz", "gunzip"), ("bz2", "bunzip2"), ("xz", "unxz")])
def test_a_compressed_shard_is_refused_with_the_command_that_unpacks_it(
    tmp_path: Path, kind: str, command: str
) -> None:
    shard = tmp_path / "a b.tar"
    with tarfile.open(shard, f"w:{kind}") as tar:
        member = tarfile.TarInfo("0.jpg")
        member.size = 5
        tar.addfile(member, io.BytesIO(b"image"))
    with pytest.raises(DataError, match=rf"tar shard because it is an? \w+ archive; .*{command}") as caught:
        index(tmp_path, shard.name)
    told = str(caught.value).split("`")[1]
    subprocess.run(["sh", "-c", told], check=True)
    assert contents(index(tmp_path, shard.name)[0]) == {"a b.tar/0.jpg": b"image"}


def test_what_is_no_shard_is_called_what_it_is(tmp_path: Path) -> None:
    for content, kind in (
        (b"", "empty"),
        (b"<!DOCTYPE html>", "an HTML page"),
        (encoded(pixels(0)), "PNG"),
        (b"PK\3\4", "a zip archive"),
    ):
        (tmp_path / "x.tar").write_bytes(content)
        with pytest.raises(DataError, match=rf"x\.tar cannot be read as a tar shard because it is {kind}"):
            index(tmp_path, "x.tar")


READ_ALL = """
import resource, sys
from pathlib import Path
import joblib
import numpy as np
from rotnet_fast.command import run_command
from rotnet_fast.data.layout import list_folder
from rotnet_fast.data.scan import Scanner

def read() -> None:
    soft, data_dir = int(sys.argv[1]), Path(sys.argv[2])
    source = list_folder(data_dir).source
    in_use = len(list(Path("/proc/self/fd").iterdir())) - 1
    resource.setrlimit(resource.RLIMIT_NOFILE, (in_use + soft, in_use + soft + int(sys.argv[3])))
    if soft:
        for _ in range(2):
            assert [source.read(number) for number in range(len(source))] == [b"image"] * len(source)
    if sys.argv[4] == "scan":
        Scanner(source, [], progress=False).check(np.arange(len(source)))
    if sys.argv[4] == "list":
        list_folder(data_dir)
    if sys.argv[4] == "index":
        from rotnet_fast.data.webdataset import index_shards
        index_shards(str(data_dir), source.shards, "another", [], False)

sys.exit(run_command(read))
"""


def read_all(data_dir: Path, soft: int, above: int, way: str) -> subprocess.CompletedProcess[str]:
    """Read images where so many more files can be opened, and ``above`` more if the user allows it."""
    arguments = [str(soft), str(data_dir), str(above), way]
    return subprocess.run(
        [sys.executable, "-c", READ_ALL, *arguments], capture_output=True, text=True, check=False
    )


def test_more_shards_than_may_be_open_are_read_all_the_same(tmp_path: Path) -> None:
    for number in range(20):
        write_tar(tmp_path / f"{number}.tar", {"0.jpg": b"image"})
    done = read_all(tmp_path, 5, 0, "read")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("kind", ["files", "shards"])
@pytest.mark.parametrize("way", ["scan", "list", "index"])
@pytest.mark.parametrize(
    ("above", "remedy"),
    [(0, "the administrator can raise it (nofile in"), (100, "raise it with `ulimit -n ")],
)
def test_where_too_many_files_are_open_no_image_is_blamed(
    kind: str, way: str, above: int, remedy: str, tmp_path: Path
) -> None:
    if kind == "files" and way == "index":
        return
    for number in range(3):
        if kind == "shards":
            write_tar(tmp_path / f"{number}.tar", {"0.jpg": b"image"})
        else:
            (tmp_path / f"{number}.jpg").write_bytes(b"image")
    done = read_all(tmp_path, 0, above, way)
    assert done.returncode == 3, done.stderr
    (line,) = done.stderr.splitlines()
    assert " cannot be opened, as this process has " in line
    assert remedy in line
    assert "repair" not in line


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE])
def test_only_plain_files_are_images(tmp_path: Path, kind: bytes) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for name in ("../0.jpg", "1.jpg"):
            member = tarfile.TarInfo(name)
            if name == "1.jpg":
                member.type, member.linkname = kind, "/etc/passwd"
            tar.addfile(member)
    assert contents(index(tmp_path, "x.tar")[0]) == {"x.tar/../0.jpg": b""}
    assert [path.name for path in tmp_path.parent.glob("*.jpg")] == []


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_hard_link_has_the_bytes_of_the_file_before_it(form: int, tmp_path: Path) -> None:
    long = "a" * 120 + ".jpg"
    links = {"0.jpg": "", long: "", "1.jpg": "0.jpg", "2.jpg": long, "3.jpg": "1.jpg"}
    with tarfile.open(tmp_path / "x.tar", "w", format=form) as tar:
        for name, link in links.items():
            member = tarfile.TarInfo(name)
            if link:
                member.type, member.linkname = tarfile.LNKTYPE, link
            else:
                member.size = 1
            tar.addfile(member, io.BytesIO(name[:1].encode()))
    found = index(tmp_path, "x.tar")[0]
    assert "".join(content.decode() for content in contents(found).values()) == "0a0a0"
    assert list(contents(found)) == [f"x.tar/{name}" for name in links]


def test_links_that_lead_elsewhere_are_counted(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for number, kind in enumerate((tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE)):
            member = tarfile.TarInfo(f"{number}.jpg")
            member.type, member.linkname = kind, "later.jpg"
            tar.addfile(member)
    shards = [str(tmp_path / "x.tar")]
    found = index_shards(str(tmp_path), shards, "listing", [tmp_path / "cache"], progress=False)
    assert str(found.ignored) == "2 links (such as x.tar/1.jpg)"


def test_a_sparse_member_is_refused(tmp_path: Path) -> None:
    with open(tmp_path / "0.jpg", "wb") as file:
        file.truncate(1 << 20)
        file.write(b"x")
    subprocess.run(["tar", "-C", tmp_path, "-Scf", tmp_path / "x.tar", "0.jpg"], check=True)
    with pytest.raises(DataError, match=r"x\.tar: 0\.jpg is stored as a sparse file"):
        index(tmp_path, "x.tar")


def test_two_images_of_one_sample_are_refused(tmp_path: Path) -> None:
    write_tar(tmp_path / "x.tar", {"0.jpg": b"", "0.png": b""})
    with pytest.raises(DataError, match=r"x\.tar holds 0\.jpg and 0\.png, two of one kind for one sample"):
        index(tmp_path, "x.tar")


@pytest.mark.parametrize("text", [b"", b"cat", b"-1", b"1.5", b"1 2", b"1000000", b"9" * 5000, b"\xb2"])
def test_a_label_that_is_no_class_number_is_refused(tmp_path: Path, text: bytes) -> None:
    write_tar(tmp_path / "x.tar", {"0.jpg": b"", "0.cls": text})
    with pytest.raises(DataError, match=r"x\.tar/0\.cls holds .*; a label must be an integer in .0"):
        index(tmp_path, "x.tar")


def test_labels_for_some_samples_only_are_refused(tmp_path: Path) -> None:
    write_tar(tmp_path / "x.tar", {"0.jpg": b"", "0.cls": b"1"})
    write_tar(tmp_path / "y.tar", {"0.jpg": b""})
    with pytest.raises(DataError, match=r"y\.tar/0\.jpg has no label"):
        index(tmp_path, "x.tar", "y.tar")


def test_shards_without_images_are_refused(tmp_path: Path) -> None:
    write_tar(tmp_path / "x.tar", {"0.json": b"{}"})
    with pytest.raises(DataError, match=r"hold no images \(\.jpg, \.png, \.webp, "):
        index(tmp_path, "x.tar")


def test_indexing_does_not_import_torch() -> None:
    command = "import sys, rotnet_fast.data.webdataset; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", command], check=False).returncode == 0


def test_one_worker_keeps_no_shard_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "available_cores", lambda: 1)
    monkeypatch.setattr(workers, "_IMAGES_PER_CHUNK", 1)
    image = encoded(pixels(0))
    for half in ("train", "test"):
        for number in range(15):
            write_tar(tmp_path / half / f"{number:02d}.tar", {"0.png": image})
    source = list_folder(tmp_path, progress=False).source
    descriptors = Path("/proc/self/fd")
    before = len(list(descriptors.iterdir()))
    for _, content in workers.in_chunks(lambda part: part.read(0), source, "reading", progress=False):
        assert content == image
        assert len(list(descriptors.iterdir())) <= before + 2

"""Encoded images read by number, from files and from tar shards."""

from __future__ import annotations

import os
import pickle
import resource
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from image_files import write_tar

from rotnet_fast.data import source
from rotnet_fast.data.layout import list_folder
from rotnet_fast.data.source import FileSource, ImageSource, TarSource
from rotnet_fast.errors import DataError

CONTENTS = [b"", b"one", b"two" * 1000, bytes(range(256)) * 300, b"five"]


def file_source(folder: Path) -> FileSource:
    names = []
    for number, content in enumerate(CONTENTS):
        (folder / f"{number}.jpg").write_bytes(content)
        names.append(str(folder / f"{number}.jpg"))
    return FileSource(str(folder), names, np.array([len(content) for content in CONTENTS]))


def tar_source(folder: Path) -> TarSource:
    """Bytes in two files, which need not be tar files for a source that knows the places."""
    shards = [folder / "a.tar", folder / "b.tar"]
    shards[0].write_bytes(b"header" + CONTENTS[0] + CONTENTS[1] + CONTENTS[2] + b"end")
    shards[1].write_bytes(CONTENTS[4] + b"between" + CONTENTS[3])
    return TarSource(
        str(folder),
        [f"{shards[number > 2]}/{number}.jpg" for number in range(5)],
        np.array([len(content) for content in CONTENTS]),
        [str(shard) for shard in shards],
        np.array([0, 0, 0, 1, 1]),
        np.array([6, 6, 9, 11, 0]),
    )


@pytest.fixture(params=[file_source, tar_source])
def images(request: pytest.FixtureRequest, tmp_path: Path) -> ImageSource:
    made: ImageSource = request.param(tmp_path)
    return made


def contents(images: ImageSource) -> list[bytes]:
    return [images.read(index) for index in range(len(images))]


def test_every_image_is_read_whole(images: ImageSource) -> None:
    assert contents(images) == CONTENTS
    assert contents(images) == CONTENTS


def test_a_copy_in_another_process_reads_the_same(images: ImageSource) -> None:
    assert images.read(1) == CONTENTS[1]
    copy = pickle.loads(pickle.dumps(images))
    assert contents(copy) == CONTENTS
    assert (copy.names, copy.root) == (images.names, images.root)


def test_many_threads_read_at_once(images: ImageSource) -> None:
    numbers = [number % 5 for number in range(500)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(images.read, numbers)) == [CONTENTS[number] for number in numbers]


@given(indices=st.lists(st.integers(0, 4), max_size=8), then=st.data())
def test_a_part_of_a_part_has_the_right_images(
    indices: list[int], then: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    for make in (file_source, tar_source):
        images = make(tmp_path_factory.mktemp("images"))
        part = images.take(np.array(indices, np.int64))
        assert contents(part) == [CONTENTS[index] for index in indices]
        assert list(part.names) == [images.names[index] for index in indices]
        assert part.byte_sizes.tolist() == [len(CONTENTS[index]) for index in indices]
        if indices:
            again = then.draw(st.lists(st.integers(0, len(indices) - 1), max_size=4))
            assert contents(part.take(np.array(again, np.int64))) == [CONTENTS[indices[i]] for i in again]


def test_a_part_of_shards_names_only_the_shards_it_needs(tmp_path: Path) -> None:
    part = tar_source(tmp_path).take(np.array([4, 3]))
    assert part.shards == [str(tmp_path / "b.tar")]


def test_names_without_the_data_folder_stay_the_same_where_it_is_moved(images: ImageSource) -> None:
    expected = {FileSource: "1.jpg", TarSource: "a.tar/1.jpg"}[type(images)]
    assert images.relative_name(1) == expected


def test_a_file_that_is_gone_is_named(images: ImageSource, tmp_path: Path) -> None:
    for path in tmp_path.iterdir():
        path.unlink()
    with pytest.raises(DataError, match=r"1\.jpg cannot be read .*No such file"):
        images.read(1)


def test_a_file_that_became_shorter_is_named(images: ImageSource, tmp_path: Path) -> None:
    for path in tmp_path.iterdir():
        path.write_bytes(path.read_bytes()[:10])
    with pytest.raises(DataError, match=r"2\.jpg no longer has the 3000 bytes that it had"):
        images.read(2)


def test_a_file_that_became_longer_is_named(tmp_path: Path) -> None:
    images = file_source(tmp_path)
    (tmp_path / "1.jpg").write_bytes(b"one more")
    with pytest.raises(DataError, match=r"1\.jpg no longer has the 3 bytes"):
        images.read(1)


def test_more_shards_than_may_be_open_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "_OPEN_SHARDS", 1)
    opened: list[str] = []
    closed: list[int] = []
    with monkeypatch.context() as patch:
        real_open, real_close = source.os.open, source.os.close
        patch.setattr(source.os, "open", lambda *given: opened.append(given[0]) or real_open(*given))
        patch.setattr(source.os, "close", lambda number: closed.append(number) or real_close(number))
        images = tar_source(tmp_path)
        opened.clear()
        closed.clear()
        order = [0, 1, 4, 3, 2]
        assert [images.read(index) for index in order] == [CONTENTS[index] for index in order]
        assert [Path(path).name for path in opened] == ["a.tar", "b.tar", "a.tar"]
        assert len(closed) == 2
        del images
        assert len(closed) == 3


@pytest.fixture
def _in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """A system that answers requests in part, as network folders may."""
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda file, count, offset: pread(file, min(count, 7), offset))


@pytest.mark.usefixtures("_in_pieces")
def test_a_file_that_is_read_in_pieces_is_put_together(images: ImageSource) -> None:
    assert images.read(2) == CONTENTS[2]


@pytest.mark.usefixtures("_in_pieces")
def test_shards_that_are_read_in_pieces_are_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    long_name = "n" * 200
    write_tar(
        tmp_path / "0.tar",
        {f"{long_name}.jpg": b"image", f"{long_name}.cls": b"3", "2.jpg": b"other", "2.cls": b"0"},
    )
    found = list_folder(tmp_path).source
    assert contents(found) == [b"other", b"image"]


@pytest.mark.parametrize(("limit", "shards"), [(64, 8), (8, 1), (1 << 20, 20), (resource.RLIM_INFINITY, 20)])
def test_shards_take_a_part_of_the_files_that_may_be_open(
    limit: int, shards: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (limit, limit))
    for number in range(20):
        write_tar(tmp_path / f"{number:02}.tar", {"0.jpg": b"image"})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    images = list_folder(tmp_path).source
    before = len(list(Path("/proc/self/fd").iterdir()))
    for number in range(len(images)):
        images.read(number)
    assert len(list(Path("/proc/self/fd").iterdir())) - before == shards

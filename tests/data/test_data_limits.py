"""A limit is a choice of files: nothing else is looked at, decoded or counted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from image_files import encoded, pixels, save, write_tar

from rotnet_fast.data import folder, loaders, scan
from rotnet_fast.data.datasets import Dataset, limit_split, load_dataset
from rotnet_fast.data.decode import decode_images
from rotnet_fast.data.loaders import Streaming, open_dataset
from rotnet_fast.data.scan import examine
from rotnet_fast.data.source import ImageSource
from rotnet_fast.errors import ArgumentError, DataError

LIMITS = [(5, 3), (None, 2), (7, None), (1, 1)]


@pytest.fixture(autouse=True)
def _user_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def class_folders(place: Path) -> None:
    for label, name in enumerate("abc"):
        for number in range(4 + 5 * label):
            save(place / "train" / name / f"{number:02d}.png", pixels(100 * label + number))
            save(place / "test" / name / f"{number:02d}.png", pixels(1000 + 100 * label + number))


def files(place: Path) -> None:
    for number in range(12):
        save(place / "train" / f"{number:02d}.png", pixels(number))
        save(place / "test" / f"{number:02d}.png", pixels(100 + number))


def one_folder(place: Path) -> None:
    for number in range(70):
        save(place / f"{number:02d}.png", pixels(number))


def shards(place: Path) -> None:
    for half, first in (("train", 0), ("test", 500)):
        for shard in range(2):
            members = {}
            for number in range(first + 10 * shard, first + 10 * shard + 10):
                members[f"{number}.png"] = encoded(pixels(number))
                members[f"{number}.cls"] = str(number % 3).encode()
            write_tar(place / half / f"{shard}.tar", members)


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How many images were looked at and decoded."""
    found = {"looked at": 0, "decoded": 0}

    def looking(content: bytes, decodes: bool) -> tuple[int, int, int, int]:
        found["looked at"] += 1
        return examine(content, decodes)

    def decoding(source: ImageSource, image_size: int, progress: bool) -> Any:
        found["decoded"] += len(source)
        return decode_images(source, image_size, progress)

    monkeypatch.setattr(scan, "examine", looking)
    monkeypatch.setattr(folder, "decode_images", decoding)
    return found


def load(place: Path, limits: tuple[int | None, int | None] = (None, None), **options: Any) -> Dataset[Any]:
    return load_dataset("folder", place, 8, *limits, progress=False, **options)


@pytest.mark.parametrize("make", [class_folders, files, one_folder, shards])
@pytest.mark.parametrize("limits", LIMITS)
def test_a_limit_chooses_the_same_images_without_a_look_at_the_others(
    make: Callable[[Path], None],
    limits: tuple[int | None, int | None],
    tmp_path: Path,
    counts: dict[str, int],
) -> None:
    make(tmp_path / "limited")
    make(tmp_path / "whole")
    found = load(tmp_path / "limited", limits)
    number = len(found.train) + len(found.test)
    assert counts == {"looked at": number, "decoded": number}
    streamed = load(tmp_path / "limited", limits, encoded=True)
    again = load(tmp_path / "limited", limits)
    assert counts == {"looked at": number, "decoded": number}

    whole = load(tmp_path / "whole")
    assert found.classes == whole.classes
    assert again.fingerprint == found.fingerprint
    assert streamed.classes == whole.classes
    halves = ((whole.train, limits[0]), (whole.test, limits[1]))
    wanted = [limit_split(half, limit, "limit") for half, limit in halves]
    for half, mine, theirs in zip(
        wanted, (found.train, found.test), (streamed.train, streamed.test), strict=True
    ):
        assert torch.equal(mine.images, half.images)
        assert torch.equal(mine.labels, half.labels)
        assert torch.equal(theirs.labels, half.labels)
        assert np.array_equal(decode_images(theirs.source, 8, False), half.images.numpy())


@pytest.mark.parametrize("encoded_too", [False, True])
def test_a_bad_image_within_a_limit_gives_way_to_the_next_of_its_class(
    encoded_too: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class_folders(tmp_path)
    (tmp_path / "train" / "b" / "00.png").write_bytes(b"damaged")
    with pytest.raises(DataError, match=r"b/00\.png is a text file"):
        load(tmp_path, (3, 2), encoded=encoded_too)
    found = load(tmp_path, (3, 2), encoded=encoded_too, bad_images="skip")
    assert found.files is not None
    names = [found.files[0].source.relative_name(index) for index in range(3)]
    assert names == ["train/a/00.png", "train/b/01.png", "train/c/00.png"]
    assert found.skipped == ("train/b/00.png",)


def test_a_bad_image_beyond_a_limit_is_no_matter(tmp_path: Path) -> None:
    class_folders(tmp_path)
    (tmp_path / "train" / "b" / "03.png").write_bytes(b"damaged")
    assert load(tmp_path, (3, 2)).skipped == ()


def test_a_limit_beyond_the_images_is_refused_before_a_look_at_any(
    tmp_path: Path, counts: dict[str, int]
) -> None:
    files(tmp_path)
    with pytest.raises(ArgumentError, match=r"limit_train is 13; it must lie in .1, 12."):
        load(tmp_path, (13, 2))
    assert counts["looked at"] == 0


def test_the_loader_is_chosen_for_the_images_that_a_limit_leaves_and_no_other_is_decoded(
    tmp_path: Path, counts: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    files(tmp_path)
    of_six = 6 * 8 * 8 * 3
    for free, chosen in ((2 * of_six, 6), (2 * of_six - 1, 0)):
        streaming = Streaming(torch.device("cpu"), free=free)
        monkeypatch.setattr(loaders, "require_dali", lambda device: None)
        found = open_dataset("folder", tmp_path, 8, 4, 2, streaming, progress=False)
        assert hasattr(found.train, "images") == (chosen > 0)
        assert counts["decoded"] == chosen
        counts["decoded"] = 0
    assert counts["looked at"] == 6


def test_what_lies_beyond_a_limit_does_not_matter_even_if_it_was_seen_before(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class_folders(tmp_path)
    last = sorted((tmp_path / "train" / "b").iterdir())[-1]
    last.write_bytes(b"damaged")
    before = load(tmp_path, (2, 2))
    with pytest.raises(DataError, match=r"1 of .* images are unusable"):
        load(tmp_path, (None, None))  # which notes what it has found
    after = load(tmp_path, (2, 2))
    assert after.fingerprint == before.fingerprint
    assert load(tmp_path, (2, 2), bad_images="skip").skipped == ()
    capsys.readouterr()

"""Every image under a folder: which ones are listed, their classes, and their pixels."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from image_files import encoded, exif, pixels, save, write_tar

from rotnet_fast.data import scan, workers
from rotnet_fast.data.crop import RandomResizedCrop
from rotnet_fast.data.dali import DaliLoader
from rotnet_fast.data.decode import decode_image
from rotnet_fast.data.every_image import decoded_batches, open_every_image
from rotnet_fast.data.layout import Listing, list_images
from rotnet_fast.data.source import FileSource
from rotnet_fast.errors import DataError

LOADERS = ["resident", pytest.param("dali", marks=pytest.mark.needs_dali)]


@pytest.fixture(autouse=True)
def user_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """The user's own cache folder is left alone."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("user_cache")))


def listed(root: Path, places: Iterable[str]) -> Listing:
    """A listing of empty files; it looks at names alone."""
    for place in places:
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        (root / place).touch()
    return list_images(root)


def labelled(listing: Listing) -> dict[str, str | None]:
    """Name of each image in order -> its class."""
    names = map(listing.source.relative_name, range(len(listing.source)))
    classes = [listing.classes[label] if listing.classes and label >= 0 else None for label in listing.labels]
    return dict(zip(names, classes, strict=True))


def test_images_are_sorted_by_path_and_none_is_held_out(tmp_path: Path) -> None:
    listing = listed(tmp_path, ["b/2.jpg", "b/10.jpg", "z.png", "a/deep/er/1.webp", "b-1.JPG", "notes.txt"])
    assert list(labelled(listing)) == ["a/deep/er/1.webp", "b-1.JPG", "b/10.jpg", "b/2.jpg", "z.png"]
    assert listing.train_count == 5
    assert not listing.held_out
    assert str(listing.ignored) == "1 .txt (such as notes.txt)"
    assert len(list_images(tmp_path / "a").source) == 1


def test_folders_are_classes_if_all_images_lie_in_them(tmp_path: Path) -> None:
    places = ["cat/1.jpg", "cat/old/2.jpg", "dog/1.jpg"]
    classes = {"cat/1.jpg": "cat", "cat/old/2.jpg": "cat", "dog/1.jpg": "dog"}
    assert labelled(listed(tmp_path, places)) == classes
    assert labelled(listed(tmp_path, ["loose.jpg"])) == dict.fromkeys([*places, "loose.jpg"])


def test_one_folder_is_no_class(tmp_path: Path) -> None:
    listing = listed(tmp_path, ["images/1.jpg", "images/2.jpg"])
    assert (listing.classes, listing.labels.tolist()) == ((), [0, 0])


def test_splits_share_their_classes_and_may_lack_them(tmp_path: Path) -> None:
    listing = listed(tmp_path, ["train/b/1.jpg", "train/a/1.jpg", "val/c/1.jpg", "test/1.jpg", "more/x.jpg"])
    assert listing.classes == ("a", "b", "c")
    assert labelled(listing) == {
        "more/x.jpg": None,
        "test/1.jpg": None,
        "train/a/1.jpg": "a",
        "train/b/1.jpg": "b",
        "val/c/1.jpg": "c",
    }
    assert listing.labels.tolist() == [-1, -1, 0, 1, 2]


def test_tiny_imagenet_has_its_classes(tmp_path: Path) -> None:
    (tmp_path / "val").mkdir()
    (tmp_path / "val" / "val_annotations.txt").write_text("2.JPEG\tn1\t0\n1.JPEG\tn2\t0\n")
    places = ["train/n1/images/1.JPEG", "train/n2/images/1.JPEG", "val/images/1.JPEG", "val/images/2.JPEG"]
    listing = listed(tmp_path, [*places, "test/images/1.JPEG"])
    assert labelled(listing) == {
        "test/images/1.JPEG": None,
        **dict(zip(places, ["n1", "n2", "n2", "n1"], strict=True)),
    }


def test_shards_are_read_where_there_are_no_image_files(tmp_path: Path) -> None:
    for number in (1, 0):
        members = {f"{name}.png": encoded(pixels(name)) for name in (3 * number + 1, 3 * number)}
        labels = {f"{name.partition('.')[0]}.cls": b"1" if number else b"0" for name in members}
        write_tar(tmp_path / f"{number}.tar", members | labels)
    listing = list_images(tmp_path)
    assert list(labelled(listing)) == ["0.tar/1.png", "0.tar/0.png", "1.tar/4.png", "1.tar/3.png"]
    assert listing.labels.tolist() == [0, 0, 1, 1]
    save(tmp_path / "a.png", pixels(0))
    listing = list_images(tmp_path)
    assert list(labelled(listing)) == ["a.png"]
    assert str(listing.ignored) == "2 .tar (such as 0.tar)"


def test_a_folder_without_images_says_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "x.heic").touch()
    with pytest.raises(DataError, match=r"holds no images \(.*\), but 1 \.heic \(such as x\.heic\); pass a"):
        list_images(tmp_path)
    with pytest.raises(DataError, match=r"nowhere cannot be read .*; pass a folder of images"):
        list_images(tmp_path / "nowhere")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Nine photos of many sizes and kinds."""
    for number in range(7):
        save(tmp_path / f"{number % 2}" / f"{number}.png", pixels(number, 20 + 9 * number, 61 - 8 * number))
    turned = encoded(pixels(7, 24, 40), "JPEG", exif=exif(6), quality=90)
    (tmp_path / "turned.jpg").write_bytes(turned)
    (tmp_path / "fitting.webp").write_bytes(encoded(pixels(8, 32, 32), "WEBP", lossless=True))
    return tmp_path


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("is_cropped", [False, True])
def test_batches_hold_what_decoding_each_file_gives(photos: Path, loader: str, is_cropped: bool) -> None:
    images = open_every_image(photos, 32, progress=False)
    names = [images.name(number) for number in range(len(images))]
    expected = np.stack([decode_image(str(photos / name), 32, is_cropped=is_cropped) for name in names])
    for batch_size, start in ((4, 0), (4, 2), (9, 0), (20, 0), (1, 5)):
        batches = list(
            decoded_batches(images.files, batch_size, loader, is_cropped=is_cropped, start_batch=start)  # type: ignore[arg-type]
        )
        assert [len(batch) for batch in batches[:-1]] == [batch_size] * (len(batches) - 1)
        assert np.array_equal(torch.cat(batches).numpy(), expected[start * batch_size :])


@pytest.mark.needs_dali
def test_the_centre_is_that_of_a_test_during_pretraining(photos: Path) -> None:
    files = open_every_image(photos, 32, progress=False).files
    tested = DaliLoader(files, "cpu", 9, seed=1, crop=RandomResizedCrop((0.2, 0.5)), is_test=True)
    (batch,) = tested.epoch(3)
    (ours,) = decoded_batches(files, 9, is_cropped=True)
    assert torch.equal(ours[batch.indices], batch.images)


def test_damaged_images_are_named_or_skipped(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (photos / "0" / "bad.jpg").write_bytes(b"")
    with pytest.raises(DataError, match=r"1 of 10 images are unusable: .*0/bad\.jpg is empty"):
        open_every_image(photos, 32, progress=False)
    images = open_every_image(photos, 32, progress=False, bad_images="skip")
    assert images.skipped == ("0/bad.jpg",)
    assert len(images) == 9
    assert images.summary() == "9 images; skipped as damaged: 1"
    assert "bad.jpg is empty" in capsys.readouterr().err


def test_a_single_damaged_image_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "bad.jpg").write_bytes(b"")
    with pytest.raises(DataError, match="has no usable images"):
        open_every_image(tmp_path, 32, progress=False, bad_images="skip")


def test_an_image_that_changes_meanwhile_is_noticed(photos: Path) -> None:
    images = open_every_image(photos, 32, progress=False)
    save(photos / "0" / "2.png", pixels(99))
    with pytest.raises(DataError, match=r"0/2\.png .* after the folder was listed|no longer has the"):
        list(decoded_batches(images.files, 4))


def begun_at(source: FileSource) -> npt.NDArray[np.float64]:
    """When each part was begun; a function of the module, for other processes."""
    return np.array([time.time()])


def test_parts_wait_for_those_before_them_to_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    count = 1024  # two processes
    source = FileSource(os.fspath(tmp_path), ["x"] * count, np.zeros(count, np.int64))
    monkeypatch.setattr(workers, "available_cores", lambda: 2)

    parts = workers.in_chunks(begun_at, source, "reading", False, images_per_chunk=16)
    _, first = next(parts)
    time.sleep(1.0)  # in which all 64 parts would be done
    used_at = time.time()
    begun = [first[0], *(result[0] for _, result in parts)]
    ahead = sum(when < used_at for when in begun)
    assert ahead <= 2 * workers._CHUNKS_AHEAD + 1


def test_an_interrupted_check_is_kept(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan, "in_chunks", functools.partial(workers.in_chunks, images_per_chunk=2))
    examine, seen = scan.examine, []

    def interrupted(content: bytes, decodes: bool = False) -> tuple[int, int, int, int]:
        seen.append(content)
        if len(seen) == 6:
            raise KeyboardInterrupt
        return examine(content, decodes)

    monkeypatch.setattr(scan, "examine", interrupted)
    with pytest.raises(KeyboardInterrupt):
        open_every_image(photos, 32, progress=False)
    assert len(open_every_image(photos, 32, progress=False)) == 9
    assert len(seen) == 6 + 9 - 4  # two parts of two were kept

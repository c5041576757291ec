"""Class folders of JPEG and PNG files: layout, decoding, and the cache of decoded images."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from image_files import Pixels, pixels, save

from rotnet_fast.data import cache, folder
from rotnet_fast.data.datasets import Dataset, load_dataset
from rotnet_fast.data.decode import decode_images
from rotnet_fast.data.source import ImageSource
from rotnet_fast.data.split import EncodedSplit
from rotnet_fast.errors import ArgumentError, DataError
from rotnet_fast.files import replacing

CACHE_FILES = ["8px.json", "8px.npy", "scan.json", "scan.npy"]


def load(data_dir: Path, image_size: int = 8) -> Dataset:
    return load_dataset("folder", data_dir, image_size=image_size, progress=False)


@pytest.fixture(autouse=True)
def user_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's own cache folder is left alone."""
    place = tmp_path_factory.mktemp("user_cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(place))
    return place


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    """Two classes with three training images and one test image each, lossless and of 8 x 8 pixels."""
    data_dir = tmp_path / "pets"
    for label, name in enumerate(("cat", "dog")):
        for number in range(3):
            save(data_dir / "train" / name / f"{number}.png", pixels(10 * label + number))
        save(data_dir / "test" / name / "0.png", pixels(10 * label + 9))
    return data_dir


@pytest.fixture
def decodings(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one each time that the files of a folder are decoded."""
    calls: list[int] = []

    def counted(source: ImageSource, image_size: int, progress: bool) -> Pixels:
        calls.append(len(source))
        return decode_images(source, image_size, progress)

    monkeypatch.setattr(folder, "decode_images", counted)
    return calls


def test_classes_and_files_come_in_sorted_order(pets: Path) -> None:
    dataset = load(pets)
    assert dataset.classes == ("cat", "dog")
    assert dataset.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert dataset.test.labels.tolist() == [0, 1]
    expected = np.stack([pixels(seed) for seed in (0, 1, 2, 10, 11, 12)])
    assert torch.equal(dataset.train.images, torch.from_numpy(expected))
    assert torch.equal(dataset.test.images, torch.from_numpy(np.stack([pixels(9), pixels(19)])))
    assert dataset.train.images.is_contiguous()
    assert dataset.test.images.is_contiguous()


def test_the_name_in_reports_is_that_of_the_folder(pets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load(pets).display_name == "folder pets"
    monkeypatch.chdir(pets)
    assert load(Path()).display_name == "folder pets"


def test_hidden_files_and_other_files_are_passed_over(pets: Path) -> None:
    before = load(pets).fingerprint
    (pets / "train" / "cat" / ".hidden.png").write_bytes(b"")
    (pets / "train" / "cat" / "notes.txt").write_bytes(b"")
    (pets / "train" / ".git").mkdir()
    (pets / "train" / "labels.csv").write_bytes(b"")
    assert load(pets).fingerprint == before


def test_suffixes_count_in_any_case(pets: Path) -> None:
    (pets / "train" / "cat" / "0.png").rename(pets / "train" / "cat" / "0.PNG")
    assert len(load(pets).train.labels) == 6


def test_without_a_data_dir_the_missing_flag_is_named() -> None:
    with pytest.raises(ArgumentError, match="needs --data-dir"):
        load_dataset("folder")


def remove(path: Path) -> None:
    for file in path.iterdir():
        file.unlink()
    path.rmdir()


def rename(path: Path) -> None:
    path.rename(path.with_name("cow"))


@pytest.mark.parametrize(
    ("spoil", "part", "message"),
    [
        (rename, "train", r"has no train/: it must hold .* Found: folders \(such as cow\)"),
        (rename, "test/dog", "must have the same classes; only one has cow, dog"),
        (remove, "train/cat", "must have the same classes; only one has cat"),
        (
            lambda path: (path / "0.png").unlink(),
            "test/dog",
            r"test/dog holds no images \(\.jpg, ",
        ),
    ],
)
def test_an_incomplete_layout_is_refused(
    pets: Path, spoil: Callable[[Path], None], part: str, message: str
) -> None:
    spoil(pets / part)
    with pytest.raises(DataError, match=message):
        load(pets)


def test_a_half_without_classes_is_refused(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "test").mkdir()
    with pytest.raises(DataError, match=r"train holds no class folders, images \(\.jpg, "):
        load(tmp_path)


def test_a_second_run_does_not_decode_again(pets: Path, decodings: list[int]) -> None:
    first = load(pets)
    second = load(pets)
    assert decodings == [8]
    assert second.fingerprint == first.fingerprint
    assert torch.equal(second.train.images, first.train.images)
    names = sorted(path.name for path in (pets / ".rotnet_fast_cache").iterdir())
    assert names == CACHE_FILES


def test_each_image_size_has_a_cache_of_its_own(pets: Path, decodings: list[int]) -> None:
    for size in (8, 4, 8, 4):
        assert load(pets, size).train.images.shape == (6, size, size, 3)
    assert decodings == [8, 8]


def touch(path: Path) -> None:
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))


@pytest.mark.parametrize(
    "alter",
    [
        pytest.param(lambda pets: save(pets / "train/cat/3.png", pixels(99)), id="a file more"),
        pytest.param(lambda pets: (pets / "train/dog/1.png").unlink(), id="a file less"),
        pytest.param(lambda pets: (pets / "train/dog/1.png").rename(pets / "train/cat/9.png"), id="moved"),
        pytest.param(lambda pets: (pets / "train/dog/1.png").rename(pets / "train/dog/9.png"), id="renamed"),
        pytest.param(lambda pets: touch(pets / "test/cat/0.png"), id="a newer time"),
        pytest.param(lambda pets: save(pets / "test/cat/0.png", pixels(9, 9, 9)), id="another size"),
    ],
)
def test_an_altered_folder_is_decoded_again(
    pets: Path, decodings: list[int], alter: Callable[[Path], None]
) -> None:
    load(pets)
    alter(pets)
    fresh = load(pets).fingerprint
    assert len(decodings) == 2
    assert load(pets).fingerprint == fresh
    assert len(decodings) == 2


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda place: flip_a_bit(place / "8px.npy"), id="a flipped bit"),
        pytest.param(lambda place: os.truncate(place / "8px.npy", 100), id="truncated"),
        pytest.param(lambda place: (place / "8px.npy").unlink(), id="images gone"),
        pytest.param(lambda place: (place / "8px.json").unlink(), id="manifest gone"),
        pytest.param(lambda place: (place / "8px.json").write_text("{"), id="manifest is no JSON"),
        pytest.param(lambda place: (place / "8px.json").write_text("[]"), id="manifest is a list"),
        pytest.param(lambda place: (place / "8px.json").write_text("{}"), id="manifest is empty"),
        pytest.param(lambda place: (place / "8px.json").write_bytes(b"\xff\xfe"), id="manifest is no text"),
    ],
)
def test_a_damaged_cache_is_made_again(
    pets: Path, decodings: list[int], damage: Callable[[Path], None]
) -> None:
    first = load(pets).fingerprint
    damage(pets / ".rotnet_fast_cache")
    assert load(pets).fingerprint == first
    assert len(decodings) == 2
    assert load(pets).fingerprint == first
    assert len(decodings) == 2


def test_pixels_of_two_writers_do_not_get_each_others_manifest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, others = np.zeros((2, 3), np.uint8), np.ones((2, 3), np.uint8)

    @contextmanager
    def overtaken(path: Path, is_shared: bool = False) -> Iterator[Any]:
        with replacing(path, is_shared) as file:
            yield file
        if path.suffix == ".npy":
            monkeypatch.undo()
            cache.write_cache([tmp_path], "8px", "others", others, "images")

    monkeypatch.setattr(cache, "replacing", overtaken)
    cache.write_cache([tmp_path], "8px", "ours", ours, "images")
    assert cache.read_cache([tmp_path], "8px", "ours", np.uint8, (None, 3)) is None
    cache.write_cache([tmp_path], "8px", "ours", ours, "images")
    found = cache.read_cache([tmp_path], "8px", "ours", np.uint8, (None, 3))
    assert found is not None
    assert (found == ours).all()


def test_a_cache_with_pickled_objects_is_not_unpickled(pets: Path, decodings: list[int]) -> None:
    load(pets)
    place = pets / ".rotnet_fast_cache"
    np.save(place / "8px.npy", np.array([{"any": "object"}], dtype=object), allow_pickle=True)
    manifest = json.loads((place / "8px.json").read_text())
    manifest["sha256"] = hashlib.sha256((place / "8px.npy").read_bytes()).hexdigest()
    (place / "8px.json").write_text(json.dumps(manifest))
    assert load(pets).train.images.shape == (6, 8, 8, 3)
    assert len(decodings) == 2


def test_a_read_only_folder_is_cached_in_the_users_cache_folder(
    pets: Path, user_cache: Path, decodings: list[int]
) -> None:
    (pets / ".rotnet_fast_cache").write_text("a file in the way, as even root cannot write into it")
    first = load(pets)
    assert load(pets).fingerprint == first.fingerprint
    assert decodings == [8]
    (place,) = (user_cache / "rotnet_fast").iterdir()
    assert place.name.startswith("pets-")
    assert sorted(path.name for path in place.iterdir()) == CACHE_FILES


def test_two_folders_of_one_name_do_not_share_a_cache(tmp_path: Path) -> None:
    assert cache.cache_places(tmp_path / "a" / "pets")[1] != cache.cache_places(tmp_path / "b" / "pets")[1]


def test_a_relative_cache_home_is_ignored(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # As the XDG base directory specification demands.
    monkeypatch.setenv("XDG_CACHE_HOME", "somewhere")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache.cache_places(Path("pets"))[1].parent == tmp_path / ".cache" / "rotnet_fast"


def test_where_nothing_can_be_written_a_warning_says_so(
    pets: Path, user_cache: Path, decodings: list[int]
) -> None:
    (pets / ".rotnet_fast_cache").write_text("in the way")
    (user_cache / "rotnet_fast").write_text("in the way")
    with (
        pytest.warns(UserWarning, match="cannot cache the results of checking the images"),
        pytest.warns(UserWarning, match="cannot cache the decoded images"),
    ):
        assert len(load(pets).train.labels) == 6


def test_an_interrupted_write_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def write_half() -> None:
        with replacing(path) as file:
            file.write(b"new, but not who")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.fixture
def damaged(pets: Path) -> Path:
    """The same folder with one damaged image."""
    spoiled = pets / "train" / "dog" / "1.png"
    spoiled.write_bytes(spoiled.read_bytes()[:60])
    return pets


def test_a_corrupt_file_is_named(damaged: Path, decodings: list[int]) -> None:
    for encoded in (False, True):
        with pytest.raises(DataError, match=r"train/dog/1\.png is damaged: .*--bad-images skip"):
            load_dataset("folder", damaged, image_size=8, progress=False, encoded=encoded)
    assert decodings == []


def test_a_corrupt_file_can_be_left_out(damaged: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for encoded in (False, True):
        dataset = load_dataset("folder", damaged, 8, progress=False, bad_images="skip", encoded=encoded)
        assert dataset.train.labels.tolist() == [0, 0, 0, 1, 1]
        assert dataset.skipped == ("train/dog/1.png",)
        assert "train/dog/1.png is damaged" in capsys.readouterr().err
    dataset = load_dataset("folder", damaged, 8, progress=False, bad_images="skip")
    expected = np.stack([pixels(seed) for seed in (0, 1, 2, 10, 12)])
    assert torch.equal(dataset.train.images, torch.from_numpy(expected))


def test_images_decoded_without_a_skipped_one_are_kept_apart(damaged: Path, decodings: list[int]) -> None:
    whole = (damaged / "train" / "dog" / "2.png").read_bytes()
    for _ in range(2):
        load_dataset("folder", damaged, 8, progress=False, bad_images="skip")
    assert decodings == [7]
    (damaged / "train" / "dog" / "1.png").write_bytes(whole)
    assert len(load(damaged).train) == 6
    assert decodings == [7, 8]


def test_a_half_is_not_emptied_by_leaving_out(tmp_path: Path) -> None:
    save(tmp_path / "train" / "0.png", pixels(0))
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "0.png").write_bytes(b"damaged")
    with pytest.raises(DataError, match=r"one split of .* has no usable images"):
        load_dataset("folder", tmp_path, 8, progress=False, bad_images="skip")


def test_encoded_halves_hold_the_same_images_as_decoded_ones(pets: Path) -> None:
    save(pets / "train" / "cat" / "wide.png", pixels(5, 6, 20))
    decoded = load(pets)
    encoded = load_dataset("folder", pets, image_size=8, progress=False, encoded=True)
    assert (encoded.classes, encoded.display_name) == (decoded.classes, decoded.display_name)
    for left_as_is, half in ((encoded.train, decoded.train), (encoded.test, decoded.test)):
        assert isinstance(left_as_is, EncodedSplit)
        assert torch.equal(left_as_is.labels, half.labels)
        assert len(left_as_is) == len(half)
        assert left_as_is.image_shape == half.image_shape == (8, 8, 3)
        assert torch.equal(torch.from_numpy(decode_images(left_as_is.source, 8, False)), half.images)
    assert isinstance(encoded.train, EncodedSplit)
    assert encoded.train.sizes.tolist() == [[8, 8], [8, 8], [8, 8], [6, 20], [8, 8], [8, 8], [8, 8]]
    assert encoded.train.convert.tolist() == [False] * 7


@pytest.mark.parametrize("encoded", [False, True])
def test_images_of_both_halves_are_counted_in_a_warning(
    pets: Path, encoded: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    load_dataset("folder", pets, 8, progress=False, encoded=encoded)
    assert capsys.readouterr().err == ""
    save(pets / "test" / "dog" / "also.png", pixels(11))
    save(pets / "test" / "cat" / "also.png", pixels(11))
    for _ in range(2):  # the second time from the cache
        load_dataset("folder", pets, 8, progress=False, encoded=encoded)
        assert capsys.readouterr().err == (
            "WARNING: 2 of 4 test images are also training images, such as test/cat/also.png, which equals "
            "train/dog/1.png; remove the duplicates, or accuracies will be too high\n"
        )
    load_dataset("folder", pets, 8, 1, 1, progress=False, encoded=encoded)  # which are not among these
    assert capsys.readouterr().err == ""


def test_a_test_half_that_is_the_training_half_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(4):
        save(tmp_path / "train" / f"{number}.png", pixels(number))
    (tmp_path / "test").symlink_to(tmp_path / "train")
    load_dataset("folder", tmp_path, 8, progress=False)
    assert "WARNING: 4 of 4 test images are also training images" in capsys.readouterr().err


def test_the_same_image_in_one_half_is_no_matter(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("train/0", "train/1", "test/2", "test/3"):
        save(tmp_path / f"{name}.png", pixels(name.startswith("test")))
    load_dataset("folder", tmp_path, 8, progress=False)
    assert capsys.readouterr().err == ""


def test_a_user_without_a_home_needs_none(pets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", homeless)
    assert cache.cache_places(pets) == [pets / cache.FOLDER_NAME]
    assert len(load(pets).train) == 6

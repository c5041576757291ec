"""Which files of a data folder are its images, halves and classes."""

from __future__ import annotations

import hashlib
import shlex
import shutil
import subprocess
import tarfile
import zipfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from image_files import encoded, pixels, save, write_tar

from rotnet_fast.data.datasets import load_dataset
from rotnet_fast.data.kinds import IMAGE_SUFFIXES
from rotnet_fast.data.layout import Listing, held_out, list_folder
from rotnet_fast.data.webdataset import DOTTED
from rotnet_fast.errors import DataError


@pytest.fixture(autouse=True)
def user_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """The user's own cache folder is left alone."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("user_cache")))


def make(data_dir: Path, places: Iterable[str]) -> None:
    """Empty files; a listing looks at names alone."""
    for place in places:
        (data_dir / place).parent.mkdir(parents=True, exist_ok=True)
        (data_dir / place).touch()


def halves(listing: Listing) -> tuple[list[str], list[str]]:
    """Names of the training and of the test images, below the data folder."""
    names = [listing.source.relative_name(number) for number in range(len(listing.source))]
    return names[: listing.train_count], names[listing.train_count :]


def shard(first: int, count: int, labels: bool = True) -> dict[str, bytes]:
    """Members of a shard with images of growing numbers."""
    members = {}
    for number in range(first, first + count):
        members[f"{number:03}.png"] = encoded(pixels(number))
        if labels:
            members[f"{number:03}.cls"] = str(number % 3).encode()
    return members


@pytest.mark.parametrize("second", ["test", "val", "valid", "validation"])
def test_class_folders_in_two_halves(tmp_path: Path, second: str) -> None:
    make(
        tmp_path,
        ["train/b/10.jpg", "train/b/2.jpg", "train/a/x.PNG", f"{second}/a/1.jpeg", f"{second}/b/1.jpg"],
    )
    listing = list_folder(tmp_path)
    assert listing.classes == ("a", "b")
    assert halves(listing) == (
        ["train/a/x.PNG", "train/b/10.jpg", "train/b/2.jpg"],
        [f"{second}/a/1.jpeg", f"{second}/b/1.jpg"],
    )
    assert listing.labels.tolist() == [0, 1, 1, 0, 1]
    assert listing.source.names[0] == str(tmp_path / "train/a/x.PNG")


def test_of_several_second_halves_test_is_taken_then_val(tmp_path: Path) -> None:
    make(tmp_path, ["train/0.jpg", "val/1.jpg", "validation/2.jpg"])
    assert halves(list_folder(tmp_path)) == (["train/0.jpg"], ["val/1.jpg"])
    make(tmp_path, ["test/3.jpg"])
    assert halves(list_folder(tmp_path)) == (["train/0.jpg"], ["test/3.jpg"])


def test_files_without_classes_in_two_halves(tmp_path: Path) -> None:
    make(tmp_path, ["train/1.jpg", "train/0.jpg", "train/notes.txt", "train/.2.jpg", "val/9.png"])
    listing = list_folder(tmp_path)
    assert listing.classes == ()
    assert halves(listing) == (["train/0.jpg", "train/1.jpg"], ["val/9.png"])
    assert listing.labels.tolist() == [0, 0, 0]


def test_of_files_in_the_folder_itself_the_first_and_every_20th_after_it_are_held_out(tmp_path: Path) -> None:
    names = [f"{number:02}.jpg" for number in range(43)]
    make(tmp_path, [*names, "readme.txt", ".rotnet_fast_cache/scan.npy"])
    listing = list_folder(tmp_path)
    train, test = halves(listing)
    assert test == ["00.jpg", "20.jpg", "40.jpg"]
    assert train == [name for name in names if name not in test]
    assert listing.classes == ()
    assert listing.labels.tolist() == [0] * 43


def test_a_folder_of_one_image_is_refused(tmp_path: Path) -> None:
    make(tmp_path, ["0.jpg"])
    with pytest.raises(DataError, match="holds one image; at least two are needed"):
        list_folder(tmp_path)


def test_shards_in_two_halves(tmp_path: Path) -> None:
    write_tar(tmp_path / "train" / "1.tar", shard(2, 2))
    write_tar(tmp_path / "train" / "0.tar", shard(0, 2))
    write_tar(tmp_path / "val" / "x.tar", shard(9, 1))
    listing = list_folder(tmp_path)
    assert halves(listing) == (
        ["train/0.tar/000.png", "train/0.tar/001.png", "train/1.tar/002.png", "train/1.tar/003.png"],
        ["val/x.tar/009.png"],
    )
    assert listing.classes == ("0", "1", "2")
    assert listing.labels.tolist() == [0, 1, 2, 0, 0]
    assert listing.source.names[4] == str(tmp_path / "val" / "x.tar" / "009.png")


def test_shards_in_the_folder_itself_hold_out_every_20th_sample(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", shard(0, 15))
    write_tar(tmp_path / "b.tar", shard(15, 15))
    listing = list_folder(tmp_path)
    train, test = halves(listing)
    assert test == ["a.tar/000.png", "a.tar/001.png", "a.tar/002.png"]  # the first ones of three classes
    assert len(train) == 27
    assert listing.labels[listing.train_count :].tolist() == [0, 1, 2]
    assert [listing.source.read(27), listing.source.read(29)] == [encoded(pixels(0)), encoded(pixels(2))]


def test_shards_without_labels_have_no_classes(tmp_path: Path) -> None:
    write_tar(tmp_path / "train" / "a.tar", shard(0, 2, labels=False))
    write_tar(tmp_path / "test" / "a.tar", shard(2, 1, labels=False))
    listing = list_folder(tmp_path)
    assert listing.classes == ()
    assert listing.labels.tolist() == [0, 0, 0]


def test_shards_are_indexed_again_when_they_change(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", shard(0, 2))
    before = list_folder(tmp_path)
    assert list_folder(tmp_path).digest == before.digest
    write_tar(tmp_path / "a.tar", shard(0, 3))
    after = list_folder(tmp_path)
    assert len(after.source) == 3
    assert after.digest != before.digest


def test_files_decoded_from_shards_are_those_of_the_images(tmp_path: Path) -> None:
    write_tar(tmp_path / "train" / "a.tar", shard(0, 3))
    write_tar(tmp_path / "test" / "a.tar", shard(3, 2))
    for place, count in (("train", 3), ("test", 2)):
        for number in range(count):
            seed = number + (3 if place == "test" else 0)
            save(tmp_path / "files" / place / str(seed % 3) / f"{seed}.png", pixels(seed))
    save(tmp_path / "files" / "test" / "2" / "5.png", pixels(5))
    from_shards = load_dataset("folder", tmp_path, image_size=8, progress=False)
    from_files = load_dataset("folder", tmp_path / "files", image_size=8, progress=False)
    assert from_shards.train.images.equal(from_files.train.images)
    assert from_shards.test.images.equal(from_files.test.images[:2])


@pytest.mark.parametrize(
    ("places", "message"),
    [
        ([], r"has no train/: it must hold .* Found: nothing"),
        (["notes.txt"], r"Found: 1 \.txt \(such as notes\.txt\)"),
        (["cats/0.jpg", "dogs/0.jpg"], r"has no train/: .* Found: folders \(such as cats\)"),
        (["test/0.jpg"], r"has no train/: .* Found: folders \(such as test\)"),
        (["train/0.jpg"], r"train holds one image; at least two are needed, one of them as the test split"),
        (
            ["0.jpg", "cats/0.jpg"],
            r"mixes folders \(such as cats\), image files \(such as 0\.jpg\); keep only one",
        ),
        (["0.jpg", "x.tar"], r"mixes image files \(such as 0\.jpg\), \.tar shards \(such as x\.tar\)"),
        (["train/0.jpg", "train/a/0.jpg", "test/0.jpg"], r"train mixes folders \(such as a\), image files"),
        (["train/a/0.jpg", "test/a/0.jpg", "test/x.tar"], r"test mixes folders \(such as a\), \.tar shards"),
        (
            ["train/a/0.jpg", "test/0.jpg"],
            r"train/ of .* holds folders \(such as a\), but test/ holds image files",
        ),
        (["train/0.jpg", "val/x.tar"], r"holds image files \(such as 0\.jpg\), but val/ holds \.tar shards"),
        (["train/a/0.jpg", "val/a/0.jpg", "val/b/0.jpg"], r"train/ and val/ .* same classes; only one has b"),
        (
            ["train/a/0.jpg", "test/a/0.heic", "test/a/1.heic"],
            r"test/a holds no images \(\.jpg, .*\), but 2 \.heic \(such as test/a/0\.heic\); convert or",
        ),
        (
            ["train/0.jpg", "test/notes.txt"],
            r"test holds no class folders, images \(\.jpg, .* or \.tar shards, but 1 \.txt",
        ),
    ],
)
def test_any_other_layout_is_refused(tmp_path: Path, places: list[str], message: str) -> None:
    make(tmp_path, places)
    with pytest.raises(DataError, match=message):
        list_folder(tmp_path)


def test_a_folder_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"nowhere cannot be read \(.*No such file or directory.*\); it must hold train/"
    ):
        list_folder(tmp_path / "nowhere")


def test_caches_of_class_folders_made_by_earlier_versions_stay_valid(tmp_path: Path) -> None:
    places = ["train/a/0.jpg", "train/b/1.jpg", "test/a/2.jpg", "test/b/3.jpg"]
    make(tmp_path, places)
    digest = hashlib.sha256(b"1")
    for place in places:
        found = (tmp_path / place).stat()
        digest.update(f"{place}\0{found.st_size} {found.st_mtime_ns}\n".encode())
    assert list_folder(tmp_path).digest == digest.hexdigest()


def test_beside_train_other_things_are_passed_over(tmp_path: Path) -> None:
    make(tmp_path, ["train/0.jpg", "test/1.jpg", "montage.png", "old.tar", "scripts/x.py"])
    assert halves(list_folder(tmp_path)) == (["train/0.jpg"], ["test/1.jpg"])


def test_what_cannot_be_read_matters_only_where_it_would_be_used(tmp_path: Path) -> None:
    for half in ("train", "test"):
        for name in "ab":
            save(tmp_path / half / name / "0.png", pixels(0, 4, 4))
    (tmp_path / "old.tar").symlink_to(tmp_path / "nowhere")
    assert list_folder(tmp_path).train_count == 2
    (tmp_path / "train" / "a" / "1.png").symlink_to(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"train/a/1\.png is a broken link"):
        list_folder(tmp_path)


def ignored(data_dir: Path) -> dict[str, tuple[int, str]]:
    return list_folder(data_dir).ignored.found


def test_folders_within_class_folders_belong_to_the_class(tmp_path: Path) -> None:
    inner = ["train/a/x/y/1.jpg", "train/a/x/0.jpg", "train/a/0.jpg", "train/b.png/c.jpg/2.PNG"]
    make(tmp_path, [*inner, "train/a/x/.hidden.jpg", "test/a/deep/er/3.jpg", "test/b.png/4.jpg"])
    listing = list_folder(tmp_path)
    assert listing.classes == ("a", "b.png")
    assert halves(listing) == (
        ["train/a/0.jpg", "train/a/x/0.jpg", "train/a/x/y/1.jpg", "train/b.png/c.jpg/2.PNG"],
        ["test/a/deep/er/3.jpg", "test/b.png/4.jpg"],
    )
    assert listing.labels.tolist() == [0, 0, 0, 1, 0, 1]
    assert listing.ignored.found == {"hidden": (1, "train/a/x/.hidden.jpg")}


def test_a_linked_folder_is_read_and_one_that_leads_back_is_named(tmp_path: Path) -> None:
    make(tmp_path, ["data/train/a/0.jpg", "data/test/a/1.jpg", "elsewhere/2.jpg"])
    (tmp_path / "data/train/a/more").symlink_to(tmp_path / "elsewhere")
    assert halves(list_folder(tmp_path / "data"))[0] == ["train/a/0.jpg", "train/a/more/2.jpg"]
    (tmp_path / "elsewhere/back").symlink_to(tmp_path / "data/train")
    with pytest.raises(DataError, match=r"more/back/a is a link to one of its parent folders; remove it"):
        list_folder(tmp_path / "data")


@pytest.mark.parametrize("name", [f"0{suffix}" for suffix in IMAGE_SUFFIXES] + ["0.JPE", "0.WebP", "0.TIF"])
def test_every_suffix_of_an_image_is_read(name: str, tmp_path: Path) -> None:
    make(tmp_path, [f"train/{name}", "test/0.jpg"])
    assert halves(list_folder(tmp_path))[0] == [f"train/{name}"]


def test_what_is_passed_over_is_counted_by_kind(tmp_path: Path) -> None:
    others = ["train/a/0.heic", "train/a/in/1.HEIC", "train/a/x.tar", "train/a/README", "train/labels.csv"]
    beside = ["test/.DS_Store", "test/a/._1.jpg", "val/a/0.jpg", "notes.txt", "montage.png", ".git/x.png"]
    make(tmp_path, ["train/a/0.jpg", "test/a/1.jpg", *others, *beside, ".rotnet_fast_cache/scan.npy"])
    assert ignored(tmp_path) == {
        ".heic": (2, "train/a/0.heic"),
        ".tar": (1, "train/a/x.tar"),
        "without a suffix": (1, "train/a/README"),
        ".csv": (1, "train/labels.csv"),
        "hidden": (3, ".git"),
        ".txt": (1, "notes.txt"),
        "next to train/": (2, "montage.png"),
    }
    text = str(list_folder(tmp_path).ignored)
    assert text.startswith(
        "3 hidden (such as .git), 2 .heic (such as train/a/0.heic), 2 next to train/ (such"
    )


def test_many_kinds_are_shown_in_part(tmp_path: Path) -> None:
    make(tmp_path, ["train/0.jpg", "test/0.jpg", *(f"train/0.{letter}" for letter in "abcdefghijk")])
    assert str(list_folder(tmp_path).ignored).endswith("1 .h (such as train/0.h), 3 of other kinds")


def test_of_several_second_halves_that_with_classes_suits_a_first_with_classes(tmp_path: Path) -> None:
    make(tmp_path, ["train/a/0.jpg", "val/a/1.jpg", "test/2.jpg"])
    assert halves(list_folder(tmp_path)) == (["train/a/0.jpg"], ["val/a/1.jpg"])
    assert ignored(tmp_path) == {"next to train/": (1, "test/")}


def test_members_of_shards_that_are_passed_over_are_counted(tmp_path: Path) -> None:
    members = {"0.png": b"", "0.cls": b"0", "0.json": b"", "0.mask.png": b"", ".x.png": b"", "1.heic": b""}
    dotted = {"v1.0.jpg": b"", "v1.1.jpg": b"", "a/b.c.d.JPEG": b""}
    for half in ("train", "test"):
        write_tar(tmp_path / half / "s.tar", {**members, **dotted})
    (tmp_path / "test" / "s.idx").touch()
    for _ in range(2):  # the second time from the cache
        listing = list_folder(tmp_path)
        assert halves(listing) == (["train/s.tar/0.png"], ["test/s.tar/0.png"])
        assert listing.ignored.found == {
            ".json": (2, "s.tar/0.json"),
            "further images of samples": (2, "s.tar/0.mask.png"),
            "hidden": (2, "s.tar/.x.png"),
            ".heic": (2, "s.tar/1.heic"),
            DOTTED: (6, "s.tar/v1.0.jpg"),
            ".idx": (1, "test/s.idx"),
        }


def test_shards_whose_names_alone_hide_their_images_are_refused_with_the_reason(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", {f"v1.{number}.jpg": b"" for number in range(3)})
    with pytest.raises(DataError, match=r"no images .*, but 3 images with a dot in their names.*rename"):
        list_folder(tmp_path)


@pytest.mark.parametrize(
    ("train", "test", "others"),
    [
        (["train-0", "train-1"], ["val-0"], []),
        (["cc-train-0000"], ["cc-validation-0000"], []),
        (["a_training.00"], ["a_testing.00"], ["a_dev.00"]),
        (["TRAIN0"], ["TEST0", "TEST1"], ["VAL0", "VAL1"]),
        (["test_set_train_0"], ["test_set_valid_0"], []),  # the last word counts
    ],
)
def test_shards_in_one_folder_are_divided_by_their_names(
    train: list[str], test: list[str], others: list[str], tmp_path: Path
) -> None:
    for seed, name in enumerate((*train, *test, *others)):
        write_tar(tmp_path / f"{name}.tar", shard(3 * seed, 2))
    found = halves(list_folder(tmp_path))
    assert [{name.partition(".tar/")[0] for name in half} for half in found] == [set(train), set(test)]
    assert sum(count for count, _ in ignored(tmp_path).values()) == len(others)


@pytest.mark.parametrize("names", [["train-0", "train-1"], ["val-0", "val-1"], ["trained", "tests", "0"]])
def test_shards_of_one_half_or_none_are_divided_by_holding_out(names: list[str], tmp_path: Path) -> None:
    for number, name in enumerate(names):
        write_tar(tmp_path / f"{name}.tar", shard(10 * number, 10))
    train, test = halves(list_folder(tmp_path))
    counts = np.bincount(np.arange(10 * len(names)) % 3)
    assert len(test) == sum(-(-count // 20) for count in counts.tolist())
    assert len(train) + len(test) == 10 * len(names)


@pytest.mark.parametrize("names", [["0", "val-0"], ["train-0", "val-0", "more"], ["test-0", "val-0"]])
def test_shards_that_only_partly_say_their_half_are_refused(names: list[str], tmp_path: Path) -> None:
    for name in names:
        write_tar(tmp_path / f"{name}.tar", shard(0, 2))
    with pytest.raises(DataError, match=r"shards of several splits, .*; move them into train/ and test/"):
        list_folder(tmp_path)


def test_shards_of_both_halves_in_the_folder_of_one_are_refused(tmp_path: Path) -> None:
    for name in ("train/train-0", "train/val-0", "test/test-0"):
        write_tar(tmp_path / f"{name}.tar", shard(0, 2))
    with pytest.raises(DataError, match=r"train holds shards of both splits, .*train-0\.tar and val-0\.tar"):
        list_folder(tmp_path)


def test_classes_that_differ_in_the_form_of_an_accent_alone_are_shown_so(tmp_path: Path) -> None:
    make(tmp_path, ["train/caf\u00e9/0.jpg", "test/cafe\u0301/0.jpg"])
    with pytest.raises(DataError, match=r"only one has 'cafe\\u0301', 'caf\\xe9' .some differ only in how"):
        list_folder(tmp_path)


@pytest.mark.parametrize("encoded_too", [False, True])
def test_one_line_says_what_is_used_and_what_is_not(
    encoded_too: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(3):
        save(tmp_path / "pets" / "train" / "a" / f"{number}.png", pixels(number))
        save(tmp_path / "pets" / "train" / "b" / f"{number}.png", pixels(number))
    for name in "ab":
        save(tmp_path / "pets" / "test" / name / "0.png", pixels(9))
    (tmp_path / "pets" / "train" / "a" / "2.png").write_bytes(b"damaged")
    (tmp_path / "pets" / "train" / "a" / "\x1b.heic").touch()
    load_dataset("folder", tmp_path / "pets", 8, limit_test=1, bad_images="skip", encoded=encoded_too)
    assert capsys.readouterr().out == (
        "data: folder pets: 5 training images of 2 classes, 1 test image of 1 class; skipped as damaged: 1; "
        "ignored: 1 .heic (such as train/a/\\x1b.heic)\n"
    )
    load_dataset("digits")
    assert capsys.readouterr().out == (
        "data: handwritten digits (scikit-learn): 1,437 training images of 10 classes, 360 test images of 10 "
        "classes\n"
    )


def test_train_alone_holds_out_every_20th_image(tmp_path: Path) -> None:
    make(tmp_path, [f"train/{name}/{number:02}.jpg" for name in "ab" for number in range(15)])
    listing = list_folder(tmp_path)
    train, test = halves(listing)
    assert test == ["train/a/00.jpg", "train/b/00.jpg"]
    assert len(train) == 28
    assert listing.classes == ("a", "b")
    assert listing.labels.tolist() == [0] * 14 + [1] * 14 + [0, 1]
    assert listing.held_out
    make(tmp_path, ["val/a/0.jpg", "val/b/0.jpg"])
    assert not list_folder(tmp_path).held_out


@pytest.mark.parametrize("kind", ["images", "shards"])
def test_train_alone_holds_out_what_the_folder_itself_does(kind: str, tmp_path: Path) -> None:
    for place in (tmp_path / "bare", tmp_path / "halves" / "train"):
        if kind == "shards":
            write_tar(place / "0.tar", shard(0, 25))
        else:
            make(place, [f"{number:02}.jpg" for number in range(25)])
    bare, inside = list_folder(tmp_path / "bare"), list_folder(tmp_path / "halves")
    assert [[f"train/{name}" for name in half] for half in halves(bare)] == list(halves(inside))
    assert bare.labels.tolist() == inside.labels.tolist()


def test_shards_of_both_halves_in_train_alone_are_divided_by_their_names(tmp_path: Path) -> None:
    for name in ("train-0", "val-0"):
        write_tar(tmp_path / "train" / f"{name}.tar", shard(0, 2))
    train, test = halves(list_folder(tmp_path))
    assert [len(train), test[0]] == [2, "train/val-0.tar/000.png"]


def test_one_line_says_that_images_are_held_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(3):
        save(tmp_path / "pets" / "train" / f"{number}.png", pixels(number))
    load_dataset("folder", tmp_path / "pets", 8)
    assert capsys.readouterr().out == (
        "data: folder pets: 2 training images without labels, 1 test image without labels; every 20th image "
        "is held out as the test split, because the data has no second split\n"
    )


def tiny_imagenet(data_dir: Path) -> Path:
    """Two classes as Tiny ImageNet has them once it is unpacked."""
    places = [
        f"train/{name}/images/{name}_{number}.JPEG" for name in ("n01", "n02", "n03") for number in range(2)
    ]
    make(data_dir, [*places, *(f"train/{name}/{name}_boxes.txt" for name in ("n01", "n02", "n03"))])
    make(data_dir, [f"val/images/val_{number}.JPEG" for number in range(4)])
    make(data_dir, ["test/images/test_0.JPEG", "test/images/test_1.JPEG", "words.txt", "wnids.txt"])
    lines = ["val_0.JPEG\tn03\t0\t0\t9\t9", "val_3.JPEG\tn01\t1\t1\t9\t9", "val_1.JPEG\tn02\t0\t0", ""]
    (data_dir / "val" / "val_annotations.txt").write_text("\n".join([*lines, "val_2.JPEG\tn01"]) + "\r\n")
    return data_dir


def test_tiny_imagenet_is_read_as_it_is_unpacked(tmp_path: Path) -> None:
    listing = list_folder(tiny_imagenet(tmp_path))
    train, test = halves(listing)
    assert listing.classes == ("n01", "n02", "n03")
    assert train[:3] == [f"train/n01/images/n01_{n}.JPEG" for n in (0, 1)] + ["train/n02/images/n02_0.JPEG"]
    assert test == [f"val/images/val_{number}.JPEG" for number in (2, 3, 1, 0)]
    assert listing.labels.tolist() == [0, 0, 1, 1, 2, 2, 0, 0, 1, 2]
    assert listing.ignored.found["next to train/"] == (1, "test/")
    digest = listing.digest
    text = (tmp_path / "val" / "val_annotations.txt").read_text()
    (tmp_path / "val" / "val_annotations.txt").write_text(text.replace("val_0.JPEG\tn03", "val_0.JPEG\tn02"))
    with pytest.raises(DataError, match=r"train/ and val/images/ .* same classes; only one has n03"):
        list_folder(tmp_path)
    (tmp_path / "val" / "val_annotations.txt").write_text(text.replace("val_2.JPEG\tn01", "val_2.JPEG\tn02"))
    other = list_folder(tmp_path)
    assert other.labels.tolist()[6:] == [0, 1, 1, 2]
    assert (other.digest != digest) == (halves(other)[1] != test)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("val_0.JPEG n01\n", r"line 1 of .*val_annotations\.txt does not assign one class to one image"),
        ("\nval_0.JPEG\t\n", "line 2 of .* does not assign one class to one image; it must be the name"),
        ("val_0.JPEG\tn01\nval_0.JPEG\tn02\n", "line 2 of .* does not assign one class to one image"),
        ("val_0.JPEG\tn01\n", r"gives no class for val_1\.JPEG, .*3\.JPEG; unpack the data set again, or"),
        (
            "".join(f"val_{number}.JPEG\tn01\n" for number in range(14)),
            r"lists images that are not in images/: val_10\.JPEG, .*val_7\.JPEG and 2 others; unpack",
        ),
    ],
)
def test_annotations_that_do_not_fit_their_images_are_refused(
    lines: str, message: str, tmp_path: Path
) -> None:
    (tiny_imagenet(tmp_path) / "val" / "val_annotations.txt").write_text(lines)
    with pytest.raises(DataError, match=message):
        list_folder(tmp_path)


def test_without_labels_of_the_second_half_there_is_a_way_out(tmp_path: Path) -> None:
    (tiny_imagenet(tmp_path) / "val" / "val_annotations.txt").unlink()
    with pytest.raises(
        DataError, match=r"but test/images/ holds image files .*; give .*, or move test/ away to hold out"
    ):
        list_folder(tmp_path)
    for name in ("test", "val"):
        (tmp_path / name).rename(tmp_path / f"old-{name}")
    held_back = [f"train/{name}/images/{name}_0.JPEG" for name in ("n01", "n02", "n03")]
    assert halves(list_folder(tmp_path))[1] == held_back


def test_a_half_may_lie_in_its_folder_of_images(tmp_path: Path) -> None:
    make(tmp_path, ["train/images/0.jpg", "train/readme.md", "valid/images/1.jpg"])
    listing = list_folder(tmp_path)
    assert (listing.classes, halves(listing)) == ((), (["train/images/0.jpg"], ["valid/images/1.jpg"]))
    assert listing.ignored.found == {".md": (1, "train/readme.md")}
    make(tmp_path / "deep", ["train/images/a/0.jpg", "train/images/b/0.jpg", "test/a/1.jpg", "test/b/1.jpg"])
    assert list_folder(tmp_path / "deep").classes == ("a", "b")


@pytest.mark.parametrize(
    ("places", "given", "message"),
    [
        (["a/train/0.jpg", "a/test/0.jpg"], "", r"train/ is in a/; pass --data-dir {root}/a\. Found"),
        (
            ["train/a/0.jpg", "val/a/0.jpg"],
            "train",
            r"is one split of a data set; pass --data-dir {root}\. F",
        ),
        (
            ["train/a/0.jpg", "val/a/0.jpg"],
            "val",
            r"is one split of a data set; pass --data-dir {root}\. Found",
        ),
        (["Train/0.jpg", "Test/0.jpg"], "", r"rename {root}/Test to test, {root}/Train to train\. Found"),
        (["training/0.jpg", "testing/0.jpg"], "", r"{root}/testing to test, {root}/training to train\."),
        (
            ["train/0.jpg", "Testing/0.jpg", "Train/0.jpg"],
            "",
            r"no test split; rename {root}/Testing to test$",
        ),
        (["cats/0.jpg", "dogs/0.jpg"], "", r"are classes, move them into {root}/train, and every 20th"),
        (["data_batch_1.bin"], "", r"it is CIFAR-10; use --dataset cifar10 --data-dir /"),
        (["cifar-10-batches-bin/data_batch_1.bin"], "", r"use --dataset cifar10 --data-dir {root}\. Found"),
        (["x/y.txt", "val/0.jpg"], "", r"has no train/: it must hold train/"),
    ],
)
def test_a_folder_too_high_or_too_deep_is_answered_with_the_right_one(
    places: list[str], given: str, message: str, tmp_path: Path
) -> None:
    make(tmp_path, places)
    with pytest.raises(DataError, match=message.format(root=tmp_path)):
        list_folder(tmp_path / given)


def pack_folder(data_dir: Path, archive: Path) -> None:
    """An archive of all that lies in a folder, of the kind that its name says."""
    archive.parent.mkdir(parents=True, exist_ok=True)
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive, "w") as packed:
            for path in data_dir.rglob("*.jpg"):
                packed.write(path, path.relative_to(data_dir))
        return
    kind = {"g": "gz", "b": "bz2", "x": "xz"}[archive.suffix.lower().removeprefix(".t").lstrip(".")[0]]
    with tarfile.open(archive, f"w:{kind}") as packed_tar:
        for path in data_dir.iterdir():
            packed_tar.add(path, path.name)


@pytest.mark.parametrize("name", ["x y.tar.gz", "x.TGZ", "x.tar.bz2", "x.tbz2", "x.tar.xz", "x.txz", "x.zip"])
def test_a_packed_data_set_is_read_after_the_command_that_is_named(name: str, tmp_path: Path) -> None:
    make(tmp_path / "files", ["train/0.jpg", "test/1.jpg"])
    pack_folder(tmp_path / "files", tmp_path / "data set" / name)
    with pytest.raises(
        DataError, match=r"holds the archive x.*, and packed images are not read; unpack"
    ) as caught:
        list_folder(tmp_path / "data set")
    command = str(caught.value).split("`")[1]
    if command.startswith("unzip") and shutil.which("unzip") is None:
        zipfile.ZipFile(tmp_path / "data set" / name).extractall(shlex.split(command)[-1])
    else:
        subprocess.run(["sh", "-c", command], check=True)
    assert halves(list_folder(tmp_path / "data set")) == (["train/0.jpg"], ["test/1.jpg"])


@pytest.mark.parametrize("others", [0, 1])
@pytest.mark.parametrize("name", ["0.tar.gz", "0.tgz", "0.tar.bz2", "0.tbz2", "0.tar.xz", "0.txz"])
def test_packed_shards_are_read_after_the_command_that_is_named(
    name: str, others: int, tmp_path: Path
) -> None:
    make(tmp_path / "files", ["a.jpg", "b.jpg"])
    for half in ("train", "test"):
        pack_folder(tmp_path / "files", tmp_path / "data" / half / name)
        for number in range(others):  # of which it might seem that they are all
            write_tar(tmp_path / "data" / half / f"x{number}.tar", shard(0, 1, labels=False))
    for _ in range(2):
        with pytest.raises(
            DataError,
            match=r"holds the archive 0.* packed images are not read; .*make a plain tar shard with ",
        ) as caught:
            list_folder(tmp_path / "data")
        subprocess.run(["sh", "-c", str(caught.value).split("`")[3]], check=True)
    assert [len(half) for half in halves(list_folder(tmp_path / "data"))] == [2 + others, 2 + others]


def test_an_archive_beside_images_is_passed_over(tmp_path: Path) -> None:
    make(tmp_path, ["train/0.jpg", "train/x.zip", "test/1.jpg", "photos.tar.gz"])
    assert ignored(tmp_path) == {".zip": (1, "train/x.zip"), ".gz": (1, "photos.tar.gz")}


def test_class_folders_are_read_once_they_are_moved_into_train(tmp_path: Path) -> None:
    make(tmp_path, [f"{name}/{number:02}.jpg" for name in ("cats", "dogs") for number in range(11)])
    with pytest.raises(DataError, match=r"Found: folders \(such as cats\)") as caught:
        list_folder(tmp_path)
    assert f"move them into {tmp_path / 'train'}, and every 20th image" in str(caught.value)
    (tmp_path / "train").mkdir()
    for name in ("cats", "dogs"):
        (tmp_path / name).rename(tmp_path / "train" / name)
    listing = list_folder(tmp_path)
    assert listing.classes == ("cats", "dogs")
    assert halves(listing)[1] == ["train/cats/00.jpg", "train/dogs/00.jpg"]


def test_a_folder_that_is_called_like_a_half_and_holds_something_else_is_none(tmp_path: Path) -> None:
    make(tmp_path, ["train/0.jpg", "train/1.jpg", "eval/score.py", "Train/0.jpg"])
    assert halves(list_folder(tmp_path)) == (["train/1.jpg"], ["train/0.jpg"])


def test_what_is_held_out_is_every_20th_image_of_each_class() -> None:
    labels = np.array([2] * 41 + [0] + [1] * 12 + [2] * 3)
    is_test = held_out(labels)
    assert np.flatnonzero(is_test).tolist() == [0, 20, 40, 42]
    assert np.flatnonzero(held_out(np.arange(30))).tolist() == [0, 20]
    assert (held_out(np.zeros(41, np.int64)) == (np.arange(41) % 20 == 0)).all()
    shuffled = np.random.default_rng(0).integers(0, 7, 500)
    for label in range(7):  # whatever the order, both halves have every class
        of_class = held_out(shuffled)[shuffled == label]
        assert (of_class == (np.arange(len(of_class)) % 20 == 0)).all()


def test_every_class_of_a_folder_without_test_images_is_trained_on(tmp_path: Path) -> None:
    for name, count in (("a", 1), ("b", 12), ("c", 15)):
        for number in range(count):
            save(tmp_path / "train" / name / f"{number:02d}.png", pixels(number))
    found = list_folder(tmp_path)
    train, test = np.split(found.labels, [found.train_count])
    assert np.bincount(train, minlength=3).tolist() == [1, 11, 14]
    assert np.bincount(test, minlength=3).tolist() == [0, 1, 1]


def test_labels_of_shards_need_not_count_from_0(tmp_path: Path) -> None:
    labels = [1, 2, 5] * 4
    members = {f"{number:02d}.png": encoded(pixels(number)) for number in range(12)}
    members |= {f"{number:02d}.cls": b"%d" % label for number, label in enumerate(labels)}
    for half in ("train", "test"):
        write_tar(tmp_path / half / "0.tar", members)
    found = list_folder(tmp_path)
    assert found.classes == ("1", "2", "5")
    assert sorted(found.labels.tolist()) == sorted([0, 1, 2] * 8)
    for name in list(members):
        members[name] = b"7" if name.endswith("cls") else members[name]
    for half in ("train", "test"):
        write_tar(tmp_path / half / "0.tar", members)
    assert list_folder(tmp_path).classes == ()  # one class is none

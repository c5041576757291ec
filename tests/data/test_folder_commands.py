"""The commands on folders: images without labels, damaged ones, and tar shards."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from image_files import Pixels, encoded, pixels, save, write_jpegs, write_tar
from plot_inputs import check_legible

from rotnet_fast import evaluate, pretrain, reproduce, visualize
from rotnet_fast.data import scan
from rotnet_fast.errors import DataError
from rotnet_fast.pretrained import read_pretrained
from rotnet_fast.protocols.images import open_images

PRETRAIN = shlex.split(
    "--preset quickstart --dataset folder --image-size 16 --blocks 3 --width 0.05 --epochs 1 --batch-size 16 "
    "--device cpu --precision fp32 --no-tensorboard"
)


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory; the user's own cache folder is left alone."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user_cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def results(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return found


def run_pretrain(data_dir: Path, *others: str) -> int:
    return pretrain.main([*PRETRAIN, "--data-dir", str(data_dir), "--output", "run", *others])


def test_images_without_labels_serve_pretraining_alone(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(25):
        save(place / "photos" / f"{number}.png", pixels(number, 16, 20))
    assert run_pretrain(place / "photos") == 0
    assert (results(place / "run")["train_images"], results(place / "run")["test_images"]) == (23, 2)
    capsys.readouterr()

    assert evaluate.main(["--checkpoint", "run", "--no-frozen", "--knn"]) == 3
    assert capsys.readouterr().err.startswith(
        "error: folder photos has no class labels to train and test with;"
    )

    study = ["--preset", "quickstart", "--dataset", "folder", "--data-dir", "photos", "--output", "study"]
    assert reproduce.main(study) == 3
    assert capsys.readouterr().err.startswith(
        "error: folder photos has no class labels to train and test with;"
    )

    assert visualize.main(["--checkpoint", "run"]) == 0
    assert "WARNING: the images have no classes; skipping confusion-classes\n" in capsys.readouterr().err
    drawn = {path.stem for path in (place / "run" / "figures").iterdir()}
    assert drawn == {*visualize.PICTURES, "confusion-rotations"} - {"confusion", "compression"}
    analyses = visualize.Analyses(visualize.VisualizeConfig(Path("run"), device="cpu"))
    for draw in visualize.PICTURES.values():
        for figure in draw(analyses).values():
            check_legible(figure)


def write_pets(folder: Path, first: int, train: int, test: int = 4) -> None:
    for half, count in (("train", train), ("test", test)):
        for label in ("cat", "dog"):
            for number in range(count):
                first += 1
                save(folder / half / label / f"{number}.png", pixels(first, 16, 16))


def evaluated(place: Path, *flags: str) -> dict[str, Any]:
    """What an evaluation of the run found: the numbers of images, and whether they are the pretraining's."""
    command = ["--checkpoint", "run", "--no-frozen", "--knn", "--output", "evaluated", *flags]
    assert evaluate.main(command) == 0
    found = results(place / "evaluated")
    shutil.rmtree(place / "evaluated")
    return {**found["dataset"], **found["pretraining"]}


def test_limits_of_the_pretraining_are_those_of_its_images_alone(place: Path) -> None:
    write_pets(place / "pets", 0, train=12)
    write_pets(place / "others", 1000, train=5)
    assert (
        run_pretrain(Path("pets"), *shlex.split("--limit-train 14 --validation 6 --dataset-name Pets")) == 0
    )
    own = {"train_images": 14, "test_images": 6, "has_same_images": True}
    others = {"train_images": 10, "test_images": 8, "has_same_images": False, "display_name": "folder others"}

    def has(expected: dict[str, Any], *flags: str) -> None:
        found = evaluated(place, *flags)
        assert {name: found[name] for name in expected} == expected

    settings = json.loads((place / "run" / "config.json").read_text())["settings"]
    assert settings["data_dir"] == str(place / "pets")  # from wherever it is called
    has({**own, "display_name": "Pets"})
    has(own, "--data-dir", "pets")
    has({**own, "test_images": 8}, "--validation", "0")  # its test images, which were held back until now
    has({**own, "test_images": 2}, "--data-dir", "pets", "--validation", "2")
    has(others, "--data-dir", "others")
    has({**others, "test_images": 2}, "--data-dir", "others", "--limit-test", "2")
    (place / "pets").rename(place / "moved")
    has(own, "--data-dir", "moved")
    has(own, "--data-dir", "moved", "--dataset", "folder")


def test_a_folder_of_more_images_is_told_from_the_pretrainings_without_reading_it_all(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_pets(place / "pets", 0, train=12)
    write_pets(place / "others", 1000, train=5)
    assert run_pretrain(place / "pets", "--loader", "resident", "--crop", "pad") == 0

    def read(*arguments: object, **settings: object) -> None:
        pytest.fail("all images are read")

    monkeypatch.setattr("rotnet_fast.protocols.images.load_dataset", read)
    assert not evaluated(place, "--data-dir", "others", "--loader", "dali")["has_same_images"]


def test_the_images_are_the_same_whatever_is_taken_of_them(place: Path) -> None:
    write_pets(place / "pets", 0, train=12)
    assert run_pretrain(place / "pets") == 0
    for limits in ([], ["--limit-test", "2"], ["--validation", "4"]):
        assert evaluated(place, "--data-dir", "pets", *limits)["has_same_images"], limits


def test_a_folder_for_images_that_need_none_is_refused(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_pets(place / "pets", 0, train=2)
    digits = ["--preset", "quickstart", "--limit-train", "20", "--limit-test", "10", *PRETRAIN[4:]]
    assert pretrain.main([*digits, "--output", "run"]) == 0
    for command, flags in (
        (pretrain.main, [*digits, "--output", "other"]),
        (evaluate.main, ["--checkpoint", "run", "--no-frozen", "--knn"]),
        (visualize.main, ["--checkpoint", "run"]),
        (reproduce.main, ["--preset", "quickstart", "--dataset", "digits", "--dry-run"]),
    ):
        capsys.readouterr()
        assert command([*flags, "--data-dir", "pets"]) == 2
        printed = capsys.readouterr().err
        assert printed.startswith("error: data-dir is ")
        assert "but the images of dataset digits come with scikit-learn; omit it" in printed


def test_a_damaged_image_stops_the_run_until_it_may_be_left_out(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for label in ("cat", "dog"):
        for number in range(8):
            save(place / "pets" / "train" / label / f"{number}.png", pixels(number, 16, 16))
        save(place / "pets" / "test" / label / "0.png", pixels(9, 16, 16))
    (place / "pets" / "train" / "cat" / "3.png").write_bytes(b"damaged")
    assert run_pretrain(place / "pets") == 3
    printed = capsys.readouterr().err
    assert "train/cat/3.png is a text file" in printed
    assert "skip them with --bad-images skip" in printed

    assert run_pretrain(place / "pets", "--bad-images", "skip", "--resume", "auto") == 0
    found = results(place / "run")
    assert (found["train_images"], found["skipped_images"]) == (15, ["train/cat/3.png"])

    # What the pretraining did about it holds for its images later, too.
    assert evaluate.main(["--checkpoint", "run", "--no-frozen", "--knn"]) == 0
    assert results(place / "run" / "evaluate-001")["dataset"]["skipped"] == ["train/cat/3.png"]
    opened, _ = open_images(read_pretrained("run"), torch.device("cpu"))
    assert opened.fingerprint == found["data_fingerprint"]
    assert evaluate.main(["--checkpoint", "run", "--no-frozen", "--knn", "--bad-images", "fail"]) == 3


@pytest.mark.needs_dali
def test_flags_ask_for_a_closer_look_and_accept_what_has_changed(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_jpegs(place / "images")
    victim = place / "images" / "train" / "light" / "19.jpg"
    decodes = scan.decode_rgb

    def refusing(content: bytes) -> Pixels:
        if content == victim.read_bytes():
            raise DataError("an image cannot be read as an image: for a test")
        return decodes(content)

    monkeypatch.setattr(scan, "decode_rgb", refusing)
    assert run_pretrain(place / "images", "--loader", "dali", "--check-images", "decode") == 3
    assert "light/19.jpg is damaged: it cannot be decoded" in capsys.readouterr().err
    assert not (place / "run").exists()
    victim.write_bytes(encoded(pixels(500, 16, 16), "JPEG"))
    monkeypatch.setattr(scan, "decode_rgb", decodes)
    assert run_pretrain(place / "images", "--loader", "dali", "--check-images", "decode") == 0
    assert evaluate.main(["--checkpoint", "run", "--no-frozen", "--knn", "--check-images", "decode"]) == 0
    victim.unlink()
    capsys.readouterr()
    assert run_pretrain(place / "images", "--resume", "auto") == 4
    assert "1 removed (train/light/19.jpg). Restore them, resume on" in capsys.readouterr().err
    assert run_pretrain(place / "images", "--resume", "auto", "--accept-changed-data") == 0
    assert "resuming on other images than the run began with" in capsys.readouterr().err


def test_labelled_shards_are_pretrained_on_and_evaluated(place: Path) -> None:
    for half, count in (("train", 20), ("val", 6)):
        members = {}
        for number in range(count):
            members[f"{number}.jpg"] = encoded(pixels(number, 18, 18), "JPEG")
            members[f"{number}.cls"] = str(number % 2).encode()
        write_tar(place / "shards" / half / "0.tar", members)
    assert run_pretrain(place / "shards") == 0
    assert evaluate.main(["--checkpoint", "run", "--no-frozen", "--knn"]) == 0
    dataset = results(place / "run" / "evaluate-001")["dataset"]
    assert (dataset["classes"], dataset["train_images"], dataset["test_images"]) == (["0", "1"], 20, 6)

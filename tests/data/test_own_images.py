"""Commands that take a run's own images take those very images, or none, from wherever they are called."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from image_files import encoded, pixels
from tiny import tiny_config

from rotnet_fast import evaluate, export, visualize
from rotnet_fast.config import PretrainConfig
from rotnet_fast.data import cifar10
from rotnet_fast.pretrain import pretrain
from rotnet_fast.protocols.pretext import place_of_images
from rotnet_fast.visualize import Analyses, VisualizeConfig

CPU = torch.device("cpu")


def make_images(folder: Path, first: int, count: int = 12, side: int = 20) -> Path:
    """Class folders with images that depend on ``first``; PNG files of equal lengths."""
    for half, number_of in (("train", count), ("test", 4)):
        for place, name in enumerate(("cat", "dog")):
            for number in range(number_of):
                image = pixels(first + 100 * place + number, side, side + number % 3)
                path = folder / half / name / f"{number:02d}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(encoded(image, compress_level=0))
    return folder


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with ``images`` in it; the user's own cache folder is left alone."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user_cache"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    make_images(Path("images"), 0)
    return tmp_path / "here"


def run_on(data_dir: str, loader: str = "resident", **changes: Any) -> dict[str, Any]:
    """Results of a tiny pretraining, in the folder ``run``."""
    if loader == "dali":
        pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    data = {"dataset": "folder", "data_dir": Path(data_dir), "limit_train": None, "limit_test": None}
    return pretrain(tiny_config(Path("run"), loader=loader, epochs=1, **{**data, **changes}))


def call(command: str, checkpoint: Path, *flags: str) -> int:
    if command == "evaluate":
        return evaluate.main(
            ["--checkpoint", str(checkpoint), "--no-frozen", "--knn", "--device", "cpu", *flags]
        )
    return visualize.main(
        ["--checkpoint", str(checkpoint), "--what", "calibration", "--device", "cpu", *flags]
    )


def dataset_of(run: Path, number: int = 1) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / f"evaluate-{number:03d}" / "results.json").read_text())
    return found["dataset"]  # type: ignore[no-any-return]


@pytest.fixture
def elsewhere(here: Path) -> Path:
    """Another working folder, with other images under the same name."""
    folder = here.parent / "elsewhere"
    folder.mkdir()
    make_images(folder / "images", 50)
    return folder


@pytest.mark.parametrize("loader", ["resident", "dali"])
def test_from_another_folder_the_images_of_the_run_are_found(
    loader: str, here: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = run_on("images", loader, dataset_name="Pets")
    monkeypatch.chdir(elsewhere)
    run = here / "run"
    assert call("evaluate", run) == 0
    assert dataset_of(run)["fingerprint"] == trained["data_fingerprint"]
    assert dataset_of(run)["display_name"] == "Pets"
    assert call("visualize", run) == 0
    analyses = Analyses(VisualizeConfig(run, device="cpu"))
    assert analyses.rotation["accuracy"] == trained["rotation_accuracy"]


OTHERS = ["--limit-train 10 --limit-test 6", "--loader resident", "--loader dali", ""]


@pytest.mark.parametrize("flags", OTHERS)
@pytest.mark.parametrize("loader", ["resident", "dali"])
@pytest.mark.parametrize("command", ["evaluate", "visualize"])
def test_other_images_in_the_place_of_the_runs_own_are_refused(
    command: str, loader: str, flags: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if "dali" in flags:
        pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    run_on("images", loader, limit_train=20)
    shutil.rmtree("images")
    make_images(Path("images"), 50)
    capsys.readouterr()
    assert call(command, Path("run"), *flags.split()) == 3
    sentence = capsys.readouterr().err.splitlines()[-1]
    said = f"error: the images in {here / 'images'}, which run/config.json names, are not those of"
    assert sentence.startswith(said)
    assert "give the folder of others with --data-dir" in sentence
    assert not list(here.glob("run/evaluate-*"))
    assert not (here / "run" / "figures").exists()


@pytest.mark.parametrize("command", ["evaluate", "visualize"])
def test_fewer_images_than_the_run_had_are_other_images(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run_on("images", limit_train=20)
    shutil.rmtree("images")
    make_images(Path("images"), 0, count=3)
    assert call(command, Path("run")) == 3
    assert "are not those of the pretraining: limit_train is 20" in capsys.readouterr().err
    make_images(Path("images"), 0)
    assert call(command, Path("run"), "--limit-train", "1000") == 2
    assert "error: limit_train is 1000" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["evaluate", "visualize"])
def test_the_runs_own_images_are_known_under_other_limits_and_loaders(command: str) -> None:
    pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    run_on("images", "resident", limit_train=20, limit_test=5)
    for flags in ("--limit-train 8", "--limit-test 8", "--loader dali", "--loader dali --limit-train 22"):
        assert call(command, Path("run"), *flags.split()) == 0


@pytest.mark.parametrize("command", ["evaluate", "visualize"])
def test_images_that_are_named_may_be_others_and_have_their_own_name(command: str, elsewhere: Path) -> None:
    trained = run_on("images", dataset_name="Pets")
    assert call(command, Path("run"), "--data-dir", str(elsewhere / "images")) == 0
    if command == "evaluate":
        assert dataset_of(Path("run"))["display_name"] == "folder images"
        assert dataset_of(Path("run"))["fingerprint"] != trained["data_fingerprint"]


@pytest.mark.parametrize("command", ["evaluate", "visualize"])
def test_images_that_are_gone_are_asked_for(
    command: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_on("images")
    Path("images").rename("moved")
    assert call(command, Path("run")) == 3
    lay = f"the images of this run were in {here / 'images'}, as run/config.json says, but it does not exist"
    assert capsys.readouterr().err.splitlines()[-1] == f"error: {lay}; give their folder with --data-dir"
    assert call(command, Path("run"), "--data-dir", "moved") == 0
    (here / "run" / "config.json").unlink()
    assert call(command, Path("run")) == 3
    assert "is unknown, as run/config.json does not name it" in capsys.readouterr().err


def test_an_interrupted_evaluation_is_gone_on_with_from_another_folder(
    here: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_on("images")
    assert call("evaluate", Path("run"), "--output", "evaluation") == 0
    monkeypatch.chdir(elsewhere)
    assert call("evaluate", Path("../here/run"), "--output", "../here/evaluation") == 0


def test_nothing_that_is_given_away_tells_where_the_images_lay(here: Path) -> None:
    run_on("images")
    assert call("evaluate", Path("run")) == 0
    assert json.loads(Path("run/config.json").read_text())["settings"]["data_dir"] == str(here / "images")
    assert export.main(["--checkpoint", "run"]) == 0
    for path in (here / "run" / "export").iterdir():
        assert os.fsencode(here) not in path.read_bytes()


def test_cifar10_is_looked_for_where_the_pretraining_had_it(here: Path) -> None:
    assert place_of_images(PretrainConfig()) == str(here / cifar10.DEFAULT_DATA_DIR)
    assert place_of_images(PretrainConfig(data_dir=Path("/sets"))) == "/sets"
    assert place_of_images(PretrainConfig(dataset="digits", image_size=16)) is None


def content(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*")}


@pytest.mark.usefixtures("unrendered")
@pytest.mark.parametrize("crop", ["pad", "resized"])
def test_pictures_of_streamed_images_show_the_runs_accuracy_and_write_nothing_beside_them(
    crop: str, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_images(here / "large", 0, side=40)
    trained = run_on("large", "dali", crop=crop, image_size=16, precision="bf16", batch_size=7)
    before = content(here / "large"), content(here.parent / "user_cache")
    assert visualize.main(["--checkpoint", "run", "--device", "cpu"]) == 0
    assert (content(here / "large"), content(here.parent / "user_cache")) == before
    analyses = Analyses(VisualizeConfig(Path("run"), device="cpu"))
    assert analyses.rotation["accuracy"] == trained["rotation_accuracy"]
    assert analyses.rotation["accuracy_by_rotation"] == list(trained["rotation_accuracy_by_degrees"].values())


def test_whole_images_that_are_streamed_are_those_in_memory() -> None:
    run_on("images", "dali")
    found = []
    for loader in ("dali", "resident"):
        analyses = Analyses(VisualizeConfig(Path("run"), device="cpu", loader=loader, images=3))
        attention = [result for _, result in analyses.attention()]
        found.append([analyses.rotation, analyses.neighbours, analyses.embedding(), attention])
    assert found[0] == found[1]


def test_limits_are_those_of_the_run_unless_others_are_given() -> None:
    run_on("images", "dali", limit_train=10, limit_test=6)
    for flags, sizes in (({}, (10, 6)), ({"limit_train": 12, "limit_test": 4}, (12, 4))):
        analyses = Analyses(VisualizeConfig(Path("run"), device="cpu", **flags))
        assert (len(analyses.bank.images), len(analyses.test.images)) == sizes

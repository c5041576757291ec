"""A run whose images have changed says which, and goes on with them where the user wants it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from image_files import encoded, pixels, write_jpegs, write_tar
from tiny import folder_config

from rotnet_fast.config import PretrainConfig
from rotnet_fast.data import image_list
from rotnet_fast.data.datasets import load_dataset
from rotnet_fast.engine import checkpoint
from rotnet_fast.engine.rotation_task import RotationTask
from rotnet_fast.errors import CheckpointError, DataError
from rotnet_fast.pretrain import pretrain


@pytest.fixture(autouse=True)
def _user_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return write_jpegs(tmp_path / "images")


@pytest.fixture(params=["resident", "dali"])
def loader(request: pytest.FixtureRequest) -> str:
    if request.param == "dali":
        pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    name: str = request.param
    return name


class Killed(BaseException):
    """Ends a run as abruptly as an exception can."""


def run_until(step: int, config: PretrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kill a run before one of its steps."""
    steps, views = 0, RotationTask.views

    def dies(self: RotationTask, *arguments: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps > step:
            raise Killed
        return views(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(RotationTask, "views", dies)
        with pytest.raises(Killed):
            pretrain(config)


def remove(images: Path) -> None:
    for number in range(9):  # so many that an epoch has a step less
        (images / "train" / "dark" / f"{number:02d}.jpg").unlink()


def repair(images: Path) -> None:
    (images / "train" / "light" / "03.jpg").write_bytes(encoded(pixels(77, 16, 16), "JPEG"))


def add(images: Path) -> None:
    (images / "test" / "light" / "new.jpg").write_bytes(encoded(pixels(78, 16, 16), "JPEG"))


def move(images: Path) -> None:
    (images / "train" / "light" / "03.jpg").rename(images / "train" / "dark" / "99.jpg")


CHANGES = [
    (
        remove,
        r"9 removed \(train/dark/00\.jpg, .*04\.jpg and 4 others\); .*changed-images\.txt lists all of them",
    ),
    (repair, r"1 with changed contents \(train/light/03\.jpg\)"),
    (add, r"1 added \(test/light/new\.jpg\)"),
    (move, r"1 removed \(train/light/03\.jpg\), 1 added \(train/dark/99\.jpg\)"),
]


@pytest.mark.faults("data altered between runs")
@pytest.mark.parametrize(("change", "said"), CHANGES)
def test_a_run_on_changed_images_says_which_and_goes_on_where_that_is_wanted(
    change: Callable[[Path], None],
    said: str,
    loader: str,
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = folder_config(tmp_path / "run", images, f"fp32 {loader} sgd")
    run_until(3, config, monkeypatch)  # before the end of the first epoch, which has three steps
    before = checkpoint.load(tmp_path / "run" / "checkpoints" / "last.pt")
    change(images)
    for _ in range(2):  # a refusal changes nothing
        with pytest.raises(CheckpointError, match=rf"last\.pt is of a run on other images: .*{said}\. Rest"):
            pretrain(config)
    assert checkpoint.load(tmp_path / "run" / "checkpoints" / "last.pt")["config"] == before["config"]
    capsys.readouterr()
    accepting = replace(config, accept_changed_data=True)
    run_until(1, accepting, monkeypatch)
    assert "WARNING: resuming on other images than the run began with: " in capsys.readouterr().err
    done = pretrain(accepting)
    files = load_dataset("folder", images, 16, progress=False)
    assert done["train_images"] == len(files.train)
    capsys.readouterr()
    pretrain(config)  # from here on it is a run on these images
    assert "WARNING" not in capsys.readouterr().err


def test_the_whole_list_of_changes_is_written(images: Path, tmp_path: Path) -> None:
    config = folder_config(tmp_path / "run", images, "fp32 resident sgd", epochs=1)
    pretrain(config)
    remove(images)
    with pytest.raises(CheckpointError):
        pretrain(config)
    lines = (tmp_path / "run" / "changed-images.txt").read_text().splitlines()
    assert lines == [f"removed: train/dark/{number:02d}.jpg" for number in range(9)]


def test_an_image_that_is_skipped_after_it_broke_does_not_end_a_run(
    loader: str, images: Path, tmp_path: Path
) -> None:
    config = folder_config(tmp_path / "run", images, f"fp32 {loader} sgd", epochs=1)
    pretrain(config)
    broken = images / "train" / "light" / "05.jpg"
    broken.write_bytes(broken.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"light/05\.jpg is truncated"):
        pretrain(config)
    skipping = replace(config, bad_images="skip", epochs=1)
    with pytest.raises(CheckpointError, match=r"1 removed \(train/light/05\.jpg\).*--accept-changed-data"):
        pretrain(skipping)
    assert pretrain(replace(skipping, accept_changed_data=True))["train_images"] == 39


def test_accepting_changes_where_there_are_none_changes_nothing(
    loader: str,
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = folder_config(tmp_path / "run", images, f"fp32 {loader} sgd", accept_changed_data=True)
    run_until(4, config, monkeypatch)
    resumed = pretrain(config)
    whole = pretrain(folder_config(tmp_path / "whole", images, f"fp32 {loader} sgd"))
    assert resumed["state_hash"] == whole["state_hash"]
    assert "WARNING" not in capsys.readouterr().err


@pytest.mark.parametrize("damage", [b"", b"no list", None])
def test_without_a_list_of_its_images_a_run_can_be_gone_on_with_too(
    damage: bytes | None, images: Path, tmp_path: Path
) -> None:
    config = folder_config(tmp_path / "run", images, "fp32 resident sgd", epochs=1)
    pretrain(config)
    (listed,) = (tmp_path / "run").glob("images-*.json.gz")
    listed.unlink()
    if damage is not None:
        listed.write_bytes(damage)
    repair(images)
    with pytest.raises(CheckpointError, match=r"data_fingerprint differs\. Restore"):
        pretrain(config)
    pretrain(replace(config, accept_changed_data=True))


@pytest.mark.parametrize("kind", ["files", "shards", "one folder"])
def test_a_list_of_images_tells_every_change(kind: str, tmp_path: Path) -> None:
    images = {f"{number:02d}.png": pixels(number) for number in range(45)}
    label = 0

    def files() -> image_list.Halves:
        members = {name: encoded(image) for name, image in images.items()}
        for half in ("train", "test"):
            if kind == "shards":
                labels = {name.replace("png", "cls"): b"%d" % (label if name > "2" else 0) for name in images}
                write_tar(tmp_path / half / "0.tar", members | labels)
                continue
            place = tmp_path / half if kind == "files" else tmp_path
            place.mkdir(exist_ok=True)
            for path in place.glob("*.png"):
                path.unlink()
            for name, content in members.items():
                (place / name).write_bytes(content)
        found = load_dataset("folder", tmp_path, 8, progress=False, encoded=True).files
        assert found is not None
        return found

    packed = image_list.pack(files())
    assert image_list.pack(files()) == packed
    assert image_list.changes(packed, files()) == {}
    images["07.png"] = pixels(99)
    del images["20.png"]
    images["90.png"] = pixels(5)
    found = image_list.changes(packed, files())
    twice = 1 if kind == "one folder" else 2
    counts = {what: len(names) for what, names in found.items()}
    assert [counts[what] for what in ("removed", "added", "with changed contents")] == [twice] * 3
    assert ("moved to the other split" in found) == (kind == "one folder")
    assert "with another label" not in found
    label = 1
    found = image_list.changes(packed, files())
    relabelled = [name for name in images if name > "2" and name != "90.png"]
    assert len(found.get("with another label", ())) == (twice * len(relabelled) if kind == "shards" else 0)
    with pytest.raises(ValueError, match="not a list of images"):
        image_list.changes(b"damaged", files())

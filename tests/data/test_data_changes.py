"""Images that change between runs or during one are noticed, and nothing is trained on them."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from image_files import encoded, pixels, save, write_tar
from tiny import tiny_config

from rotnet_fast.config import PretrainConfig
from rotnet_fast.data import image_list
from rotnet_fast.data.datasets import Dataset, load_dataset
from rotnet_fast.data.layout import list_folder
from rotnet_fast.engine import checkpoint
from rotnet_fast.engine.rotation_task import RotationTask
from rotnet_fast.errors import CheckpointError, DataError
from rotnet_fast.pretrain import pretrain


@pytest.fixture(autouse=True)
def _user_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for half, count in (("train", 40), ("test", 4)):
        for number in range(count):
            save(tmp_path / "images" / half / f"{number:02d}.png", pixels(number, 16, 16))
    return tmp_path / "images"


def streamed(output: Path, data_dir: Path, **changes: Any) -> PretrainConfig:
    settings: dict[str, Any] = {"dataset": "folder", "limit_train": None, "limit_test": None, **changes}
    return tiny_config(output, data_dir=data_dir, loader="dali", **settings)


def alter(path: Path) -> None:
    """Other bytes, as many as before: a change inside the compressed pixels, with a right checksum."""
    for seed in range(1000, 2000):
        content = encoded(pixels(seed, 16, 16))
        if len(content) == path.stat().st_size:
            path.write_bytes(content)
            return
    raise AssertionError("no image of the same length was found")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        pytest.param(lambda path: os.truncate(path, 100), "was modified", id="truncated"),
        pytest.param(lambda path: os.truncate(path, 0), "was modified", id="emptied"),
        pytest.param(lambda path: path.unlink(), "cannot be read .*No such file", id="removed"),
        pytest.param(alter, "was modified after the folder was listed", id="replaced"),
    ],
)
def test_a_file_that_changes_in_the_middle_of_a_run_ends_it_with_its_name(
    change: Callable[[Path], None],
    said: str,
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    victim = images / "train" / "07.png"
    before, times = victim.read_bytes(), victim.stat()
    steps, views = 0, RotationTask.views

    def changes_before_the_second_step(self: RotationTask, *arguments: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps == 2:
            change(victim)
        return views(self, *arguments)

    config = streamed(tmp_path / "run", images)
    with monkeypatch.context() as patch:
        patch.setattr(RotationTask, "views", changes_before_the_second_step)
        with pytest.raises(DataError, match=rf"train/07\.png {said}") as caught:
            pretrain(config)
    assert caught.value.exit_code == 3
    state = checkpoint.load(tmp_path / "run" / "checkpoints" / "last.pt")
    assert (state["epoch"], state["step"]) == (1, 0)  # nothing of the epoch with the altered image
    # What was kept is worth keeping: with the image put back the run goes on.
    victim.unlink(missing_ok=True)
    victim.write_bytes(before)
    os.utime(victim, ns=(times.st_atime_ns, times.st_mtime_ns))
    resumed = pretrain(streamed(tmp_path / "run", images, resume="auto"))
    assert resumed["state_hash"] == pretrain(streamed(tmp_path / "whole", images))["state_hash"]


def test_a_streamed_run_is_not_gone_on_with_on_files_of_other_contents(images: Path, tmp_path: Path) -> None:
    pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    pretrain(streamed(tmp_path / "run", images, epochs=1))
    moved = tmp_path / "moved"
    shutil.copytree(images, moved, copy_function=shutil.copy)  # other times, the same images
    pretrain(streamed(tmp_path / "run", moved, epochs=1, resume="auto"))
    alter(moved / "test" / "01.png")
    with pytest.raises(CheckpointError, match="the content of files has changed"):
        pretrain(streamed(tmp_path / "run", moved, epochs=1, resume="auto"))


def test_a_checkpoint_that_does_not_know_the_contents_is_not_a_stranger() -> None:
    known = {"data_fingerprint": "files:0", "data_contents": "1"}
    older = {"data_fingerprint": "files:0"}
    assert checkpoint.refusal(older, known, Path("last.pt")) is None
    assert checkpoint.refusal(known, known, Path("last.pt")) is None
    assert checkpoint.refusal({**known, "data_contents": "2"}, known, Path("last.pt")) is not None
    assert checkpoint.refusal({"data_fingerprint": "files:9"}, known, Path("last.pt")) is not None


@pytest.mark.parametrize("kind", ["files", "shards"])
def test_the_contents_tell_what_the_fingerprint_of_files_does_not(kind: str, tmp_path: Path) -> None:
    images = {f"{number}.png": pixels(number) for number in range(5)}

    def opened() -> Dataset[Any]:
        for half in ("train", "test"):
            members = {name: encoded(image, compress_level=0) for name, image in images.items()}
            if kind == "shards":
                write_tar(tmp_path / half / "0.tar", members)
                continue
            (tmp_path / half).mkdir(exist_ok=True)
            for name, content in members.items():
                (tmp_path / half / name).write_bytes(content)
        return load_dataset("folder", tmp_path, 8, 2, 1, progress=False, encoded=True)

    first = opened()
    assert opened().contents == first.contents is not None
    for name in ("4.png", "1.png"):  # beyond the limit, and within it
        images[name][-1, -1] ^= 255  # in the last pixel alone
        altered = opened()
        assert altered.fingerprint == first.fingerprint
        assert (altered.contents == first.contents) == (name == "4.png")
    assert load_dataset("folder", tmp_path, 8, progress=False).contents is None


def test_a_damaged_list_of_images_is_none(images: Path) -> None:
    files = load_dataset("folder", images, 8, progress=False, encoded=True).files
    assert files is not None
    packed = image_list.pack(files)
    assert image_list.changes(packed, files) == {}
    refused = 0
    for place in range(len(packed)):
        damaged = bytearray(packed)
        damaged[place] ^= 0x55
        try:
            assert image_list.changes(bytes(damaged), files) == {}  # nothing depends on the time, for example
        except ValueError:
            refused += 1
    assert refused > 0.9 * len(packed)


@pytest.mark.parametrize("place", ["file", "folder of files"])
def test_a_file_that_became_a_fifo_is_not_waited_for(place: str, images: Path) -> None:
    def waited(number: int, frame: object) -> None:
        raise AssertionError("it waits for another process")

    source = list_folder(images).source
    victim = images / "train" / "00.png"
    victim.unlink()
    os.mkfifo(victim)
    signal.signal(signal.SIGALRM, waited)
    signal.alarm(10)
    with pytest.raises(
        DataError, match=r"train/00\.png (cannot be read|is a broken link or not a regular file)"
    ):
        source.read(0) if place == "file" else list_folder(images)
    signal.alarm(0)


@pytest.mark.parametrize("take", [False, True])
def test_a_shard_that_is_written_to_or_replaced_while_it_is_in_use_is_noticed(
    take: bool, tmp_path: Path
) -> None:
    for half in ("train", "test"):
        write_tar(tmp_path / half / "0.tar", {"0.png": encoded(pixels(0)), "1.png": encoded(pixels(1))})
    source = list_folder(tmp_path).source
    source = source.take(np.array([1, 3])) if take else source
    assert source.read(0)
    shard = tmp_path / "train" / "0.tar"
    with shard.open("r+b") as file:
        file.write(file.read(1))  # the same bytes and length
    with pytest.raises(DataError, match=r"train/0\.tar/\d\.png was modified after the folder"):
        source.read(0)
    assert source.read(1) if take else source.read(2)

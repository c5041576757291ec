"""Commands on folders of files: streamed by DALI, they do what they do on images in memory."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from ranks import on_ranks
from tiny import tiny_config

from rotnet_fast import system
from rotnet_fast.config import PretrainConfig
from rotnet_fast.data import loaders
from rotnet_fast.data.crop import RandomResizedCrop
from rotnet_fast.data.loaders import Streaming, choose_loader
from rotnet_fast.engine import checkpoint
from rotnet_fast.engine.rotation_task import RotationTask
from rotnet_fast.errors import ArgumentError, CheckpointError
from rotnet_fast.evaluate import main as evaluate
from rotnet_fast.pretrain import pretrain

CPU = torch.device("cpu")
GIGABYTE = 10**9


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders with 40 training and 12 test images of 16x16 pixels and of other sizes."""
    data_dir = tmp_path_factory.mktemp("shapes")
    rng = np.random.default_rng(0)
    for half, count in (("train", 20), ("test", 6)):
        for name in ("stripes", "spots"):
            folder = data_dir / half / name
            folder.mkdir(parents=True)
            for number in range(count):
                side = 16 if number % 4 else 21
                image = rng.integers(0, 90, (side, side + number % 3, 3))
                image[::3] += 150 if name == "stripes" else 0
                image[::4, ::4] += 150 if name == "spots" else 0
                suffix = "png" if number % 5 == 0 else "jpg"
                Image.fromarray(image.astype(np.uint8)).save(folder / f"{number:02d}.{suffix}")
    return data_dir


@pytest.fixture(autouse=True)
def _user_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def config(output: Path, data_dir: Path, **changes: Any) -> PretrainConfig:
    tiny = tiny_config(output, dataset="folder", data_dir=data_dir, limit_train=None, limit_test=None)
    return replace(tiny, log_every=1, **changes)


def losses(run: Path) -> list[dict[str, float]]:
    """Everything that a run reported but for its speed."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [
        {name: value for name, value in line.items() if name not in ("images_per_second", "data_wait")}
        for line in lines
    ]


@pytest.fixture(scope="module")
def streamed(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, dict[str, Any]]]:
    run = tmp_path_factory.mktemp("streamed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(run / "cache"))
        yield run, pretrain(config(run, shapes, loader="dali"))


@pytest.mark.needs_dali
def test_dali_and_resident_train_to_the_same_last_bit(
    shapes: Path, streamed: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    run, results = streamed
    resident = pretrain(config(tmp_path, shapes, loader="resident"))
    assert losses(tmp_path) == losses(run)
    assert len(losses(run)) == 2 * (3 + 2)  # three steps and two reports in each of two epochs
    assert (results["loader"], resident["loader"]) == ("dali", "resident")
    assert results["rotation_accuracy"] == resident["rotation_accuracy"]
    for name in ("last.pt", "epoch-0001.pt"):
        ours, theirs = (
            checkpoint.load(folder / "checkpoints" / name)["module"] for folder in (run, tmp_path)
        )
        assert checkpoint.state_hash(ours) == checkpoint.state_hash(theirs)


@pytest.mark.needs_dali
def test_processes_stream_their_parts_of_every_batch(shapes: Path, tmp_path: Path) -> None:
    """Two processes with DALI train as two with the images in memory."""
    settings: dict[str, Any] = {"batch_size": 13, "sync_batchnorm": True}  # uneven parts
    found = []
    for loader in ("dali", "resident"):
        run = tmp_path / loader
        both = on_ranks(2, pretrain, config(run, shapes, loader=loader, **settings))
        assert [results["loader"] for results in both] == [loader] * 2
        found.append(checkpoint.state_hash(checkpoint.load(run / "checkpoints" / "last.pt")["module"]))
    assert found[0] == found[1]
    assert losses(tmp_path / "dali") == losses(tmp_path / "resident")


class Killed(BaseException):
    """Ends a run as abruptly as an exception can."""


@pytest.mark.faults("killed before any step")
@pytest.mark.parametrize("crop", ["pad", "resized"])
@pytest.mark.needs_dali
def test_a_run_killed_in_mid_epoch_goes_on_exactly(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, crop: str
) -> None:
    settings = {"loader": "dali", "crop": crop, "decoder": "cpu"}
    whole = pretrain(config(tmp_path / "whole", shapes, **settings))
    steps, views = 0, RotationTask.views

    def dies_at_the_fifth(self: RotationTask, *arguments: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps == 5:
            raise Killed
        return views(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(RotationTask, "views", dies_at_the_fifth)
        with pytest.raises(Killed):
            pretrain(config(tmp_path / "killed", shapes, **settings))
    resumed = pretrain(config(tmp_path / "killed", shapes, **settings, resume="auto"))
    assert resumed["state_hash"] == whole["state_hash"]
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")


@pytest.mark.needs_dali
def test_crops_of_random_size_change_what_is_learned(
    shapes: Path, streamed: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    pretrain(config(tmp_path, shapes, loader="dali", crop="resized"))
    assert losses(tmp_path)[0] != losses(streamed[0])[0]
    pretrain(config(tmp_path / "narrow", shapes, loader="dali", crop="resized", crop_scale=(0.9, 1.0)))
    assert losses(tmp_path / "narrow")[0] != losses(tmp_path)[0]


@pytest.mark.needs_dali
def test_evaluation_streams_what_pretraining_streamed(
    streamed: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    run, _ = streamed
    tables = []
    for loader in ("dali", "resident"):
        output = tmp_path / loader
        flags = f"--checkpoint {run} --output {output} --loader {loader} --knn --linear --images-per-class 7"
        assert evaluate([*flags.split(), "--heads", "conv", "--epochs", "2", "--precision", "fp32"]) == 0
        tables.append(json.loads((output / "results.json").read_text())["cells"])
    assert tables[0] == tables[1]
    assert len(tables[0]) == 6  # of the pretrained network, and of an untrained one


@pytest.mark.needs_dali
def test_auto_says_which_loader_it_takes_and_keeps_to_it(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pretrain(config(tmp_path / "much", shapes, epochs=1))["loader"] == "resident"
    assert "loader: resident; the decoded images take 0.00 GB of" in capsys.readouterr().out
    monkeypatch.setattr(loaders, "free_memory", lambda device: 1000)
    assert pretrain(config(tmp_path / "little", shapes, epochs=1))["loader"] == "dali"
    assert "loader: dali; the decoded images take" in capsys.readouterr().out
    again = config(tmp_path / "much", shapes, epochs=1, resume="auto")
    assert pretrain(again)["loader"] == "resident"  # whose checkpoint is one of pixels, not of files
    assert "loader: resident; as this run started" in capsys.readouterr().out


@pytest.mark.parametrize("begun", ["resident", "dali"])
@pytest.mark.needs_dali
def test_a_run_is_not_gone_on_with_by_the_other_loader(shapes: Path, tmp_path: Path, begun: str) -> None:
    pretrain(config(tmp_path, shapes, epochs=1, loader=begun))
    other = {"resident": "dali", "dali": "resident"}[begun]
    with pytest.raises(CheckpointError, match=f"made with --loader {begun}, and .* remove --loader"):
        pretrain(config(tmp_path, shapes, epochs=1, loader=other, resume="auto"))


@pytest.mark.parametrize(
    ("wish", "is_cropped", "needed", "begun", "expected"),
    [
        ("auto", False, 5, None, "resident"),
        ("auto", False, 6, None, "dali"),
        ("auto", False, 6, "resident", "resident"),
        ("auto", False, 5, "dali", "dali"),
        ("auto", True, 1, "resident", "dali"),
        ("dali", False, 1, None, "dali"),
        ("resident", False, 99, "dali", "resident"),
    ],
)
def test_the_loader_follows_from_wish_crop_and_memory(
    wish: Any, is_cropped: bool, needed: int, begun: str, expected: str
) -> None:
    crop = RandomResizedCrop() if is_cropped else None
    streaming = Streaming(CPU, wish, crop, begun=begun, free=10 * GIGABYTE)
    assert choose_loader(streaming, needed * GIGABYTE)[0] == expected


def test_images_are_kept_where_the_system_does_not_say_what_memory_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(system, "MEMINFO", tmp_path / "none")
    monkeypatch.setattr(loaders, "_number", lambda path: None)  # no container's limit either
    monkeypatch.delattr("os.sysconf")
    assert loaders.free_memory(CPU) is None
    assert choose_loader(Streaming(CPU), 1000 * GIGABYTE) == (
        "resident",
        "the system does not say how much memory is free",
    )


def test_processes_of_one_machine_share_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = loaders.free_memory(CPU)
    assert alone is not None
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert loaders.free_memory(CPU) == pytest.approx(alone / 4, rel=0.2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loader": "resident", "crop": "resized"}, "use --loader dali, or --crop pad"),
        (
            {"dataset": "digits", "data_dir": None, "loader": "dali"},
            "data set digits is always in memory: omit --loader",
        ),
        (
            {"dataset": "digits", "data_dir": None, "crop": "resized"},
            "data set digits is always in memory: omit --crop",
        ),
        ({"decoder": "gpu", "loader": "dali"}, "decoder is gpu, which needs a GPU"),
        ({"crop_scale": (0.5, 0.2)}, "crop-scale is"),
        ({"crop_ratio": (0.0, 1.0)}, "crop-ratio is"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(
    shapes: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ArgumentError, match=message):
        pretrain(replace(config(tmp_path, shapes), **changes))

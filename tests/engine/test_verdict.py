"""A training that came to nothing says so at its end; one that cannot work is refused before it begins."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny import read_digits_once, tiny_config

from rotnet_fast import evaluate, pretrain
from rotnet_fast.checks import smallest_batch
from rotnet_fast.config import PretrainConfig
from rotnet_fast.protocols.result import load_results, render
from rotnet_fast.verdict import is_at_chance, of_pretraining


@pytest.fixture(autouse=True, scope="module")
def _digits() -> Iterator[None]:
    with read_digits_once():
        yield


def results(accuracy: float, loss: float = 1.0, learned: float = 60.0, rotations: int = 4) -> dict[str, Any]:
    return {
        "pretext_task": "rotation",
        "rotation_accuracy": accuracy,
        "rotation_accuracy_by_degrees": {str(number): accuracy for number in range(rotations)},
        "train": {"loss": loss, "rotation_accuracy": learned},
        "train_images": 1000,
        "test_images": 1000,
        "tested_on": "test",
    }


@pytest.mark.parametrize(
    ("train", "test", "sentence", "is_hopeless"),
    [
        (0.2, 0.3, None, False),
        (8.18, 7.7e8, "diverged: its final loss is 8.18, but that of a uniform image is about 1", True),
        (0.5, 7.7e8, "error is 7.7e+08, above the 1 or so of a uniform image, but 0.5 on", False),
    ],
)
def test_reconstructions_worse_than_a_uniform_image_are_told(
    train: float, test: float, sentence: str | None, is_hopeless: bool
) -> None:
    verdict = of_pretraining(
        {"pretext_task": "autoencoder", "reconstruction_error": test, "train": {"loss": train}}
    )
    assert (verdict is None) == (sentence is None)
    if verdict is not None and sentence is not None:
        assert sentence in verdict.sentence
        assert verdict.is_hopeless == is_hopeless


@pytest.mark.parametrize(
    ("found", "sentence", "is_hopeless"),
    [
        (results(60.0), None, False),
        (results(60.0, loss=1e14), "diverged: its final loss is 1e+14, but that of guessing is 1.39", True),
        (results(25.0, loss=1.386, learned=25.0), "learned nothing; try another --lr, more --epochs", True),
        (results(25.3, learned=70.0), "but 70.00 % on the training images", False),
        (
            results(50.0, loss=0.7, learned=50.0, rotations=2),
            "that of guessing, 50.00 %: the network has",
            True,
        ),
        (results(50.0, loss=2.0, learned=50.0, rotations=2), "that of guessing is 0.69", True),
        (results(30.0, loss=1.3, learned=31.0), None, False),
    ],
)
def test_what_went_wrong_is_told_from_the_results(
    found: dict[str, Any], sentence: str | None, is_hopeless: bool
) -> None:
    verdict = of_pretraining(found)
    assert (verdict is None) == (sentence is None)
    if verdict is not None:
        assert sentence is not None
        assert sentence in verdict.sentence
        assert verdict.is_hopeless is is_hopeless


def test_chance_is_wider_where_less_was_tested() -> None:
    assert is_at_chance(33.0, 25.0, 80)
    assert not is_at_chance(33.0, 25.0, 8000)
    assert is_at_chance(20.0, 25.0, 10**9)


TINY = shlex.split(
    "--preset quickstart --image-size 16 --limit-train 40 --limit-test 20 --blocks 3 --width 0.05 "
    "--batch-size 16 --device cpu --precision fp32 --no-tensorboard"
)


@pytest.mark.parametrize("rate", ["100", "1e-9"])
def test_a_run_that_came_to_nothing_does_not_recommend_its_evaluation(
    rate: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pretrain.main([*TINY, "--lr", rate, "--epochs", "2", "--output", str(tmp_path / "run")]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[-1].startswith("WARNING: the ")
    assert "--lr" in printed[-1]
    assert "next:" not in printed


def test_a_run_that_learned_recommends_its_evaluation() -> None:
    speed = {
        "dataset": "digits",
        "classes": 10,
        "images_per_second": 1.0,
        "train_seconds": 1.0,
        "features": {},
    }
    config = tiny_config(Path("run"))
    evaluation = "python -m rotnet_fast.evaluate run --images-per-class 1 --epochs 10 --pad 2"
    after = [evaluation, "python -m rotnet_fast.visualize run", "python -m rotnet_fast.export run"]
    for found, warnings, steps in (
        (results(60.0), 0, after),
        (results(25.3, learned=70.0), 1, after),
        (results(25.3, learned=25.0), 1, []),
    ):
        printed = pretrain.summary(config, {**found, **speed}).splitlines()
        assert [line.startswith("WARNING: ") for line in printed] == [False] * 3 + [True] * warnings
        assert pretrain.next_steps(config, {**found, **speed}) == steps


def test_a_run_that_learned_nothing_recommends_a_look_at_its_curves() -> None:
    found = {**results(25.0, learned=25.0), "dataset": "digits", "classes": 10}
    config: PretrainConfig = tiny_config(Path("run"), tensorboard=True)
    assert pretrain.next_steps(config, found) == ["tensorboard --logdir run"]


def test_classifiers_that_guess_are_named_below_the_table(tmp_path: Path) -> None:
    pretrain.pretrain(tiny_config(tmp_path / "run"))
    flags = "--heads conv --lr 1e-9 --epochs 1 --batch-size 16 --knn --no-random-init --device cpu"
    assert evaluate.main(["--checkpoint", str(tmp_path / "run"), *flags.split()]) == 0
    found = load_results(tmp_path / "run" / "evaluate-001")
    cells = {cell["head"]: cell for cell in found["cells"]}
    cells["conv"]["confusion"] = (np.ones((10, 10), int) * 10).tolist()
    cells["conv"]["accuracy"] = 10.0
    cells["knn"]["confusion"] = (np.eye(10, dtype=int) * 100).tolist()
    cells["knn"]["accuracy"] = 100.0
    said = (
        "No better than naming one class for all images: frozen conv2 conv. Try more --epochs, a lower --lr"
    )
    assert said in render(found)


def small_images(folder: Path, side: int, train: int = 9) -> Path:
    for half, count in (("train", train), ("test", 4)):
        for number in range(count):
            place = folder / half / ("cat", "dog")[number % 2]
            place.mkdir(parents=True, exist_ok=True)
            image = np.random.default_rng(number).integers(0, 256, (side, side, 3), dtype=np.uint8)
            Image.fromarray(image).save(place / f"{number}.png")
    return folder


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Run folder of a pretraining on images of 4x4 pixels, whose maps have one."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    images = small_images(tmp_path / "images", 4)
    data = {"dataset": "folder", "data_dir": images, "limit_train": None, "limit_test": None}
    pretrain.pretrain(tiny_config(tmp_path / "run", **data, image_size=4, epochs=1, pad=0))
    return tmp_path / "run"


REFUSED = [
    ("--batch-size 1 --heads conv", "batch-size is 1, so every batch has a single image"),
    ("--batch-size 1 --no-frozen --supervised", "such as --batch-size 3"),
    ("--batch-size 4 --heads conv", "batch-size is 4, and 9 training images leave a last batch of one"),
    ("--batch-size 8 --heads nonlinear", "such as --batch-size 9"),
    ("--batch-size 8 --no-frozen --fine-tune --heads conv", "BatchNorm cannot train"),
    (
        "--batch-size 3 --no-frozen --random-init --heads conv --layers conv3",
        "4 test images leave a last batch of one",
    ),
    (
        "--batch-size 3 --no-frozen --knn --random-init --layers conv3",
        "4 test images leave a last batch of one",
    ),
]


def test_a_baseline_nobody_asked_for_gives_way_where_batches_of_one_would_refuse_it(run: Path) -> None:
    flags = "--batch-size 3 --no-frozen --knn --layers conv3 --epochs 1 --device cpu"
    assert evaluate.main(["--checkpoint", str(run), *flags.split()]) == 0
    notes = [cell["note"] for cell in load_results(run / "evaluate-001")["cells"]]
    assert notes == ["", "running statistics"]


@pytest.mark.parametrize(("flags", "sentence"), REFUSED)
def test_batches_that_batchnorm_cannot_take_are_refused_before_the_first_training(
    flags: str, sentence: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate.main(["--checkpoint", str(run), "--epochs", "1", "--device", "cpu", *flags.split()]) == 2
    answer = capsys.readouterr().err.splitlines()[-1]
    assert answer.startswith("error: batch-size is ")
    assert sentence in answer
    assert not list(run.glob("evaluate-*"))


@pytest.mark.parametrize(
    "flags", ["--batch-size 1 --no-frozen --knn --linear", "--batch-size 3 --heads conv"]
)
def test_batches_that_nothing_minds_are_taken(flags: str, run: Path) -> None:
    assert evaluate.main(["--checkpoint", str(run), "--epochs", "1", "--device", "cpu", *flags.split()]) == 0


def test_larger_maps_make_up_for_a_batch_of_one(tmp_path: Path) -> None:
    pretrain.pretrain(tiny_config(tmp_path / "run", epochs=1))
    flags = "--heads conv --supervised --fine-tune --random-init --epochs 1 --limit-train 17 --batch-size 16"
    assert evaluate.main(["--checkpoint", str(tmp_path / "run"), "--device", "cpu", *flags.split()]) == 0
    flags = "--epochs 1 --batch-size 1 --heads conv --limit-train 3"
    assert evaluate.main(["--checkpoint", str(tmp_path / "run"), "--device", "cpu", *flags.split()]) == 0


@pytest.mark.parametrize("batch_size", [1, 8])
def test_a_pretraining_has_a_view_for_every_rotation_in_a_batch_of_one(
    batch_size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    images = small_images(tmp_path / "images", 4)
    data = {"dataset": "folder", "data_dir": images, "limit_train": None, "limit_test": None, "pad": 0}
    sizes = {"image_size": 4, "batch_size": batch_size, "rotations": (0, 180), "epochs": 1}
    pretrain.pretrain(tiny_config(tmp_path / "run", **data, **sizes))
    assert json.loads((tmp_path / "run" / "results.json").read_text())["skipped_steps"] == 0


@pytest.mark.parametrize(("images", "size", "smallest"), [(33, 16, 1), (32, 16, 16), (5, 128, 5), (9, 1, 1)])
def test_the_smallest_batch_is_the_last(images: int, size: int, smallest: int) -> None:
    assert smallest_batch(images, size) == smallest

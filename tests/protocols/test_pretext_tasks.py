"""Every pretext task has the same trainer, checkpoints, captured steps and commands as RotNet's own."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from image_files import pixels, save
from ranks import on_ranks
from recorded_graph import RecordingCapture
from safetensors import safe_open
from tiny import EPOCHS, STEPS_PER_EPOCH, read_digits_once, tiny_config

from rotnet_fast import load_backbone
from rotnet_fast.config import PretrainConfig
from rotnet_fast.data.datasets import load_dataset
from rotnet_fast.embed import EmbedConfig, embed
from rotnet_fast.engine import checkpoint, trainer
from rotnet_fast.engine.precision import Precision
from rotnet_fast.engine.pretext_task import PretextTask, task_class
from rotnet_fast.engine.run_folder import open_run_folder
from rotnet_fast.engine.step import TrainingStep
from rotnet_fast.errors import ArgumentError, CheckpointError
from rotnet_fast.evaluate import EvaluateConfig, evaluate
from rotnet_fast.export import ExportConfig, export
from rotnet_fast.models.nin import NetworkInNetwork
from rotnet_fast.orient import OrientConfig, orient
from rotnet_fast.pretext_tasks import PRETEXT_TASKS, PretextTaskName, backbone_state
from rotnet_fast.pretrain import next_steps, parse, pretrain, summary
from rotnet_fast.pretrained import read_pretrained
from rotnet_fast.protocols.pretext import pretraining
from rotnet_fast.protocols.result import load_results, render
from rotnet_fast.verdict import of_pretraining
from rotnet_fast.visualize import VisualizeConfig, visualize

CPU = torch.device("cpu")
OTHERS: tuple[PretextTaskName, ...] = ("autoencoder", "jigsaw")


@pytest.fixture(autouse=True, scope="module")
def _digits() -> Iterator[None]:
    with read_digits_once():
        yield


def config_of(output: Path, task: PretextTaskName, **changes: Any) -> PretrainConfig:
    return tiny_config(output, pretext_task=task, **{"lr": 0.01, **changes})


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A finished run of each task but RotNet's, not to be changed."""
    folder = tmp_path_factory.mktemp("runs")
    for task in OTHERS:
        pretrain(config_of(folder / task, task, checkpoint_every_steps=None))
    return {task: folder / task for task in OTHERS}


def test_every_name_of_the_setting_has_a_task() -> None:
    assert set(PRETEXT_TASKS) == set(get_args(PretextTaskName))
    for name in PRETEXT_TASKS:
        assert issubclass(task_class(name), PretextTask)


def test_a_recipe_names_the_task_unless_it_is_rotnets() -> None:
    plain = tiny_config(Path())
    assert "pretext_task" not in plain.recipe()
    for task in OTHERS:
        config = replace(plain, pretext_task=task)
        recipe = json.loads(json.dumps(config.recipe()))
        assert recipe["pretext_task"] == task
        again = PretrainConfig.from_recipe(recipe)
        assert (again.pretext_task, again.outputs) == (task, PRETEXT_TASKS[task].outputs)
    assert PretrainConfig.from_recipe(plain.recipe()).pretext_task == "rotation"


def test_a_run_folder_is_named_after_the_task_unless_it_is_rotnets() -> None:
    names = [PretrainConfig(pretext_task=task).output_folder().name for task in ("rotation", *OTHERS)]
    assert names == [
        "paper-cifar10-seed0",
        "paper-cifar10-autoencoder-seed0",
        "paper-cifar10-jigsaw-seed0",
    ]


@pytest.mark.parametrize("optimizer", ["sgd", "muon"])
@pytest.mark.parametrize("task", OTHERS)
def test_a_run_cut_anywhere_resumes_to_the_same_bits(
    task: PretextTaskName, optimizer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copies: list[Path] = []
    save_checkpoint = checkpoint.save

    def saving(path: Path, state: Any) -> None:
        save_checkpoint(path, state)
        copies.append(tmp_path / f"{len(copies)}.pt")
        copies[-1].write_bytes(path.read_bytes())

    settings = {"optimizer": optimizer}
    with monkeypatch.context() as during:
        during.setattr(checkpoint, "save", saving)
        whole = pretrain(config_of(tmp_path / "whole", task, **settings))
    assert len(copies) == EPOCHS * (STEPS_PER_EPOCH + 1)
    for origin in copies[:-1]:
        resumed = pretrain(config_of(tmp_path / origin.stem, task, resume=str(origin), **settings))
        assert resumed["state_hash"] == whole["state_hash"], origin


@pytest.mark.parametrize("task", OTHERS)
def test_replayed_steps_train_as_ordinary_ones(
    task: PretextTaskName, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 8 epochs of batches of 16, 16 and 8: both sizes are captured, and replayed under other learning rates.
    found = []
    for capture in (None, RecordingCapture()):
        with monkeypatch.context() as during:
            during.setattr(
                trainer,
                "TrainingStep",
                lambda *arguments, capture=capture: TrainingStep(*arguments[:-1], capture),
            )
            results = pretrain(config_of(tmp_path / str(capture is None), task, epochs=8))
        found.append((results["state_hash"], results["train"]))
    assert found[0] == found[1]


@pytest.mark.parametrize("task", OTHERS)
@pytest.mark.parametrize(("world", "images"), [(2, 40), (3, 33)])  # of the last image, two of three have none
def test_several_processes_train_what_one_trains(
    world: int, images: int, task: PretextTaskName, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"sync_batchnorm": True, "precision": "fp32", "checkpoint_every_steps": None}
    settings["limit_train"] = images
    settings["epochs"] = 1  # more steps amplify the rounding of sums, which differs between processors
    alone = pretrain(config_of(tmp_path / "alone", task, **settings))
    together = on_ranks(world, pretrain, config_of(tmp_path / "together", task, **settings))[0]
    measure = PRETEXT_TASKS[task].measure
    assert together["train"]["loss"] == pytest.approx(alone["train"]["loss"], rel=1e-3)
    assert together[measure] == pytest.approx(alone[measure], rel=0.05, abs=4)


@pytest.mark.parametrize("task", OTHERS)
def test_the_loss_falls_on_digits(task: PretextTaskName, tmp_path: Path) -> None:
    config = config_of(tmp_path / "run", task, epochs=12, width=0.1, limit_train=200)
    results = pretrain(replace(config, checkpoint_every_steps=None))
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if line["kind"] == "train_epoch"]
    assert losses[-1] < 0.85 * losses[0]
    assert of_pretraining(results) is None
    if task == "jigsaw":
        assert results["permutation_accuracy"] > 10.0  # chance is 4.2


def test_the_result_is_named_after_what_was_measured(runs: dict[str, Path]) -> None:
    for task, run in runs.items():
        results = json.loads((run / "results.json").read_text())
        assert results["pretext_task"] == task
        assert "rotation_accuracy" not in results
        assert PRETEXT_TASKS[task].measure in results  # type: ignore[index]
        said = summary(config_of(run, task), results).splitlines()[0]  # type: ignore[arg-type]
        error = results.get("reconstruction_error", 0.0)
        expected = {
            "autoencoder": f"reconstruction error {error:.4g} (mean squared) on the 20 test images",
            "jigsaw": f"permutation accuracy {results.get('permutation_accuracy', 0.0):.2f} % on the 20 test",
        }
        assert said.startswith(expected[task])
        unlabelled = next_steps(config_of(run, task), {**results, "classes": 0})  # type: ignore[arg-type]
        assert not any("overview" in step for step in unlabelled)


def test_the_best_autoencoder_is_the_one_with_the_lowest_error(runs: dict[str, Path]) -> None:
    lines = [json.loads(line) for line in (runs["autoencoder"] / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if line["kind"] == "test_epoch"]
    best = checkpoint.load(runs["autoencoder"] / "checkpoints" / "best.pt")
    assert best["epoch"] == 1 + losses.index(min(losses))


def test_puzzles_solved_by_guessing_are_told() -> None:
    found = {
        "pretext_task": "jigsaw",
        "permutation_accuracy": 4.3,
        "train": {"loss": 3.178, "permutation_accuracy": 4.2},
        "train_images": 1000,
        "test_images": 1000,
    }
    verdict = of_pretraining(found)
    assert verdict is not None
    assert "the permutation accuracy is indistinguishable from that of guessing, 4.17 %" in verdict.sentence
    assert of_pretraining({**found, "permutation_accuracy": 6.0}) is None
    diverged = of_pretraining({**found, "train": {"loss": 9.0}})
    assert diverged is not None
    assert "that of guessing is 3.18" in diverged.sentence


def test_the_decoder_is_kept_for_a_resume_and_left_out_by_everything_else(
    runs: dict[str, Path], tmp_path: Path
) -> None:
    run = runs["autoencoder"]
    saved = checkpoint.load(run / "checkpoints" / "last.pt")["module"]
    assert any(name.startswith("decoder.") for name in saved)
    export(ExportConfig(str(run), tmp_path / "exported"))
    with safe_open(str(tmp_path / "exported" / "model.safetensors"), "pt") as file:
        names = set(file.keys())
    expected = backbone_state(saved, "autoencoder")
    assert names == set(expected) == set(NetworkInNetwork(0, 3, 0.05).state_dict())
    for model in (run, tmp_path / "exported"):
        state = read_pretrained(model).state
        assert all(torch.equal(state[name], expected[name]) for name in expected)


@pytest.mark.parametrize("task", OTHERS)
def test_features_are_those_of_the_trained_network(
    task: PretextTaskName, runs: dict[str, Path], tmp_path: Path
) -> None:
    exported = export(ExportConfig(str(runs[task]), tmp_path / "exported"))
    images = torch.randint(0, 256, (5, 16, 16, 3), dtype=torch.uint8)
    backbone, again = load_backbone(runs[task], "cpu"), load_backbone(exported, "cpu")
    assert backbone.rotations == ()
    assert backbone.metadata["pretext_task"] == task
    assert torch.equal(backbone(images), again(images))
    network = task_class(task).make_network(config_of(tmp_path, task))
    network.load_state_dict(checkpoint.load(runs[task] / "checkpoints" / "last.pt")["module"])
    normalised = backbone._normalised(images)
    expected = network.eval().features(normalised, ["conv2"])["conv2"]
    assert torch.equal(backbone.features(images), expected)
    vectors, probabilities = backbone.vectors_and_rotations(images)
    assert torch.equal(vectors, backbone(images))
    assert probabilities.shape == (5, 0)
    with pytest.raises(ArgumentError, match=f"pretrained by the task {task}, not by rotations; load one of"):
        backbone.rotation_logits(images)
    backbone.save(tmp_path / "saved")
    assert torch.equal(load_backbone(tmp_path / "saved", "cpu")(images), vectors)


@pytest.mark.parametrize("task", OTHERS)
def test_a_model_card_says_what_was_learned(
    task: PretextTaskName, runs: dict[str, Path], tmp_path: Path
) -> None:
    exported = export(ExportConfig(str(runs[task]), tmp_path / "exported"))
    text = (exported / "README.md").read_text()
    metrics = checkpoint.load(runs[task] / "checkpoints" / "last.pt")["metrics"]["test"]
    for told in {
        "autoencoder": (
            "# Autoencoder, NIN-3, ",
            "such that a decoder (left out here) could reconstruct it. This is not RotNet",
            "; no classifier; ",
            f"Reconstruction error: **{metrics['loss']:.4g}**, mean squared, of normalised pixels, on 20",
            "batches of 16 images (16 views)",
        ),
        "jigsaw": (
            "# Jigsaw, NIN-3, ",
            "in which of 24 orders the four quarters of an image had been put together. This is not RotNet",
            "a linear classifier of 24 permutations; ",
            f"Permutation accuracy: **{metrics.get('permutation_accuracy', 0):.2f} %** (guessing: 4.17 %)",
            "batches of 16 images (64 views)",
            "- augmentation: no crop, left-right flip with probability 0.5; then its quarters in 4 of the 24",
        ),
    }[task]:
        assert told in text
    for untrue in ("rotation", "degrees", "which way up"):
        assert untrue not in text.lower().replace("image rotations},", "")  # but for the title of the paper


@pytest.mark.parametrize("task", OTHERS)
def test_evaluations_stand_beside_no_number_of_rotnets(
    task: PretextTaskName, runs: dict[str, Path], tmp_path: Path
) -> None:
    config = EvaluateConfig(
        checkpoint=str(runs[task]), heads=("conv",), knn=True, epochs=1, images_per_class=1, device="cpu"
    )
    evaluate(config, tmp_path / "evaluation")
    results = load_results(tmp_path / "evaluation")
    assert (results["network"]["pretext_task"], results["network"]["rotations"]) == (task, [])
    assert f"3 blocks, width 0.05, pretext task {task}; " in render(results)


def test_other_networks_play_jigsaw_and_are_no_autoencoders(tmp_path: Path) -> None:
    results = pretrain(config_of(tmp_path / "run", "jigsaw", model="resnet18", blocks=4, width=1.0, epochs=1))
    assert "permutation_accuracy" in results
    assert read_pretrained(tmp_path / "run").network().num_classes == 24


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ("--pretext-task puzzle", "pretext-task is 'puzzle'; choose from rotation, autoencoder, jigsaw"),
        ("--pretext-task autoencoder --model resnet18", "only applies to --model nin, and model is resnet18"),
        ("--pretext-task jigsaw --rotations 0 180", "rotations is 0 180, but pretext-task is jigsaw, which"),
        ("--pretext-task jigsaw --image-size 15", "image-size is 15; with pretext-task jigsaw it must be a"),
        (
            "--pretext-task autoencoder --image-size 18",
            "with pretext-task autoencoder it must be a multiple of 4",
        ),
    ],
)
def test_settings_that_a_task_cannot_use_are_refused(flags: str, sentence: str) -> None:
    with pytest.raises(ArgumentError, match=sentence):
        parse(["--dataset", "digits", *flags.split()])


def test_a_run_is_not_resumed_by_another_task(runs: dict[str, Path], tmp_path: Path) -> None:
    pretrain(replace(config_of(tmp_path / "rotnet", "rotation"), epochs=1))
    folders = {**runs, "rotation": tmp_path / "rotnet"}
    for task, other in (("jigsaw", "autoencoder"), ("jigsaw", "rotation"), ("rotation", "jigsaw")):
        config = config_of(tmp_path / other, other, resume=str(folders[task]))  # type: ignore[arg-type]
        with pytest.raises(CheckpointError, match=f"pretext_task is {task!r} there and {other!r} here"):
            pretrain(config)


@pytest.mark.parametrize("task", ["rotation", *OTHERS])
def test_a_run_starts_from_the_network_of_another_task(
    task: PretextTaskName, runs: dict[str, Path], tmp_path: Path
) -> None:
    init = read_pretrained(runs["jigsaw"])
    config = config_of(tmp_path / "run", task, init_from=str(runs["jigsaw"]))
    dataset = load_dataset("digits", None, config.image_size, config.limit_train, config.limit_test)

    def state(**start: Any) -> dict[str, torch.Tensor]:
        with open_run_folder(tmp_path / f"run {bool(start)}", False) as run:
            made = pretraining(config, dataset, CPU, Precision("fp32", "cpu"), run, progress=False, **start)
            return made.task.module.state_dict()

    before, found = state(), state(init=init)
    kept = ("decoder.", "classifier.") if task != "jigsaw" else ()
    for name, tensor in found.items():
        expected = before[name] if name.startswith(kept or "nothing") else init.state[name]
        assert torch.equal(tensor, expected), name


@pytest.mark.parametrize("task", OTHERS)
def test_pictures_of_rotations_are_left_out_or_refused(
    task: PretextTaskName, runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn = visualize(VisualizeConfig(str(runs[task]), device="cpu", images=2, output=tmp_path))
    assert (
        f"without pictures of rotations (overview, rotations, calibration, hardest): pretext task {task}"
        in (capsys.readouterr().out)
    )
    names = {path.stem for path in drawn.files}
    assert names == {"filters", "attention", "knn", "confusion-classes", "embedding"}
    for name in ("overview", "compression"):
        with pytest.raises(
            ArgumentError, match=f"what holds {name}, but checkpoint .* by the task {task} and"
        ):
            visualize(VisualizeConfig(str(runs[task]), what=(name, "knn"), device="cpu", output=tmp_path))


@pytest.mark.parametrize("task", OTHERS)
def test_photos_are_embedded_without_rotations_and_not_turned(
    task: PretextTaskName,
    runs: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user_cache"))
    for number in range(3):
        save(tmp_path / "photos" / f"{number}.png", pixels(number, 20, 20))
    for suffix in (".npz", ".csv"):
        output = tmp_path / f"features{suffix}"
        embed(EmbedConfig(str(runs[task]), tmp_path / "photos", output, device="cpu"))
    assert f"without rotation probabilities: pretext task {task}\n" in capsys.readouterr().out
    with np.load(tmp_path / "features.npz") as arrays:
        assert set(arrays) == {"names", "vectors", "layer", "metadata"}
        vectors = arrays["vectors"]
    expected = load_backbone(runs[task], "cpu").embed(tmp_path / "photos")
    np.testing.assert_allclose(vectors, expected.numpy(), rtol=1e-5, atol=1e-6)
    with (tmp_path / "features.csv").open(newline="") as file:
        header = next(csv.reader(file))
    assert header == ["name", *(f"conv2_{number}" for number in range(vectors.shape[1]))]
    with pytest.raises(CheckpointError, match=f"by the task {task}, not by rotations; pass a model of the"):
        orient(OrientConfig(str(runs[task]), tmp_path / "photos", tmp_path / "out.csv", device="cpu"))


@pytest.mark.parametrize("task", OTHERS)
def test_features_are_monitored_while_training(task: PretextTaskName, tmp_path: Path) -> None:
    plain = pretrain(config_of(tmp_path / "plain", task))
    results = pretrain(config_of(tmp_path / "run", task, monitor=("knn",), monitor_every=1))
    assert 0 <= results["features"]["knn_accuracy"]["last"] <= 100
    weights = [
        checkpoint.load(tmp_path / name / "checkpoints" / "last.pt")["module"] for name in ("plain", "run")
    ]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert plain["features"] == {}


def test_a_batch_of_too_many_values_is_refused_before_a_run_is_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a_view = 3 * 16 * 16
    monkeypatch.setattr("rotnet_fast.protocols.pretext.MAX_ELEMENTS", 60 * a_view + 1)
    with pytest.raises(ArgumentError, match=r"batch-size is 16, whose views .* use 15 or less"):
        pretrain(tiny_config(tmp_path / "run"))
    assert not (tmp_path / "run").exists()
    pretrain(tiny_config(tmp_path / "run", batch_size=15))
    pretrain(tiny_config(tmp_path / "jigsaw", pretext_task="jigsaw", image_size=18, epochs=1))

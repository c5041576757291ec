"""Networks come back from checkpoints as they were."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from tiny import read_digits_once, tiny_config

from rotnet_fast import evaluate, visualize
from rotnet_fast.backbone import load_backbone
from rotnet_fast.engine import checkpoint
from rotnet_fast.engine.run_folder import run_of
from rotnet_fast.errors import CheckpointError
from rotnet_fast.export import ExportConfig, export
from rotnet_fast.export import main as export_main
from rotnet_fast.pretrain import pretrain
from rotnet_fast.pretrained import MODEL_FILE, SHIPPED, find_model, read_pretrained
from rotnet_fast.protocols.images import open_images
from rotnet_fast.protocols.supervised import load_supervised
from rotnet_fast.study.summary import load_study


def test_pretrained_network_and_images_are_those_of_the_run(tmp_path: Path) -> None:
    with read_digits_once():
        pretrain(tiny_config(tmp_path / "run", rotations=(90, 270), epochs=1, dataset_name="Digits"))
        pretrained = read_pretrained(tmp_path / "run" / "checkpoints" / "last.pt")
        dataset, _ = open_images(pretrained, torch.device("cpu"), limit_test=10)
    assert pretrained.run == tmp_path / "run"
    assert (pretrained.config.rotations, pretrained.epoch) == ((90, 270), 1)
    state = pretrained.network().state_dict()
    assert checkpoint.state_hash(state) == checkpoint.state_hash(pretrained.state)
    assert (len(dataset.train), len(dataset.test)) == (40, 10)
    assert dataset.display_name == "Digits"
    with pytest.raises(CheckpointError, match="is not one of a supervised training; give"):
        load_supervised(tmp_path / "run")


def test_a_checkpoint_without_a_network_is_refused(tmp_path: Path) -> None:
    checkpoint.save(
        tmp_path / "a.pt", {"config": {"task": "evaluate"}, "module": {"heads.a": torch.zeros(1)}}
    )
    with pytest.raises(CheckpointError, match="is not one of a supervised training"):
        load_supervised(tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="was not written by pretraining"):
        read_pretrained(tmp_path / "a.pt")


def test_run_of_a_checkpoint(tmp_path: Path) -> None:
    assert run_of(tmp_path) == tmp_path
    assert run_of(tmp_path / "checkpoints" / "last.pt") == tmp_path
    assert run_of(tmp_path / "snapshots" / "epoch-0001.pt") == tmp_path
    assert run_of(tmp_path / "copy.pt") == tmp_path


@pytest.fixture(scope="module")
def forms(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """The same network in every form that it can have, by name of the form."""
    folder = tmp_path_factory.mktemp("forms")
    run = folder / "run"
    copies = folder / "copies"
    copies.mkdir()
    with read_digits_once():
        pretrain(tiny_config(run))
        export(ExportConfig(str(run)))
        yield {
            "run folder": run,
            "checkpoint": run / "checkpoints" / "last.pt",
            "checkpoint of another name": Path(shutil.copy(run / "checkpoints/last.pt", copies / "a.pth")),
            "exported folder": Path(shutil.copytree(run / "export", folder / "exported")),
            "exported file": Path(shutil.copy(run / "export" / MODEL_FILE, copies / "b.bin")),
        }


FORMS = ("run folder", "checkpoint", "checkpoint of another name", "exported folder", "exported file")


@pytest.mark.parametrize("form", FORMS)
def test_every_form_describes_the_same_network(forms: dict[str, Path], form: str) -> None:
    expected, found = read_pretrained(forms["run folder"]), read_pretrained(forms[form])
    assert checkpoint.state_hash(found.state) == checkpoint.state_hash(expected.state)
    assert found.config == expected.config
    assert (found.epoch, found.in_channels, found.metrics) == (2, 3, expected.metrics)
    assert json.loads(json.dumps(found.identity)) == json.loads(json.dumps(expected.identity))
    assert (found.mean, found.std, found.images_per_epoch) == (expected.mean, expected.std, 40)


@pytest.mark.parametrize("form", FORMS)
def test_every_command_takes_every_form(
    forms: dict[str, Path], form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = str(forms[form])
    assert load_backbone(model, "cpu").layers == ("conv1", "conv2", "conv3")
    flags = ["--checkpoint", model, "--output"]
    assert evaluate.main([*flags, str(tmp_path / "knn"), "--no-frozen", "--knn", "--device", "cpu"]) == 0
    found = json.loads((tmp_path / "knn" / "results.json").read_text())
    assert (found["dataset"]["name"], found["network"]["blocks"]) == ("digits", 3)
    assert found["pretraining"] == {"epochs": 2, "is_limited": True, "has_same_images": True}
    assert visualize.main([*flags, str(tmp_path / "pictures"), "--what", "filters", "--device", "cpu"]) == 0
    assert (tmp_path / "pictures" / "filters.png").exists()
    assert export_main([*flags, str(tmp_path / "export")]) == 0
    written = (tmp_path / "export" / MODEL_FILE).read_bytes()
    assert written == (forms["exported folder"] / MODEL_FILE).read_bytes()
    assert "Rotation accuracy: **" in (tmp_path / "export" / "README.md").read_text()
    capsys.readouterr()


@pytest.mark.parametrize(
    ("form", "home"),
    [
        ("run folder", "run"),
        ("checkpoint", "run"),
        ("checkpoint of another name", "copies"),
        ("exported folder", "exported"),
        ("exported file", "copies"),
    ],
)
def test_what_is_made_of_a_network_goes_beside_it(forms: dict[str, Path], form: str, home: str) -> None:
    folder = forms["run folder"].parent / home
    model = str(forms[form])
    assert find_model(model).home == folder
    assert evaluate.EvaluateConfig(model).output_folder() == folder / "evaluate-001"
    assert visualize.VisualizeConfig(model).output_folder() == folder / "figures"
    name = "export-last" if form == "checkpoint" else "export"
    assert ExportConfig(model).output_folder() == folder / name


def test_what_is_made_of_a_shipped_model_goes_where_runs_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    name = next(iter(SHIPPED))
    assert evaluate.EvaluateConfig(name).output_folder() == Path("runs") / name / "evaluate-001"
    assert visualize.main([name, "--what", "filters", "--device", "cpu"]) == 0  # needs no images
    assert (tmp_path / "runs" / name / "figures" / "filters.png").exists()
    assert visualize.main([name, "--what", "knn", "--device", "cpu"]) == 3
    said = capsys.readouterr().err
    assert "the folder of the images of this run is unknown" in said
    assert "give their folder with --data-dir" in said
    assert export_main(["--checkpoint", name]) == 0
    assert load_backbone(f"runs/{name}/export", "cpu").image_size == 32


COMMANDS = (
    lambda model: evaluate.main(["--checkpoint", model]),
    lambda model: visualize.main(["--checkpoint", model]),
    lambda model: export_main(["--checkpoint", model]),
)


@pytest.mark.parametrize("command", COMMANDS, ids=["evaluate", "visualize", "export"])
def test_commands_say_the_same_of_what_is_no_model(
    command: Callable[[str], int], forms: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = forms["run folder"].parent
    name = next(iter(SHIPPED))
    names = ", ".join(SHIPPED)
    for model, said in (
        ("nowhere", f"checkpoint nowhere does not exist; pass a run folder .* the package: {names}"),
        (name.replace("jpeg", "jpg"), f"does not exist; did you mean {name}\\? Otherwise pass a run folder"),
        (str(folder), f"is not a run folder, but contains 1: pass {folder / 'run'}"),
        (
            str(folder / "copies"),
            "contains neither model.safetensors nor checkpoints/; pass a run",
        ),
        (str(folder / "run" / "metrics.jsonl"), "is truncated, damaged or not a checkpoint of rotnet_fast"),
    ):
        assert command(model) == 4
        (line,) = capsys.readouterr().err.splitlines()
        assert re.search(said, line), line


def test_committed_weights_and_results_load() -> None:
    root = Path(__file__).parents[2]
    for name in SHIPPED:
        pretrained = read_pretrained(name)
        assert pretrained.network().layers
        assert (pretrained.home, pretrained.run) == (Path("runs") / name, None)
        card = (root / "rotnet_fast" / "weights" / f"{name}.md").read_text()
        assert SHIPPED[name] in card
        assert f"**{pretrained.metrics['rotation_accuracy']:.2f} %**" in card
    studies = sorted(path.parent for path in (root / "results").glob("*/study.json"))
    assert studies
    for folder in studies:
        study = load_study(folder)
        assert len(study.files) == len(list((folder / "cells").glob("*.json")))


def test_a_run_comes_before_an_export_in_its_folder(forms: dict[str, Path], tmp_path: Path) -> None:
    run = Path(shutil.copytree(forms["run folder"], tmp_path / "run"))
    shutil.copy(forms["exported file"], run / MODEL_FILE)
    assert find_model(run).path == run
    assert read_pretrained(run).run == run


def test_evaluations_and_runs_without_a_checkpoint_are_told_apart(
    forms: dict[str, Path], tmp_path: Path
) -> None:
    run = Path(shutil.copytree(forms["run folder"], tmp_path / "run"))
    flags = ["--checkpoint", str(run), "--no-frozen", "--knn", "--device", "cpu"]
    with read_digits_once():
        assert evaluate.main(flags) == 0
    with pytest.raises(CheckpointError, match=f"evaluate-001 is an evaluation of {run}: pass that instead"):
        find_model(run / "evaluate-001")
    with pytest.raises(CheckpointError, match=rf"is not a run folder, but contains 1: pass {run}$"):
        find_model(tmp_path)
    shutil.rmtree(run / "checkpoints")
    (run / "checkpoints").mkdir()
    with pytest.raises(CheckpointError, match="is a run that has no checkpoint yet"):
        find_model(run)


def test_a_pipe_is_no_model(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CheckpointError, match=r"cannot read .*pipe"):
        read_pretrained(tmp_path / "pipe")

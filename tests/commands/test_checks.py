"""Settings that are refused before torch or the data are loaded, and how wrong flags are answered."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from rotnet_fast.benchmark import BenchmarkConfig
from rotnet_fast.checks import SIZES, check_images
from rotnet_fast.config import PretrainConfig
from rotnet_fast.data import cifar10, digits
from rotnet_fast.errors import ArgumentError, DataError
from rotnet_fast.evaluate import EvaluateConfig
from rotnet_fast.export import ExportConfig
from rotnet_fast.flags import GROUPS, given_flags, parse_flags
from rotnet_fast.models.names import check_model_name
from rotnet_fast.reproduce import ReproduceConfig
from rotnet_fast.visualize import VisualizeConfig


def test_the_sizes_that_limits_are_checked_against_are_those_of_the_data() -> None:
    images = digits.load(None, 8, progress=False)
    assert SIZES["digits"] == (len(images.train), len(images.test))
    files = len(cifar10.TRAIN_FILES)
    assert SIZES["cifar10"] == (files * cifar10.IMAGES_PER_FILE, cifar10.IMAGES_PER_FILE)


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ("--epoch 5", "unrecognized option --epoch (did you mean --epochs?)"),
        ("--zzz", "unrecognized option --zzz"),
        ("--bad 3", "unrecognized option --bad (did you mean --bad-images?)"),
        ("--no-nestero", "unrecognized option --no-nestero (did you mean --no-nesterov?)"),
        ("-5", "unrecognized option -5"),
        ("-x", "unrecognized option -x"),
        ("5", "unrecognized argument 5"),
        ("--nesterov yes", "unrecognized argument yes"),
        ("--nesterov=yes", "--nesterov takes no value; pass --nesterov or --no-nesterov"),
        ("--no-nesterov=no", "--no-nesterov takes no value; pass --nesterov or --no-nesterov"),
        ("--epochs 1.5", "epochs is 1.5; it must be an integer"),
        ("--lr=abc", "lr is abc; it must be a number"),
        ("--lr abc", "lr is abc; it must be a number"),
        ("--lr 0.1 0.2", "lr is 0.1 0.2; it must be a number"),
        ("--lr", "lr has no value; it must be a number"),
        ("--lr --epochs 3", "lr has no value; it must be a number"),
        ("--data-dir a b", "data-dir is a b; it must be a path, or None"),
        ("--log-every x", "log-every is x; it must be an integer, or None"),
        ("--rotations 0 9.5 --lr 1", "rotations is 0 9.5; it must be integers"),
        ("--crop-scale 0 x", "crop-scale is 0 x; it must be two numbers"),
        ("--crop-scale 1", "crop-scale is 1; it must be two numbers"),
        ("--epochs", "epochs has no value; it must be an integer"),
        ("--dataset", "dataset has no value; it must be one of cifar10, folder, digits"),
        ("--blocks 6", "blocks is '6'; choose from 3, 4, 5"),
        ("--dataset mnist", "dataset is 'mnist'; choose from cifar10, folder, digits"),
    ],
)
def test_a_wrong_flag_is_one_sentence(flags: str, sentence: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        parse_flags(PretrainConfig, "program", shlex.split(flags))
    assert str(caught.value) == f"{sentence}; see program --help"


def test_a_flag_that_is_missing_is_named() -> None:
    with pytest.raises(ArgumentError, match=r"^checkpoint is missing; pass --checkpoint PATH; see"):
        parse_flags(EvaluateConfig, "program", [])


def test_flags_are_read_by_the_types_of_their_fields() -> None:
    flags = "--lr -1e-3 --rotations -90 0 --no-nesterov --limit_train None --blocks=3 --crop-scale 0.5 1 "
    flags += "--lr=2 --output -5 --milestones=30 60 --"
    assert given_flags(PretrainConfig, "program", shlex.split(flags)) == {
        "output": Path("-5"),
        "milestones": (30, 60),
        "lr": 2.0,
        "rotations": (-90, 0),
        "nesterov": False,
        "limit_train": None,
        "blocks": 3,
        "crop_scale": (0.5, 1.0),
    }


def test_flags_replace_values_of_the_base() -> None:
    base = PretrainConfig(epochs=7, lr=0.5)
    config = parse_flags(PretrainConfig, "program", ["--epochs", "9"], base)
    assert (config.epochs, config.lr) == (9, 0.5)


def test_the_help_shows_every_flag_with_its_text_and_the_default_of_the_base(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as ended:
        parse_flags(PretrainConfig, "program", ["--epochs", "x", "--help"], PretrainConfig(epochs=77))
    assert ended.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    for name in PretrainConfig.__dataclass_fields__:
        assert f"--{name.replace('_', '-')}" in shown
    assert "--epochs INT Passes over the training images. (default: 77)" in shown
    assert "--blocks {3,4,5} Conv blocks of the Network in Network." in shown
    assert "--crop-scale FLOAT FLOAT" in shown
    assert "--nesterov, --no-nesterov" in shown


COMMANDS = (PretrainConfig, EvaluateConfig, VisualizeConfig, ExportConfig, ReproduceConfig, BenchmarkConfig)


def test_every_setting_of_pretraining_has_one_heading_in_the_help() -> None:
    names = [name for group in GROUPS.values() for name in group.split()]
    assert len(names) == len(set(names))
    assert set(names) == PretrainConfig.__dataclass_fields__.keys() - {"preset"}


@pytest.mark.parametrize("kind", COMMANDS)
def test_the_examples_in_the_help_can_be_typed(kind: type, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_flags(kind, "python -m program", ["--help"])
    printed = capsys.readouterr().out
    assert "None)" not in printed
    examples = printed.partition("examples:\n")[2].splitlines()
    assert examples
    for line in examples:
        assert line.startswith("  python -m program --")
        assert given_flags(kind, "program", shlex.split(line)[3:])


@pytest.mark.parametrize("kind", [EvaluateConfig, VisualizeConfig, ExportConfig])
def test_the_model_may_be_named_without_its_flag(kind: type) -> None:
    for arguments in (["a b", "--output", "x"], ["--output", "x", "--checkpoint", "a b"]):
        assert given_flags(kind, "program", arguments) == {"checkpoint": "a b", "output": Path("x")}
    with pytest.raises(ArgumentError, match="checkpoint is a b; it must be"):
        given_flags(kind, "program", ["a", "b"])


@pytest.mark.parametrize(
    "model", ["nin", "resnet18", "mobilenet_v2", "timm/resnet18", "timm/resnet18.a1_in1k"]
)
def test_names_of_networks_pass_before_their_library_is_imported(model: str) -> None:
    check_model_name(model)


@pytest.mark.parametrize(("model", "near"), [("resnet19", "resnet18"), ("timm/resnet19", "timm/resnet18")])
def test_a_name_that_is_in_no_source_is_refused_with_names_like_it(model: str, near: str) -> None:
    with pytest.raises(ArgumentError, match=f"unknown model '{model}'; did you mean .*{near}"):
        check_model_name(model)


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("photos.zip", "an archive; unpack it with `unzip {0}/photos.zip -d {0}`, and pass the"),
        ("photos.tar.gz", "an archive; unpack a data set with `tar -xf {0}/photos.tar.gz -C {0}`, or make"),
        ("photos.tar", "which is not a folder; pass {0}, the folder of the shards, or unpack it"),
        ("photos.jpg", "which is not a folder; pass the folder of the images"),
    ],
)
def test_a_file_in_place_of_a_folder_of_images_is_answered_with_what_to_do(
    name: str, remedy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RANK", raising=False)
    (tmp_path / name).touch()
    with pytest.raises(DataError) as caught:
        check_images("folder", tmp_path / name, None, None)
    assert f"data-dir is {tmp_path / name}, {remedy.format(tmp_path)}" in str(caught.value)

"""Settings that are refused before torch or the data are loaded, and the sentences made of tyro's boxes."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from rotnet_fast.checks import CIFAR10_SIDE, SIZES, check_images
from rotnet_fast.config import PretrainConfig
from rotnet_fast.data import cifar10, digits
from rotnet_fast.errors import ArgumentError, DataError
from rotnet_fast.evaluate import EvaluateConfig
from rotnet_fast.flags import parse_flags, what_is_wrong
from rotnet_fast.models.names import check_model_name


def test_the_sizes_that_limits_are_checked_against_are_those_of_the_data() -> None:
    images = digits.load(None, 8, progress=False)
    assert SIZES["digits"] == (len(images.train), len(images.test))
    files = len(cifar10.TRAIN_FILES)
    assert SIZES["cifar10"] == (files * cifar10.IMAGES_PER_FILE, cifar10.IMAGES_PER_FILE)
    assert cifar10._SIDE == CIFAR10_SIDE


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ("--epoch 5", "--epoch 5 is no option of this command (did you mean --epochs?)"),
        ("5", "5 is no option of this command"),
        ("--epochs 1.5", "epochs is 1.5; it must be a whole number"),
        ("--log-every x", "log-every is x; it must be None or a whole number"),
        ("--rotations 0 9.5 --lr 1", "rotations is 0 9.5; it must be whole numbers"),
        ("--crop-scale 0 x", "crop-scale is 0 x; it must be two numbers"),
        ("--epochs", "epochs is without a value; give 1"),
        ("--blocks 6", "blocks is '6'; choose from 3, 4, 5"),
        ("--dataset mnist", "dataset is 'mnist'; choose from cifar10, digits, folder"),
    ],
)
def test_a_wrong_flag_is_one_sentence(flags: str, sentence: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        parse_flags(PretrainConfig, "program", shlex.split(flags))
    assert str(caught.value) == f"{sentence}; see program --help"


def test_a_flag_that_is_missing_is_named() -> None:
    with pytest.raises(ArgumentError, match=r"^checkpoint is missing; give --checkpoint PATH; see"):
        parse_flags(EvaluateConfig, "program", [])


def test_a_box_in_unknown_words_keeps_its_finding() -> None:
    box = "╭─ News ─────╮\n│ It is odd. │\n│ ────────── │\n│ See there  │\n╰────────────╯"
    assert what_is_wrong(box, []) == "It is odd"


@pytest.mark.parametrize(
    "model", ["nin", "resnet18", "mobilenet_v2", "timm/resnet18", "timm/resnet18.a1_in1k"]
)
def test_names_of_networks_pass_before_their_library_is_imported(model: str) -> None:
    check_model_name(model)


@pytest.mark.parametrize(("model", "near"), [("resnet19", "resnet18"), ("timm/resnet19", "timm/resnet18")])
def test_a_name_that_is_in_no_source_is_refused_with_names_like_it(model: str, near: str) -> None:
    with pytest.raises(ArgumentError, match=f"model is '{model}', which there is not; did you mean .*{near}"):
        check_model_name(model)


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("photos.zip", "an archive; unpack it with `unzip {0}/photos.zip -d {0}`, and give the"),
        ("photos.tar.gz", "an archive; unpack a data set with `tar -xf {0}/photos.tar.gz -C {0}`, or make"),
        ("photos.tar", "which is no folder; give {0}, the folder of the shards, or unpack it"),
        ("photos.jpg", "which is no folder; give the folder that holds train/ and test/"),
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

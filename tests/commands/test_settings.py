"""Settings of every command take what users have: numbers of numpy, paths as text, ``~``; nothing empty."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import read_digits_once, tiny_config

import rotnet_fast
from rotnet_fast.benchmark import BenchmarkConfig
from rotnet_fast.config import PretrainConfig
from rotnet_fast.errors import ArgumentError
from rotnet_fast.evaluate import EvaluateConfig
from rotnet_fast.export import ExportConfig, export
from rotnet_fast.files import named, resolve_path
from rotnet_fast.flags import parse_flags
from rotnet_fast.pretrain import parse, pretrain
from rotnet_fast.protocols.result import load_results
from rotnet_fast.report import report
from rotnet_fast.reproduce import ReproduceConfig
from rotnet_fast.visualize import VisualizeConfig

CONFIGS: dict[type[Any], tuple[str, ...]] = {
    PretrainConfig: ("data_dir", "output", "resume"),
    EvaluateConfig: ("checkpoint", "data_dir", "output"),
    ExportConfig: ("checkpoint", "output"),
    ReproduceConfig: ("data_dir", "output"),
    VisualizeConfig: ("checkpoint", "supervised", "data_dir", "output"),
    BenchmarkConfig: ("output",),
}
PATHS = [(kind, name) for kind, names in CONFIGS.items() for name in names]
EACH_PATH = pytest.mark.parametrize(("kind", "name"), PATHS, ids=[f"{k.__name__}-{n}" for k, n in PATHS])


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home folder; the current folder is another empty one."""
    (tmp_path / "home").mkdir()
    (tmp_path / "current").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "current")
    return tmp_path / "home"


def with_path(kind: type[Any], name: str, value: Any) -> Any:
    needed = {need: "run.json" for need in ("checkpoint", "output") if need == CONFIGS[kind][0]}
    return kind(**{**needed, name: value})


@EACH_PATH
@pytest.mark.parametrize("form", [str, Path])
def test_a_tilde_is_the_home_folder_in_every_path(
    kind: type[Any], name: str, form: type[Any], home: Path
) -> None:
    kept = getattr(with_path(kind, name, form("~/a b/c")), name)
    assert str(kept) == str(home / "a b/c")
    assert str(getattr(with_path(kind, name, form("a~/~")), name)) == "a~/~"
    flags = [f"--{name.replace('_', '-')}=~/a b/c"]
    if CONFIGS[kind][0] in ("checkpoint", "output") and name != CONFIGS[kind][0]:
        flags += [f"--{CONFIGS[kind][0]}", "run.json"]
    assert str(getattr(parse_flags(kind, "program", flags), name)) == str(home / "a b/c")


@EACH_PATH
def test_an_empty_path_is_refused(kind: type[Any], name: str) -> None:
    flag = name.replace("_", "-")
    with pytest.raises(ArgumentError, match=f"^({flag}|{name}) is empty; (give|pass) a "):
        with_path(kind, name, "")
    for arguments in ([f"--{flag}", ""], [f"--{flag}="]):
        with pytest.raises(ArgumentError, match=f"^{flag} is empty; pass a value, or omit it"):
            parse_flags(kind, "program", arguments)


LISTS = [
    (PretrainConfig, "rotations"),
    (PretrainConfig, "milestones"),
    (EvaluateConfig, "layers"),
    (EvaluateConfig, "heads"),
    (ReproduceConfig, "only"),
    (VisualizeConfig, "what"),
    (BenchmarkConfig, "what"),
    (BenchmarkConfig, "blocks"),
]


@pytest.mark.parametrize(("kind", "name"), LISTS, ids=[f"{k.__name__}-{n}" for k, n in LISTS])
def test_a_list_without_a_value_is_refused(kind: type[Any], name: str) -> None:
    for arguments in ([f"--{name}"], [f"--{name}", "--device", "cpu"]):
        with pytest.raises(ArgumentError, match=f"^{name} has no value; pass one or more, or omit it"):
            parse_flags(kind, "program", arguments)
    with pytest.raises(ArgumentError, match=f"^{name} is empty"):
        parse_flags(kind, "program", [f"--{name}", ""])


def test_a_study_of_nothing_is_refused() -> None:
    with pytest.raises(ArgumentError, match="only is empty; choose from table3, table1"):
        ReproduceConfig(only=()).validate()
    ReproduceConfig(dataset="digits").validate()


def test_the_flags_that_are_read_beforehand_may_not_be_empty_either() -> None:
    for arguments in (["--preset", ""], ["--model="], ["--resume", ""]):
        with pytest.raises(ArgumentError, match=r"^(preset|model|resume) is empty"):
            parse(arguments)
    with pytest.raises(ArgumentError, match="readme is empty"):
        report(["folder", "--readme", ""])
    with pytest.raises(ArgumentError, match="an argument is empty"):
        report([""])


def test_numbers_of_others_become_those_of_python(tmp_path: Path) -> None:
    given = PretrainConfig(
        dataset="digits",
        epochs=np.int64(3),  # type: ignore[arg-type]
        lr=np.float32(0.5),  # type: ignore[arg-type]
        seed=torch.tensor(7),  # type: ignore[arg-type]
        rotations=np.array([0, 180]),  # type: ignore[arg-type]
        milestones=[np.int32(1)],  # type: ignore[arg-type]
        blocks=np.uint8(3),  # type: ignore[arg-type]
        nesterov=np.bool_(False),  # type: ignore[arg-type]
        crop_scale=torch.tensor([0.5, 1.0]),  # type: ignore[arg-type]
        device=torch.device("cpu"),  # type: ignore[arg-type]
        output=str(tmp_path),  # type: ignore[arg-type]
    )
    plain = PretrainConfig(
        dataset="digits", epochs=3, lr=0.5, seed=7, rotations=(0, 180), milestones=(1,), blocks=3,
        nesterov=False, crop_scale=(0.5, 1.0), device="cpu", output=tmp_path,
    )  # fmt: skip
    assert given == plain
    assert json.dumps(asdict(given), default=str) == json.dumps(asdict(plain), default=str)
    assert all(type(getattr(given, name)) is type(getattr(plain, name)) for name in vars(plain))
    given.validate()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"epochs": "3"}, "epochs is '3'; it must be an integer"),
        ({"epochs": 2.5}, "epochs is 2.5; it must be an integer"),
        ({"epochs": True}, "epochs is True; it must be an integer"),
        ({"batch_size": np.ones(2)}, r"batch-size is ndarray of float64 with shape \[2\]; it must"),
        ({"lr": "0.1"}, "lr is '0.1'; it must be a number"),
        ({"lr": 10**400}, "lr is 1000.*; it must be in the range of a float"),
        ({"nesterov": 1}, "nesterov is 1; it must be True or False"),
        ({"preset": "papier"}, "preset is 'papier'; choose from quickstart, cpu"),
        ({"blocks": 6}, "blocks is 6; choose from 3, 4, 5"),
        ({"rotations": 90}, "rotations is 90; it must be a list or a tuple"),
        ({"rotations": (0, 90.5)}, "rotations is 90.5; it must be an integer"),
        ({"crop_scale": (0.1, 0.2, 0.3)}, r"crop-scale is \(0.1, 0.2, 0.3\); it must have 2 values"),
        ({"model": None}, "model is None; it must be a string"),
        ({"dataset_name": ""}, "dataset-name is empty; pass a value, or omit it"),
        ({"data_dir": 3}, "data-dir is 3; it must be a path"),
        ({"seed": -1}, r"seed is -1; it must lie in \[0, 2\*\*63\): use for example 9223372036854775807"),
    ],
)  # fmt: skip
def test_what_is_no_value_of_a_setting_is_named(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ArgumentError, match=sentence):
        PretrainConfig(**changes).validate()


def test_functions_take_paths_as_users_write_them(home: Path) -> None:
    with read_digits_once():
        pretrain(tiny_config(Path("~/run")))
    assert (home / "run/results.json").is_file()
    assert not Path("~").exists()
    assert export(ExportConfig("~/run")) == home / "run/export"  # type: ignore[arg-type]
    for path in (
        "~/run",
        Path("~/run/export"),
        "~/run/export/model.safetensors",
        "~/run/checkpoints/last.pt",
    ):
        assert rotnet_fast.load_backbone(path, "cpu").image_size == 16
    with pytest.raises(ArgumentError, match="path_or_name is empty; give a path"):
        rotnet_fast.load_backbone("")
    for wrong in (None, 3, b"run"):
        with pytest.raises(ArgumentError, match=r"path_or_name is .*; give a path as a string or a Path"):
            rotnet_fast.load_backbone(wrong)  # type: ignore[arg-type]
    content: dict[str, Any] = {"cells": [], "dataset": {"tested_on": "test"}}
    content |= {name: {} for name in ("network", "pretraining", "settings")}
    (home / "results.json").write_text(json.dumps(content))
    assert load_results("~") == content  # type: ignore[arg-type]
    assert resolve_path(Path("~/run")) == home / "run"


def test_names_of_nobody_stay(home: Path) -> None:
    assert named("~no-such-user/x") == Path("~no-such-user/x")
    assert named(Path("x/~")) == Path("x/~")

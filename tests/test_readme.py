"""The README's code does what it says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import read_digits_once, tiny_config

import rotnet_fast
from rotnet_fast.export import ExportConfig, export
from rotnet_fast.pretrain import pretrain

README = (Path(__file__).resolve().parent.parent / "README.md").read_text(encoding="utf-8")


def code_block(containing: str) -> str:
    blocks = [block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if containing in block]
    assert len(blocks) == 1
    return str(blocks[0])


def test_the_example_of_the_op_runs() -> None:
    names: dict[str, Any] = {}
    exec(code_block("randperm"), names)
    assert names["views"].shape == (512, 3, 32, 32)
    assert names["rotation_labels"].tolist() == [0, 1, 2, 3] * 128


def test_the_op_equals_the_plain_torch_code_behind_it() -> None:
    names: dict[str, Any] = {}
    exec(code_block("randperm"), names)
    views, rotation_labels = names.pop("views"), names.pop("rotation_labels")
    exec(code_block("torch.rot90"), names)
    assert torch.equal(views, names["views"])
    assert torch.equal(rotation_labels, names["rotation_labels"])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_plain_torch_code_holds_for_other_settings(dtype: str) -> None:
    written = "seed, epoch, pad, flip_prob, dtype = 0, 3, 4, 0.5, torch.float32"
    code = code_block("torch.rot90")
    assert written in code
    settings = {"seed": -5, "epoch": 2, "pad": 7, "flip_prob": 0.8}
    changed = f"seed, epoch, pad, flip_prob = {', '.join(map(str, settings.values()))}; dtype = torch.{dtype}"
    images = torch.randint(0, 256, (20, 31, 31, 3), dtype=torch.uint8)
    names = {
        "torch": torch,
        "rotnet_fast": rotnet_fast,
        "images": images,
        "indices": torch.tensor([3, 19, 0, 7, 7]),
    }
    exec(code.replace(written, changed), names)
    views, rotation_labels = rotnet_fast.rotate_batch(
        images, names["indices"], **settings, dtype=getattr(torch, dtype)
    )
    assert torch.equal(views, names["views"])
    assert torch.equal(rotation_labels, names["rotation_labels"])


def test_the_example_of_the_features_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with read_digits_once():
        pretrain(tiny_config(Path("run")))
    export(ExportConfig(Path("run"), output=Path("my-rotnet")))
    names: dict[str, Any] = {}
    exec(code_block("load_backbone"), names)
    assert names["maps"].shape == (100, 8, 8, 8)
    assert torch.equal(names["vectors"], names["maps"].mean(dim=(2, 3)))
    assert names["rotations"].shape == (100, 4, 4)
    assert names["network"].training
    clone = str(Path(__file__).resolve().parent.parent)
    exec(code_block("torch.hub.load").replace("path/to/the/clone", clone), names)
    assert torch.equal(names["backbone"].features(names["images"]), names["maps"])
    assert names["network"].layers == ("conv1", "conv2", "conv3", "conv4")


@pytest.mark.parametrize("table", ["benchmarks", "steps", "loaders", "accuracy"])
def test_the_tables_are_filled_in(table: str) -> None:
    text = README.partition(f"<!-- {table}: begin -->")[2].partition(f"<!-- {table}: end -->")[0]
    assert len([line for line in text.splitlines() if line.startswith("|")]) >= 5

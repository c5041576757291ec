"""The README's code does what it says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import read_digits_once, tiny_config

from rotnet_fast.export import ExportConfig, export
from rotnet_fast.ops import CIFAR10_MEAN, CIFAR10_STD, rotate_batch
from rotnet_fast.ops.reference import normalisation_coefficients
from rotnet_fast.philox import augmentation_draws
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_op_equals_the_plain_torch_code_of_the_readme(dtype: torch.dtype) -> None:
    images = torch.randint(0, 256, (20, 32, 32, 3), dtype=torch.uint8)
    indices = torch.tensor([3, 19, 0, 7, 7])
    top, left, flip = augmentation_draws(indices, 5, 2, 4, 0.5)
    scale, shift = normalisation_coefficients(CIFAR10_MEAN, CIFAR10_STD)
    names = {"torch": torch, "images": images, "indices": indices, "top": top, "left": left, "flip": flip}
    names |= {"pad": 4, "H": 32, "W": 32, "scale": scale, "shift": shift, "dtype": dtype}
    exec(code_block("torch.rot90"), names)
    views, rotation_labels = rotate_batch(images, indices, seed=5, epoch=2, dtype=dtype)
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

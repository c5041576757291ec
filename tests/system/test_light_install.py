"""With torch, NumPy and safetensors alone, the op, backbones and doctor work; the rest says what it needs."""

from __future__ import annotations

import re
from pathlib import Path

import light_environment
import pytest
from pages import ROOT

from rotnet_fast.dependencies import LIBRARIES

CORE = """
import sys
import torch, rotnet_fast
from rotnet_fast.doctor import main

images = torch.zeros(2, 32, 32, 3, dtype=torch.uint8)
assert rotnet_fast.rotate_batch(images)[0].shape == (8, 3, 32, 32)
assert rotnet_fast.RotateBatch()(images)[0].shape == (8, 3, 32, 32)
assert rotnet_fast.load_backbone("nin4-cifar10-jpeg")(images).shape == (2, 192)
found = sorted({name.partition(".")[0] for name in sys.modules} & set(sys.argv[1:]))
assert not found, found
sys.exit(main([]))
"""

COMMANDS = """
import importlib, sys
for line in sys.argv[1:]:
    name, *arguments = line.split()
    print(line, importlib.import_module(f"rotnet_fast.{name}").main(arguments), file=sys.stderr)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return light_environment.make(tmp_path_factory.mktemp("light"))


def test_the_op_a_backbone_and_the_doctor_need_no_other_library(folder: Path) -> None:
    done = light_environment.run(folder, "-c", CORE, *set(LIBRARIES) - {"typing_extensions"})
    assert done.returncode == 0, done.stdout + done.stderr
    assert "libraries     without pillow, joblib, kymatio" in done.stdout
    assert "All is well" in done.stdout


def test_a_command_that_needs_a_library_names_it_in_one_sentence(folder: Path, tmp_path: Path) -> None:
    lines = [
        "pretrain --preset quickstart",
        "evaluate --checkpoint nin4-cifar10-jpeg --dataset digits",
        f"embed --checkpoint nin4-cifar10-jpeg --data-dir {tmp_path} --output {tmp_path}/features.npz",
        f"orient --checkpoint nin4-cifar10-jpeg --data-dir {tmp_path} --output {tmp_path}/table.csv",
        f"visualize nin4-cifar10-jpeg --output {tmp_path}",
        "reproduce --dataset digits --preset quickstart --dry-run",
    ]
    done = light_environment.run(folder, "-c", COMMANDS, *lines)
    assert done.returncode == 0, done.stderr
    answers = done.stderr.splitlines()
    assert len(answers) == 2 * len(lines), done.stderr
    for line, error, code in zip(lines, answers[::2], answers[1::2], strict=True):
        assert re.fullmatch(
            r"error: this command needs ([\w-]+), which is not installed: pip install \1 .*", error
        )
        assert code == f"{line} 1"


FUNCTIONS = """
import sys, torch, rotnet_fast

images = torch.zeros(8, 32, 32, 3, dtype=torch.uint8)
backbone = rotnet_fast.load_backbone("nin4-cifar10-jpeg", "cpu")
for function in (
    lambda: rotnet_fast.RotNetFeatures,
    lambda: rotnet_fast.train_rotnet(images),
    lambda: backbone.embed(["picture.jpg"]),
):
    try:
        function()
    except ImportError as error:
        print(f"{type(error).__name__}: {error}")
"""


def test_a_function_that_needs_a_library_names_it_in_one_sentence(folder: Path) -> None:
    done = light_environment.run(folder, "-c", FUNCTIONS)
    assert done.returncode == 0, done.stderr
    answers = done.stdout.splitlines()
    whats = [re.escape(what) for what in ("rotnet_fast.RotNetFeatures", "train_rotnet", "Backbone.embed")]
    for what, answer in zip(whats, answers, strict=True):
        said = rf"MissingLibraryError: {what} needs ([\w-]+), which is not installed: pip install \1 .*"
        assert re.fullmatch(said, answer), answer


def test_the_libraries_are_those_that_the_package_requires() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")  # not with tomllib, which Python 3.10 lacks
    required = text.partition("\ndependencies = [\n")[2].partition("\n]")[0]
    names = set(re.findall(r'^    "([\w-]+)', required, re.MULTILINE))
    light = {"torch", "numpy", "safetensors", "nvidia-dali-cuda130"}
    assert names - light == set(LIBRARIES.values())

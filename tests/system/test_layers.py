"""Layers import downwards only."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "rotnet_fast"

# Longest matching beginning decides. Within a layer modules may import each other.
LAYERS = {
    "rotnet_fast": 8,  # names of the layers below, each imported when it is first asked for
    "rotnet_fast.errors": 0,
    "rotnet_fast.dependencies": 0,
    "rotnet_fast.files": 0,
    "rotnet_fast.json_files": 0,
    "rotnet_fast.memory": 0,
    "rotnet_fast.arrays": 0,
    "rotnet_fast.image_layout": 0,
    "rotnet_fast.plain": 0,
    "rotnet_fast.rotations": 0,
    "rotnet_fast.pretext_tasks": 0,
    "rotnet_fast.philox": 0,
    "rotnet_fast.checks": 0,
    "rotnet_fast.config": 0,
    "rotnet_fast.paper": 0,
    "rotnet_fast.presets": 0,
    "rotnet_fast.progress": 0,
    "rotnet_fast.progress_bar": 0,
    "rotnet_fast.system": 0,
    "rotnet_fast.settings": 0,
    "rotnet_fast.verdict": 0,
    "rotnet_fast._core": 0,
    "rotnet_fast.ops": 1,
    "rotnet_fast.data": 1,
    "rotnet_fast.models": 1,
    "rotnet_fast.engine": 1,
    "rotnet_fast.engine.schedule": 0,
    "rotnet_fast.engine.pretext_task": 2,
    "rotnet_fast.engine.rotation_task": 2,
    "rotnet_fast.engine.autoencoder_task": 2,
    "rotnet_fast.engine.jigsaw_task": 2,
    "rotnet_fast.engine.run_log": 2,
    "rotnet_fast.engine.trainer": 2,
    "rotnet_fast.modules": 2,
    "rotnet_fast.command": 2,
    "rotnet_fast.flags": 2,
    "rotnet_fast.pretrained": 3,
    "rotnet_fast.next_steps": 3,
    "rotnet_fast.protocols": 3,
    "rotnet_fast.backbone": 3,
    "rotnet_fast.backbone_inputs": 3,
    "rotnet_fast.backbone_images": 3,
    "rotnet_fast.feature_files": 3,
    "rotnet_fast.sklearn_features": 3,
    "rotnet_fast.analysis": 4,
    "rotnet_fast.plots": 4,
    "rotnet_fast.benchmarking": 4,
    "rotnet_fast.model_card": 4,
    "rotnet_fast.study": 5,
    "rotnet_fast.study.pages": 6,
    "rotnet_fast.__main__": 7,
    "rotnet_fast.pretrain": 7,
    "rotnet_fast.evaluate": 7,
    "rotnet_fast.embed": 7,
    "rotnet_fast.export": 7,
    "rotnet_fast.reproduce": 7,
    "rotnet_fast.report": 7,
    "rotnet_fast.orient": 7,
    "rotnet_fast.visualize": 7,
    "rotnet_fast.doctor": 7,
    "rotnet_fast.benchmark": 7,
    "rotnet_fast.train": 8,  # a command as a function
}


MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}


def layer(module: str) -> int:
    """Layer of a module; a KeyError means that it has to be entered above."""
    while module not in LAYERS:
        module, dot, _ = module.rpartition(".")
        if module == "rotnet_fast" or not dot:
            raise KeyError("a new module has no layer yet")
    return LAYERS[module]


def imports(path: Path) -> set[str]:
    """Modules of this package that a file imports anywhere, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {
                name if name in MODULES or name == "rotnet_fast._core" else str(node.module) for name in names
            }
    return {name for name in found if name.split(".")[0] == "rotnet_fast"}


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_its_own_layer_and_those_below(module: str) -> None:
    for imported in imports(MODULES[module]) - {"rotnet_fast"}:  # the version is anyone's to read
        assert layer(imported) <= layer(module), f"{module} imports {imported}"


def test_no_command_is_imported_by_another_module() -> None:
    commands = {module for module in MODULES if layer(module) == layer("rotnet_fast.report")}
    for module, path in MODULES.items():
        if layer(module) <= layer("rotnet_fast.report"):
            assert not (imports(path) & commands), f"{module} imports a command"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("data", "ops"),
        ("ops", "data"),
        ("ops", "models"),
        ("data", "engine"),
        ("plots", "analysis"),
        ("analysis", "plots"),
        ("plots", "benchmarking"),
        ("benchmarking", "plots"),
    ],
)
def test_parts_that_must_not_know_each_other(one: str, other: str) -> None:
    for module, path in MODULES.items():
        if module.startswith(f"rotnet_fast.{one}"):
            assert not [name for name in imports(path) if name.startswith(f"rotnet_fast.{other}")], module


def test_modules_that_say_that_they_import_no_torch_import_none() -> None:
    sentence = "Importing this module does not import torch."
    claiming = [module for module, path in MODULES.items() if sentence in path.read_text()]
    assert len(claiming) > 40
    code = f"import importlib, sys; sys.modules['torch'] = None; [*map(importlib.import_module, {claiming})]"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)

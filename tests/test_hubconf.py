"""torch.hub finds the entry points in a plain copy of the sources: no compiled kernels, no network."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import read_digits_once, tiny_config

from rotnet_fast.export import ExportConfig, export
from rotnet_fast.pretrain import pretrain

ROOT = Path(__file__).resolve().parent.parent

PROGRAM = """
import socket, sys
def refuse(*arguments, **keywords):
    raise AssertionError("the network was asked for")
socket.socket.connect = socket.getaddrinfo = refuse
import torch
repository, weights, has_kernels = sys.argv[1:]

def load(entry, **arguments):
    return torch.hub.load(repository, entry, source="local", **arguments)

backbone = load("rotnet_nin", path=weights, device="cpu")
images = torch.randint(0, 256, (3, 16, 16, 3), dtype=torch.uint8)
assert backbone.features(images, layer="conv2").shape == (3, 8, 4, 4)
assert backbone(images).shape == (3, 8)
assert load("nin", blocks=5, width=0.25, num_classes=10)(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
for arguments, sentence in (
    ({}, "give one of the two"),
    ({"path": weights, "name": "x"}, "give one of the two"),
    ({"name": "no such model"}, "pretrained models: "),
):
    try:
        load("rotnet_nin", **arguments)
    except Exception as error:
        assert sentence in str(error), error
    else:
        raise AssertionError(arguments)
sys.path.insert(0, repository)
import hubconf, rotnet_fast
assert "pretrained RotNet" in hubconf.rotnet_nin.__doc__
names = {name for name in dir(hubconf) if callable(getattr(hubconf, name)) and name[0] != "_"}
assert names == {"rotnet_nin", "nin"}, names  # as torch.hub.list finds them
from rotnet_fast.ops.library import LIBRARIES
assert rotnet_fast.__file__.startswith(repository), rotnet_fast.__file__
assert LIBRARIES["cpu"].loaded <= (has_kernels == "True")
"""


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pretrained") / "run"
    with read_digits_once():
        pretrain(tiny_config(folder))
    return export(ExportConfig(folder))


@pytest.mark.parametrize("has_kernels", [True, False], ids=["repository", "without compiled kernels"])
def test_entry_points_work_from_a_local_folder(exported: Path, tmp_path: Path, has_kernels: bool) -> None:
    repository = ROOT
    if not has_kernels:
        repository = tmp_path / "repository"
        ignored = shutil.ignore_patterns("*.so", "__pycache__")
        shutil.copytree(ROOT / "rotnet_fast", repository / "rotnet_fast", ignore=ignored)
        shutil.copy(ROOT / "hubconf.py", repository)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(repository), str(exported), str(has_kernels)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**environment, "TORCH_HOME": str(tmp_path / "hub")},
    )
    assert done.returncode == 0, done.stderr

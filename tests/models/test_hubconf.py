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

ROOT = Path(__file__).resolve().parents[2]

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
    ({"name": "no such model"}, "the name of a model that ships with the package: "),
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


def unbuilt_clone(tmp_path: Path) -> Path:
    """A folder with the sources and nothing that was compiled."""
    repository = tmp_path / "repository"
    ignored = shutil.ignore_patterns("*.so", "__pycache__")
    shutil.copytree(ROOT / "rotnet_fast", repository / "rotnet_fast", ignore=ignored)
    shutil.copy(ROOT / "hubconf.py", repository)
    return repository


def change_version(repository: Path) -> None:
    package = repository / "rotnet_fast/__init__.py"
    text = package.read_text(encoding="utf-8")
    assert '__version__ = "' in text
    package.write_text(text.replace('__version__ = "', '__version__ = "9.'), encoding="utf-8")


@pytest.mark.parametrize("has_kernels", [True, False], ids=["repository", "without compiled kernels"])
def test_entry_points_work_from_a_local_folder(exported: Path, tmp_path: Path, has_kernels: bool) -> None:
    repository = ROOT
    if not has_kernels:
        repository = unbuilt_clone(tmp_path)
        change_version(
            repository
        )  # so that one that is installed here, with kernels, does not take its place
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(repository), str(exported), str(has_kernels)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**environment, "TORCH_HOME": str(tmp_path / "hub")},
    )
    assert done.returncode == 0, done.stderr


CHOICE = """
import sys, warnings
repository, is_imported, sentence = sys.argv[1], sys.argv[2] == "imported", sys.argv[3]
import torch
if is_imported:
    import rotnet_fast
path = list(sys.path)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    network = torch.hub.load(repository, "nin", source="local", blocks=3, width=0.1)
assert sys.path == path
said = [str(warning.message) for warning in caught if "rotnet_fast" in str(warning.message)]
assert [sentence in one for one in said] == ([True] if sentence else []), said
import rotnet_fast, rotnet_fast.ops.library
folders = {module.__file__.rpartition("rotnet_fast")[0] for name, module in sys.modules.items()
           if name == "rotnet_fast" and module.__file__}
every = {module.__file__ for name, module in sys.modules.items() if name.startswith("rotnet_fast.")}
assert all(file.startswith(tuple(folders)) for file in every), every  # no half of each
print(rotnet_fast.__file__, rotnet_fast.ops.library.LIBRARIES["cpu"].loaded)
"""


@pytest.mark.parametrize("version", ["the same", "another"])
@pytest.mark.parametrize("state", ["not imported", "imported"])
def test_an_unbuilt_clone_does_not_hide_the_kernels_of_the_installed_package(
    tmp_path: Path, version: str, state: str
) -> None:
    kernels = list((ROOT / "rotnet_fast").glob("_C_cpu*.so"))
    if not kernels:
        pytest.skip("the compiled CPU library was not built")
    repository, site = unbuilt_clone(tmp_path), tmp_path / "site"
    shutil.copytree(repository / "rotnet_fast", site / "rotnet_fast")
    shutil.copy(kernels[0], site / "rotnet_fast")
    sentence = ""
    if version == "another":
        change_version(repository)
        sentence = "is imported already" if state == "imported" else "has compiled kernels, but"
    done = subprocess.run(
        [sys.executable, "-c", CHOICE, str(repository), state, sentence],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(site), "TORCH_HOME": str(tmp_path / "hub")},
    )
    assert done.returncode == 0, done.stderr
    file, _, has_kernels = done.stdout.strip().rpartition(" ")
    is_clone = version == "another" and state == "not imported"
    assert Path(file).is_relative_to(repository if is_clone else site)
    assert has_kernels == str(not is_clone)
    assert ("plain-torch fallback runs" in done.stderr) == is_clone


def test_a_built_clone_is_used_though_another_is_installed(tmp_path: Path) -> None:
    kernels = list((ROOT / "rotnet_fast").glob("_C_cpu*.so"))
    if not kernels:
        pytest.skip("the compiled CPU library was not built")
    repository, site = unbuilt_clone(tmp_path), tmp_path / "site"
    shutil.copy(kernels[0], repository / "rotnet_fast")
    shutil.copytree(repository / "rotnet_fast", site / "rotnet_fast")
    done = subprocess.run(
        [sys.executable, "-c", CHOICE, str(repository), "not imported", ""],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(site), "TORCH_HOME": str(tmp_path / "hub")},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"{repository / 'rotnet_fast/__init__.py'} True"

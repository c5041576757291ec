"""What setup.py builds, where, and what a wheel says of itself."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import setuptools
from pages import ROOT
from setuptools.dist import Distribution


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """setup.py, which takes another folder for its checkout and builds nothing by itself."""
    monkeypatch.setattr(setuptools, "setup", lambda **arguments: None)
    spec = importlib.util.spec_from_file_location("setup_script", ROOT / "setup.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "ROOT", tmp_path)
    return module


@pytest.mark.parametrize(("place", "is_inplace"), [("", True), ("build/lib", False)])
def test_a_build_deletes_earlier_libraries_in_its_own_folder_alone(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, is_inplace: bool
) -> None:
    monkeypatch.setattr(script, "find_compiler", lambda: None)
    for folder in ("", "build/lib"):
        for name in ("_C_cpu.abi3.so", "_C_cuda13.abi3.so", "_core.cpython-311.so", "other.so"):
            path = tmp_path / folder / "rotnet_fast" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    command = script.BuildKernels(Distribution())
    command.ensure_finalized()
    command.inplace, command.build_lib = is_inplace, str(tmp_path / "build" / "lib")
    command.run()
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("_C_*.so")}
    assert len(left) == 2
    assert all(path.startswith("build" if is_inplace else "rotnet_fast") for path in left)
    assert len(list(tmp_path.rglob("other.so"))) == 2
    assert command.extensions == []


@pytest.mark.parametrize("compiler", ["/usr/bin/c++", None])
def test_a_wheel_is_for_every_python_and_says_whether_it_holds_kernels(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, compiler: str | None
) -> None:
    monkeypatch.setattr(script, "find_compiler", lambda: compiler)
    command = script.OneWheel(Distribution({"name": "rotnet_fast", "ext_modules": [script.CoreModule()]}))
    command.ensure_finalized()
    python, abi, platform = command.get_tag()
    assert (python, abi) == ("py3", "none")
    assert (platform == "any") == (compiler is None)


def test_a_torch_for_amd_gpus_is_no_reason_to_install_a_cuda_toolkit(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ROTNET_CUDA", raising=False)
    root, reason = script.choose_cuda(None, "7.1")
    assert root is None
    assert "ROCm 7.1" in reason
    assert "CUDA" not in reason


def test_the_core_module_can_be_built_for_other_pythons(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROTNET_PYTHONS", sys.executable)
    ((include, suffix),) = script.other_pythons()
    module = script.CoreModule(include, suffix)
    assert module.include_dirs[0] == include
    assert module.name != "rotnet_fast._core"
    assert module.suffix == suffix


@pytest.mark.parametrize(
    ("package", "said"),
    [
        (
            "setuptools",
            "setuptools is 59.6.0; building needs 77 or later: pip install -U setuptools",
        ),
        ("pybind11", "building needs pybind11: pip install pybind11"),
        ("torch", "torch is not installed, and building needs it: pip install 'torch>=2.10'"),
    ],
)
def test_what_a_build_without_isolation_lacks_is_named(package: str, said: str) -> None:
    lines = {
        "setuptools": "import setuptools; setuptools.__version__ = '59.6.0'",
        "pybind11": "find = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name: None if name == 'pybind11' else find(name)",
        "torch": "importlib.util.find_spec = lambda name: None\n"
        "importlib.metadata.distributions = lambda **arguments: []",
    }
    code = (
        f"import importlib.metadata, importlib.util, sys\nsys.path.insert(0, {str(ROOT / 'build_tools')!r})\n"
        f"{lines[package]}\nimport backend\nbackend.build_wheel('.')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.strip() == f"rotnet_fast: {said}"


@pytest.mark.parametrize("address", ["", "https://example.org/rotnet_fast/"])
def test_the_description_elsewhere_has_no_link_that_leads_nowhere(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    monkeypatch.setattr(script, "ROOT", ROOT)
    monkeypatch.setenv("ROTNET_URL", address)
    text = script.description()
    targets = re.findall(r"\]\(([^)]+)\)", text)
    here = [target for target in targets if not re.match(r"https?:|#", target)]
    assert here == []
    prefix = "https://example.org/rotnet_fast/"
    places = [target.removeprefix(prefix) for target in targets if target.startswith(prefix)]
    assert len(places) > 20 if address else not places
    for place in places:
        kind, _, path = place.partition("/main/")
        assert kind == ("raw" if path.endswith(".png") else "blob")
        assert (ROOT / path.partition("#")[0]).exists()
    assert "tutorial" in text
    assert ("![" in text) == bool(address)


@pytest.mark.parametrize(
    ("wanted", "codes", "ptx"),
    [
        ("9.0;8.0", ["80", "90"], "90"),
        ("8.0 9.0a;", ["80", "90a"], "90"),
        ("12.0f", ["120f"], "120"),
        ("8.6+PTX", ["86"], "86"),
    ],
)
def test_machine_code_is_built_for_the_architectures_asked_for_and_ptx_of_the_newest(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, wanted: str, codes: list[str], ptx: str
) -> None:
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", wanted)
    flags, _ = script.architecture_flags(Path("unused"))
    assert flags == [
        *(f"-gencode=arch=compute_{code},code=sm_{code}" for code in codes),
        f"-gencode=arch=compute_{ptx},code=compute_{ptx}",
    ]


@pytest.mark.parametrize("wanted", ["Hopper", ";", "9"])
def test_architectures_that_are_no_numbers_are_refused(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, wanted: str
) -> None:
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", wanted)
    with pytest.raises(SystemExit, match=f"TORCH_CUDA_ARCH_LIST is '{wanted}'; give numbers"):
        script.architecture_flags(Path("unused"))


def program(folder: Path, name: str, says: str = "") -> Path:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{says}\n")
    path.chmod(0o755)
    return path


def test_the_compiler_is_the_one_that_torchs_build_calls(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from torch.utils import cpp_extension

    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    assert script.find_compiler() is None
    gnu = program(tmp_path, "g++", "echo one")
    monkeypatch.setenv("CXX", "")
    assert script.find_compiler() == str(gnu)
    assert cpp_extension.get_cxx_compiler() == str(gnu)
    monkeypatch.setenv("CXX", "")
    usual = program(tmp_path, "c++", "echo two")
    assert script.find_compiler() == str(usual)
    assert cpp_extension.get_cxx_compiler() == "c++"
    monkeypatch.setenv("CXX", "cache g++")
    cache = program(tmp_path, "cache", 'exec "$@"')
    assert script.find_compiler() == str(cache)
    assert script.compiler_version() == "one"
    monkeypatch.setenv("CXX", "nosuch g++")
    with pytest.raises(SystemExit, match="CXX is 'nosuch g\\+\\+', which is not found"):
        script.find_compiler()


def test_a_build_without_cuda_asks_no_nvcc(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROTNET_CUDA", "0")
    monkeypatch.setattr(script, "cuda_toolkit", lambda: pytest.fail("nvcc was run"))
    assert script.choose_cuda("13.0", None) == (None, "not built: ROTNET_CUDA=0")


def test_a_build_finds_torch_where_the_base_of_the_environment_has_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    spec = importlib.util.spec_from_file_location("backend_script", ROOT / "build_tools" / "backend.py")
    assert spec is not None
    assert spec.loader is not None
    backend = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(backend)
    own, base = tmp_path / "own", tmp_path / "base"
    for folder, version in ((own, "2.9.1"), (base, "2.14.0")):
        (folder / "torch.dist-info").mkdir(parents=True)
        (folder / "torch.dist-info" / "METADATA").write_text(f"Name: torch\nVersion: {version}\n")
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(backend.sysconfig, "get_path", lambda name: str(own))
    monkeypatch.setattr(backend.site, "getsitepackages", lambda: [str(own)])
    monkeypatch.setattr(backend.site, "getusersitepackages", lambda: str(own))
    assert backend._requirements([]) == ["torch>=2.10"]
    monkeypatch.setattr(backend.site, "getsitepackages", lambda: [str(own), str(base)])
    assert backend._requirements([]) == []
    assert sys.path[-1] == str(base)

"""The C++ core and the CPU kernels under AddressSanitizer and UndefinedBehaviorSanitizer."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
COMPILER = shutil.which("c++") or shutil.which("g++")
FLAGS = [
    *("-std=c++17", "-O1", "-g", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror", "-D_GLIBCXX_ASSERTIONS"),
    # gcc's own AVX-512 headers trip this one when a sanitizer is on.
    "-Wno-maybe-uninitialized",
    "-Wno-unknown-pragmas",  # the CUDA code's unroll
    *("-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer"),
]


@pytest.fixture(scope="module")
def binary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if COMPILER is None:
        pytest.skip("no C++ compiler on this machine")
    folder = tmp_path_factory.mktemp("cpp")
    probe = folder / "probe.cpp"
    probe.write_text("int main() {}")
    if subprocess.run([COMPILER, *FLAGS, probe, "-o", folder / "probe"], check=False).returncode != 0:
        pytest.skip("this compiler has no sanitizers")
    sources = [
        *sorted((ROOT / "tests" / "cpp").glob("*.cpp")),
        *sorted((ROOT / "csrc" / "cpu").glob("*.cpp")),
    ]
    objects = [folder / f"{source.stem}.o" for source in sources]
    jobs = [
        subprocess.Popen([COMPILER, *FLAGS, "-c", source, "-o", target], stderr=subprocess.PIPE, text=True)
        for source, target in zip(sources, objects, strict=True)
    ]
    for job in jobs:
        _, errors = job.communicate()
        assert job.returncode == 0, errors
    subprocess.run([COMPILER, *FLAGS, *objects, "-o", folder / "test_core"], check=True)
    return folder / "test_core"


@pytest.mark.parametrize(
    ("fault", "report"), [("address", "AddressSanitizer"), ("undefined", "runtime error: shift")]
)
def test_the_sanitizers_notice_a_planted_fault(binary: Path, fault: str, report: str) -> None:
    result = subprocess.run([binary, "--plant", fault], capture_output=True, text=True, check=False)
    assert result.returncode != 0
    assert report in result.stderr


def test_core_and_kernels_pass_under_the_sanitizers(binary: Path) -> None:
    result = subprocess.run([binary], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.endswith("0 failures\n")
    assert "kernel scalar checked" in result.stdout
    assert "warp checked" in result.stdout
    assert "batch norm checked" in result.stdout

"""The C++ core and the CPU kernels under AddressSanitizer and UndefinedBehaviorSanitizer."""

from __future__ import annotations

import subprocess
from pathlib import Path

import cpp_build
import pytest

SOURCES = (*sorted((cpp_build.ROOT / "tests" / "cpp").glob("*.cpp")), *cpp_build.KERNELS)


@pytest.fixture(scope="module")
def binary() -> Path:
    try:
        return cpp_build.link(cpp_build.BUILD / "test_core", SOURCES, cpp_build.ADDRESS)
    except cpp_build.NoSanitizersError as error:
        pytest.skip(str(error))


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

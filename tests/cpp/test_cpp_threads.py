"""The CPU kernels in several threads under ThreadSanitizer, divided as the ops divide them."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import cpp_build
import pytest

SOURCES = (cpp_build.ROOT / "tests" / "cpp" / "threads" / "test_threads.cpp", *cpp_build.KERNELS)

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def binary() -> Path:
    try:
        return cpp_build.link(
            cpp_build.BUILD / "test_threads", SOURCES, cpp_build.THREAD, link_options=["-pthread"]
        )
    except cpp_build.NoSanitizersError as error:
        pytest.skip(str(error))


def run(binary: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    # The first race is enough: a planted one would be reported for every element.
    environment = {**os.environ, "TSAN_OPTIONS": "halt_on_error=1:exitcode=66"}
    return subprocess.run([binary, *arguments], capture_output=True, text=True, check=False, env=environment)


def test_threads_share_nothing_that_one_of_them_writes_and_change_no_bit(binary: Path) -> None:
    result = run(binary)
    assert result.returncode == 0, result.stdout + result.stderr
    kernels = re.findall("kernel (.*) checked", result.stdout)
    assert "scalar" in kernels
    assert result.stdout.endswith("0 failures\n")
    for part in ("rotate", "warp", "batch_norm"):
        for kernel in kernels:
            planted = run(binary, "--plant", part, kernel)
            assert planted.returncode == 66, f"a race planted in {part}, {kernel}, was not noticed"
            assert "WARNING: ThreadSanitizer: data race" in planted.stderr

"""Runs the tests of the ops with their CPU library under AddressSanitizer and UndefinedBehaviorSanitizer.

    python tests/support/sanitize.py --examples 20000

builds the library into build/sanitized (the installed one is left alone), shows that either sanitizer notices
a fault which was planted in it, and then runs the tests, once for each kernel that the processor has. Prints
the number of calls and of reports; exit code 1 where there was a report or a test failed.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import cpp_build

FOLDER = cpp_build.BUILD / "package"
SOURCES = ("csrc/op_cpu.cpp", "csrc/batch_norm_op.cpp", "tests/cpp/extension/planted_faults.cpp")
TESTS = ("test_ops_property.py", "test_ops_memory.py", "test_ops_errors.py")
REPORT = re.compile("ERROR: AddressSanitizer|runtime error:")
PLANTED = ("ERROR: AddressSanitizer: heap-buffer-overflow", "runtime error: shift exponent 64 is too large")

# Imported before pytest, so that tests get this copy of the package and no other.
BEGINNING = f"""
import sys, torch
from rotnet_fast.ops.library import LIBRARIES
library = LIBRARIES["cpu"]
assert library.loaded and str(library.path).startswith({str(FOLDER)!r}), library
"""


class Outcome(NamedTuple):
    """What became of the tests with one kernel: calls by kind, reports, and all that was printed."""

    calls: Counter[str]
    reports: int
    failed: bool
    output: str


def build() -> None:
    """The package and its CPU library, with sanitizers and the planted fault.

    Raises:
        cpp_build.NoSanitizersError, RuntimeError: as of `cpp_build.link`.
    """
    root, package = cpp_build.ROOT, FOLDER / "rotnet_fast"
    if package.exists():
        shutil.rmtree(package)
    left_out = shutil.ignore_patterns("*.so", "__pycache__", "weights")
    shutil.copytree(root / "rotnet_fast", package, ignore=left_out)
    found = importlib.util.find_spec("torch")
    assert found is not None
    assert found.origin is not None
    torch = Path(found.origin).parent
    cpp_build.link(
        package / "_C_cpu.abi3.so",
        cpp_build.KERNELS,
        cpp_build.ADDRESS,
        [root / name for name in SOURCES],
        ["-DTORCH_TARGET_VERSION=0x020a000000000000", f"-isystem{torch / 'include'}"],
        ["-shared", f"-L{torch / 'lib'}", "-ltorch", "-ltorch_cpu", "-lc10"],
    )


def run(program: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A Python program that imports the built package and has the sanitizers' runtime."""
    # The library of C++ comes right after: else the first exception that it throws ends the process.
    preloaded = " ".join(str(runtime(name)) for name in ("libasan.so", "libstdc++.so"))
    return subprocess.run(
        [sys.executable, "-c", BEGINNING + program],
        env={
            **os.environ,
            "PYTHONPATH": str(FOLDER),
            "LD_PRELOAD": preloaded,
            # Python itself does not give back all of its memory.
            "ASAN_OPTIONS": "detect_leaks=0:max_allocation_size_mb=4096:allocator_may_return_null=1",
            "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
            **environment,
        },
        cwd=FOLDER,
        capture_output=True,
        text=True,
        check=False,
    )


def runtime(name: str) -> Path:
    command = [str(cpp_build.COMPILER), f"-print-file-name={name}"]
    return Path(subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()).resolve()


def check_planted_faults() -> None:
    """Demand that each sanitizer notices its fault.

    Raises:
        RuntimeError: one does not.
    """
    programs = [
        f"torch.ops.rotnet_fast.planted_fault(torch.zeros(16), {kind})" for kind in range(len(PLANTED))
    ]
    with ThreadPoolExecutor() as pool:
        for result, report in zip(pool.map(run, programs), PLANTED, strict=True):
            if result.returncode == 0 or report not in result.stderr:
                printed = result.stdout + result.stderr
                raise RuntimeError(f"a planted fault was not noticed: expected {report!r}, got {printed!r}")


def kernels() -> list[str]:
    """The kernels that this processor runs."""
    result = run("print(library.detail)", ROTNET_CPU_KERNEL="any")
    return result.stdout.strip().rpartition("this processor runs: ")[2].split(", ")


def run_tests(kernel: str, examples: int) -> Outcome:
    report = FOLDER / f"{kernel}.xml"
    report.unlink(missing_ok=True)
    tests = [str(Path(__file__).parents[1] / "ops" / name) for name in TESTS]
    # A report ends the process: pytest must neither hold back its text nor take its signal.
    paths = [str(FOLDER), str(Path(__file__).parent)]
    options = [
        "-q",
        "--capture=sys",
        "-pno:faulthandler",
        "-pno:cacheprovider",
        f"-opythonpath={shlex.join(paths)}",
    ]
    options += ["-ojunit_family=xunit1", f"--junitxml={report}"]  # the format that holds properties
    result = run(
        f"import pytest; sys.exit(pytest.main({[*options, *tests]!r}))",
        ROTNET_CPU_KERNEL=kernel,
        ROTNET_OP_EXAMPLES=str(examples),
    )
    output = result.stdout + result.stderr
    calls: Counter[str] = Counter()
    for counted in ElementTree.parse(report).iter("property") if report.exists() else ():
        calls[counted.attrib["name"]] += int(counted.attrib["value"])
    return Outcome(calls, len(REPORT.findall(output)), result.returncode != 0, output)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--examples", type=int, default=3000, help="calls of the first test, for each kernel")
    parser.add_argument(
        "--kernels", nargs="+", help="scalar, avx2, avx512; all that the processor has by default"
    )
    wanted = parser.parse_args(arguments)
    start = time.monotonic()
    try:
        build()
        check_planted_faults()
    except (cpp_build.NoSanitizersError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"built, and both planted faults noticed, after {time.monotonic() - start:.0f} s", flush=True)
    reports, failed = 0, False
    for kernel in wanted.kernels or kernels():
        found = run_tests(kernel, wanted.examples)
        reports, failed = reports + found.reports, failed or found.failed
        if found.failed or found.reports:
            print(found.output)
        seconds = time.monotonic() - start
        print(
            f"{kernel}: {found.calls.total():,} calls, {found.calls['valid']:,} done, "
            f"{found.calls['invalid']:,} refused, {found.reports} reports, after {seconds:.0f} s",
            flush=True,
        )
    return int(failed or reports > 0)


if __name__ == "__main__":
    sys.exit(main())

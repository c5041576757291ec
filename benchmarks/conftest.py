"""Settings of all benchmarks: reused memory for everybody, and what machine and versions they ran on."""

from __future__ import annotations

import functools
import os
import re
from typing import Any

import pytest

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the commands do; read when torch is imported

import torch

from rotnet_fast.engine.run_folder import environment
from rotnet_fast.memory import reuse_freed_memory

DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
    ),
]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--small-images",
        metavar="FOLDER",
        help="JPEGs of 32x32 pixels to load, anywhere below; by default, made",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Where nothing is measured, try one of the cases that differ in numbers alone, which are sizes."""
    if not config.getoption("benchmark_disable"):
        return
    first = {re.sub(r"\d+", "#", item.nodeid): item for item in reversed(items)}
    once = set(first.values())
    config.hook.pytest_deselected(items=[item for item in items if item not in once])
    items[:] = [item for item in items if item in once]


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.param)


@pytest.fixture(scope="session", autouse=True)
def _reused_memory() -> None:
    """Keep freed memory in the process, so that no peer pays for fresh pages at each call."""
    reuse_freed_memory()


@functools.cache
def versions() -> dict[str, Any]:
    """Machine, versions and commit, which go into every result."""
    facts = environment("cpu")
    return {
        "processor": facts["cpu"],
        "threads": facts["threads"],
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "python": facts["python"],
        "torch": facts["torch"],
        "rotnet_fast": facts["rotnet_fast"],
        "cpu_kernel": facts["kernel"],
        "commit": facts["commit"] or "unknown",
    }


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    machine_info.clear()  # the host's name and the like are nobody's business
    machine_info.update(versions())


def pytest_benchmark_update_json(
    config: pytest.Config, benchmarks: list[Any], output_json: dict[str, Any]
) -> None:
    for row in output_json["benchmarks"]:
        row["stats"].pop("data", None)  # thousands of single timings; the statistics say enough


@pytest.fixture
def record(benchmark: Any) -> Any:
    """Note what a row is about, beside machine, versions and commit."""

    def note(**facts: Any) -> None:
        benchmark.extra_info.update(versions() | facts)

    return note

"""Shared by all tests: the devices that this machine has, and threads that do not spin."""

from __future__ import annotations

import os
import re

import pytest

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch is imported; see command.py

import torch

DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
    ),
]


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> torch.device:
    """Each device of this machine in turn."""
    return torch.device(request.param)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--only-cuda", action="store_true", help="run only the tests that need a CUDA device")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With ``--only-cuda``, keep the tests that would be skipped without a GPU, as their marks say."""
    if not config.getoption("only_cuda"):
        return
    reasons = {
        item: " ".join(str(mark.kwargs.get("reason")) for mark in item.iter_markers("skipif"))
        for item in items
    }
    kept = [item for item in items if re.search("CUDA|GPU|on the CPU", reasons[item])]
    config.hook.pytest_deselected(items=[item for item in items if item not in set(kept)])
    items[:] = kept

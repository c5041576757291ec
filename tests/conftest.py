"""Shared by all tests: the devices that this machine has, threads that do not spin, and the table of faults.

A test that breaks something on purpose is marked ``@pytest.mark.faults("what is broken")`` and counts once
under that name, or takes the fixture ``fault_log`` and says how often it broke what.
"""

from __future__ import annotations

import io
import os
import re
import signal
from collections import Counter
from collections.abc import Generator
from functools import cache
from typing import NamedTuple, Protocol

import pytest

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch is imported; see command.py

import torch

from rotnet_fast.data.dali import require_dali
from rotnet_fast.errors import ArgumentError

if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup; the tests send themselves that signal

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)  # the processes share the cores

DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
    ),
]


class Fault(NamedTuple):
    """What a test broke, how often, and how often nothing was lost by it."""

    name: str
    tried: int
    survived: int


class FaultLog(Protocol):
    def __call__(self, name: str, tried: int, survived: int) -> None: ...


BROKEN_BY_TEST = pytest.StashKey[list[Fault]]()


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> torch.device:
    """Each device of this machine in turn."""
    return torch.device(request.param)


@pytest.fixture
def fault_log(request: pytest.FixtureRequest) -> FaultLog:
    """Enter a fault into the table at the end of the run; the test fails where one was not survived."""
    faults = request.node.stash[BROKEN_BY_TEST]

    def log(name: str, tried: int, survived: int) -> None:
        faults.append(Fault(name, tried, survived))
        assert 0 < tried == survived, f"{name}: survived {survived} of {tried}"

    return log


@pytest.fixture
def unrendered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are drawn, but not rendered, which takes most of the time: their files are empty."""

    def savefig(self: object, target: io.BytesIO, **options: object) -> None:
        target.write(b"")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", savefig)


@cache
def why_not_dali() -> str | None:
    """Why the streaming loader cannot be used on this machine; None where it can."""
    try:
        require_dali(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    except ArgumentError as error:
        return str(error)
    return None


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--only-cuda", action="store_true", help="run only the tests that need a CUDA device")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With ``--only-cuda``, keep the tests that would be skipped without a GPU, as their marks say."""
    for item in items:
        item.stash[BROKEN_BY_TEST] = []
        if (reason := why_not_dali()) and item.get_closest_marker("needs_dali"):
            item.add_marker(pytest.mark.skip(reason=reason))
        if os.environ.get("ROTNET_TESTS") != "full" and item.get_closest_marker("long"):
            item.add_marker(pytest.mark.skip(reason="takes long; ROTNET_TESTS=full runs it"))
    if not config.getoption("only_cuda"):
        return
    reasons = {
        item: " ".join(str(mark.kwargs.get("reason")) for mark in item.iter_markers("skipif"))
        for item in items
    }
    kept = [item for item in items if re.search("CUDA|GPU|on the CPU", reasons[item])]
    config.hook.pytest_deselected(items=[item for item in items if item not in set(kept)])
    items[:] = kept


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Count what a marked test broke: what it logged, or itself; a failure is never left out."""
    report = yield
    mark, faults = item.get_closest_marker("faults"), item.stash[BROKEN_BY_TEST]
    if mark is None:
        return report
    known = any(fault.survived < fault.tried for fault in faults)
    if (report.failed and not known) or (report.when == "call" and report.passed and not faults):
        faults.append(Fault(mark.args[0] if mark.args else item.name, 1, int(report.passed)))
    if report.when == "teardown":  # reports come from the processes of pytest-xdist, too
        report.user_properties.extend(("fault", list(fault)) for fault in faults)
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the table of faults, where any was tried."""
    tried, survived = Counter[str](), Counter[str]()
    reports = [report for found in terminalreporter.stats.values() for report in found]
    for report in reports:
        for kind, value in getattr(report, "user_properties", ()):
            if kind == "fault":
                fault = Fault(*value)
                tried[fault.name] += fault.tried
                survived[fault.name] += fault.survived
    if not tried:
        return
    width = max(map(len, tried))
    terminalreporter.section("what was broken on purpose")
    terminalreporter.line(f"{'fault':{width}} | tried | survived | lost")
    for name in tried:
        lost = tried[name] - survived[name]
        terminalreporter.line(f"{name:{width}} | {tried[name]:5} | {survived[name]:8} | {lost:4}")

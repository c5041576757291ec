"""Steps are compiled where that is known to be faster, and training goes on where they cannot be."""

from __future__ import annotations

import pytest
import torch

from rotnet_fast.engine.compiled import STEPS_WORTH_COMPILING, choose_compile, compile_forward
from rotnet_fast.engine.distributed import ALONE, Processes
from rotnet_fast.engine.precision import Precision
from rotnet_fast.models.build import make_network
from rotnet_fast.models.nin import NetworkInNetwork

GPU, CPU = torch.device("cuda", 0), torch.device("cpu")
PAPER = 39_100  # steps of its 100 epochs


@pytest.mark.parametrize(
    ("setting", "device", "precision", "model", "world", "steps", "chosen"),
    [
        ("auto", GPU, "bf16", "nin", 1, PAPER, "default"),
        ("auto", GPU, "bf16", "nin", 1, STEPS_WORTH_COMPILING, "default"),
        ("auto", GPU, "bf16", "nin", 1, STEPS_WORTH_COMPILING - 1, "none"),
        ("auto", CPU, "bf16", "nin", 1, PAPER, "none"),
        ("auto", GPU, "fp32", "nin", 1, PAPER, "none"),
        ("auto", GPU, "bf16", "resnet18", 1, PAPER, "none"),
        ("auto", GPU, "bf16", "nin", 2, PAPER, "none"),
        ("none", GPU, "bf16", "nin", 1, PAPER, "none"),
        ("max", CPU, "fp32", "resnet18", 2, 1, "max"),
    ],
)
def test_auto_compiles_long_trainings_of_what_was_measured(
    setting: str, device: torch.device, precision: str, model: str, world: int, steps: int, chosen: str
) -> None:
    network = make_network(4, 3, model, blocks=4, width=0.05)
    processes = ALONE if world == 1 else Processes(0, world)
    found = choose_compile(setting, device, Precision(precision, device.type), network, processes, steps)
    assert found == chosen


class NoCompilerError(Exception):
    pass


def broken(*args: object) -> torch.Tensor:
    raise NoCompilerError("Failed to find C compiler.\nmore lines")


def test_where_compiling_fails_auto_trains_without_and_says_so_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch, "compile", lambda module, **settings: broken)
    network, views = NetworkInNetwork(width=0.05).eval(), torch.randn(2, 3, 32, 32)
    forward = compile_forward(network, "default", is_optional=True)
    for _ in range(2):
        assert torch.equal(forward(views), network(views))
    assert capsys.readouterr().err == (
        "the network could not be compiled (Failed to find C compiler.); training continues without, as with "
        "--compile none\n"
    )


def test_where_compiling_was_asked_for_its_failure_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda module, **settings: broken)
    forward = compile_forward(NetworkInNetwork(width=0.05), "default", is_optional=False)
    with pytest.raises(NoCompilerError):
        forward(torch.randn(2, 3, 32, 32))


def test_an_error_that_the_plain_network_has_too_is_its_own(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch, "compile", lambda module, **settings: broken)
    forward = compile_forward(NetworkInNetwork(width=0.05), "default", is_optional=True)
    with pytest.raises(Exception, match="float64") as raised:
        forward(torch.randn(2, 3, 32, 32, dtype=torch.float64))
    assert not isinstance(raised.value, NoCompilerError)
    assert capsys.readouterr().err == ""

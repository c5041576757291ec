"""What processes tell each other, and BatchNorm over the images of all of them."""

from __future__ import annotations

import gc
import importlib
import itertools
import sys
import weakref
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from ranks import on_ranks
from torch import nn

from rotnet_fast.engine import distributed
from rotnet_fast.engine.distributed import ALONE, Meetings, Processes, _reason, join
from rotnet_fast.errors import ArgumentError, DataError, RotnetError
from rotnet_fast.models.nin import NetworkInNetwork
from rotnet_fast.models.sync_batchnorm import SyncBatchNorm2d, synchronise_batchnorm


def outcome(function: Callable[[], Any]) -> Any:
    """What a call returned, or the class, exit code and text of its error."""
    try:
        return function()
    except RotnetError as error:
        return type(error).__name__, error.exit_code, str(error)


def fail_with(error: RotnetError) -> Any:
    raise error


def talk() -> dict[str, Any]:
    with join() as processes:
        rank, log = processes.rank, []
        calls: dict[str, Callable[[], Any]] = {
            "gather": lambda: processes.gather((rank, torch.tensor([rank]))),
            "on_main": lambda: processes.on_main(lambda: rank + 10),
            "from_main": lambda: processes.from_main(lambda: {"rank": rank}),
            "failing on_main": lambda: processes.on_main(lambda: fail_with(DataError("no data"))),
            "failing from_main": lambda: processes.from_main(lambda: fail_with(DataError("no data"))),
            "failing everywhere": lambda: processes.everywhere(
                lambda: fail_with(DataError(f"no data on {rank}")) if rank > 0 else rank
            ),
            "first": lambda: processes.local_main_first(
                lambda: log.append(processes.maximum(0)) if rank < 0 else rank
            ),
            "same": lambda: processes.check_same({"seed": 0}),
            "other": lambda: processes.check_same({"seed": rank // 2}),
            "maximum": lambda: processes.maximum(rank, -rank),
            "int64": lambda: processes.sum(torch.tensor([2**60 + rank])).item(),
            "float64": lambda: processes.sum(torch.tensor(2.0**40 + rank, dtype=torch.float64)).item(),
            "device": lambda: processes.device("cpu"),
        }
        return {name: outcome(call) for name, call in calls.items()}


def test_processes_share_values_and_errors() -> None:
    found = on_ranks(3, talk)

    def of(name: str) -> list[Any]:
        return [one[name] for one in found]

    elsewhere = ("ElsewhereError", 3, "another process of this job met an error and reports it")
    assert of("gather") == [[(0, torch.tensor([0])), (1, torch.tensor([1])), (2, torch.tensor([2]))]] * 3
    assert of("on_main") == [10, None, None]
    assert of("from_main") == [{"rank": 0}] * 3
    for name in ("failing on_main", "failing from_main"):
        assert of(name) == [("DataError", 3, "no data"), elsewhere, elsewhere]
    assert of("failing everywhere") == [elsewhere, ("DataError", 3, "no data on 1"), elsewhere]
    assert of("first") == [0, 1, 2]
    assert of("same") == [None] * 3
    assert [answer[0] for answer in of("other")] == ["ElsewhereError", "ElsewhereError", "ArgumentError"]
    assert "seed is 1 in rank 2 and 0 in rank 0" in of("other")[2][2]
    assert of("maximum") == [(2, 0)] * 3
    assert of("int64") == [3 * 2**60 + 3] * 3
    assert of("float64") == [3 * 2.0**40 + 3] * 3
    assert of("device") == [torch.device("cpu")] * 3


def forget_the_group() -> bool:
    """Whether nothing keeps the processes' group, and with it gloo's threads, once they have parted."""
    holder = "torch.distributed.nn.functional"  # imported by torch.compile; see _meet
    sys.modules.pop(holder, None)
    with join() as processes:
        group = weakref.ref(dist.group.WORLD)
        importlib.import_module(holder)
        assert processes.gather(processes.rank) == [0, 1]
    gc.collect()
    return group() is None


def test_no_thread_of_the_group_outlives_it() -> None:
    assert on_ranks(2, forget_the_group) == [True, True]


def meet_twice() -> tuple[str, bool]:
    """What is said to a program that has a process group, and whether the group is still there."""
    dist.init_process_group("gloo")
    try:
        with join():
            pass
    except ArgumentError as error:
        return str(error), dist.is_initialized()
    return "", dist.is_initialized()


def test_a_program_keeps_its_own_group() -> None:
    for said, is_there in on_ranks(2, meet_twice):
        assert "a process group of torch.distributed exists already" in said
        assert is_there


def test_a_single_process_needs_nobody() -> None:
    with join() as processes:
        assert processes is not None
        assert processes == ALONE
        assert not dist.is_initialized()
        assert processes.gather(5) == [5]
        assert processes.from_main(lambda: 6) == 6
        assert processes.local_main_first(lambda: 7) == 7
        assert processes.maximum(1, 2) == (1, 2)
        assert processes.tensor_group(torch.device("cpu")) is None
        with pytest.raises(DataError, match="gone"):
            processes.on_main(lambda: fail_with(DataError("gone")))


class Clock:
    """A clock that moves only when told to, and a second process whose steps are slower."""

    def __init__(self, slower: float) -> None:
        self.now = 0.0
        self.slower = slower

    def monotonic(self) -> float:
        return self.now

    def maximum(self, *numbers: int) -> tuple[int, ...]:
        *found, microseconds = numbers
        return (*found, round(microseconds * self.slower))


@pytest.mark.parametrize("slower", [1.0, 3.0])
@pytest.mark.parametrize("seconds", [0.002, 0.1, 1.9, 20.0])
def test_processes_that_run_ahead_of_their_gpus_meet_every_few_seconds(
    seconds: float, slower: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(slower)
    monkeypatch.setattr(distributed, "time", clock)
    meetings = Meetings(clock, runs_ahead=True)  # type: ignore[arg-type]
    met = []
    for step in range(1, 20_001):
        clock.now += seconds if step > 8 else 0.0001  # the first ones are only queued
        if meetings.is_due(step):
            assert meetings.maximum(step, 15, 0) == (15, 0)
            met.append((step, clock.now))
    assert [step for step, _ in met[:3]] == [1, 3, 7]
    gaps = [later - sooner for (_, sooner), (_, later) in itertools.pairwise(met)]
    assert max(gaps[:4]) <= 16 * seconds + 1  # no interval is longer than all before it, and one step
    longest = max(seconds, 5 / slower)
    assert len(gaps) > 14
    assert all(longest - 2 * seconds <= gap <= longest + 1e-6 for gap in gaps[13:])


def test_processes_on_a_cpu_meet_after_every_step() -> None:
    meetings = Meetings(Processes(), runs_ahead=False)
    for step in range(1, 4):
        assert meetings.is_due(step)
        assert meetings.maximum(step, 0, 1) == (0, 1)


def test_processes_of_a_machine_have_a_gpu_each_or_share_them(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)

    def devices(count: int, name: str) -> list[str]:
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        return [str(Processes(4 + rank, 8, rank, 4).device(name)) for rank in range(4)]

    for name in ("auto", "cuda"):
        assert devices(4, name) == ["cuda:0", "cuda:1", "cuda:2", "cuda:3"]
    assert devices(4, "cpu") == ["cpu"] * 4
    assert devices(4, "cuda:2") == ["cuda:2"] * 4
    assert capsys.readouterr().err == ""
    assert devices(2, "auto") == ["cuda:0", "cuda:1", "cuda:0", "cuda:1"]
    assert [str(device) for device in chosen[:4]] == ["cuda:0", "cuda:1", "cuda:2", "cuda:3"]


def test_the_reason_of_a_lost_contact_is_one_clause() -> None:
    said = "[/a/b/pair.cc:545] Read error [127.0.0.1]:4528: Connection reset by peer. This is ...\nmore"
    assert _reason(RuntimeError(said)) == "Read error [127.0.0.1]:4528: Connection reset by peer"


def test_processes_that_share_a_gpu_talk_over_gloo_and_say_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    groups: list[str] = []
    monkeypatch.setattr(torch.distributed, "new_group", lambda backend: groups.append(backend))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="a"))
    for others, is_shared in ((["a"], True), (["b"], False), ([None], True)):
        places = [("here", gpu) for gpu in ["a", *others]]
        monkeypatch.setattr(Processes, "gather", lambda self, mine, places=places: places)
        groups.clear()
        Processes(0, 2, 0, 2).tensor_group(torch.device("cuda:0"))
        assert groups == ([] if is_shared else ["nccl"])
        assert capsys.readouterr().err.startswith("WARNING: 2 processes share 1 CUDA devices") is is_shared


def test_a_machine_without_gpus_computes_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert Processes(1, 2, 1, 2).device("auto") == torch.device("cpu")
    with pytest.raises(ArgumentError, match="device is cuda"):
        Processes(1, 2, 1, 2).device("cuda")


@pytest.mark.parametrize(
    "environment",
    [{"WORLD_SIZE": "2"}, {"WORLD_SIZE": "two"}, {"WORLD_SIZE": "2", "RANK": "2"}],
    ids=["no rank", "no number", "no such rank"],
)
def test_an_environment_that_makes_no_sense_is_refused(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ArgumentError, match="torchrun"):
        Processes.of_environment()


TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-4, torch.bfloat16: 2e-2}
"""Of images with a standard deviation of 1 around means up to 200."""


def normalise(layer: nn.Module, x: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Output of a layer; gradients of a weighted sum of it are left in x and the layer."""
    y = layer(x)
    (y * target).sum().backward()
    return y.detach()


def make_batch(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Images and targets [7,5,4,3] whose channels have large means, where sloppy variances cancel."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(7, 5, 4, 3, generator=generator) + torch.arange(0, 250, 50)[None, :, None, None]
    target = torch.randn(7, 5, 4, 3, generator=generator)
    return x.to(dtype).contiguous(memory_format=torch.channels_last), target.to(dtype)


def make_layer(dtype: torch.dtype) -> nn.BatchNorm2d:
    layer = nn.BatchNorm2d(5)
    with torch.no_grad():
        layer.weight.copy_(torch.linspace(0.5, 1.5, 5))
        layer.bias.copy_(torch.linspace(-1, 1, 5))
    return layer.to(dtype) if dtype == torch.float64 else layer


def batchnorm_of_shares(shares: list[int]) -> dict[torch.dtype, dict[str, Any]]:
    with join() as processes:
        return {dtype: batchnorm_of_share(processes, dtype, shares) for dtype in TOLERANCES}


def batchnorm_of_share(processes: Processes, dtype: torch.dtype, shares: list[int]) -> dict[str, Any]:
    """Two training steps and an evaluation of a layer that sees ``shares[rank]`` images."""
    x, target = make_batch(dtype)
    layer = SyncBatchNorm2d(make_layer(dtype), processes.tensor_group(torch.device("cpu")))
    start = sum(shares[: processes.rank])
    part = slice(start, start + shares[processes.rank])
    mine = x[part].clone(memory_format=torch.preserve_format).requires_grad_()
    normalise(layer, mine.detach(), target[part])
    layer.zero_grad()
    y = normalise(layer, mine, target[part])
    weight_grads = [processes.gather(p.grad) for p in (layer.weight, layer.bias)]
    layer.eval()
    return {
        "y": y,
        "grad": mine.grad,
        "weight grads": [torch.stack(grads).sum(dim=0) for grads in weight_grads],
        "buffers": dict(layer.named_buffers()),
        "eval": layer(x[:2]).detach(),
    }


@pytest.mark.parametrize("shares", [[4, 3], [3, 0, 4]], ids=str)
def test_synchronised_batchnorm_is_batchnorm_on_the_whole_batch(shares: list[int]) -> None:
    found = on_ranks(len(shares), batchnorm_of_shares, shares)
    for dtype in TOLERANCES:
        compare_with_the_whole_batch(dtype, [one[dtype] for one in found])


def compare_with_the_whole_batch(dtype: torch.dtype, found: list[dict[str, Any]]) -> None:
    # The truth is BatchNorm in float64 on the same numbers.
    x, target = (values.double() for values in make_batch(dtype))
    layer = make_layer(torch.float64)
    normalise(layer, x, target)
    layer.zero_grad()
    x.requires_grad_()
    y = normalise(layer, x, target)
    close = {"rtol": TOLERANCES[dtype], "atol": TOLERANCES[dtype], "check_dtype": False}
    for name, truth in (("y", y), ("grad", x.grad)):
        joined = torch.cat([one[name] for one in found])
        assert joined.dtype == dtype
        torch.testing.assert_close(joined, truth, **close)
    for one in found:
        for sums, parameter in zip(one["weight grads"], (layer.weight, layer.bias), strict=True):
            torch.testing.assert_close(sums, parameter.grad, **close)
        for name, buffer in layer.named_buffers():
            torch.testing.assert_close(one["buffers"][name], buffer, **close)
            assert torch.equal(one["buffers"][name], found[0]["buffers"][name])
    layer.eval()
    torch.testing.assert_close(found[0]["eval"], layer(x[:2]).detach(), **close)


def test_replacing_batchnorm_keeps_names_and_tensors() -> None:
    network = NetworkInNetwork(blocks=3, width=0.05)
    before = network.state_dict(keep_vars=True)
    synchronise_batchnorm(network, None)
    after = network.state_dict(keep_vars=True)
    assert list(before) == list(after)
    assert all(before[name] is after[name] for name in before)
    layers = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(layers) == 9
    assert all(isinstance(layer, SyncBatchNorm2d) for layer in layers)


@pytest.mark.parametrize("layer", [nn.BatchNorm1d(3), nn.BatchNorm2d(3, affine=False)], ids=["1d", "bare"])
def test_a_batchnorm_that_cannot_be_replaced_is_refused(layer: nn.Module) -> None:
    with pytest.raises(ArgumentError, match="sync-batchnorm"):
        synchronise_batchnorm(nn.Sequential(layer), None)

"""Comparisons of the Triton kernels with plain torch, for a process of their own.

Started by test_ops_nin_block.py: with TRITON_INTERPRET=1, which Triton reads when it is imported and which
makes the kernels run on the CPU, and without it on a CUDA device.
"""

from __future__ import annotations

import copy
import dataclasses
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn
from triton_interpreter import DEVICE

from rotnet_fast.errors import ArgumentError
from rotnet_fast.experimental import triton_launch
from rotnet_fast.experimental.nin_block import fused_batchnorm_relu, fused_tail, runs_on
from rotnet_fast.models.nin import NetworkInNetwork

# Largest norm of a difference, relative to the norm. The reference rounds where the kernels round, so that
# what remains is fp32 arithmetic, and here and there a number that it tips over to the next 16-bit one.
BOUNDS = {torch.float32: 3e-6, torch.float16: 2e-3, torch.bfloat16: 1.5e-2}
# Channels of the three layers, and B, H, W: numbers of rows that no tile divides, and several groups.
CASES = [
    ((24, 40, 96), (3, 5, 7)),
    ((96, 24, 40), (2, 7, 9)),
    ((40, 96, 24), (4, 9, 5)),
    ((8, 8, 8), (1, 1, 2)),
]
if DEVICE.type == "cuda":
    CASES += [((192, 160, 96), (8, 32, 32)), ((192, 192, 192), (16, 16, 16))]


class _Rounded(torch.autograd.Function):
    """Numbers as a type stores them, held in float64; so are their gradients."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        ctx.dtype = dtype
        return x.to(dtype).double()

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        return grad.to(ctx.dtype).double(), None


def layers(channels: tuple[int, ...]) -> tuple[nn.ModuleList, nn.ModuleList]:
    torch.manual_seed(sum(channels))
    norms = nn.ModuleList([nn.BatchNorm2d(c, momentum=0.3) for c in channels])
    for norm in norms:
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias)
    convolutions = nn.ModuleList([nn.Conv2d(a, b, 1, bias=False) for a, b in pairwise(channels)])
    return norms.to(DEVICE), convolutions.to(DEVICE)


def images(channels: int, size: tuple[int, int, int], dtype: torch.dtype, mean: float = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(channels)
    made = torch.randn(size[0], channels, *size[1:], generator=generator) * 2 + mean
    return made.to(DEVICE, dtype).contiguous(memory_format=torch.channels_last)


def expected_tail(
    y: torch.Tensor, norms: nn.ModuleList, convolutions: nn.ModuleList, dtype: torch.dtype
) -> torch.Tensor:
    """The layers one by one in float64, rounding what separate kernels would store."""
    out = _Rounded.apply(torch.relu(norms[0](y)), dtype)
    for norm, convolution in zip(norms[1:], convolutions, strict=True):
        rounded = convolution.weight + (convolution.weight.to(dtype).double() - convolution.weight).detach()
        out = _Rounded.apply(nn.functional.conv2d(out, rounded), dtype)
        out = torch.relu(norm(out))
        if norm is not norms[-1]:
            out = _Rounded.apply(out, dtype)
    return out


def distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    found, expected = found.detach().double(), expected.detach().double()
    return float((found - expected).norm() / expected.norm().clamp(min=1e-6))


def assert_close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], bound: float) -> None:
    distances = {name: distance(found[name], expected[name]) for name in expected}
    assert found.keys() == expected.keys()
    assert all(torch.isfinite(x).all() for x in found.values())
    assert max(distances.values()) <= bound, distances


def everything(out: torch.Tensor, y: torch.Tensor, *modules: nn.Module) -> dict[str, torch.Tensor]:
    """Output, gradients and running statistics."""
    both = nn.ModuleList(modules)
    assert y.grad is not None
    gradients = {f"gradient of {name}": p.grad for name, p in both.named_parameters() if p.grad is not None}
    return {"out": out, "gradient of y": y.grad, **gradients, **dict(both.named_buffers())}


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize(("channels", "size"), CASES)
def test_tail_is_that_of_separate_layers(
    channels: tuple[int, ...], size: tuple[int, int, int], dtype: torch.dtype
) -> None:
    norms, convolutions = layers(channels)
    norms64, convolutions64 = copy.deepcopy(norms).double(), copy.deepcopy(convolutions).double()
    y = images(channels[0], size, dtype).requires_grad_()
    y64 = y.detach().double().requires_grad_()
    out = fused_tail(y, norms, convolutions)
    grad = images(channels[-1], size, dtype, mean=0.2)
    out.backward(grad)
    assert out.dtype == y.grad.dtype == dtype
    assert out.is_contiguous(memory_format=torch.channels_last)
    out64 = expected_tail(y64, norms64, convolutions64, dtype)
    out64.backward(grad.double())
    if size == (1, 1, 2):  # two values are normalised to plus and minus one, and all gradients vanish
        assert distance(out, out64) <= BOUNDS[dtype]
        return
    assert_close(
        everything(out, y, norms, convolutions),
        everything(out64, y64, norms64, convolutions64),
        BOUNDS[dtype],
    )


@pytest.mark.parametrize("capability", [8, 9, 10])
def test_tiles_of_every_generation_give_the_same(capability: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_launch, "_capability", lambda device: capability)
    test_tail_is_that_of_separate_layers((160, 136, 96), (1, 9, 11), torch.bfloat16)


@pytest.mark.parametrize("dtype", BOUNDS)
def test_batchnorm_with_relu_is_that_of_separate_layers(dtype: torch.dtype) -> None:
    (norm,), _ = layers((40,))
    norm64 = copy.deepcopy(norm).double()
    y = images(40, (5, 9, 7), dtype).requires_grad_()
    y64 = y.detach().double().requires_grad_()
    grad = images(40, (5, 9, 7), dtype, mean=0.2)
    out, out64 = fused_batchnorm_relu(y, norm), torch.relu(norm64(y64))
    out.backward(grad)
    out64.backward(grad.double())
    assert_close(everything(out, y, norm), everything(out64, y64, norm64), BOUNDS[dtype])


def test_statistics_survive_a_mean_far_beyond_the_spread() -> None:
    (norm,), _ = layers((16,))
    y = images(16, (6, 13, 9), torch.float32, mean=3000)
    fused_batchnorm_relu(y, norm)
    variance = y.double().var(dim=(0, 2, 3))
    # 0.7 and 0.3 are the shares of the initial variance, 1, and of the batch's. With a sum of squares the
    # rounding of 3000 squared alone would be 0.5.
    assert torch.allclose(norm.running_var.double(), 0.7 + 0.3 * variance, rtol=1e-4)


def test_many_groups_are_put_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """More groups than are read at once, several tiles in each, and a last one that is not full."""
    monkeypatch.setattr(triton_launch, "_GROUPS_AT_ONCE", 4)
    for name in ("column_tiles", "matmul_tiles", "weight_tiles"):
        original = getattr(triton_launch, name)

        def smaller(rows: int, *rest: int, make: Any = original) -> Any:
            tiles = make(rows, *rest)
            return dataclasses.replace(tiles, rows=16, rows_per_group=48, groups=-(-rows // 48))

        monkeypatch.setattr(triton_launch, name, smaller)
    test_tail_is_that_of_separate_layers((24, 40, 32), (3, 9, 8), torch.float32)


def test_the_same_input_gives_the_same_bits() -> None:
    norms, convolutions = layers((40, 24, 96))
    y = images(40, (3, 7, 9), torch.bfloat16).requires_grad_()
    results = []
    for _ in range(2):
        once, again = copy.deepcopy(norms), copy.deepcopy(convolutions)
        y.grad = None
        out = fused_tail(y, once, again)
        out.backward(torch.ones_like(out))
        results.append(everything(out.detach(), y, once, again))
    for result in results[1:]:
        assert all(torch.equal(result[name], results[0][name]) for name in result)


def test_not_a_number_is_not_hidden() -> None:
    norms, convolutions = layers((8, 16, 8))
    y = images(8, (2, 5, 5), torch.float32)
    y[1, 0, 2, 2] = torch.nan
    assert fused_tail(y, norms, convolutions).isnan().all()


@pytest.mark.parametrize("kernels", ["triton", "triton-bn"])
def test_a_network_trains_alike_by_all_kernels(kernels: str) -> None:
    torch.manual_seed(0)
    plain = NetworkInNetwork(blocks=3, width=0.08).to(DEVICE)
    fused = copy.deepcopy(plain)
    fused.use_kernels(kernels)
    x = torch.randn(4, 3, 12, 12, device=DEVICE).contiguous(memory_format=torch.channels_last)
    labels = torch.tensor([0, 1, 2, 3], device=DEVICE)
    for network in (plain, fused):
        nn.functional.cross_entropy(network(x), labels).backward()
    gradients = [{name: p.grad for name, p in network.named_parameters()} for network in (plain, fused)]
    assert_close(gradients[1], gradients[0], 1e-4)
    assert_close(dict(fused.named_buffers()), dict(plain.named_buffers()), 1e-5)
    plain.eval(), fused.eval()
    assert torch.allclose(fused(x), plain(x), atol=1e-5)


@pytest.mark.skipif(DEVICE.type == "cpu", reason="graphs are captured on a CUDA device only")
@pytest.mark.parametrize("dtype", BOUNDS)
def test_a_captured_graph_repeats_the_step(dtype: torch.dtype) -> None:
    norms, convolutions = layers((192, 160, 96))
    y = images(192, (4, 32, 32), dtype).requires_grad_()
    grad = images(96, (4, 32, 32), dtype)

    def step() -> torch.Tensor:
        out = fused_tail(y, norms, convolutions)
        out.backward(grad)
        return out

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()  # compiles the kernels
    torch.cuda.synchronize()
    both = nn.ModuleList([norms, convolutions])
    y.grad = None
    both.zero_grad(set_to_none=True)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = step()
    twin = copy.deepcopy(both)
    fresh = images(192, (4, 32, 32), dtype, mean=-1)
    with torch.no_grad():
        y.copy_(fresh)
    graph.replay()
    other = fresh.clone().requires_grad_()
    expected = fused_tail(other, *twin)
    for parameter in twin.parameters():
        parameter.grad = None
    expected.backward(grad)
    found, wanted = everything(out, y, norms, convolutions), everything(expected, other, *twin)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_tensors_that_the_kernels_do_not_take_are_refused() -> None:
    norms, convolutions = layers((8, 8, 8))
    with pytest.raises(ArgumentError, match="float64"):
        fused_tail(images(8, (1, 2, 2), torch.float64), norms, convolutions)
    with pytest.raises(ArgumentError, match="at least two values"):
        fused_tail(images(8, (1, 1, 1), torch.float32), norms, convolutions)
    assert runs_on(DEVICE)
    assert not runs_on(torch.device("meta"))

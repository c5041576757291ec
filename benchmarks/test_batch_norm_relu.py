"""BatchNorm and ReLU of NIN-4, forward and backward: the fused kernels against torch's ways."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional

from rotnet_fast.ops.batch_norm import batch_norm_relu

OURS = "rotnet_fast"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
# 128 images make 512 views. Widths 1 and 0.25: the first and the last layer of block 1, and any of the later
# blocks behind the pools.
SHAPES = [
    (512, 192, 32, 32),
    (512, 96, 32, 32),
    (512, 192, 8, 8),
    (512, 48, 32, 32),
    (512, 24, 32, 32),
    (512, 48, 8, 8),
]

Way = Callable[..., torch.Tensor]


def _eager(*arguments: Any) -> torch.Tensor:
    x, weight, bias, running_mean, running_var, training, momentum, eps = arguments
    y = functional.batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps)
    return functional.relu(y, inplace=True)


def _compiled() -> Way:
    torch.compiler.reset()
    way: Way = torch.compile(_eager, dynamic=False)
    return way


WAYS: dict[str, Callable[[], Way]] = {
    OURS: lambda: batch_norm_relu,
    "torch": lambda: _eager,
    "torch.compile": _compiled,
}


@pytest.mark.parametrize("name", WAYS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
def test_batch_norm_relu(
    benchmark: Any, record: Any, shape: tuple[int, int, int, int], dtype: str, name: str
) -> None:
    generator = torch.Generator().manual_seed(0)

    def activations() -> torch.Tensor:
        made = torch.randn(shape, generator=generator, dtype=torch.float32).to(DTYPES[dtype])
        return made.contiguous(memory_format=torch.channels_last)

    x, grad = activations().requires_grad_(), activations()
    channels = shape[1]
    weight, bias = torch.rand(2, channels, generator=generator).unbind()
    weight.requires_grad_()
    bias.requires_grad_()
    running = torch.zeros(channels), torch.ones(channels)
    way = WAYS[name]()

    def step() -> torch.Tensor:
        x.grad = weight.grad = bias.grad = None
        y = way(x, weight, bias, *running, True, 0.1, 1e-5)
        y.backward(grad)
        return y

    # All do the same work, up to rounding.
    y = step().detach()
    few = slice(0, None, max(1, shape[0] // 4))
    expected = _eager(x.detach(), weight.detach(), bias.detach(), None, None, True, 0.1, 1e-5)
    torch.testing.assert_close(y[few], expected[few], rtol=0.01, atol=0.01)
    benchmark.group = f"cpu BatchNorm + ReLU {'x'.join(map(str, shape))} {dtype}, forward and backward"
    benchmark.pedantic(step, rounds=12, iterations=1, warmup_rounds=2)
    size = x.numel() * x.element_size()
    # What must be moved: forward, x twice and y; backward, x and the gradient of y twice, and that of x.
    record(what="batch_norm_relu", way=name, shape=list(shape), dtype=dtype, bytes_moved=8 * size)

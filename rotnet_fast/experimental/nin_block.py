"""The tail of a NIN block in training mode, from the spatial convolution's output on, by Triton kernels.

    a0 = relu(bn0(y0));  y1 = conv1x1(a0);  a1 = relu(bn1(y1));  y2 = conv1x1(a1);  out = relu(bn2(y2))

On a GPU these layers are bound by memory. Here a0 and a1 are never written: the convolutions make them from
y0 and y1 as they read them, and take the statistics of what they write; the backward pass does likewise with
the gradients between the layers. Numbers are rounded to the storage type at the same places as by separate
kernels; statistics, weights, sums and the gradients of weights are fp32.

Nothing waits for the device, so that a step can be captured in a CUDA graph (after one step of the same
shape, which compiles the kernels), and no sum depends on the order in which programs run: the same input
gives the same bits.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from rotnet_fast.errors import ArgumentError
from rotnet_fast.experimental.triton_tiles import MAX_CHANNELS
from rotnet_fast.plain import counted

DTYPES = (torch.bfloat16, torch.float16, torch.float32)


@torch.compiler.disable  # type: ignore[untyped-decorator]  # these kernels are compiled already
def fused_tail(
    y0: torch.Tensor, norms: Sequence[nn.BatchNorm2d], convolutions: Sequence[nn.Conv2d]
) -> torch.Tensor:
    """What follows the spatial convolution of a NIN block, in training mode, up to its pool.

    Running statistics are updated as by `nn.BatchNorm2d`. Differentiable once, in y0 and in all weights.

    Args:
        y0: bf16, fp16 or fp32 [B,C0,H,W], channels_last (else it is copied).
        norms: the three BatchNorms, with weights in fp32.
        convolutions: the two 1x1 convolutions between them, with weights in fp32.

    Returns:
        [B,C2,H,W], channels_last, in the type of y0.

    Raises:
        ArgumentError: layers or tensors that the kernels cannot work with; see `check_layers`.
    """
    check_layers(norms, convolutions)
    _check_input(y0)
    weights = [convolution.weight for convolution in convolutions]
    affine = [weight for norm in norms for weight in (norm.weight, norm.bias)]
    with torch.cuda.device_of(y0):  # Triton launches on the current device
        out: torch.Tensor = _Tail.apply(y0, tuple(norms), *weights, *affine)
    return out


@torch.compiler.disable  # type: ignore[untyped-decorator]
def fused_batchnorm_relu(y: torch.Tensor, norm: nn.BatchNorm2d) -> torch.Tensor:
    """relu(norm(y)) in training mode, reading and writing each number as seldom as separate layers can.

    Args:
        y: bf16, fp16 or fp32 [B,C,H,W], channels_last (else it is copied).
        norm: with weights in fp32.

    Returns:
        [B,C,H,W], channels_last, in the type of y.

    Raises:
        ArgumentError: a layer or tensor that the kernels cannot work with; see `check_layers`.
    """
    check_layers([norm], [])
    _check_input(y)
    with torch.cuda.device_of(y):
        out: torch.Tensor = _BatchNormRelu.apply(y, norm, norm.weight, norm.bias)
    return out


def check_triton() -> None:
    """Refuse a machine without Triton.

    Raises:
        ArgumentError: Triton is not installed.
    """
    if importlib.util.find_spec("triton") is None:
        raise ArgumentError(
            "kernels is triton, but Triton is not installed: install it, or use kernels torch"
        )


def check_layers(norms: Sequence[nn.BatchNorm2d], convolutions: Sequence[nn.Conv2d]) -> None:
    """Refuse layers that the kernels would compute wrongly.

    Raises:
        ArgumentError: a BatchNorm is of another class (over processes, say), lacks weights, running
            statistics or a fixed momentum, or has a number of channels that is not a multiple of 8 or is
            beyond 256; a convolution is not 1x1, or has a bias; a weight is not fp32.
    """
    for layer in (*norms, *convolutions):
        if layer.weight is not None and layer.weight.dtype != torch.float32:
            raise ArgumentError(
                f"kernels is triton, but the weight of {layer} is {layer.weight.dtype}: these kernels take "
                f"fp32 and round by themselves; keep the weights fp32, or use kernels torch"
            )
    for norm in norms:
        if type(norm) is not nn.BatchNorm2d:
            raise ArgumentError(
                f"kernels is triton, but a layer is a {type(norm).__name__}: these kernels know "
                f"nn.BatchNorm2d alone; leave synchronised BatchNorm out, or use kernels torch"
            )
        if not norm.affine or not norm.track_running_stats or norm.momentum is None:
            raise ArgumentError(
                f"kernels is triton, but {norm} lacks weights, running statistics or a momentum; "
                f"use kernels torch"
            )
        if norm.num_features % 8 or norm.num_features > MAX_CHANNELS:
            raise ArgumentError(
                f"kernels is triton, but a layer has {counted(norm.num_features, 'channel')}: these "
                "kernels take "
                f"multiples of 8 up to {MAX_CHANNELS}; use another width, or kernels torch"
            )
    for convolution in convolutions:
        plain = convolution.kernel_size == convolution.stride == (1, 1) and convolution.groups == 1
        if not plain or convolution.bias is not None or convolution.padding != (0, 0):
            raise ArgumentError(
                f"kernels is triton, but {convolution} is not a plain 1x1 convolution without bias; "
                f"use kernels torch"
            )


def runs_on(device: torch.device) -> bool:
    """Whether the kernels run on a device: on CUDA devices, and on the CPU in Triton's interpreter."""
    if device.type == "cuda":
        return True
    from rotnet_fast.experimental import triton_launch

    return device.type == "cpu" and triton_launch.is_interpreted()


def _check_input(y: torch.Tensor) -> None:
    if y.dtype not in DTYPES or y.dim() != 4 or y.numel() // y.shape[1] < 2:
        raise ArgumentError(
            f"y is {y.dtype} of shape {list(y.shape)}; it must be bf16, fp16 or fp32 [B,C,H,W] with at least "
            f"two values per channel"
        )
    if not runs_on(y.device):
        raise ArgumentError(
            f"y lies on {y.device}, where the Triton kernels do not run; move it to a CUDA device, or use "
            f"kernels torch"
        )


def _to_rows(x: torch.Tensor) -> torch.Tensor:
    """[B,C,H,W] -> [B*H*W,C], without a copy where x is channels_last."""
    return x.permute(0, 2, 3, 1).contiguous().flatten(0, 2)


def _to_images(rows: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """[B*H*W,C] -> [B,C,H,W] with B, H and W of `like`, channels_last."""
    batch, _, height, width = like.shape
    return rows.view(batch, height, width, rows.shape[1]).permute(0, 3, 1, 2)


class _Tail(torch.autograd.Function):
    """The arguments behind `norms` are those of its weights and the convolutions' that get gradients."""

    @staticmethod
    def forward(
        ctx: Any,
        y0: torch.Tensor,
        norms: tuple[nn.BatchNorm2d, ...],
        weight1: torch.Tensor,
        weight2: torch.Tensor,
        *affine: torch.Tensor,
    ) -> torch.Tensor:
        from rotnet_fast.experimental import triton_launch as launch

        rows0 = _to_rows(y0)
        low1, low2 = (weight.detach().flatten(1).to(y0.dtype).contiguous() for weight in (weight1, weight2))
        state0 = launch.finish_statistics(launch.column_statistics(rows0), norms[0])
        rows1, sums1 = launch.convolve(rows0, state0, low1)
        state1 = launch.finish_statistics(sums1, norms[1])
        rows2, sums2 = launch.convolve(rows1, state1, low2)
        state2 = launch.finish_statistics(sums2, norms[2])
        out = launch.normalise(rows2, state2)
        ctx.save_for_backward(y0, rows1, rows2, state0, state1, state2, low1, low2, weight1, weight2)
        return _to_images(out, y0)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        from rotnet_fast.experimental import triton_launch as launch

        y0, rows1, rows2, state0, state1, state2, low1, low2, weight1, weight2 = ctx.saved_tensors
        rows0, g2 = _to_rows(y0), _to_rows(grad)
        slopes2, gamma2, beta2 = launch.finish_gradients(launch.gradient_sums(g2, rows2, state2), state2)
        layer2 = (g2, rows2, state2, slopes2)
        g1, sums1 = launch.convolve_backward(*layer2, low2, rows1, state1, masked=False)
        grad_weight2 = launch.weight_gradient(*layer2, rows1, state1, masked=False, weight=weight2)
        slopes1, gamma1, beta1 = launch.finish_gradients(sums1, state1)
        layer1 = (g1, rows1, state1, slopes1)
        g0, sums0 = launch.convolve_backward(*layer1, low1, rows0, state0, masked=True)
        grad_weight1 = launch.weight_gradient(*layer1, rows0, state0, masked=True, weight=weight1)
        slopes0, gamma0, beta0 = launch.finish_gradients(sums0, state0)
        grad_y0 = launch.batchnorm_backward(g0, rows0, state0, slopes0, masked=True)
        affine = (gamma0, beta0, gamma1, beta1, gamma2, beta2)
        return _to_images(grad_y0, y0), None, grad_weight1, grad_weight2, *affine


class _BatchNormRelu(torch.autograd.Function):
    """One BatchNorm with ReLU."""

    @staticmethod
    def forward(
        ctx: Any, y: torch.Tensor, norm: nn.BatchNorm2d, gamma: torch.Tensor, beta: torch.Tensor
    ) -> torch.Tensor:
        from rotnet_fast.experimental import triton_launch as launch

        rows = _to_rows(y)
        state = launch.finish_statistics(launch.column_statistics(rows), norm)
        ctx.save_for_backward(y, state)
        return _to_images(launch.normalise(rows, state), y)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, torch.Tensor, torch.Tensor]:
        from rotnet_fast.experimental import triton_launch as launch

        y, state = ctx.saved_tensors
        rows, g = _to_rows(y), _to_rows(grad)
        slopes, gamma, beta = launch.finish_gradients(launch.gradient_sums(g, rows, state), state)
        grad_y = launch.batchnorm_backward(g, rows, state, slopes, masked=False)
        return _to_images(grad_y, y), None, gamma, beta

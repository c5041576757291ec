"""``batch_norm_relu``: BatchNorm and ReLU in as few passes over the activations as possible."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

from rotnet_fast.ops.library import LIBRARIES

_OPS = torch.ops.rotnet_fast
_ELEMENTS = (torch.float32, torch.bfloat16)


def batch_norm_relu(
    x: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    running_mean: torch.Tensor | None,
    running_var: torch.Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
) -> torch.Tensor:
    """Compute ``relu(batch_norm(x, ...))`` with gradients.

    On the CPU, compiled kernels handle float32 and bfloat16 activations in dense channels_last memory with
    float32 parameters. They make two passes forward (sums, then y) and two backward (sums, then the gradient
    of x), where torch makes four and three. Sums are float32 within short blocks of pixels and float64 over
    blocks, in an order that does not depend on the number of threads, so the result is always bit-identical.
    Torch's own `batch_norm` and `relu` compute everything else, including compiled and traced graphs, double
    backward, forward-mode gradients and the transforms of `torch.func`.

    Args:
        x: [B,C,H,W].
        weight, bias: [C] each.
        running_mean, running_var: [C] each, or None for both. Training updates them in place, by ``momentum``
            towards the mean and the unbiased variance of the batch.
        training: normalise with the mean and variance of the batch instead of the running ones.
        momentum: in [0, 1].
        eps: added to the variance.

    Returns:
        [B,C,H,W] with the dtype and memory format of ``x``; NaN stays NaN.

    Raises:
        ValueError: a training batch has only one value per channel, as in torch.

    The compiled kernels differ from torch beyond rounding in two corners: results below 2^-126 are 0, and
    deviations of more than about 1e18 from the mean, whose squares float32 cannot hold, give NaN.
    """
    arguments = (x, weight, bias, running_mean, running_var, training, momentum, eps)
    # A compiler fuses torch's own ops better, and a trace must not contain custom ops.
    if (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
        or _is_transformed(x, weight, bias)
        or not _has_kernel(*arguments[:6])
    ):
        return _plain(*arguments)
    y: torch.Tensor
    y, _, _ = _BatchNormReLU.apply(*arguments)
    return y


def _plain(
    x: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    running_mean: torch.Tensor | None,
    running_var: torch.Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
) -> torch.Tensor:
    """Compute the same with torch's own ops."""
    y = functional.batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps)
    # In place, because no gradient needs the output of batch_norm: relu's is computed from its own output.
    return functional.relu(y, inplace=True)


def _is_transformed(*tensors: torch.Tensor | None) -> bool:
    """Return whether a transform of `torch.func` or forward-mode differentiation tracks a tensor."""
    return any(
        tensor is not None
        and (
            torch._C._functorch.is_functorch_wrapped_tensor(tensor)
            or torch.autograd.forward_ad.unpack_dual(tensor).tangent is not None
        )
        for tensor in tensors
    )


def _has_kernel(
    x: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    running_mean: torch.Tensor | None,
    running_var: torch.Tensor | None,
    training: bool,
) -> bool:
    """Return whether the compiled kernels handle this call; torch reports the calls that it refuses."""
    if not (
        x.device.type == "cpu"
        and x.dtype in _ELEMENTS
        and x.dim() == 4
        and x.numel() > (x.shape[1] if training else 0)
        and x.is_contiguous(memory_format=torch.channels_last)
        and LIBRARIES["cpu"].loaded
    ):
        return False
    optional = training and running_mean is None and running_var is None
    needed = (weight, bias) if optional else (weight, bias, running_mean, running_var)
    return all(
        values is not None
        and values.dtype == torch.float32
        and values.device == x.device
        and values.shape == x.shape[1:2]
        and values.is_contiguous()
        for values in needed
    )


def _rows(x: torch.Tensor) -> torch.Tensor:
    """View [B,C,H,W] channels_last as [B,H,W,C] contiguous in the same memory."""
    return x.permute(0, 2, 3, 1)


class _BatchNormReLU(torch.autograd.Function):
    """Save x instead of y: the backward pass recomputes where y was positive, with the same rounding."""

    @staticmethod
    def forward(
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor,
        running_mean: torch.Tensor | None,
        running_var: torch.Tensor | None,
        training: bool,
        momentum: float,
        eps: float,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return y, and the mean and 1 / sqrt(variance + eps) used to normalise it, float32 [C] each."""
        y, mean, inverse_std = torch.empty_like(x), torch.empty_like(weight), torch.empty_like(weight)
        results, running = (_rows(y), mean, inverse_std), (running_mean, running_var)
        if training:
            _OPS.batch_norm_relu_train_out(*results, *running, _rows(x), weight, bias, momentum, eps)
        else:
            _OPS.batch_norm_relu_eval_out(*results, *running, _rows(x), weight, bias, eps)
        return y, mean, inverse_std

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
        x, weight, bias, running_mean, running_var, ctx.training, _, ctx.eps = inputs
        _, mean, inverse_std = output
        ctx.mark_non_differentiable(mean, inverse_std)
        ctx.set_materialize_grads(False)
        # Training changes the running statistics, and its gradients do not need them.
        running = (None, None) if ctx.training else (running_mean, running_var)
        ctx.save_for_backward(x, weight, bias, mean, inverse_std, *running)

    @staticmethod
    def backward(ctx: Any, grad_y: torch.Tensor | None, *_: Any) -> tuple[torch.Tensor | None, ...]:
        """Return the gradients of x, weight and bias."""
        x, weight, bias, mean, inverse_std, running_mean, running_var = ctx.saved_tensors
        others = (None,) * 5
        if grad_y is None:
            return None, None, None, *others
        if torch.is_grad_enabled():
            # The gradients must be differentiable themselves, as torch's are.
            inputs = (x, weight, bias)
            needed = [i for i in range(3) if ctx.needs_input_grad[i]]
            y = _plain(*inputs, running_mean, running_var, ctx.training, 0.0, ctx.eps)
            found = torch.autograd.grad(y, [inputs[i] for i in needed], grad_y, create_graph=True)
            grads = dict(zip(needed, found, strict=True))
            return grads.get(0), grads.get(1), grads.get(2), *others
        grad_y = grad_y.contiguous(memory_format=torch.channels_last)
        grad_x, grad_weight, grad_bias = (torch.empty_like(like) for like in (x, weight, bias))
        _OPS.batch_norm_relu_backward_out(
            *(_rows(grad_x), grad_weight, grad_bias),
            *(_rows(grad_y), _rows(x), weight, bias, mean, inverse_std, ctx.training),
        )
        return grad_x, grad_weight, grad_bias, *others

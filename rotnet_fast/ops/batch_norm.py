"""``batch_norm_relu``: BatchNorm and ReLU in as few passes over the activations as they take."""

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
    """``relu(batch_norm(x, ...))`` for activations, with gradients.

    On the CPU, float32 and bfloat16 activations in dense channels_last memory, with float32 parameters, go
    through compiled kernels: two passes forward (sums, then y), two backward (sums, then the gradient of x),
    where torch makes four and three. Sums are float32 over short blocks of pixels and float64 over
    blocks, in an order that does not depend on the number of threads: the result always has the same bits.
    Everything else is computed by torch's own `batch_norm` and `relu`, compiled and traced graphs, gradients
    of gradients, forward-mode gradients and the transforms of `torch.func` included.

    Args:
        x: [B,C,H,W].
        weight, bias: [C] each.
        running_mean, running_var: [C] each, or None for both. Training moves them, in place, by ``momentum``
            towards the mean and the unbiased variance of the batch.
        training: normalise with the mean and the variance of the batch, not with the running ones.
        momentum: in [0, 1].
        eps: added to the variance.

    Returns:
        [B,C,H,W] of the type and memory format of ``x``; NaN stays NaN.

    Raises:
        ValueError: one value per channel in training, as torch's.

    The compiled kernels differ from torch beyond rounding in two corners: results below 2^-126 are 0, and
    deviations of more than about 1e18 from the mean, whose squares float32 cannot hold, give NaN.
    """
    arguments = (x, weight, bias, running_mean, running_var, training, momentum, eps)
    # A compiler fuses better what it can see, and a trace keeps torch's ops alone.
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
    """What torch makes of it, step by step."""
    y = functional.batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps)
    # In place: no gradient needs what batch_norm returned; that of relu is worked out from its own result.
    return functional.relu(y, inplace=True)


def _is_transformed(*tensors: torch.Tensor | None) -> bool:
    """Whether a transform of `torch.func` or forward-mode differentiation looks at any of them."""
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
    """Whether the compiled kernels do this call; what torch refuses is left to torch."""
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
    """[B,C,H,W] channels_last -> [B,H,W,C] contiguous, the same memory."""
    return x.permute(0, 2, 3, 1)


class _BatchNormReLU(torch.autograd.Function):
    """Keeps x, not y: where y was positive is worked out again, with the same roundings."""

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
        """y, and the mean and 1 / sqrt(variance + eps) that it was normalised with, float32 [C] each."""
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
        # Training moves the running statistics, and its gradients do without them.
        running = (None, None) if ctx.training else (running_mean, running_var)
        ctx.save_for_backward(x, weight, bias, mean, inverse_std, *running)

    @staticmethod
    def backward(ctx: Any, grad_y: torch.Tensor | None, *_: Any) -> tuple[torch.Tensor | None, ...]:
        """Gradients of x, weight and bias."""
        x, weight, bias, mean, inverse_std, running_mean, running_var = ctx.saved_tensors
        others = (None,) * 5
        if grad_y is None:
            return None, None, None, *others
        if torch.is_grad_enabled():
            # The gradients shall have gradients themselves: torch's have.
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

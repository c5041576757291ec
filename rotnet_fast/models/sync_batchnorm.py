"""BatchNorm over the images of all processes, on every device."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from rotnet_fast.errors import ArgumentError

_PER_CHANNEL = (0, 2, 3)  # dimensions of [B,C,H,W] to sum over


class SyncBatchNorm2d(nn.BatchNorm2d):
    """`nn.BatchNorm2d` with training statistics over the batches of all processes.

    In training, every process of the group must call it, with any number of images, including 0. Each process
    gets the gradients of its own images. Those of weight and bias are its share, which
    DistributedDataParallel adds up. The running statistics are the same in all processes.

    `nn.SyncBatchNorm` works on GPUs only. There, it waits for the device in every layer, and under autocast,
    a process without images sends statistics of another dtype than the others. Ours does neither, and what is
    tested on the CPU is what runs on a GPU. Sums are float64, so that the number of processes hardly matters:
    differences to `nn.BatchNorm2d` are fp32 rounding.

    Args:
        like: layer whose parameters, buffers and settings it takes over.
        group: processes to synchronise with; None means the default group.
    """

    def __init__(self, like: nn.BatchNorm2d, group: dist.ProcessGroup | None) -> None:
        if like.momentum is None or not like.affine or not like.track_running_stats:
            raise ArgumentError("sync-batchnorm needs BatchNorm layers with weights and running averages")
        super().__init__(like.num_features, like.eps, like.momentum)
        self.group = group
        self._parameters = like._parameters
        self._buffers = like._buffers
        self.training = like.training

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B,C,H,W] -> [B,C,H,W]."""
        if not self.training:
            return super().forward(x)
        y: torch.Tensor = self._forward_together(x)
        return y

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # a graph cannot wait for other processes
    def _forward_together(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor
        y, mean, variance, count = _Normalise.apply(x, self.weight, self.bias, self.eps, self.group)
        with torch.no_grad():
            assert self.running_mean is not None
            assert self.running_var is not None
            assert self.num_batches_tracked is not None
            assert self.momentum is not None
            unbiased = variance * (count / (count - 1))
            self.num_batches_tracked.add_(1)
            for running, current in ((self.running_mean, mean), (self.running_var, unbiased)):
                running.mul_(1 - self.momentum).add_(current, alpha=self.momentum)
        return y


class _Normalise(torch.autograd.Function):
    """Batch normalisation with statistics summed over processes, forward and backward."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor,
        eps: float,
        group: dist.ProcessGroup | None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return normalised x, and mean [C], biased variance [C] and count per channel over all processes."""
        channels = x.shape[1]
        totals = x.new_empty(2 * channels + 1, dtype=torch.float64)
        torch.sum(x, _PER_CHANNEL, dtype=torch.float64, out=totals[:channels])
        totals[channels:-1] = torch.linalg.vector_norm(x, dim=_PER_CHANNEL, dtype=torch.float64).square()
        totals[-1] = x.numel() // channels
        dist.all_reduce(totals, group=group)
        count = totals[-1]
        mean, mean_square = totals[:-1].view(2, channels) / count
        # In float64, the cancellation costs nothing that fp32 could show.
        variance = (mean_square - mean.square()).clamp(min=0)
        inverse_std = (variance + eps).rsqrt()
        wide = torch.promote_types(x.dtype, torch.float32)
        mean, variance, inverse_std = (statistic.to(wide) for statistic in (mean, variance, inverse_std))
        ctx.save_for_backward(x, weight, mean, inverse_std, count)
        ctx.group = group
        ctx.mark_non_differentiable(mean, variance, count)
        return functional.batch_norm(x, mean, variance, weight, bias, eps=eps), mean, variance, count

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(
        ctx: Any, grad: torch.Tensor, *_: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, None, None]:
        """Return the gradient of this process's x, and its shares of those of weight and bias."""
        x, weight, mean, inverse_std, count = ctx.saved_tensors
        wide = mean.dtype
        grad = grad.to(wide)
        centred = x.to(wide) - _along_channels(mean)
        sums = torch.stack(
            [part.sum(_PER_CHANNEL, dtype=torch.float64) for part in (grad, grad * centred)]
        )  # [2,C]
        grad_weight, grad_bias = (sums[1] * inverse_std).to(wide), sums[0].to(wide, copy=True)
        dist.all_reduce(sums, group=ctx.group)
        # Moving x also moves the mean and the variance: the gradient's components in these two directions
        # vanish.
        along_mean = (sums[0] / count).to(wide)
        along_x = (sums[1] / count * inverse_std.square()).to(wide)
        grad_x = grad - _along_channels(along_mean) - centred * _along_channels(along_x)
        grad_x *= _along_channels(weight * inverse_std)
        return grad_x.to(x.dtype), grad_weight, grad_bias, None, None


def _along_channels(values: torch.Tensor) -> torch.Tensor:
    """[C] -> [1,C,1,1]."""
    return values[None, :, None, None]


def synchronise_batchnorm(module: nn.Module, group: dist.ProcessGroup | None) -> None:
    """Replace every BatchNorm in a network; parameters, buffers and their names stay.

    Raises:
        ArgumentError: the network has a kind of BatchNorm that is not `nn.BatchNorm2d`.
    """
    for name, child in module.named_children():
        if type(child) is nn.BatchNorm2d:
            setattr(module, name, SyncBatchNorm2d(child, group))
        elif isinstance(child, _BatchNorm):
            raise ArgumentError(
                f"sync-batchnorm cannot replace a {type(child).__name__}; remove --sync-batchnorm"
            )
        else:
            synchronise_batchnorm(child, group)

"""One training step, from a batch to updated weights.

`TrainingStep._step` is the whole step, to be read from top to bottom. Below it are the optimizer that it
calls and the guard that skips non-finite steps.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import nn

from rotnet_fast.data.loader import Batch
from rotnet_fast.engine.ambient import TORCH, seed_generators
from rotnet_fast.engine.distributed import Processes
from rotnet_fast.engine.metrics import MetricSums
from rotnet_fast.engine.muon import Muon
from rotnet_fast.engine.replay import Capture, CudaCapture, ReplayedStep, use_graph
from rotnet_fast.engine.task import ParameterGroup, Task, TrainerSettings
from rotnet_fast.errors import ArgumentError
from rotnet_fast.models.network import uses_rng
from rotnet_fast.plain import counted

MOST_IN_A_ROW = 3
"""This many bad steps in a row stop a run: one bad batch no longer explains them."""


class TrainingStep:
    """Trains a task on one batch after another, either directly or by replaying a CUDA graph.

    Everything that changes from step to step lies on the device (learning rates, the epoch that the draws
    depend on, metric sums), and no step waits for the device. A step whose loss or gradients are non-finite
    is skipped: it changes nothing but the guard's counts.

    Args:
        task: what to train; its module lies on the device.
        settings: how to train.
        device: device of the task.
        seed: seed of the draws that dropout makes.
        processes: the processes that train together.
        capture: how steps are captured; None decides by ``settings.graph``.

    Attributes:
        lrs: learning rate of each parameter group in the last step.
        is_replayed: whether steps are captured and replayed.
        sums: sums of the metrics, on the device.
        guard: skips and counts non-finite steps.

    Raises:
        ArgumentError: ``settings.graph`` is ``on`` where steps cannot be captured.
    """

    def __init__(
        self,
        task: Task,
        settings: TrainerSettings,
        device: torch.device,
        seed: int,
        processes: Processes,
        capture: Capture | None = None,
    ) -> None:
        self._task = task
        self._precision = settings.precision
        self._seed = seed
        self._processes = processes
        self._groups = task.parameter_groups()
        self.lrs = [0.0] * len(self._groups)  # set from the schedules before every step
        self._device = device
        self._one = torch.ones((), device=device)
        self._device_lrs = [torch.zeros((), device=device) for _ in self._groups]
        self._optimizer = make_optimizer(self._groups, self._device_lrs, settings)
        self._scaler = settings.precision.grad_scaler()
        self.sums = MetricSums(processes)
        self.guard = StepGuard(task.module, device)
        self._uses_rng = uses_rng(task.module)
        self._is_warm = processes.world == 1
        if capture is None and use_graph(settings.graph, device, settings.precision, task.module, processes):
            capture = CudaCapture(device)
        self.is_replayed = capture is not None
        self._run = self._step if capture is None else ReplayedStep(self._step, capture)

    def __call__(self, batch: Batch, epoch: int, step: int, steps: int) -> None:
        """Train on one batch.

        Args:
            batch: the batch, on the device.
            epoch: number of finished epochs, which the task knows from `Task.begin_epoch`.
            step: number of finished steps in this epoch.
            steps: number of steps per epoch.
        """
        for number, group in enumerate(self._groups):
            lr = group.schedule.lr(epoch, step / steps)
            if lr != self.lrs[number]:
                self._device_lrs[number].fill_(lr)
                self.lrs[number] = lr
        with TORCH if self._uses_rng else nullcontext():
            if not self._is_warm:
                self._warm_up(batch)
            if self._uses_rng:
                # Dropout draws from torch's generator: like all draws, a function of the position.
                seed_generators(step_seed(self._seed, epoch, step, self._processes.rank), self._device)
            self._run(batch)

    def _step(self, batch: Batch) -> None:
        """The step itself, which a CUDA graph may capture: nothing in it may depend on the host's state."""
        self._optimizer.zero_grad(set_to_none=True)
        self.guard.remember()

        views, labels = self._task.views(batch)  # [V,C,H,W] from the fused op, V = B*K in pretraining; [V]
        with self._precision.autocast():
            logits = self._task.forward(views)  # name of each classifier -> [V,classes]
            output = self._task.loss(logits, labels)

        loss = output.loss
        if self._processes.world > 1:
            # DistributedDataParallel averages gradients over processes, whose shares of the batch may differ
            # by one image. This weight makes the average the gradient of the mean loss over the whole batch.
            # The mean loss of an empty share is NaN, but its gradient is that of no image: zero.
            loss = loss * (len(batch) * self._processes.world / batch.global_size)
        self._scaler.scale(self.guard.mark(loss, len(batch))).backward()

        self._scaler.unscale_(self._optimizer)
        parameters = [parameter for group in self._groups for parameter in group.parameters]
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        loss_scale = self._scaler.scale(self._one)  # 1 without scaling
        is_skipped = self.guard.check(gradients, loss_scale)  # 1.0 or 0.0, on the device

        if not self._scaler.is_enabled():
            # Where this is 1, torch's fused kernels leave weights and momentum alone.
            self._optimizer.found_inf = is_skipped  # type: ignore[attr-defined]
        self._scaler.step(self._optimizer)  # an enabled scaler sets found_inf itself
        self._scaler.update()
        self.guard.restore(is_skipped)
        self.sums.add(output.sums, is_skipped)

    def _warm_up(self, batch: Batch) -> None:
        """Run one backward pass that changes nothing.

        After its first one, DistributedDataParallel regroups the gradients by when they became ready. With
        three or more processes, the grouping decides in which order their shares are added up. A resumed run
        would have its first backward pass where an uninterrupted run does not; with this one, neither has it
        in training.

        Raises:
            ArgumentError, ElsewhereError: the loss does not depend on every parameter.
        """
        buffers = [buffer.clone() for buffer in self._task.module.buffers()]
        views, labels = self._task.views(batch)
        with self._precision.autocast():
            output = self._task.loss(self._task.forward(views), labels)
        output.loss.backward()
        named = self._task.module.state_dict(keep_vars=True).items()
        unused = [name for name, part in named if part.requires_grad and part.grad is None]
        if unused:  # DistributedDataParallel would wait for their gradients
            raise self._processes.shared(
                ArgumentError(
                    f"model has {counted(len(unused), 'parameter')} that its output does not depend on, as "
                    f"{unused[0]}, so that processes cannot average the gradients; freeze them with "
                    f"requires_grad_(False), or train in one process"
                )
            )
        self._optimizer.zero_grad(set_to_none=True)
        for buffer, before in zip(self._task.module.buffers(), buffers, strict=True):
            buffer.copy_(before)
        self._is_warm = True

    def state_dict(self) -> dict[str, Any]:
        """Momentum, loss scale, metric sums and the guard's counts. All processes must call this together."""
        counts = self.guard.state_dict()
        optimizer = self._optimizer.state_dict()
        for group, lr in zip(optimizer["param_groups"], self.lrs, strict=True):
            group["lr"] = lr
        return {
            "optimizer": optimizer,
            "scaler": self._scaler.state_dict(),
            "sums": self.sums.state_dict(),
            "guard": dict(zip(counts, self._processes.maximum(*counts.values()), strict=True)),
        }

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Load a saved state, before the first step."""
        self._optimizer.load_state_dict(state["optimizer"])
        for number, group in enumerate(self._optimizer.param_groups):
            self.lrs[number] = float(group["lr"])
            group["lr"] = self._device_lrs[number].fill_(self.lrs[number])
            # Which implementation computes is not for the file to decide.
            group["fused"], group["foreach"] = True, None
        self._scaler.load_state_dict(state["scaler"])
        self.sums.load_state_dict(state["sums"], device)
        self.guard.load_state_dict(state["guard"])


def step_seed(seed: int, epoch: int, step: int, rank: int = 0) -> int:
    """Seed of the draws of one step, in [0, 2**63): unrelated for any other step or process."""
    digest = hashlib.blake2b(f"{seed} {epoch} {step} {rank}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def make_optimizer(
    groups: Sequence[ParameterGroup], lrs: Sequence[torch.Tensor], settings: TrainerSettings
) -> torch.optim.SGD:
    """Make SGD, or Muon if a group asks for it.

    Args:
        groups: what to train.
        lrs: learning rate of each group, fp32 [] on the device; each step reads it anew.
        settings: momentum and weight decay.
    """
    options: list[dict[str, Any]] = [
        {"params": group.parameters, "name": group.name, "lr": lr}
        for group, lr in zip(groups, lrs, strict=True)
    ]
    common: dict[str, Any] = {
        "momentum": settings.momentum,
        "nesterov": settings.nesterov,
        "weight_decay": settings.weight_decay,
    }
    optimizer: torch.optim.SGD
    if any(group.is_orthogonalised for group in groups):
        for group, values in zip(groups, options, strict=True):
            values["is_orthogonalised"] = group.is_orthogonalised
            if group.is_orthogonalised and settings.muon_weight_decay is not None:
                values["weight_decay"] = settings.muon_weight_decay
        optimizer = Muon(options, **common)
    else:
        # One kernel updates all parameters, and skips a step that the guard has marked. torch's other
        # implementations cannot skip, and round differently in the last bits.
        optimizer = torch.optim.SGD(options, **common, fused=True)
    for values in optimizer.param_groups:
        if values["momentum"] != 0:
            # torch would create the momentum in the first step, uninitialised, and it would stay so if that
            # step were skipped.
            for parameter in values["params"]:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


class Findings(NamedTuple):
    """What the guard has counted so far.

    Attributes:
        skipped: skipped steps, including those that loss scaling skips by design.
        in_a_row: largest number of skipped steps in a row that no loss scale explains.
    """

    skipped: int
    in_a_row: int


class StepGuard:
    """Skips steps whose loss, gradients or statistics are NaN or Inf, without waiting for the device.

    The forward pass of a bad step has already moved BatchNorm's running averages, which no later step would
    repair: once NaN, they stay NaN. Therefore buffers are copied before a step and restored after a bad one;
    weights and momentum are left alone by the optimizer, which is told the verdict.

    The methods are called in the order in which they are defined. A CUDA graph can capture all of them.

    Args:
        module: module whose buffers are guarded; its parameters lie on ``device``.
        device: device of the counts.
    """

    def __init__(self, module: nn.Module, device: torch.device) -> None:
        # By identity: a network may save its buffers under other names than those of its modules.
        saved = set(map(id, module.state_dict(keep_vars=True).values()))
        by_dtype: dict[torch.dtype, list[torch.Tensor]] = defaultdict(list)
        for buffer in module.buffers():
            if id(buffer) in saved and buffer.numel() > 0:
                by_dtype[buffer.dtype].append(buffer)
        self._buffers = list(by_dtype.values())
        self._before: list[torch.Tensor] = []
        self._after: list[torch.Tensor] = []
        self._is_healthy = torch.ones((), dtype=torch.bool, device=device)
        self._counts = torch.zeros(3, dtype=torch.int64, device=device)  # skipped, in a row now, and at most

    def remember(self) -> None:
        """Copy the buffers. Call this before the forward pass."""
        self._before = [_joined(buffers) for buffers in self._buffers]

    def mark(self, loss: torch.Tensor, images: int) -> torch.Tensor:
        """Return the loss, made such that all gradients are NaN if it is non-finite or a buffer became so.

        Call this after the forward pass. A non-finite loss or statistic of one process then shows in the
        gradients of all processes once these are averaged. Constants, such as an attention mask, may hold
        infinities.

        Args:
            loss: fp32 [].
            images: number of images that it averages over. The mean loss of none is NaN, which is no fault.
        """
        self._after = [_joined(buffers) for buffers in self._buffers]
        is_healthy = loss.detach().isfinite() if images > 0 else torch.ones_like(self._is_healthy)
        for before, after in zip(self._before, self._after, strict=True):
            if after.is_floating_point():
                is_healthy = is_healthy & (after.isfinite() | ~before.isfinite()).all()
        self._is_healthy = is_healthy
        return loss * torch.where(is_healthy, 1.0, float("nan"))

    def check(self, gradients: Sequence[torch.Tensor], loss_scale: torch.Tensor) -> torch.Tensor:
        """Return 1 if the step must be skipped, else 0, as fp32 []. Call this after the backward pass.

        Gradients of a scaled loss overflow now and then, until the scaler has found a scale. Such steps are
        skipped, too, but count towards ``MOST_IN_A_ROW`` only where the scale cannot be the reason: without a
        finite loss, or at a scale of 1 or less, which each skipped step halves.

        Args:
            gradients: gradients of all parameters, averaged over processes and without a loss scale.
            loss_scale: fp32 [], what the loss was multiplied by.
        """
        is_bad = ~torch.nn.utils.get_total_norm(gradients).isfinite()
        counts_in_a_row = is_bad & (~self._is_healthy | (loss_scale <= 1))
        skipped, in_a_row, at_most = self._counts.unbind()
        skipped += is_bad
        in_a_row += 1
        in_a_row *= counts_in_a_row
        torch.maximum(at_most, in_a_row, out=at_most)
        return is_bad.float()

    def restore(self, is_skipped: torch.Tensor) -> None:
        """Restore the buffers if the step is skipped. Call this after the update.

        Args:
            is_skipped: what :meth:`check` returned.
        """
        for buffers, before, after in zip(self._buffers, self._before, self._after, strict=True):
            chosen = torch.where(is_skipped.bool(), before, after).split([b.numel() for b in buffers])
            parts = [part.view(buffer.shape) for part, buffer in zip(chosen, buffers, strict=True)]
            torch._foreach_copy_(buffers, parts)

    def read(self) -> Findings:
        """Read the counts of this process; waits for the device."""
        skipped, _, in_a_row = self._counts.tolist()
        return Findings(skipped, in_a_row)

    def state_dict(self) -> dict[str, int]:
        """Everything that later steps depend on; waits for the device."""
        return dict(zip(("skipped", "in_a_row", "most_in_a_row"), self._counts.tolist(), strict=True))

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Load a saved state."""
        counts = [state["skipped"], state["in_a_row"], state["most_in_a_row"]]
        self._counts.copy_(torch.tensor(counts))


def _joined(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors])

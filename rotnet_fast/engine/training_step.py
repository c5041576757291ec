"""One step of training, as the loop repeats it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch

from rotnet_fast.data.loader import Batch
from rotnet_fast.engine.distributed import Processes
from rotnet_fast.engine.guard import StepGuard
from rotnet_fast.engine.metrics import MetricSums
from rotnet_fast.engine.optimizers import make_optimizer
from rotnet_fast.engine.replay import Capture, CudaCapture, ReplayedStep, use_graph
from rotnet_fast.engine.task import StepOutput, Task
from rotnet_fast.engine.trainer_settings import TrainerSettings
from rotnet_fast.models.network import may_draw


class TrainingStep:
    """Views, forward, backward, update and metric sums on one batch; replayed from a CUDA graph if wished.

    Everything that changes from step to step lies on the device (learning rates, the epoch that draws
    depend on, sums), and nothing waits for it. A step whose loss or gradients are not finite changes nothing
    but the guard's counts.

    Args:
        task: what to train; its module lies on the device.
        settings: how to train.
        device: of the task.
        seed: of dropout's draws.
        processes: that train together.
        capture: how steps are captured; None decides by ``settings.graph``.

    Attributes:
        lrs: learning rate of each parameter group in the last step.
        is_replayed: whether steps are captured and replayed.
        sums: of the metrics, on the device.
        guard: counts the steps that were not finite.

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
        self._device_lrs = [torch.zeros((), device=device) for _ in self._groups]
        self._optimizer = make_optimizer(self._groups, self._device_lrs, settings)
        self._scaler = settings.precision.grad_scaler()
        self.sums = MetricSums(processes)
        self.guard = StepGuard(task.module, device, is_scaled=self._scaler.is_enabled())
        self._may_draw = may_draw(task.module)
        self._is_warm = processes.world == 1
        if capture is None and use_graph(settings.graph, device, settings.precision, task.module, processes):
            capture = CudaCapture(device)
        self.is_replayed = capture is not None
        self._do = self._step if capture is None else ReplayedStep(self._step, capture)

    def __call__(self, batch: Batch, epoch: int, step: int, steps: int) -> None:
        """Train on one batch.

        Args:
            epoch: finished epochs; the task knows of this one (`Task.begin_epoch`).
            step, steps: finished steps of this epoch, and those that it has.
        """
        for number, group in enumerate(self._groups):
            lr = group.schedule.lr(epoch, step / steps)
            if lr != self.lrs[number]:
                self._device_lrs[number].fill_(lr)
                self.lrs[number] = lr
        if self._may_draw:
            # Dropout draws from torch's generator. Like all other draws, its are a function of the position.
            torch.manual_seed(step_seed(self._seed, epoch, step, self._processes.rank))
        if not self._is_warm:
            self._warm_up(batch)
        self._do(batch)

    def _step(self, batch: Batch) -> None:
        """What is captured: nothing in it may depend on the host's state."""
        self._optimizer.zero_grad(set_to_none=True)
        self.guard.remember()
        output = self._backward(batch)
        self._scaler.unscale_(self._optimizer)
        parameters = [parameter for group in self._groups for parameter in group.parameters]
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        found = self.guard.judge(gradients)
        if not self._scaler.is_enabled():
            # torch's fused kernels leave all as it is where this is 1.
            self._optimizer.found_inf = found  # type: ignore[attr-defined]
        self._scaler.step(self._optimizer)  # sets found_inf itself, where it is enabled
        self._scaler.update()
        self.guard.put_back(found)
        self.sums.add(output.sums, found)

    def _backward(self, batch: Batch) -> StepOutput:
        """Forward and backward; gradients are those of the mean loss over the images of all processes."""
        with self._precision.autocast():
            output = self._task.train_step(batch)
        loss = output.loss
        if self._processes.world > 1:
            # Gradients are averaged over processes, whose parts of the batch may differ by an image. The mean
            # loss of an empty part is NaN, but its gradient is that of no image: zero.
            loss = loss * (len(batch) * self._processes.world / batch.global_size)
        self._scaler.scale(self.guard.watched(loss, len(batch))).backward()
        return output

    def _warm_up(self, batch: Batch) -> None:
        """One backward pass that changes nothing.

        After its first one, DistributedDataParallel groups the gradients anew, by when they were ready, and
        from three processes on, the grouping decides in which order their parts are added up. A resumed run
        would have its first one where an uninterrupted run does not; now neither has it in training.
        """
        buffers = [buffer.clone() for buffer in self._task.module.buffers()]
        self._backward(batch)
        self._optimizer.zero_grad(set_to_none=True)
        for buffer, before in zip(self._task.module.buffers(), buffers, strict=True):
            buffer.copy_(before)
        self._is_warm = True

    def state_dict(self) -> dict[str, Any]:
        """Momentum, loss scale, sums and the guard's counts; to be asked for by all processes together."""
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
        """Go on from a saved state, before the first step."""
        self._optimizer.load_state_dict(state["optimizer"])
        for number, group in enumerate(self._optimizer.param_groups):
            self.lrs[number] = float(group["lr"])
            group["lr"] = self._device_lrs[number].fill_(self.lrs[number])
            # Which implementation computes is not the file's business.
            group["fused"], group["foreach"] = True, None
        self._scaler.load_state_dict(state["scaler"])
        self.sums.load_state_dict(state["sums"], device)
        self.guard.load_state_dict(state["guard"])


def step_seed(seed: int, epoch: int, step: int, rank: int = 0) -> int:
    """Seed of the draws of one step, in [0, 2**63): unrelated for any other step or process."""
    digest = hashlib.blake2b(f"{seed} {epoch} {step} {rank}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1

"""What to train and how: the interface between the training loop and everything that it can train.

Pretraining, the supervised baseline, heads on frozen features and fine-tuning are all tasks of one loop
(`rotnet_fast.engine.trainer`), which owns batches, precision, schedule, checkpoints, logging and signals.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from rotnet_fast.data.loader import Batch
from rotnet_fast.engine.precision import Precision
from rotnet_fast.engine.schedule import Schedule


@dataclass
class ParameterGroup:
    """Parameters that share a learning-rate schedule.

    Attributes:
        name: name of the group.
        parameters: what to train.
        schedule: learning rate of the group.
        is_orthogonalised: whether they follow Muon, see `rotnet_fast.engine.muon`, instead of SGD.
    """

    name: str
    parameters: list[torch.nn.Parameter]
    schedule: Schedule
    is_orthogonalised: bool = False


def parameter_groups(
    name: str, parameters: list[torch.nn.Parameter], schedule: Schedule, muon: Schedule | None = None
) -> list[ParameterGroup]:
    """Group parameters: all together, or the filters of convolutions apart.

    Args:
        name: name of the group, or first part of the names of both.
        parameters: what to train.
        schedule: learning rate of everything that ``muon`` does not cover.
        muon: learning rate of the filters, which then follow Muon; None trains everything with SGD.
    """
    if muon is None:
        return [ParameterGroup(name, parameters, schedule)]
    rest = [parameter for parameter in parameters if parameter.ndim != 4]
    filters = [parameter for parameter in parameters if parameter.ndim == 4]
    groups = [
        ParameterGroup(name, rest, schedule),
        ParameterGroup(f"{name} filters", filters, muon, is_orthogonalised=True),
    ]
    return [group for group in groups if group.parameters]


@dataclass
class StepOutput:
    """Result of the forward pass of one training step.

    Attributes:
        loss: fp32 [] with a graph; the step calls backward on it.
        sums: fp32 or int64 [] on the device, added up over the steps and read only once per logging
            interval. A metric ``x`` is ``sums["x"] / sums["count"]``: sums of losses and of correct views,
            with ``count`` views.
    """

    loss: torch.Tensor
    sums: dict[str, torch.Tensor]


class Task(Protocol):
    """One thing to train.

    `rotnet_fast.engine.step` calls ``views``, ``forward`` and ``loss`` at every step, in this order, and may
    capture them in a CUDA graph: whatever differs between steps must lie on the device, and none of the three
    may wait for the device.
    """

    module: torch.nn.Module
    """Everything with state that a checkpoint must hold, including frozen parts."""

    def parameter_groups(self) -> list[ParameterGroup]:
        """The trainable parameters."""
        ...

    def begin_epoch(self, epoch: int) -> None:
        """Prepare for the steps of an epoch.

        Every part is put into the mode that it trains in (a frozen extractor stays in eval mode), and random
        draws become those of this epoch.

        Args:
            epoch: number of the epoch, from 0.
        """
        ...

    def views(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Make the network's input from a batch of B images.

        Returns:
            Normalised views [V,C,H,W] and labels int64 [V], where V is B times the views per image; a task
            without classes returns what :meth:`loss` compares with instead of labels. The next call may
            overwrite both.
        """
        ...

    def forward(self, views: torch.Tensor) -> dict[str, torch.Tensor]:
        """Run the network on [V,C,H,W], under autocast.

        Returns:
            name of each classifier -> its logits [V,classes], or name of another output -> it.
        """
        ...

    def loss(self, logits: dict[str, torch.Tensor], labels: torch.Tensor) -> StepOutput:
        """Compute the loss and the metric sums from what :meth:`forward` and :meth:`views` returned."""
        ...

    def evaluate(self) -> dict[str, float]:
        """Metrics on the test split in eval mode, with every image counted once; accuracies in percent."""
        ...

    def pictures(self) -> dict[str, NDArray[np.uint8]]:
        """What the last evaluation looked at: uint8 [H,W,3] by name; none for most tasks."""
        ...


@dataclass(frozen=True)
class TrainerSettings:
    """How to train; what to train is up to the task.

    Attributes:
        epochs: number of passes over the loader.
        precision: number format of the forward and backward pass.
        nesterov: whether SGD uses Nesterov momentum.
        momentum: momentum of SGD.
        weight_decay: weight decay of SGD, on all parameters including biases and BatchNorm's.
        muon_weight_decay: weight decay of the filters that follow Muon; None means ``weight_decay``.
        eval_every: evaluate after this many epochs each, and always after the last one.
        log_every: steps per logging interval, each of which waits for the device once; None means 20 on a
            CPU and 500 on a GPU.
        checkpoint_every_steps: save within an epoch after this many steps; None means never.
        checkpoint_every_seconds: save within an epoch after this many seconds; None means never.
        monitor_every: evaluate the features after this many epochs each, and always after the last one.
        snapshot_epochs: after these epochs, evaluate, and keep ``snapshots/epoch-XXXX.pt`` for good.
        graph: ``auto``, ``on`` or ``off``, see `rotnet_fast.engine.replay.use_graph`.
        print_every: print a line for every so many epochs, besides the first and the last.
        progress: whether to show a status line and print lines on epochs.
        tensorboard: whether to write TensorBoard events.
    """

    epochs: int
    precision: Precision
    nesterov: bool = True
    momentum: float = 0.9
    weight_decay: float = 5e-4
    muon_weight_decay: float | None = None
    eval_every: int = 1
    monitor_every: int = 1
    log_every: int | None = None
    checkpoint_every_steps: int | None = None
    checkpoint_every_seconds: float | None = 300.0
    snapshot_epochs: tuple[int, ...] = ()
    graph: str = "auto"
    print_every: int = 1
    progress: bool = True
    tensorboard: bool = True

    def is_tested(self, epoch: int) -> bool:
        """Whether an epoch, counted from 1, ends with a test."""
        return epoch % self.eval_every == 0 or epoch == self.epochs or epoch in self.snapshot_epochs

    def is_monitored(self, epoch: int) -> bool:
        """Whether a monitor, if there is one, evaluates the features after an epoch, counted from 1."""
        return epoch % self.monitor_every == 0 or epoch == self.epochs

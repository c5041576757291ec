"""What the training loop needs to know of a thing to train.

Pretraining, the supervised baseline, heads on frozen features and fine-tuning are all tasks of one
loop (`rotnet_fast.engine.trainer`), which owns batches, precision, schedule, checkpoints, logging
and signals.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

from rotnet_fast.data.loader import Batch
from rotnet_fast.engine.schedule import Schedule


@dataclass
class ParameterGroup:
    """Parameters that share a learning-rate schedule.

    Attributes:
        is_orthogonalised: whether they follow Muon, see `rotnet_fast.engine.muon`, instead of SGD.
    """

    name: str
    parameters: list[torch.nn.Parameter]
    schedule: Schedule
    is_orthogonalised: bool = False


def parameter_groups(
    module: torch.nn.Module, schedule: Schedule, muon: Schedule | None = None
) -> list[ParameterGroup]:
    """All parameters of a module on one schedule, or the filters of its convolutions on one of their own.

    Args:
        muon: of the filters, which follow Muon then; None for SGD throughout.
    """
    parameters = list(module.parameters())
    if muon is None:
        return [ParameterGroup("network", parameters, schedule)]
    rest = [parameter for parameter in parameters if parameter.ndim != 4]
    filters = [parameter for parameter in parameters if parameter.ndim == 4]
    return [
        ParameterGroup("rest", rest, schedule),
        ParameterGroup("filters", filters, muon, is_orthogonalised=True),
    ]


@dataclass
class StepOutput:
    """Result of one training step.

    Attributes:
        loss: fp32 scalar with a graph; the trainer calls backward on it.
        sums: fp32 or int64 scalars on the device, added up over the steps and read only once per
            logging interval. A metric ``x`` is ``sums["x"] / sums["count"]``, so sums of
            per-view losses and of correct views, with ``count`` views.
    """

    loss: torch.Tensor
    sums: dict[str, torch.Tensor]


class Task(Protocol):
    """One thing to train."""

    module: torch.nn.Module
    """Everything with state that a checkpoint must hold, frozen parts included."""

    def parameter_groups(self) -> list[ParameterGroup]:
        """Trainable parameters."""
        ...

    def begin_epoch(self, epoch: int) -> None:
        """Put every part into the mode it trains in (a frozen extractor stays in eval mode), and let the
        random draws of the training steps be those of this epoch."""
        ...

    def train_step(self, batch: Batch) -> StepOutput:
        """Forward and loss of one batch.

        Steps may be captured in a CUDA graph: what differs between them lies on the device, and nothing waits
        for it.
        """
        ...

    def evaluate(self) -> dict[str, float]:
        """Metrics on the test split, in percent, every image counted once, in eval mode."""
        ...

"""Learning-rate schedules as pure functions of the position in training."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from rotnet_fast.plain import counted

ScheduleKind = Literal["constant", "step", "linear", "cosine"]


@dataclass(frozen=True)
class Schedule:
    """Learning rate over a run. It has no state, so that a resume has nothing to restore.

    Attributes:
        base_lr: learning rate of the first step, or at the end of the warm-up.
        kind: ``constant``; ``step``, which multiplies by ``factor`` at each milestone; ``linear``, which
            falls to 0 at the end of ``epochs``; or ``cosine``, which does so along half a cosine.
        milestones: increasing numbers of epochs after which ``step`` multiplies by ``factor``. 30 means that
            the first 30 epochs, 0 to 29, still have the rate before.
        factor: what ``step`` multiplies by.
        epochs: length of the run, needed by ``linear`` and ``cosine``.
        warmup: number of epochs, possibly fractional, in which ``linear`` and ``cosine`` rise linearly from 0
            to ``base_lr`` before they fall. The very first step then has a rate of 0.

    Raises:
        ValueError: a value is outside its range.
    """

    base_lr: float
    kind: ScheduleKind = "constant"
    milestones: tuple[int, ...] = ()
    factor: float = 0.2
    epochs: int = 0
    warmup: float = 0.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.base_lr) and self.base_lr >= 0):
            raise ValueError(f"base_lr is {self.base_lr}; it must be a finite number of at least 0")
        if self.kind not in get_args(ScheduleKind):
            raise ValueError(f"kind is {self.kind!r}; it must be one of {', '.join(get_args(ScheduleKind))}")
        if list(self.milestones) != sorted(set(self.milestones)):
            raise ValueError(f"milestones is {self.milestones}; they must increase, such as (30, 60, 80)")
        if not (math.isfinite(self.factor) and self.factor > 0):
            raise ValueError(f"factor is {self.factor}; it must be a positive number, such as 0.2")
        if self.kind in ("linear", "cosine") and self.epochs < 1:
            raise ValueError(f"epochs is {self.epochs}; a {self.kind} schedule needs the length of the run")
        if self.warmup != 0 and self.kind not in ("linear", "cosine"):
            raise ValueError(f"warmup is {self.warmup}; a {self.kind} schedule has no warm-up: leave it 0")
        if self.warmup != 0 and not 0 < self.warmup < self.epochs:
            raise ValueError(
                f"warmup is {self.warmup}; it must be at least 0 and less than the "
                f"{counted(self.epochs, 'epoch')}"
            )

    def lr(self, epoch: int, fraction: float = 0.0) -> float:
        """Learning rate at a step.

        Args:
            epoch: number of the epoch, from 0.
            fraction: finished fraction of this epoch, in [0, 1); only ``linear`` and ``cosine`` use it.
        """
        if self.kind == "step":
            passed = sum(epoch >= milestone for milestone in self.milestones)
            return self.base_lr * self.factor**passed
        if self.kind == "constant":
            return self.base_lr
        position = epoch + fraction
        if position < self.warmup:
            return self.base_lr * position / self.warmup
        progress = min((position - self.warmup) / (self.epochs - self.warmup), 1.0)
        if self.kind == "linear":
            return self.base_lr * (1.0 - progress)
        return self.base_lr * 0.5 * (1.0 + math.cos(math.pi * progress))


def stretched(milestones: tuple[int, ...], before: int, after: int) -> tuple[int, ...]:
    """Scale the milestones of a run of ``before`` epochs to a run of ``after`` epochs.

    A milestone that falls within an epoch takes effect at its end; several that do so count once.
    """
    return tuple(sorted({-(-milestone * after // before) for milestone in milestones}))

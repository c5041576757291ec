"""The training loop, shared by everything that trains."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from rotnet_fast.config import ADDED_LATER
from rotnet_fast.data.loader import Batch, Loader
from rotnet_fast.engine import checkpoint
from rotnet_fast.engine.metrics import MetricSums, means
from rotnet_fast.engine.precision import Precision
from rotnet_fast.engine.run_folder import RunFolder
from rotnet_fast.engine.run_log import RunLog
from rotnet_fast.engine.signals import Interrupted, StopSignals
from rotnet_fast.engine.task import Task
from rotnet_fast.errors import CheckpointError, NonFiniteError
from rotnet_fast.models.network import FeatureNetwork

KEPT_EPOCH_CHECKPOINTS = 3


@dataclass(frozen=True)
class TrainerSettings:
    """How to train; what to train is the task's business.

    Attributes:
        epochs: passes over the loader.
        precision: number format of the forward and backward pass.
        nesterov: Nesterov's momentum.
        momentum, weight_decay: of SGD; weight decay acts on all parameters, biases and BatchNorm's too.
        eval_every: evaluate after every so many epochs, and always after the last.
        log_every: steps per logging interval, each of which costs one wait for the device.
        checkpoint_every_steps: save in mid-epoch after so many steps; None for never.
        checkpoint_every_seconds: save in mid-epoch after so many seconds; None for never.
        snapshot_epochs: after so many epochs, evaluate, and keep ``snapshots/epoch-XXXX.pt`` for good.
        progress: progress bar and a printed line per epoch.
        tensorboard: write TensorBoard events.
    """

    epochs: int
    precision: Precision
    nesterov: bool = True
    momentum: float = 0.9
    weight_decay: float = 5e-4
    eval_every: int = 1
    log_every: int = 20
    checkpoint_every_steps: int | None = None
    checkpoint_every_seconds: float | None = 300.0
    snapshot_epochs: tuple[int, ...] = ()
    progress: bool = True
    tensorboard: bool = True


@dataclass
class Progress:
    """Position and timing of a run.

    Attributes:
        epoch: finished epochs.
        step: finished steps of the running epoch. When all are finished but the epoch has not been
            evaluated yet, this is the number of steps per epoch.
        images: images trained on in the whole run.
        seconds: time spent in training steps, without evaluation and checkpoints.
        metrics: ``train`` and ``test`` metrics of the last finished epoch.
    """

    epoch: int = 0
    step: int = 0
    images: int = 0
    seconds: float = 0.0
    metrics: dict[str, dict[str, float]] = field(default_factory=dict)

    @property
    def images_per_second(self) -> float:
        return self.images / self.seconds if self.seconds > 0 else 0.0


class Trainer:
    """Trains a task with SGD, from the start or from a checkpoint.

    Batches and augmentation are pure functions of (seed, epoch, position), so that weights, momentum,
    loss scale and position are all that an exact resume needs.

    Args:
        task: what to train; its module lies on the loader's device.
        loader: gives the batches.
        settings: how to train.
        run: folder for checkpoints and metrics.
        identity: settings that make the run what it is, data fingerprint included, as plain values.
            They are stored in the checkpoint as ``config``, and a checkpoint in which one differs is
            refused.
    """

    def __init__(
        self,
        task: Task,
        loader: Loader,
        settings: TrainerSettings,
        run: RunFolder,
        identity: Mapping[str, Any],
    ) -> None:
        self.task = task
        self.loader = loader
        self.settings = settings
        self.run = run
        self.identity = dict(identity)
        self.groups = task.parameter_groups()
        self.optimizer = torch.optim.SGD(
            [{"params": group.parameters, "name": group.name} for group in self.groups],
            lr=0.0,  # set from the schedules before every step
            momentum=settings.momentum,
            nesterov=settings.nesterov,
            weight_decay=settings.weight_decay,
        )
        self.scaler = settings.precision.grad_scaler()
        parts = task.module.modules()
        self._may_draw = any(isinstance(part, FeatureNetwork) and part.may_draw for part in parts)
        self.sums = MetricSums()
        self.progress = Progress()
        self._saved_at = time.monotonic()

    def fit(self) -> dict[str, float]:
        """Train to the end.

        Returns:
            The task's test metrics after the last epoch.

        Raises:
            Interrupted: SIGINT or SIGTERM came; a checkpoint of the last finished step was saved.
            NonFiniteError: the loss or a weight is no longer finite; the last good checkpoint is kept.
            CannotWriteError: a file of the run folder could not be written.
        """
        progress, settings = self.progress, self.settings
        log = RunLog(
            self.run,
            total_images=settings.epochs * self.loader.epoch_size,
            images_done=progress.images,
            steps_done=self._steps_done(),
            progress=settings.progress,
            tensorboard=settings.tensorboard,
        )
        with log, StopSignals() as stop:
            try:
                while progress.epoch < settings.epochs:
                    self._train_epoch(log, stop)
                    self._finish_epoch(log, stop)
            except Interrupted:
                self.save_checkpoint("last.pt")
                raise
        return progress.metrics["test"]

    def _train_epoch(self, log: RunLog, stop: StopSignals) -> None:
        """Train on the rest of the running epoch."""
        progress, settings = self.progress, self.settings
        self.task.set_train_mode()
        reported_images, reported_seconds = progress.images, progress.seconds
        clock = time.perf_counter()
        for batch in self.loader.epoch(progress.epoch, start_batch=progress.step):
            self._train_step(batch)
            metrics = None
            if progress.step % settings.log_every == 0 or progress.step == len(self.loader):
                metrics = self._read_metrics()  # waits for the device
            progress.seconds += time.perf_counter() - clock
            if metrics is not None:
                metrics["lr"] = self.optimizer.param_groups[0]["lr"]
                images = progress.images - reported_images
                rate = images / (progress.seconds - reported_seconds)
                log.interval(progress.epoch, progress.step, self._steps_done(), images, rate, metrics)
                reported_images, reported_seconds = progress.images, progress.seconds
            if self._checkpoint_is_due():
                self.save_checkpoint("last.pt")
            clock = time.perf_counter()
            stop.check()

    def _train_step(self, batch: Batch) -> None:
        """Forward, backward and update on one batch."""
        progress = self.progress
        for group, optimizer_group in zip(self.groups, self.optimizer.param_groups, strict=True):
            optimizer_group["lr"] = group.schedule.lr(progress.epoch, progress.step / len(self.loader))
        if self._may_draw:
            # Dropout draws from torch's generator. Like all other draws, its are a function of the position.
            torch.manual_seed(step_seed(self.loader.seed, progress.epoch, progress.step))
        with self.settings.precision.autocast():
            output = self.task.train_step(batch, progress.epoch)
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(output.loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.sums.add(output.sums)
        progress.step += 1
        progress.images += batch.global_size

    def _finish_epoch(self, log: RunLog, stop: StopSignals) -> None:
        """Evaluate, report, save, and move on to the next epoch."""
        progress, settings = self.progress, self.settings
        metrics = {"train": means(self.sums.read())}
        done = progress.epoch + 1
        is_kept = done in settings.snapshot_epochs
        if done % settings.eval_every == 0 or done == settings.epochs or is_kept:
            with settings.precision.autocast(), stop.interruptible():
                metrics["test"] = self.task.evaluate()
        log.epoch(
            progress.epoch,
            settings.epochs,
            progress.step,
            self._steps_done(),
            progress.images_per_second,
            metrics,
        )
        progress.metrics = metrics
        progress.epoch, progress.step = done, 0
        self.sums = MetricSums()
        if is_kept:
            checkpoint.save(self.run.snapshot(done), self.snapshot())
        self.save_checkpoint(f"epoch-{done:04d}.pt", "last.pt")
        for old in sorted(self.run.checkpoints.glob("epoch-*.pt"))[:-KEPT_EPOCH_CHECKPOINTS]:
            old.unlink()
        stop.check()

    def _steps_done(self) -> int:
        return self.progress.epoch * len(self.loader) + self.progress.step

    def _checkpoint_is_due(self) -> bool:
        """Whether to save in the middle of the epoch."""
        steps, seconds = self.settings.checkpoint_every_steps, self.settings.checkpoint_every_seconds
        if steps is not None and self.progress.step % steps == 0:
            return True
        return seconds is not None and time.monotonic() - self._saved_at >= seconds

    def _read_metrics(self) -> dict[str, float]:
        """Means since the last report.

        Raises:
            NonFiniteError: the loss is NaN or infinite.
        """
        metrics = means(self.sums.read_interval())
        if not math.isfinite(metrics["loss"]):
            raise self._non_finite(f"the loss became {metrics['loss']}")
        return metrics

    def _non_finite(self, finding: str) -> NonFiniteError:
        rates = ", ".join(f"{group['lr']:g}" for group in self.optimizer.param_groups)
        precision = self.settings.precision.name
        wider = " or use --precision bf16 or fp32" if precision == "fp16" else ""
        good = [str(path) for path in checkpoint.candidates(self.run.path)]
        kept = f"the last good checkpoint is {good[0]}" if good else "no checkpoint had been written yet"
        return NonFiniteError(
            f"{finding} in epoch {self.progress.epoch + 1}, at or before step {self.progress.step}, with "
            f"learning rate {rates} in {precision}: start again with a lower --lr{wider}; {kept}"
        )

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds. All but ``log`` is the same on every run with these settings."""
        progress = self.progress
        return {
            "config": self.identity,
            "epoch": progress.epoch,
            "step": progress.step,
            "module": self.task.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "sums": self.sums.state_dict(),
            "metrics": progress.metrics,
            "log": {
                "images": progress.images,
                "seconds": progress.seconds,
                "metrics_position": self.run.metrics_position(),
            },
        }

    def snapshot(self) -> dict[str, Any]:
        """What is kept of an epoch for good: the network and its metrics, without momentum."""
        return {
            name: part
            for name, part in self.state().items()
            if name in ("config", "epoch", "module", "metrics")
        }

    def state_hash(self) -> str:
        """SHA-256 over everything that training depends on or has found; timing is left out."""
        return checkpoint.state_hash({name: part for name, part in self.state().items() if name != "log"})

    def save_checkpoint(self, *names: str) -> None:
        """Save under each name in the folder of checkpoints.

        Raises:
            NonFiniteError: a weight or statistic is NaN or infinite; nothing is overwritten then.
            CannotWriteError: the file could not be written; an older one is intact.
        """
        state = self.state()
        if not _all_finite([state["module"], state["optimizer"]]):
            raise self._non_finite("a weight, momentum or BatchNorm statistic became NaN or infinite")
        for name in names:
            checkpoint.save(self.run.checkpoints / name, state)
        self._saved_at = time.monotonic()

    def go_on(self) -> None:
        """Load the newest whole checkpoint of the run folder, where there is one.

        Raises:
            CheckpointError: it belongs to a run with other settings or data, or all are damaged.
        """
        if checkpoint.candidates(self.run.path):
            found, state, _ = checkpoint.load_newest(self.run.path)
            self.load_state(state, found)

    def load_state(self, state: Mapping[str, Any], origin: Path) -> None:
        """Go on from a checkpoint.

        Args:
            state: as :meth:`state` gives it, with tensors on any device.
            origin: where it was read from, for errors.

        Raises:
            CheckpointError: it belongs to a run with other settings or other data.
        """
        saved = state.get("config", {})
        for name in sorted(saved.keys() | self.identity.keys()):
            old, new = (values.get(name, ADDED_LATER.get(name)) for values in (saved, self.identity))
            if old != new:
                raise CheckpointError(
                    f"the checkpoint {origin} belongs to another run: there {name} is {old!r}, here {new!r}; "
                    f"use the same value, or start a new run with another --output"
                )
        self.task.module.load_state_dict(state["module"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.sums.load_state_dict(state["sums"], self.loader.device)
        log = state["log"]
        self.progress = Progress(
            state["epoch"], state["step"], log["images"], log["seconds"], dict(state["metrics"])
        )
        self.run.truncate_metrics(log["metrics_position"])


def step_seed(seed: int, epoch: int, step: int) -> int:
    """Seed of the draws of one step, in [0, 2**63): unrelated for neighbouring steps, epochs and seeds."""
    digest = hashlib.blake2b(f"{seed} {epoch} {step}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def _all_finite(state: Any) -> bool:
    """Whether every tensor of a nested state is finite, with one wait for the device."""
    verdicts = [tensor.isfinite().all() for tensor in _tensors(state)]
    return not verdicts or bool(torch.stack(verdicts).all())


def _tensors(state: Any) -> Iterator[torch.Tensor]:
    if isinstance(state, torch.Tensor):
        yield state
    elif isinstance(state, Mapping):
        for part in state.values():
            yield from _tensors(part)
    elif isinstance(state, (list, tuple)):
        for part in state:
            yield from _tensors(part)

"""The training loop, shared by everything that trains: epochs of steps, reports, tests and checkpoints."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from rotnet_fast.data.loader import Batch, Loader
from rotnet_fast.engine import checkpoint
from rotnet_fast.engine.ambient import kept_generators
from rotnet_fast.engine.contention import Contention
from rotnet_fast.engine.distributed import ALONE, Meetings, Processes
from rotnet_fast.engine.metrics import means
from rotnet_fast.engine.replay import Capture
from rotnet_fast.engine.run_folder import RunFolder, candidates, epoch_checkpoints
from rotnet_fast.engine.run_log import RunLog
from rotnet_fast.engine.signals import Interrupted, StopSignals
from rotnet_fast.engine.step import MOST_IN_A_ROW, TrainingStep
from rotnet_fast.engine.streams import robust_streams
from rotnet_fast.engine.task import Task, TrainerSettings
from rotnet_fast.errors import NonFiniteError
from rotnet_fast.files import link_atomically, write_atomically
from rotnet_fast.plain import counted

KEPT_EPOCH_CHECKPOINTS = 3
_TOO_MANY = "the loss or its gradients were non-finite in {} steps in a row"


@dataclass
class Progress:
    """Position and findings of a run.

    Attributes:
        epoch: number of finished epochs.
        step: number of finished steps of the current epoch. Once all are finished, and until the epoch has
            been evaluated, this is the number of steps per epoch.
        images: number of images trained on in the whole run.
        seconds: time spent in training steps, without evaluation and checkpoints.
        waited: seconds of it in which the host waited for batches.
        metrics: ``train`` and ``test`` metrics of the last finished epoch.
        best: highest :func:`score` of a test so far; -inf before the first one.
        monitored: accuracy of the features -> its ``last`` value, in percent, and its ``best`` one, with the
            number of epochs after which that was found, ``best_epoch``.
        skipped: number of non-finite steps that were skipped, up to the last report.
    """

    epoch: int = 0
    step: int = 0
    images: int = 0
    seconds: float = 0.0
    waited: float = 0.0
    metrics: dict[str, dict[str, float]] = field(default_factory=dict)
    best: float = -math.inf
    skipped: int = 0
    monitored: dict[str, dict[str, float]] = field(default_factory=dict)

    @property
    def images_per_second(self) -> float:
        return self.images / self.seconds if self.seconds > 0 else 0.0

    @property
    def data_wait(self) -> float:
        """Fraction of the time in which the host waited for batches, in [0, 1]."""
        return self.waited / self.seconds if self.seconds > 0 else 0.0


class Trainer:
    """Trains a task with SGD, from the beginning or from a checkpoint.

    Batches and augmentation are pure functions of (seed, epoch, position). Therefore an exact resume needs
    only the weights, the momentum, the loss scale and the position.

    Args:
        task: what to train; its module lies on the loader's device.
        loader: yields the batches.
        settings: how to train.
        run: folder for checkpoints and metrics.
        identity: the settings that define the run, including the data fingerprint, as plain values. They are
            stored in the checkpoint as ``config``, and a checkpoint in which one differs is refused.
        processes: the processes that train together, each on its share of every batch; the task averages
            gradients over them. All run the same steps, and rank 0 writes.
        capture: how steps are captured; None decides by ``settings.graph``.
        monitor: evaluates the features of a network with the given weights and buffers: name -> percent.
            Of its NonFiniteError the run only warns.
    """

    def __init__(
        self,
        task: Task,
        loader: Loader,
        settings: TrainerSettings,
        run: RunFolder,
        identity: Mapping[str, Any],
        processes: Processes = ALONE,
        capture: Capture | None = None,
        monitor: Callable[[Mapping[str, Any]], dict[str, float]] | None = None,
    ) -> None:
        processes.check_same(identity)
        self.monitor = monitor
        self.processes = processes
        self.task = task
        self.loader = loader
        self.settings = settings
        self.run = run
        self.identity = dict(identity)
        self.training_step = TrainingStep(task, settings, loader.device, loader.seed, processes, capture)
        self.sums = self.training_step.sums
        self.log_every = settings.log_every or (500 if loader.device.type == "cuda" else 20)
        self.progress = Progress()
        # Several processes wait for each other within a step, and a GPU is waited for.
        is_watched = settings.progress and loader.device.type == "cpu" and processes.world == 1
        self.contention = Contention(torch.get_num_threads()) if is_watched else None
        self._saved_at = time.monotonic()
        self._meetings = Meetings(processes, runs_ahead=loader.device.type == "cuda")
        weights = task.module.state_dict()
        infinite = {name: part for name, part in weights.items() if not checkpoint.all_finite(part)}
        self._constants = {name for name, part in infinite.items() if not part.isnan().any()}

    def fit(self) -> dict[str, float]:
        """Train to the end.

        Returns:
            The task's test metrics after the last epoch.

        Raises:
            Interrupted: a signal arrived; a checkpoint of the last finished step was saved.
            NonFiniteError: too many steps in a row, or a weight, were non-finite; the last good checkpoint is
                kept.
            CannotWriteError: a file of the run folder could not be written.
        """
        progress, settings = self.progress, self.settings
        if progress.images == 0:
            self.run.truncate_metrics(0)  # reports of a run that was killed before its first checkpoint
        device = self.loader.device
        # Networks with dropout seed torch's generators at every step; the program's own draws go on after it.
        kept = kept_generators([device] if device.type == "cuda" else [])
        with robust_streams(), self._log() as log, kept, StopSignals() as stop:
            try:
                while progress.epoch < settings.epochs:
                    self._train_epoch(log, stop)
                    self._finish_epoch(log, stop)
            except Interrupted:
                self.save_checkpoint("last.pt")
                raise
        return progress.metrics["test"]

    def _log(self) -> RunLog:
        progress, settings = self.progress, self.settings
        return RunLog(
            self.run,
            epochs=settings.epochs,
            steps_per_epoch=len(self.loader),
            epoch_images=self.loader.epoch_size,
            tested=[epoch for epoch in range(1, settings.epochs + 1) if settings.is_tested(epoch)],
            epochs_done=progress.epoch,
            steps_done=self._steps_done(),
            print_every=settings.print_every,
            progress=settings.progress,
            tensorboard=settings.tensorboard,
        )

    def _train_epoch(self, log: RunLog, stop: StopSignals) -> None:
        """Train on the rest of the current epoch."""
        progress = self.progress
        self.task.begin_epoch(progress.epoch)
        reported = replace(progress)
        clock = time.perf_counter()
        for batch in self.loader.epoch(progress.epoch, start_batch=progress.step):
            progress.waited += time.perf_counter() - clock
            self._watched_step(batch, log)
            metrics = None
            if progress.step % self.log_every == 0 or progress.step == len(self.loader):
                metrics = self._read_metrics()  # waits for the device
            seconds = time.perf_counter() - clock
            progress.seconds += seconds
            if metrics is not None:
                if "skipped_steps" in metrics:
                    since_report = (progress.step - 1) % self.log_every + 1  # of before a resume, too
                    self._warn_of_skipped(log, int(metrics["skipped_steps"]), since_report)
                metrics["lr"] = self.training_step.lrs[0]
                since = progress.seconds - reported.seconds
                metrics["data_wait"] = (progress.waited - reported.waited) / since
                rate = (progress.images - reported.images) / since
                log.interval(progress.epoch, progress.step, self._steps_done(), rate, metrics)
                reported = replace(progress)
            log.step(progress.epoch, progress.step, batch.global_size, seconds)
            signal_number, is_due = self._requests(stop)
            if is_due:
                self.save_checkpoint("last.pt")
            clock = time.perf_counter()
            if signal_number:
                raise Interrupted(signal_number)

    def _watched_step(self, batch: Batch, log: RunLog) -> None:
        """Train on a batch; warn where other programs hold the processor."""
        if self.contention is None:
            self.train_step(batch)
            return
        self.contention.begin()
        self.train_step(batch)
        if (sentence := self.contention.end()) is not None:
            log.warn(sentence)

    def train_step(self, batch: Batch) -> None:
        """Train on the next batch of the current epoch, after `Task.begin_epoch`."""
        progress = self.progress
        self.training_step(batch, progress.epoch, progress.step, len(self.loader))
        progress.step += 1
        progress.images += batch.global_size

    def _finish_epoch(self, log: RunLog, stop: StopSignals) -> None:
        """Evaluate, report, save and advance to the next epoch."""
        progress, settings = self.progress, self.settings
        metrics = {"train": means(self.sums.read())}
        done = progress.epoch + 1
        is_kept = done in settings.snapshot_epochs
        if settings.is_tested(done):
            log.testing()
            begun = time.perf_counter()
            metrics["test"] = self._evaluate(stop)
            log.tested(time.perf_counter() - begun)
        found = self._monitored(done, log, stop)
        log.epoch(
            progress.epoch,
            progress.step,
            self._steps_done(),
            progress.images_per_second,
            {**metrics, "features": found} if found else metrics,
        )
        # Up to ten times, besides after the first test and the last.
        before = done - settings.eval_every
        is_drawn = (
            before <= 0
            or done == settings.epochs
            or 10 * done // settings.epochs > (10 * before // settings.epochs)
        )
        if settings.tensorboard and "test" in metrics and is_drawn:
            log.pictures(self._steps_done(), self.task.pictures())
        progress.metrics = metrics
        progress.epoch, progress.step = done, 0
        self.sums.reset()
        if is_kept:
            snapshot = self.snapshot()
            self.processes.on_main(lambda: checkpoint.save(self.run.snapshot(done), snapshot))
        names = [f"epoch-{done:04d}.pt"]
        if (tested := score(metrics.get("test", {}))) > progress.best:
            progress.best = tested
            names.append("best.pt")
        for name, value in found.items():
            known = progress.monitored.setdefault(name, {"best": -1.0, "best_epoch": 0})
            known["last"] = value
            if value > known["best"]:
                known |= {"best": value, "best_epoch": done}
                names.append(f"best-{name.removesuffix('_accuracy')}.pt")
        # last.pt, from which a run is resumed, comes last: if the program ends before, best.pt is made again.
        self.save_checkpoint(*names, "last.pt")
        if self.processes.is_main:
            # There are later ones if the run was resumed from a checkpoint that is not its newest.
            of_epochs = [path for epoch, path in epoch_checkpoints(self.run.checkpoints) if epoch <= done]
            for old in of_epochs[:-KEPT_EPOCH_CHECKPOINTS]:
                old.unlink()
        (signal_number,) = self.processes.maximum(stop.received)
        if signal_number:
            raise Interrupted(signal_number)

    def _evaluate(self, stop: StopSignals) -> dict[str, float]:
        """Compute the task's test metrics."""
        if self.processes.world == 1:
            with self.settings.precision.autocast(), stop.interruptible():
                return self.task.evaluate()
        # Each process has the running averages of its own shares; those of rank 0 count. A signal has to
        # wait, because no process can leave alone.
        self.processes.copy_from_main(self.task.module.buffers())
        with self.settings.precision.autocast():
            return self.task.evaluate()

    def _monitored(self, done: int, log: RunLog, stop: StopSignals) -> dict[str, float]:
        """Evaluate the features after an epoch, where that is due; empty where it is not."""
        monitor, processes = self.monitor, self.processes
        if monitor is None or not self.settings.is_monitored(done):
            return {}
        log.testing()
        state = self.task.module.state_dict()

        def evaluated() -> dict[str, float] | NonFiniteError:
            try:
                return monitor(state)
            except NonFiniteError as error:  # no reason to stop, because a monitor changes nothing
                return error

        if processes.world > 1:  # a signal has to wait, see _evaluate
            found = processes.from_main(evaluated)
        else:
            with stop.interruptible():
                found = evaluated()
        if not isinstance(found, NonFiniteError):
            return found
        if processes.is_main:
            log.warn(f"nothing was monitored after epoch {done}: {found}")
        return {}

    def _steps_done(self) -> int:
        return self.progress.epoch * len(self.loader) + self.progress.step

    def _requests(self, stop: StopSignals) -> tuple[int, bool]:
        """Number of the signal that asks to stop (0 for none), and whether to save within the epoch."""
        settings, step = self.settings, self.progress.step
        steps, seconds = settings.checkpoint_every_steps, settings.checkpoint_every_seconds
        is_due = steps is not None and step % steps == 0
        is_old = seconds is not None and time.monotonic() - self._saved_at >= seconds
        if self.processes.world == 1:
            return stop.received, is_due or is_old
        # Signals and clocks differ between processes, which must stop and save at the same step.
        if not self._meetings.is_due(self._steps_done()):
            return 0, is_due
        signal_number, age_matters = self._meetings.maximum(self._steps_done(), stop.received, is_old)
        return signal_number, is_due or bool(age_matters)

    def _read_metrics(self) -> dict[str, float]:
        """Compute means over the steps since the last report, without skipped ones.

        Raises:
            NonFiniteError: too many steps in a row were skipped.
        """
        progress = self.progress
        skipped, in_a_row = self.processes.maximum(*self.training_step.guard.read())
        if in_a_row >= MOST_IN_A_ROW:
            raise self.processes.shared(self._non_finite(_TOO_MANY.format(in_a_row)))
        metrics = means(self.sums.read_interval())
        if skipped > progress.skipped:
            metrics["skipped_steps"] = skipped - progress.skipped
        progress.skipped = skipped
        return metrics

    def _warn_of_skipped(self, log: RunLog, skipped: int, steps: int) -> None:
        """Warn of skipped steps, unless the precision is fp16, whose loss scaling skips steps by design."""
        if self.processes.is_main and self.settings.precision.name != "fp16":
            log.warn(
                f"skipped {skipped} of the last {counted(steps, 'step')}, with a loss or gradients that were "
                f"non-finite (epoch {self.progress.epoch + 1}, up to step "
                f"{self.progress.step}); {MOST_IN_A_ROW} in a row stop the run"
            )

    def _non_finite(self, finding: str) -> NonFiniteError:
        rates = ", ".join(f"{lr:g}" for lr in self.training_step.lrs)
        precision = self.settings.precision.name
        wider = " or use --precision bf16 or fp32" if precision == "fp16" else ""
        good = [str(path) for path in candidates(self.run.path)]
        kept = f"the last good checkpoint is {good[0]}" if good else "no checkpoint had been written yet"
        epoch, step = self.progress.epoch, self.progress.step
        place = f"epoch {epoch + 1}, at or before step {step}" if step else f"epoch {epoch}"
        return NonFiniteError(
            f"{finding} in {place}, with learning rate {rates} in {precision}: start again with a lower "
            f"--lr{wider}; {kept}"
        )

    def state(self) -> dict[str, Any]:
        """The content of a checkpoint. All processes must call this together; only rank 0's result counts.

        Everything but ``log`` is the same in every run with these settings.
        """
        progress = self.progress
        return {
            "config": self.identity,
            "epoch": progress.epoch,
            "step": progress.step,
            "module": self.task.module.state_dict(),
            **self.training_step.state_dict(),
            "metrics": progress.metrics,
            "log": {
                "images": progress.images,
                "seconds": progress.seconds,
                "waited": progress.waited,
                "best": progress.best,
                "skipped": progress.skipped,
                "monitored": progress.monitored,
                "metrics_position": self.processes.on_main(self.run.metrics_position),
            },
        }

    def snapshot(self) -> dict[str, Any]:
        """The content of a snapshot: the network and its metrics, without momentum."""
        return {
            name: part
            for name, part in self.state().items()
            if name in ("config", "epoch", "module", "metrics")
        }

    def state_hash(self) -> str:
        """SHA-256 over everything that training depends on or has found, without timing."""
        return checkpoint.state_hash({name: part for name, part in self.state().items() if name != "log"})

    def save_checkpoint(self, *names: str) -> None:
        """Save a checkpoint under each of the names.

        Raises:
            NonFiniteError: a weight or statistic, or too many steps in a row, were non-finite; nothing is
                overwritten.
            CannotWriteError: the file cannot be written; an older one is intact.
        """
        state = self.state()

        def save() -> None:
            if (in_a_row := state["guard"]["most_in_a_row"]) >= MOST_IN_A_ROW:
                raise self._non_finite(_TOO_MANY.format(in_a_row))
            # Constants, such as an attention mask, may hold infinities from the beginning.
            changing = [part for name, part in state["module"].items() if name not in self._constants]
            if not checkpoint.all_finite([changing, state["optimizer"]]):
                raise self._non_finite("a weight, momentum or BatchNorm statistic became non-finite")
            first, *others = (self.run.checkpoints / name for name in names)
            checkpoint.save(first, state)
            for other in others:
                link_atomically(first, other)

        self.processes.on_main(save)
        self._saved_at = time.monotonic()

    def resume(self) -> None:
        """Load the newest intact checkpoint of the run folder, if there is one.

        Raises:
            CheckpointError: it belongs to a run with other settings or data, or all checkpoints are damaged.
        """
        path = self.run.path
        found = self.processes.from_main(lambda: checkpoint.load_newest(path) if candidates(path) else None)
        if found is not None:
            self.load_state(found[1], found[0])

    def load_state(self, state: Mapping[str, Any], origin: Path) -> None:
        """Load the state of a checkpoint, which must be the same in all processes.

        Args:
            state: what :meth:`state` returned, with tensors on any device.
            origin: file that it was read from, for errors.

        Raises:
            CheckpointError: it belongs to a run with other settings or other data.
        """
        refusal = checkpoint.refusal(state.get("config", {}), self.identity, origin)
        if refusal is not None:
            raise self.processes.shared(refusal)
        self.task.module.load_state_dict(state["module"])
        self.training_step.load_state_dict(state, self.loader.device)
        log = state["log"]
        self.progress = Progress(
            state["epoch"],
            state["step"],
            log["images"],
            log["seconds"],
            log["waited"],
            dict(state["metrics"]),
            log["best"],
            log["skipped"],
            {name: dict(known) for name, known in log["monitored"].items()},
        )
        self.processes.on_main(lambda: self._make_last(origin))
        self.run.truncate_metrics(log["metrics_position"])

    def _make_last(self, origin: Path) -> None:
        """Make a checkpoint the last one: a run that goes on from an older one leaves what came after."""
        last = self.run.checkpoints / "last.pt"
        if origin.resolve() == last.resolve():
            return
        if origin.parent.resolve() == last.parent.resolve():
            link_atomically(origin, last)
        else:
            write_atomically(last, origin.read_bytes())


def score(metrics: Mapping[str, float]) -> float:
    """What decides which epoch is best: the mean of its test accuracies, or without any, the negative loss.

    It is -inf without a test.
    """
    accuracies = [value for name, value in metrics.items() if name.endswith("accuracy")]
    return sum(accuracies) / len(accuracies) if accuracies else -metrics.get("loss", math.inf)

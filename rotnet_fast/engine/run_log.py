"""Reports of a run: a status line, metrics.jsonl, TensorBoard and printed lines on epochs."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rotnet_fast.engine.run_folder import RunFolder
from rotnet_fast.errors import printable
from rotnet_fast.files import ensure_folder
from rotnet_fast.plain import duration
from rotnet_fast.progress import Pace, Part, Status, StatusLine


class Board:
    """TensorBoard's view of a run, in its folder: what was measured in training, and what in testing.

    The two are written as ``tensorboard/train`` and ``tensorboard/test``, so that TensorBoard shows what they
    share, such as the loss, as two curves in one chart. What is before the slash of a name is the group of
    charts. Whatever a killed run wrote after the checkpoint that it resumes from is hidden.

    Args:
        run: the folder; its config.json is shown as text.
        steps_done: steps of the run in that checkpoint.
        steps_tested: steps up to the end of the last epoch that it has finished.
    """

    def __init__(self, run: RunFolder, steps_done: int, steps_tested: int) -> None:
        from torch.utils.tensorboard import SummaryWriter  # takes a second to import

        self._writers: dict[str, Any] = {}
        for kind, kept in (("train", steps_done), ("test", steps_tested)):
            folder = run.path / "tensorboard" / kind
            ensure_folder(folder)
            self._writers[kind] = SummaryWriter(str(folder), purge_step=kept + 1)
        config = run.path / "config.json"
        if config.exists():
            written = json.loads(config.read_text(encoding="utf-8"))
            for name in ("settings", "environment"):
                self._writers["train"].add_text(name, as_table(written[name]), steps_done + 1)

    def interval(self, steps_done: int, rate: float, metrics: Mapping[str, float]) -> None:
        """Add points to the curves of training, see :meth:`RunLog.interval`."""
        found = {**metrics, "images_per_second": rate}
        group = {name: "curves" if name.endswith(("loss", "accuracy")) else "training" for name in found}
        self._add("train", steps_done, {f"{group[name]}/{name}": value for name, value in found.items()})

    def test(self, steps_done: int, metrics: Mapping[str, float]) -> None:
        """Add points to the curves of testing."""
        details = {name.replace("/", "_by_degrees/"): x for name, x in metrics.items() if "/" in name}
        curves = {f"curves/{name}": value for name, value in metrics.items() if "/" not in name}
        self._add("test", steps_done, {**curves, **details})

    def picture(self, steps_done: int, name: str, image: NDArray[np.uint8]) -> None:
        """Add a picture, uint8 [H,W,3]."""
        self._writers["test"].add_image(name, image, steps_done, dataformats="HWC")
        self._writers["test"].flush()

    def close(self) -> None:
        """Close the event files."""
        for writer in self._writers.values():
            writer.close()

    def _add(self, kind: str, steps_done: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writers[kind].add_scalar(name, value, steps_done)
        # So that a killed run has written all that came before its checkpoint.
        self._writers[kind].flush()


def as_table(values: Mapping[str, Any]) -> str:
    """Format values by name as a Markdown table; what is None is not set and left out."""
    lines = ["| name | value |", "|---|---|"]
    for name, value in values.items():
        if isinstance(value, Mapping):
            value = ", ".join(f"{key} {one}" for key, one in value.items()) or None
        elif isinstance(value, list):
            value = " ".join(map(str, value))
        if value is not None:
            text = " ".join(printable(str(value)).split()).replace("|", "\\|")
            lines.append(f"| {name} | {text} |")
    return "\n".join(lines)


class RunLog:
    """Reports one run; a context manager that removes the status line and closes the event files.

    Metrics are loss values and percentages. A metric whose name contains a slash, such as
    ``rotation_accuracy/90``, is a detail: it is recorded but not printed.

    Args:
        run: folder for metrics.jsonl and tensorboard/.
        epochs: number of epochs of the whole run.
        steps_per_epoch: number of steps of each.
        epoch_images: number of images to train on in each.
        tested: numbers, from 1, of the epochs that end with a test.
        epochs_done: number of finished epochs, where a resumed run continues.
        steps_done: number of steps of the run until then.
        print_every: print a line for every so many epochs, besides the first and the last.
        progress: whether to show a status line and print lines.
        tensorboard: whether to write TensorBoard events.
    """

    def __init__(
        self,
        run: RunFolder,
        *,
        epochs: int,
        steps_per_epoch: int,
        epoch_images: int,
        tested: Sequence[int],
        epochs_done: int,
        steps_done: int,
        print_every: int,
        progress: bool,
        tensorboard: bool,
    ) -> None:
        self._run = run
        self._print, self._print_every = progress, print_every
        self._epochs, self._steps, self._epoch_images = epochs, steps_per_epoch, epoch_images
        self._tested = tested
        self._epoch, self._step = epochs_done, steps_done - epochs_done * steps_per_epoch
        self._epochs_done = epochs_done
        self._pace, self._test_pace = Pace(), Pace()
        self._is_first_step, self._is_testing = True, False
        self._metrics: Mapping[str, float] = {}
        self._features: Mapping[str, float] = {}
        self._line = StatusLine(self._status, progress)
        steps_tested = epochs_done * steps_per_epoch
        self._board = Board(run, steps_done, steps_tested) if tensorboard else None

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._line.__exit__(*exc_info)
        if self._board is not None:
            self._board.close()

    def step(self, epoch: int, step: int, images: int, seconds: float) -> None:
        """Show a finished step.

        Args:
            epoch: number of the current epoch, from 0.
            step: number of its finished steps.
            images: number of images in the batch.
            seconds: how long it took, with the wait for the batch.
        """
        self._epoch, self._step, self._is_testing = epoch, step, False
        # The first step loads code and asks for memory; where an epoch has only one, it has to do.
        if not self._is_first_step or self._steps == 1:
            self._pace.add(images, seconds)
        self._is_first_step = False
        self._line.update()

    def testing(self) -> None:
        """Show that the test images are being looked at."""
        self._is_testing = True
        self._line.update(at_once=True)

    def tested(self, seconds: float) -> None:
        """Note how long a test took."""
        self._test_pace.add(1, seconds)

    def interval(
        self, epoch: int, step: int, steps_done: int, rate: float, metrics: Mapping[str, float]
    ) -> None:
        """Report the steps since the last call.

        Args:
            epoch: number of the current epoch, from 0.
            step: number of its finished steps.
            steps_done: number of finished steps of the run.
            rate: images per second since the last call.
            metrics: means over the views since then, the learning rate, and the fraction of the time in which
                the host waited for batches.
        """
        self._metrics = metrics
        self._record("train", epoch, step, {**metrics, "images_per_second": rate})
        if self._board is not None:
            self._board.interval(steps_done, rate, metrics)

    def epoch(self, epoch: int, step: int, steps_done: int, rate: float, metrics: Mapping[str, Any]) -> None:
        """Report a finished epoch: ``metrics["train"]`` and, if evaluated, ``test`` and ``features``."""
        for kind, values in metrics.items():
            self._record(f"{kind}_epoch", epoch, step, values)
        self._features = metrics.get("features", self._features)
        for kind in ("test", "features"):
            if self._board is not None and kind in metrics:
                self._board.test(steps_done, metrics[kind])
        done = self._epochs_done = epoch + 1
        self._is_testing = False
        if self._print and (done in (1, self._epochs) or done % self._print_every == 0):
            parts = [f"{kind} {describe(values)}" for kind, values in metrics.items()]
            self._line.print(f"epoch {done}/{self._epochs}: {'; '.join(parts)}; {rate:.0f} images/s")

    def pictures(self, steps_done: int, pictures: Mapping[str, NDArray[np.uint8]]) -> None:
        """Show pictures of the last test, uint8 [H,W,3] by name."""
        if self._board is not None:
            for name, image in pictures.items():
                self._board.picture(steps_done, name, image)

    def warn(self, sentence: str) -> None:
        """Print a warning to standard error, even without progress."""
        self._line.print(f"WARNING: {sentence}", sys.stderr)

    def _status(self) -> Status:
        number = f"{self._epoch + 1:{len(str(self._epochs))}}/{self._epochs}"
        epoch, run = (
            self._pace.seconds(self._epoch_images * (1 - self._step / self._steps)),
            self.seconds_left(),
        )
        rate = self._pace.per_second
        parts = [
            Part(f"{self._step:{len(str(self._steps))}}/{self._steps}", 4),
            Part("testing" if self._is_testing else shortest(self._metrics), 1),
            Part(f"{rate:,.0f} img/s" if rate else "", 3),
            Part("  ".join(self._features_shown()), 2),
            Part("" if epoch is None else f"epoch {clock_time(epoch)}", 5),
            Part("" if run is None else f"{duration(run)} left", 0),
        ]
        return Status(f"epoch {number}", self._step / self._steps, parts)

    def _features_shown(self) -> list[str]:
        return [f"{name.removesuffix('_accuracy')} {value:.1f} %" for name, value in self._features.items()]

    def seconds_left(self) -> float | None:
        """Return how long the rest of the run will take at the pace of this process; None if unknown yet."""
        epochs = self._epochs - self._epoch - self._step / self._steps
        training = self._pace.seconds(self._epoch_images * epochs)
        if training is None:
            return None
        tests = sum(epoch > self._epochs_done for epoch in self._tested)
        return training + (self._test_pace.seconds(tests) or 0.0)

    def _record(self, kind: str, epoch: int, step: int, values: Mapping[str, float]) -> None:
        self._run.append_metrics({"kind": kind, "epoch": epoch, "step": step, **values})


def shortest(metrics: Mapping[str, float]) -> str:
    """Format the loss and the mean accuracy for a status line: ``loss 1.234  rot 61.2 %``."""
    parts = []
    if "loss" in metrics:
        loss = metrics["loss"]
        parts.append(f"loss {loss:.{3 if loss < 10 else 2 if loss < 100 else 1}f}")
    accuracies = [value for name, value in metrics.items() if name.endswith("accuracy")]
    if accuracies:
        name = "rot" if "rotation_accuracy" in metrics else "acc"
        parts.append(f"{name} {sum(accuracies) / len(accuracies):.1f} %")
    return "  ".join(parts)


def clock_time(seconds: float) -> str:
    """Format as ``4:10``, or ``1:04:10``."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes >= 60 else f"{minutes}:{rest:02}"


def describe(metrics: Mapping[str, float]) -> str:
    """Format metrics as short text, without details: ``loss 0.412, rotation_accuracy 84.21 %``."""
    parts = []
    for name, value in metrics.items():
        if "/" not in name:
            parts.append(f"{name} {value:.2f} %" if name.endswith("accuracy") else f"{name} {value:.4g}")
    return ", ".join(parts)

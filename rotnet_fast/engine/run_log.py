"""Reports of a run: a progress bar, metrics.jsonl, TensorBoard and one printed line per epoch."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from rotnet_fast.engine.run_folder import RunFolder
from rotnet_fast.errors import printable
from rotnet_fast.files import ensure_folder


class _Bar(tqdm):  # type: ignore[misc]
    """A progress bar without tqdm's thread, which redraws idle bars and cannot start if memory is short."""

    monitor_interval = 0


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
    """Reports one run; a context manager that closes the bar and the event files.

    Metrics are loss values and percentages. A metric whose name contains a slash, such as
    ``rotation_accuracy/90``, is a detail: it is recorded but not printed.

    Args:
        run: folder for metrics.jsonl and tensorboard/.
        total_images: number of images to train on in the whole run.
        images_done, steps_done: where a resumed run continues.
        steps_tested: steps up to the end of the last epoch that is finished, tests included.
        progress: whether to show the bar (on a terminal) and print a line per epoch.
        tensorboard: whether to write TensorBoard events.
    """

    def __init__(
        self,
        run: RunFolder,
        total_images: int,
        images_done: int,
        steps_done: int,
        steps_tested: int,
        progress: bool,
        tensorboard: bool,
    ) -> None:
        self._run = run
        self._print = progress
        # disable=None shows the bar on terminals only, so that log files stay readable.
        self._bar = _Bar(
            total=total_images,
            initial=images_done,
            unit="img",
            unit_scale=True,
            dynamic_ncols=True,
            disable=None if progress else True,
        )
        self._board = Board(run, steps_done, steps_tested) if tensorboard else None

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._bar.close()
        if self._board is not None:
            self._board.close()

    def interval(
        self, epoch: int, step: int, steps_done: int, images: int, rate: float, metrics: Mapping[str, float]
    ) -> None:
        """Report the steps since the last call.

        Args:
            epoch: number of the current epoch, from 0.
            step: number of its finished steps.
            steps_done: number of finished steps of the run.
            images: number of images trained on since the last call.
            rate: images per second since then.
            metrics: means over these images' views, the learning rate, and the fraction of the time in which
                the host waited for batches.
        """
        self._bar.set_description(f"epoch {epoch + 1}", refresh=False)
        self._bar.set_postfix_str(describe(metrics), refresh=False)
        self._bar.update(images)
        self._record("train", epoch, step, {**metrics, "images_per_second": rate})
        if self._board is not None:
            self._board.interval(steps_done, rate, metrics)

    def epoch(
        self, epoch: int, epochs: int, step: int, steps_done: int, rate: float, metrics: Mapping[str, Any]
    ) -> None:
        """Report a finished epoch: ``metrics["train"]`` and, if it was evaluated, ``metrics["test"]``."""
        for kind, values in metrics.items():
            self._record(f"{kind}_epoch", epoch, step, values)
        if self._board is not None and "test" in metrics:
            self._board.test(steps_done, metrics["test"])
        if self._print:
            parts = [f"{kind} {describe(values)}" for kind, values in metrics.items()]
            tqdm.write(f"epoch {epoch + 1}/{epochs}: {'; '.join(parts)}; {rate:.0f} images/s")

    def pictures(self, steps_done: int, pictures: Mapping[str, NDArray[np.uint8]]) -> None:
        """Show pictures of the last test, uint8 [H,W,3] by name."""
        if self._board is not None:
            for name, image in pictures.items():
                self._board.picture(steps_done, name, image)

    def warn(self, sentence: str) -> None:
        """Print a warning to standard error, even without progress."""
        tqdm.write(f"WARNING: {sentence}", file=sys.stderr)

    def _record(self, kind: str, epoch: int, step: int, values: Mapping[str, float]) -> None:
        self._run.append_metrics({"kind": kind, "epoch": epoch, "step": step, **values})


def describe(metrics: Mapping[str, float]) -> str:
    """Format metrics as short text, without details: ``loss 0.412, rotation_accuracy 84.21 %``."""
    parts = []
    for name, value in metrics.items():
        if "/" not in name:
            parts.append(f"{name} {value:.2f} %" if name.endswith("accuracy") else f"{name} {value:.4g}")
    return ", ".join(parts)

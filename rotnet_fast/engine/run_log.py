"""Reports of a run: a progress bar, metrics.jsonl, TensorBoard and one printed line per epoch."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from tqdm import tqdm

from rotnet_fast.engine.run_folder import RunFolder
from rotnet_fast.files import ensure_folder


class _Bar(tqdm):  # type: ignore[misc]
    """A progress bar without tqdm's thread, which redraws idle bars and cannot start if memory is short."""

    monitor_interval = 0


class RunLog:
    """Reports one run; a context manager that closes the bar and the event file.

    Metrics are loss values and percentages. A metric whose name contains a slash, such as
    ``rotation_accuracy/90``, is a detail: it is recorded but not printed.

    Args:
        run: folder for metrics.jsonl and tensorboard/.
        total_images: number of images to train on in the whole run.
        images_done, steps_done: where a resumed run continues.
        progress: whether to show the bar (on a terminal) and print a line per epoch.
        tensorboard: whether to write TensorBoard events.
    """

    def __init__(
        self,
        run: RunFolder,
        total_images: int,
        images_done: int,
        steps_done: int,
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
        self._writer: Any = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter  # takes a second to import

            ensure_folder(run.path / "tensorboard")
            # purge_step hides events that a killed run wrote after its last checkpoint.
            self._writer = SummaryWriter(str(run.path / "tensorboard"), purge_step=steps_done + 1)

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._bar.close()
        if self._writer is not None:
            self._writer.close()

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
        self._record("train", epoch, step, steps_done, {**metrics, "images_per_second": rate})

    def epoch(
        self, epoch: int, epochs: int, step: int, steps_done: int, rate: float, metrics: Mapping[str, Any]
    ) -> None:
        """Report a finished epoch: ``metrics["train"]`` and, if it was evaluated, ``metrics["test"]``."""
        for kind, values in metrics.items():
            self._record(f"{kind}_epoch", epoch, step, steps_done, values)
        if self._print:
            parts = [f"{kind} {describe(values)}" for kind, values in metrics.items()]
            tqdm.write(f"epoch {epoch + 1}/{epochs}: {'; '.join(parts)}; {rate:.0f} images/s")

    def warn(self, sentence: str) -> None:
        """Print a warning to standard error, even without progress."""
        tqdm.write(f"WARNING: {sentence}", file=sys.stderr)

    def _record(self, kind: str, epoch: int, step: int, steps_done: int, values: Mapping[str, float]) -> None:
        self._run.append_metrics({"kind": kind, "epoch": epoch, "step": step, **values})
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(f"{kind}/{name}", value, steps_done)


def describe(metrics: Mapping[str, float]) -> str:
    """Format metrics as short text, without details: ``loss 0.412, rotation_accuracy 84.21 %``."""
    parts = []
    for name, value in metrics.items():
        if "/" not in name:
            parts.append(f"{name} {value:.2f} %" if name.endswith("accuracy") else f"{name} {value:.4g}")
    return ", ".join(parts)

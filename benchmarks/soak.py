"""Whether a long training leaks: ``python -m benchmarks.soak --output FILE.json [--steps N] [--loader L]``.

Trains the smallest network with all that a run does (checkpoints within epochs and after them, tests,
metrics, TensorBoard), and samples the process after every epoch: resident memory, open files, threads. The
first quarter is warm-up. A straight line is fitted to the rest, which is flat if its slope stays below
``LIMITS``.

The exit code is 1 if something is not flat. Needs Linux, for /proc.
"""

from __future__ import annotations

import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rotnet_fast.command import run_command
from rotnet_fast.config import PretrainConfig
from rotnet_fast.engine.run_folder import check_output, environment, write_json
from rotnet_fast.errors import ArgumentError
from rotnet_fast.flags import parse_flags
from rotnet_fast.pretrain import pretrain
from rotnet_fast.settings import Settings

if TYPE_CHECKING:
    from rotnet_fast.data.loader import Batch
    from rotnet_fast.engine.trainer import Trainer

PROGRAM = "python -m benchmarks.soak"

STEPS_PER_EPOCH = 100
_BATCH = 4

LIMITS = {"memory": 0.2, "files": 0.5, "threads": 0.5}
"""MB, open files and threads per 1,000 steps. 0.2 MB are 200 bytes per step, less than any tensor that leaks;
at 14 steps per second, a week would add 1.7 GB."""


@dataclass(frozen=True)
class SoakConfig(Settings):
    """Train for long, and report whether memory, open files and threads grow."""

    output: Path
    """JSON file to write."""

    steps: int = 20_000
    """Training steps with each loader, rounded up to whole epochs of 100."""

    loader: Literal["both", "resident", "dali"] = "both"
    """What feeds the training."""

    def validate(self) -> None:
        """Check what the types alone do not.

        Raises:
            ArgumentError: a setting has an unusable value.
        """
        if self.output.suffix != ".json":
            raise ArgumentError(f"output is {self.output}; give a file whose name ends in .json")
        if self.steps < 20 * STEPS_PER_EPOCH:
            raise ArgumentError(f"steps is {self.steps}; a line needs at least {20 * STEPS_PER_EPOCH}")
        check_output(self.output.parent)


@dataclass(frozen=True)
class Sample:
    """What a process holds after some steps.

    Attributes:
        step: number of finished steps.
        memory: resident memory in MB of 10^6 bytes.
        files: number of open descriptors, without the one that counts them.
        threads: number of threads of the operating system.
    """

    step: int
    memory: float
    files: int
    threads: int

    @classmethod
    def now(cls, step: int) -> Sample:
        """Sample this process."""
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        files = len(list(Path("/proc/self/fd").iterdir())) - 1
        return cls(step, int(status["VmRSS"].split()[0]) * 1024 / 1e6, files, int(status["Threads"]))


@dataclass(frozen=True)
class Finding:
    """How one quantity developed.

    Attributes:
        start: median of the first tenth of the samples after the warm-up.
        end: median of the last tenth.
        slope: slope of the fitted line, per 1,000 steps.
        limit: largest slope that counts as flat.
    """

    start: float
    end: float
    slope: float
    limit: float

    @property
    def is_flat(self) -> bool:
        return self.slope <= self.limit


def fit_lines(samples: Sequence[Sample], limits: dict[str, float] = LIMITS) -> dict[str, Finding]:
    """Fit a line to each quantity, without the first quarter of the samples."""
    settled = samples[len(samples) // 4 :]
    tenth = max(1, len(settled) // 10)
    steps = [sample.step / 1000 for sample in settled]
    found = {}
    for name, limit in limits.items():
        values = [float(getattr(sample, name)) for sample in settled]
        slope = statistics.linear_regression(steps, values).slope
        first, last = statistics.median(values[:tenth]), statistics.median(values[-tenth:])
        found[name] = Finding(first, last, slope, limit)
    return found


@contextmanager
def sampled(every: int) -> Iterator[list[Sample]]:
    """Context that samples the process after every ``every`` training steps."""
    from rotnet_fast.engine.trainer import Trainer

    samples: list[Sample] = []
    train_step = Trainer.train_step
    done = 0

    def counted(self: Trainer, batch: Batch) -> None:
        nonlocal done
        train_step(self, batch)
        done += 1
        if done % every == 0:
            samples.append(Sample.now(done))

    Trainer.train_step = counted  # type: ignore[method-assign]
    try:
        yield samples
    finally:
        Trainer.train_step = train_step  # type: ignore[method-assign]


def config_of(
    loader: str, folder: Path, epochs: int, steps_per_epoch: int = STEPS_PER_EPOCH
) -> PretrainConfig:
    """Configure the smallest training with everything that a run does.

    Args:
        loader: ``resident`` or ``dali``, for which image files are written.
        folder: folder for the run and the images.
        epochs, steps_per_epoch: length of the training.
    """
    count = steps_per_epoch * _BATCH
    source: dict[str, Any] = {"dataset": "digits", "limit_train": count, "limit_test": 20}
    if loader == "dali":
        make_images(folder / "images", count)
        source = {"dataset": "folder", "data_dir": folder / "images", "loader": "dali"}
    return PretrainConfig(
        **source,
        preset="quickstart",
        image_size=8,
        blocks=3,
        width=0.05,
        pad=1,
        epochs=epochs,
        batch_size=_BATCH,
        lr=0.01,
        schedule="linear",
        milestones=(),
        device="cpu",
        output=folder / "run",
        log_every=20,
        checkpoint_every_steps=max(1, steps_per_epoch // 3),
    )


def make_images(folder: Path, count: int) -> None:
    """Write JPEG files of noise in two classes, ``count`` for training and 20 for the test."""
    import numpy as np
    from PIL import Image

    random = np.random.default_rng(0)
    for half, size in (("train", count), ("test", 20)):
        for number in range(size):
            path = folder / half / "ab"[number % 2] / f"{number:05d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)


def soak(loader: str, steps: int) -> dict[str, Any]:
    """Train with one loader, in a temporary folder.

    Returns:
        ``steps``, ``seconds``, ``samples`` and ``findings``, as plain values.
    """
    epochs = -(-steps // STEPS_PER_EPOCH)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, sampled(STEPS_PER_EPOCH) as samples:
        pretrain(config_of(loader, Path(folder), epochs))
    findings = fit_lines(samples)
    return {
        "steps": epochs * STEPS_PER_EPOCH,
        "seconds": time.perf_counter() - start,
        "findings": {name: {**asdict(one), "is_flat": one.is_flat} for name, one in findings.items()},
        "samples": [list(asdict(sample).values()) for sample in samples],
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Command-line entry point; returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    verdicts: list[bool] = []

    def command() -> None:
        config = parse_flags(SoakConfig, PROGRAM, arguments)
        config.validate()
        results: dict[str, Any] = {
            "what": "rotnet_fast soak",
            "command": f"{PROGRAM} {shlex.join(arguments)}",
            "environment": environment("cpu"),
            "columns": list(Sample.__dataclass_fields__),
            "loaders": {},
        }
        for loader in ("resident", "dali") if config.loader == "both" else (config.loader,):
            found = results["loaders"][loader] = soak(loader, config.steps)
            write_json(config.output, results)
            print(f"{loader}: {found['steps']:,} steps in {found['seconds']:.0f} s")
            for name, one in found["findings"].items():
                verdicts.append(one["is_flat"])
                verdict = "flat" if one["is_flat"] else "NOT FLAT"
                print(
                    f"  {name:8} {one['start']:8.1f} -> {one['end']:8.1f}, {one['slope']:+.3f} per 1,000 "
                    f"steps: {verdict} (limit {one['limit']:g})"
                )
        print(f"written: {config.output}")

    return run_command(command) or int(not all(verdicts))


if __name__ == "__main__":
    sys.exit(main())

"""Preset speedrun against preset paper: seconds of pretraining, and how good the features are.

python -m benchmarks.speedrun --data-dir DIR    # CIFAR-10; DIR is where its archive is, or is downloaded to

For each seed, both pretrain on the same images, and the paper's conv head is trained on conv2 of each, by
the paper's recipe. After every seed, speedrun.json and speedrun.md in the output folder say what came out.
The same command goes on after an interruption: what is finished is kept.

Exit codes: see `rotnet_fast.command`. torch is imported only once the flags are known to be right.
"""

from __future__ import annotations

import math
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from rotnet_fast.command import run_command
from rotnet_fast.config import PresetName, PretrainConfig
from rotnet_fast.engine.run_folder import write_json
from rotnet_fast.errors import ArgumentError
from rotnet_fast.evaluate import EvaluateConfig, evaluate
from rotnet_fast.flags import parse_flags
from rotnet_fast.presets import PRESETS
from rotnet_fast.pretrain import pretrain
from rotnet_fast.settings import Settings

PROGRAM = "python -m benchmarks.speedrun"

RECIPES: tuple[PresetName, PresetName] = ("paper", "speedrun")

MARGIN = 0.3
"""Points of conv-head accuracy that the faster recipe may lose: one standard error of 10,000 test images."""

_HEAD_EPOCHS = 100

_MEASURED = ("seconds", "rotation_accuracy", "head_accuracy")


@dataclass(frozen=True)
class SpeedrunConfig(Settings):
    """Compare preset speedrun with preset paper."""

    dataset: Literal["cifar10", "folder", "digits"] = "cifar10"
    """Images with labels, as in rotnet_fast.pretrain."""

    data_dir: Path | None = None
    """Folder of the data set's files."""

    seeds: int = 3
    """Repeat both recipes with so many seeds, 0, 1, ..."""

    speedrun_epochs: int | None = None
    """Epochs of preset speedrun, with its schedule stretched or squeezed to them, to find how few will do.
    The runs of preset paper in the output folder are kept. None: the preset's."""

    width: float = 1.0
    """Multiplies the number of channels. Another value than 1 is for trying it out."""

    epochs_scale: float = 1.0
    """Fraction of all epochs, at least one each. Another value than 1 is for trying it out."""

    limit_train: int | None = None
    """Train on this many images only, balanced over the classes."""

    limit_test: int | None = None
    """Test on this many images only, balanced over the classes."""

    device: str = "auto"
    """auto (a CUDA device where there is one), cpu, cuda or cuda:N."""

    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Number format, as in rotnet_fast.pretrain."""

    output: Path = Path("runs/benchmark-speedrun")
    """Folder of all runs and of the result."""

    def validate(self) -> None:
        """Check what the types alone do not.

        Raises:
            ArgumentError: one sentence with the setting, the value found and what is allowed.
        """
        if self.seeds < 1:
            raise ArgumentError(f"seeds is {self.seeds}; it must be at least 1")
        if self.speedrun_epochs is not None and self.speedrun_epochs < 1:
            raise ArgumentError(f"speedrun-epochs is {self.speedrun_epochs}; it must be at least 1")
        if not 0 < self.epochs_scale <= 1:
            raise ArgumentError(f"epochs-scale is {self.epochs_scale:g}; it must lie in (0, 1]")
        for name in RECIPES:
            self.pretraining(name, seed=0).validate()

    def pretraining(self, recipe: PresetName, seed: int) -> PretrainConfig:
        """One pretraining, which goes on where it was left."""
        preset = PRESETS[recipe]()
        full = self.speedrun_epochs if recipe == "speedrun" and self.speedrun_epochs else preset.epochs
        epochs = max(1, round(self.epochs_scale * full))
        return replace(
            preset.stretched(epochs),
            dataset=self.dataset,
            data_dir=self.data_dir,
            width=self.width,
            limit_train=self.limit_train,
            limit_test=self.limit_test,
            seed=seed,
            device=self.device,
            precision=self.precision,
            eval_every=epochs,
            tensorboard=False,
            output=self.output / f"{recipe}-{epochs}-epochs-seed{seed}",
            resume="auto",
        )

    def head(self, run: Path, seed: int) -> EvaluateConfig:
        """The paper's conv head on the conv2 of a pretraining."""
        return EvaluateConfig(
            checkpoint=run,
            layers=("conv2",),
            heads=("conv",),
            random_init=False,
            epochs=max(1, round(self.epochs_scale * _HEAD_EPOCHS)),
            seed=seed,
            device=self.device,
            precision=self.precision,
            output=run / "conv-head",
        )


def measure(config: SpeedrunConfig, recipe: PresetName, seed: int) -> dict[str, Any]:
    """Pretrain and test the features, or read off what is finished of that.

    Returns:
        ``seconds`` of training steps alone, ``epochs``, ``rotation_accuracy``, ``head_accuracy`` (percent),
        and where they come from.

    Raises:
        RotnetError: one of its kinds, see `rotnet_fast.errors`; a `CheckpointError` where the output folder
            holds runs with other settings or data.
        Interrupted: stopped by a signal, with everything saved.
    """
    pretraining = config.pretraining(recipe, seed)
    run = pretraining.output_folder()
    print(f"\n{recipe}, seed {seed}")
    pretext = pretrain(pretraining)
    head = config.head(run, seed)
    (cell,) = evaluate(head, head.output_folder())["cells"]
    return {
        "recipe": recipe,
        "seed": seed,
        "epochs": pretraining.epochs,
        "seconds": pretext["train_seconds"],
        "images_per_second": pretext["images_per_second"],
        "rotation_accuracy": pretext["rotation_accuracy"],
        "head_accuracy": cell["accuracy"],
        "head_epochs": head.epochs,
        "data_fingerprint": pretext["data_fingerprint"],
        "train_images": pretext["train_images"],
        "test_images": pretext["test_images"],
        "dataset": pretext["dataset"],
        "precision": pretext["precision"],
        "settings": pretraining.recipe(),
        "environment": pretext["environment"],
    }


def summarise(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the runs say.

    Args:
        runs: as :func:`measure` gives them, the same seeds of both recipes.

    Returns:
        For each recipe, ``mean`` and ``deviation`` (sample standard deviation; None for a single seed) of
        what was measured; ``difference`` of conv-head accuracy, speedrun minus paper, in points, with its
        ``standard_error`` over the pairs of seeds; ``speedup``; and ``is_within_margin``.
    """
    found: dict[str, Any] = {}
    for recipe in RECIPES:
        values = {name: [run[name] for run in runs if run["recipe"] == recipe] for name in _MEASURED}
        found[recipe] = {
            name: {"mean": statistics.fmean(its), "deviation": _deviation(its)}
            for name, its in values.items()
        }
    heads = {(run["recipe"], run["seed"]): run["head_accuracy"] for run in runs}
    seeds = sorted({run["seed"] for run in runs})
    paper, fast = RECIPES
    differences = [heads[fast, seed] - heads[paper, seed] for seed in seeds]
    deviation = _deviation(differences)
    mean = statistics.fmean(differences)
    return {
        **found,
        "seeds": len(seeds),
        "difference": mean,
        "standard_error": None if deviation is None else deviation / math.sqrt(len(seeds)),
        "speedup": found[paper]["seconds"]["mean"] / found[fast]["seconds"]["mean"],
        "margin": MARGIN,
        "is_within_margin": mean >= -MARGIN,
    }


def render(content: Mapping[str, Any]) -> str:
    """The Markdown table and the sentences below it, of what speedrun.json holds."""
    runs, summary = content["runs"], content["summary"]
    lines = [
        "| recipe | epochs | seconds of pretraining | rotation accuracy, % | conv head on conv2, % |",
        "|---|---:|---:|---:|---:|",
    ]
    for recipe in RECIPES:
        epochs = next(run["epochs"] for run in runs if run["recipe"] == recipe)
        cells = [
            _with_deviation(summary[recipe][name], places)
            for name, places in zip(_MEASURED, (1, 2, 2), strict=True)
        ]
        lines.append(f"| `{recipe}` | {epochs} | {' | '.join(cells)} |")
    error = summary["standard_error"]
    spread = "" if error is None else f" (standard error over seeds {error:.2f})"
    verdict = "at most" if summary["is_within_margin"] else "more than"
    sentences = (
        f"speedrun takes {summary['speedup']:.1f} times less time than paper, and its conv head differs by "
        f"{summary['difference']:+.2f} points{spread}: {verdict} {summary['margin']} are lost. "
        f"{content['reservation']}"
    )
    first = runs[0]
    environment = first["environment"]
    images = f"{first['train_images']:,} training and {first['test_images']:,} test images"
    seeds = f"{summary['seeds']} seed{'s' if summary['seeds'] != 1 else ''}"
    where = (
        f"{seeds}, mean ± standard deviation; {first['dataset']}, {images}; heads trained for "
        f"{first['head_epochs']} epochs; seconds are those of training steps, without tests and checkpoints; "
        f"{environment['device']}, {first['precision']}, torch {environment['torch']}, commit "
        f"{environment['commit']}; by `{content['command']}`."
    )
    return "\n".join([*lines, "", sentences.strip(), "", where, ""])


def run(config: SpeedrunConfig, command: str) -> dict[str, Any]:
    """Measure everything, and write the result after every seed.

    Args:
        command: what was typed, for the record.

    Returns:
        What speedrun.json holds.

    Raises:
        RotnetError, Interrupted: see :func:`measure`.
    """
    runs: list[dict[str, Any]] = []
    content: dict[str, Any] = {}
    for seed in range(config.seeds):
        runs += [measure(config, recipe, seed) for recipe in RECIPES]
        content = {
            "command": command,
            "settings": asdict(config),
            "reservation": reservation(config),
            "summary": summarise(runs),
            "runs": runs,
        }
        write_json(config.output / "speedrun.json", content)
        (config.output / "speedrun.md").write_text(render(content), encoding="utf-8")
    return content


def reservation(config: SpeedrunConfig) -> str:
    """Why the numbers say nothing about the claim; empty where they do."""
    reasons = []
    if config.width != 1:
        reasons.append(f"width {config.width:g}")
    if config.epochs_scale != 1:
        reasons.append(f"{config.epochs_scale:g} times the epochs")
    if config.limit_train is not None or config.limit_test is not None:
        reasons.append("a part of the images")
    if config.seeds < 3:
        reasons.append("fewer than 3 seeds")
    return f"This is a trial, which does not decide the claim: {', '.join(reasons)}." if reasons else ""


def _deviation(values: Sequence[float]) -> float | None:
    return statistics.stdev(values) if len(values) > 1 else None


def _with_deviation(value: Mapping[str, float | None], places: int) -> str:
    spread = "" if value["deviation"] is None else f" ± {value['deviation']:.{places}f}"
    return f"{value['mean']:.{places}f}{spread}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Command-line entry point; returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)

    def command() -> None:
        config = parse_flags(SpeedrunConfig, PROGRAM, arguments)
        config.validate()
        content = run(config, " ".join([PROGRAM, *arguments]))
        print(f"\n{render(content)}\nresults: {config.output / 'speedrun.json'}")

    return run_command(command)


if __name__ == "__main__":
    sys.exit(main())

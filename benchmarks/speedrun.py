"""Recipes of pretraining and of heads against each other: how good the features are, and in what time.

python -m benchmarks.speedrun --data-dir DIR
python -m benchmarks.speedrun --data-dir DIR --dataset folder --validation 5000 --seeds 0 1 2 \
    --recipes "speedrun --epochs 3 --width 0.5" "speedrun --epochs 3 --width 0.5 --warmup 0.1" \
    "speedrun --epochs 3 --width 0.5 / --epochs 20 --schedule linear"

A recipe is a preset and flags of rotnet_fast.pretrain and, after a slash, of rotnet_fast.evaluate, which
trains the heads. All are trained with the same seeds on the same images, in one process, and each is compared
with the first. Recipes that differ in their heads alone share a pretraining. After every recipe,
speedrun.json and speedrun.md in the output folder say what came out. The same command resumes after an
interruption, with what is finished kept; so do more recipes and more seeds.

Recipes that differ in --epochs and --warmup of the pretraining alone become a learning curve in speedrun.png:
how good the features are that a number of minutes gives. Each point is a training of its own, whose schedule
ends there:

python -m benchmarks.speedrun --data-dir DIR --recipes "paper --epochs 3" "paper --epochs 10" \
    "speedrun --epochs 3 --warmup 0.3" "speedrun --epochs 10 --warmup 1"

Exit codes: see `rotnet_fast.command`. torch is only imported once the flags are known to be valid.
"""

from __future__ import annotations

import re
import shlex
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from rotnet_fast.command import run_command
from rotnet_fast.config import PresetName, PretrainConfig
from rotnet_fast.engine.run_folder import write_json
from rotnet_fast.errors import ArgumentError
from rotnet_fast.evaluate import PROGRAM as EVALUATE
from rotnet_fast.evaluate import EvaluateConfig, evaluate
from rotnet_fast.flags import given_flags, parse_flags
from rotnet_fast.plain import counted
from rotnet_fast.pretext_tasks import ROTATION
from rotnet_fast.pretrain import parse, pretrain
from rotnet_fast.settings import Settings
from rotnet_fast.study.paired import SIGNIFICANCE, over_seeds

PROGRAM = "python -m benchmarks.speedrun"

MARGIN = 0.3
"""Points of accuracy that a faster recipe may lose: one standard error of 10,000 test images."""

ROTATION_ACCURACY, ROTATION_LOSS = "rotation accuracy, %", "rotation loss"
MEASURED = {ROTATION_ACCURACY: "rotation_accuracy", ROTATION_LOSS: "rotation_loss"}
"""Measures of RotNet's pretext task -> their names in results.json. Those of features are named by their
layer and head: "conv2 conv, %"."""

_OURS = {
    "dataset", "data_dir", "limit_train", "limit_test", "validation", "device", "precision", "seed",
    "output", "resume", "checkpoint", "eval_every",
}  # fmt: skip
"""Settings of a recipe's commands that are the same for all recipes."""


@dataclass(frozen=True)
class SpeedrunConfig(Settings):
    """Compare recipes of pretraining and of heads by the accuracy of heads on frozen features."""

    recipes: tuple[str, ...] = ("paper", "speedrun")
    """Each a preset and flags of rotnet_fast.pretrain and, after a slash, flags of rotnet_fast.evaluate, such
    as "speedrun --epochs 10 --warmup 1 / --epochs 12 --schedule linear". All are compared with the first."""

    dataset: Literal["cifar10", "folder", "digits"] = "cifar10"
    """Images with labels, as in rotnet_fast.pretrain."""

    data_dir: Path | None = None
    """Folder of the data set's files."""

    validation: int | None = None
    """Hold out so many training images and test on them, as one must while choosing among recipes. None: test
    on the test images."""

    limit_train: int | None = None
    """Train on this many images only, balanced over the classes."""

    limit_test: int | None = None
    """Test on this many images only, balanced over the classes."""

    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds to train every recipe with; confirm a choice with others than it was made with."""

    device: str = "auto"
    """auto (a CUDA device where there is one), cpu, cuda or cuda:N."""

    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Number format, as in rotnet_fast.pretrain."""

    output: Path = Path("runs/benchmark-speedrun")
    """Folder of all runs and of the result."""

    def validate(self) -> None:
        """Check the values of the settings, and the flags of all recipes.

        Raises:
            ArgumentError: a setting or the flag of a recipe has an invalid value.
        """
        super().validate()
        for name in ("recipes", "seeds"):
            values = getattr(self, name)
            if not 0 < len(values) == len(set(values)):
                shown = " ".join(map(repr, values)) or "empty"
                raise ArgumentError(f"{name} is {shown}; give one or more, each once")
        for recipe in self.recipes:
            self.pretraining(recipe, self.seeds[0])
            self.heads(recipe, self.seeds[0])

    def pretraining(self, recipe: str, seed: int) -> PretrainConfig:
        """Return the settings of one pretraining, which resumes its own run.

        Raises:
            ArgumentError: a flag of the recipe is unknown, has an invalid value, or is set for all recipes.
        """
        words = _halves(recipe)[0]
        if not words or words[0] not in get_args(PresetName):
            choices = ", ".join(get_args(PresetName))
            raise ArgumentError(
                f"recipes holds {recipe!r}, which begins with no preset; choose from {choices}"
            )
        given = given_flags(PretrainConfig, PROGRAM, words[1:])
        _check_free(recipe, given)
        if "preset" in given:
            raise ArgumentError(
                f"recipes holds {recipe!r}, whose first word is its preset; remove --preset there"
            )
        common = {
            "dataset": self.dataset,
            "data-dir": self.data_dir,
            "limit-train": self.limit_train,
            "limit-test": self.limit_test,
            "validation": self.validation,
            "device": self.device,
            "precision": self.precision,
            "seed": seed,
            "output": self.output / f"{_slug(words)}-seed{seed}",
        }
        flags = [f"--{name}={value}" for name, value in common.items() if value is not None]
        config = parse(["--preset", *words, *flags, "--resume=auto"])
        return replace(config, eval_every=config.epochs, tensorboard=False)

    def heads(self, recipe: str, seed: int) -> EvaluateConfig:
        """Return the settings of the heads on one pretraining.

        Raises:
            ArgumentError: see :meth:`pretraining`.
        """
        words = _halves(recipe)[1]
        given = given_flags(EvaluateConfig, EVALUATE, words)
        _check_free(recipe, given)
        run = self.pretraining(recipe, seed).output_folder()
        base = EvaluateConfig(
            checkpoint=str(run),
            layers=("conv2",),
            heads=("conv",),
            random_init=False,
            seed=seed,
            device=self.device,
            precision=self.precision,
            output=run / f"heads-{_slug(words) or 'paper'}",
        )
        config = parse_flags(EvaluateConfig, EVALUATE, words, base)
        config.recipe(config.preset or "paper").validate()
        return config


def _halves(recipe: str) -> tuple[list[str], list[str]]:
    """Return the words of a recipe before its slash, and those after it."""
    try:
        words = shlex.split(recipe)
    except ValueError as error:
        raise ArgumentError(
            f"recipes holds {recipe!r}, which cannot be read ({error}); balance its quotes"
        ) from None
    end = words.index("/") if "/" in words else len(words)
    return words[:end], words[end + 1 :]


def _check_free(recipe: str, given: Mapping[str, Any]) -> None:
    for name in given:
        if name in _OURS:
            flag = name.replace("_", "-")
            raise ArgumentError(f"recipes holds {recipe!r}, but {flag} is the same for all; remove it there")


def _slug(words: Sequence[str]) -> str:
    """Return words as part of a folder's name."""
    return re.sub(r"[^\w.]+", "-", " ".join(words)).strip("-")


def measure(config: SpeedrunConfig, recipe: str, seed: int) -> dict[str, Any]:
    """Pretrain, and train the heads, or read what is finished of that.

    Returns:
        ``seconds`` of the pretraining's steps alone, ``measures`` (name -> value; accuracies in percent), and
        where they come from.

    Raises:
        RotnetError: an error of `rotnet_fast.errors`; a `CheckpointError` where the output folder holds runs
            with other settings or data.
        Interrupted: a signal stopped the process, which has saved everything.
    """
    pretraining, heads = config.pretraining(recipe, seed), config.heads(recipe, seed)
    print(f"\n{recipe}, seed {seed}", flush=True)
    pretext = pretrain(pretraining)
    found = evaluate(heads, heads.output_folder())
    solved = MEASURED if pretraining.pretext_task == ROTATION else {}
    return {
        "recipe": recipe,
        "seed": seed,
        "seconds": pretext["train_seconds"],
        "measures": {
            **{name: pretext[key] for name, key in solved.items()},
            **{f"{name_of(cell)}, %": cell["accuracy"] for cell in found["cells"]},
        },
        "data_fingerprint": pretext["data_fingerprint"],
        "train_images": pretext["train_images"],
        "test_images": pretext["test_images"],
        "dataset": pretext["dataset"],
        "precision": pretext["precision"],
        "settings": pretraining.recipe(),
        "heads": heads.recipe(heads.preset or "paper").optimisation(),
        "environment": pretext["environment"],
    }


def name_of(cell: Mapping[str, Any]) -> str:
    """Name a row of an evaluation: a frozen one by layer and head alone, others by their method, too."""
    parts = ["" if cell["method"] == "frozen" else cell["method"], cell["layer"], cell["head"], cell["note"]]
    return " ".join(filter(None, parts))


def summarise(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Compare every recipe with the first.

    Args:
        runs: as :func:`measure` returns them, the same seeds of every recipe.

    Returns:
        recipe -> ``seconds`` (mean) and ``measures``: name -> ``mean``, ``deviation`` (sample standard
        deviation; None for one seed), and for the other recipes ``difference`` to the first with its
        ``standard_error`` over the seeds, ``p_value`` and ``verdict``. One seed shows no spread: its
        verdict is "one seed".
    """
    first = runs[0]["recipe"]
    by_recipe: dict[str, dict[int, Mapping[str, Any]]] = {}
    for run in runs:
        by_recipe.setdefault(run["recipe"], {})[run["seed"]] = run
    found: dict[str, Any] = {}
    for recipe, its in by_recipe.items():
        measures: dict[str, Any] = {}
        for name in next(iter(its.values()))["measures"]:
            values = {seed: run["measures"][name] for seed, run in its.items()}
            deviation = statistics.stdev(values.values()) if len(values) > 1 else None
            measures[name] = {"mean": statistics.fmean(values.values()), "deviation": deviation}
            reference = {seed: run["measures"].get(name) for seed, run in by_recipe[first].items()}
            if recipe != first and None not in reference.values():
                measures[name] |= _compared([values[seed] - reference[seed] for seed in values], name)
        seconds = statistics.fmean(run["seconds"] for run in its.values())
        found[recipe] = {"seconds": seconds, "seeds": sorted(its), "measures": measures}
    return found


def _compared(differences: Sequence[float], name: str) -> dict[str, Any]:
    """Judge a difference to the first recipe; the lower loss is the better one."""
    found = asdict(over_seeds(differences))
    if len(differences) < 2:
        return {**found, "standard_error": None, "p_value": None, "verdict": "one seed"}
    is_better = found["difference"] < 0 if name == ROTATION_LOSS else found["difference"] > 0
    verdict = "no difference seen"
    if found["p_value"] < SIGNIFICANCE:
        verdict = "better" if is_better else "worse"
    return {**found, "verdict": verdict}


def loss_of(measured: Mapping[str, Any], seeds: int) -> str:
    """Say whether an accuracy loses at most `MARGIN` against the first recipe's, with 95 % confidence.

    Args:
        measured: difference and standard error, see :func:`summarise`.
        seeds: number of seeds.
    """
    if measured["standard_error"] is None:
        return "undecided: more seeds"
    from scipy.stats import t  # here, because importing scipy.stats takes a second

    reach = t.ppf(0.95, seeds - 1) * measured["standard_error"]
    if measured["difference"] - reach >= -MARGIN:
        return f"at most {MARGIN}"
    return f"more than {MARGIN}" if measured["difference"] + reach < -MARGIN else "undecided: more seeds"


def render(content: Mapping[str, Any]) -> str:
    """Return the Markdown tables of what speedrun.json holds."""
    runs, summary = content["runs"], content["summary"]
    names = list(dict.fromkeys(name for its in summary.values() for name in its["measures"]))
    lines = ["| recipe | seconds of pretraining | " + " | ".join(names) + " |"]
    lines.append("|---|---:|" + "---:|" * len(names))
    for recipe, its in summary.items():
        cells = [_with_deviation(its["measures"][name]) if name in its["measures"] else "-" for name in names]
        lines.append(f"| `{recipe}` | {its['seconds']:.1f} | {' | '.join(cells)} |")
    first, *others = summary
    if others:
        lines += ["", f"Against `{first}`:", ""]
        lines.append("| recipe | measure | difference | standard error | p | verdict | lost |")
        lines.append("|---|---|---:|---:|---:|---|---|")
    for recipe in others:
        for name, measured in summary[recipe]["measures"].items():
            if "difference" not in measured:
                continue
            error, p_value = (
                "-" if measured[key] is None else f"{measured[key]:.3f}"
                for key in ("standard_error", "p_value")
            )
            lost = "" if name == ROTATION_LOSS else loss_of(measured, len(summary[recipe]["seeds"]))
            lines.append(
                f"| `{recipe}` | {name} | {measured['difference']:+.3f} | {error} | {p_value} | "
                f"{measured['verdict']} | {lost} |"
            )
    one = runs[0]
    tested = "held-out training images" if content["settings"]["validation"] else "test images"
    environment = one["environment"]
    sentences = [
        f"Seeds {', '.join(map(str, summary[first]['seeds']))}, mean ± standard deviation; {one['dataset']}, "
        f"{counted(one['train_images'], 'training image')}, {one['test_images']:,} {tested}.",
        "Differences are paired by seed, their p-values those of Student's t; the last column is about "
        f"{MARGIN} points, with 95 % confidence.",
        "Seconds are those of training steps, without tests and checkpoints.",
        f"{environment['device']}, {one['precision']}, torch {environment['torch']}, commit "
        f"{environment['commit']}; by `{content['command']}`.",
    ]
    where = " ".join(sentences)
    return "\n".join([*lines, "", where, ""])


def draw_curves(content: Mapping[str, Any], path: Path) -> None:
    """Draw the accuracy of the first head against the minutes of its pretraining, over the numbers of epochs.

    Recipes that differ in ``--epochs`` and ``--warmup`` of the pretraining alone are one line, whose error
    bars are standard deviations over the seeds. Where no two do, nothing is drawn.

    Args:
        content: what speedrun.json holds.
        path: path of the figure, without a suffix.
    """
    from rotnet_fast.plots.curves import Line, curves  # here, because importing matplotlib takes a second
    from rotnet_fast.plots.style import save, wrapped

    by_rest: dict[str, list[Mapping[str, Any]]] = {}
    for recipe, its in content["summary"].items():
        by_rest.setdefault(_without_length(recipe), []).append(its)
    measures = next(iter(content["summary"].values()))["measures"]
    measure = next(name for name in measures if name not in MEASURED)
    lines = []
    for rest, points in by_rest.items():
        points = sorted((its for its in points if measure in its["measures"]), key=lambda its: its["seconds"])
        found = [its["measures"][measure] for its in points]
        spreads = [value["deviation"] or 0.0 for value in found]  # one seed shows none
        minutes = [its["seconds"] / 60 for its in points]
        means = [value["mean"] for value in found]
        ends = [(mean - spread, mean + spread) for mean, spread in zip(means, spreads, strict=True)]
        lines.append(Line(wrapped(rest, 45), minutes, means, ends))
    if all(len(line.x) < 2 for line in lines):
        return
    device = content["runs"][0]["environment"]["device"]
    figure = curves(
        lines,
        x_label=f"minutes of the pretraining's steps on {device}; each point is a training of its own",
        y_label=f"accuracy of {measure.removesuffix(', %')}, %",
        title="Features for the time",
        log_x=True,
    )
    save(figure, path)


def _without_length(recipe: str) -> str:
    """Return a recipe without the numbers of epochs of its pretraining and of its warm-up."""
    pretraining, heads = _halves(recipe)
    rest = re.sub(r" --(epochs|warmup)[ =]\S+", "", shlex.join(pretraining))
    return shlex.join([*shlex.split(rest), *(["/", *heads] if heads else [])])


def run(config: SpeedrunConfig, command: str) -> dict[str, Any]:
    """Measure everything, and write the result after every seed.

    Args:
        config: validated settings.
        command: command line to record.

    Returns:
        The content of speedrun.json.

    Raises:
        RotnetError, Interrupted: see :func:`measure`.
    """
    runs: list[dict[str, Any]] = []
    content: dict[str, Any] = {}
    for seed in config.seeds:
        for recipe in config.recipes:
            runs.append(measure(config, recipe, seed))
            content = {
                "command": command,
                "settings": asdict(config),
                "summary": summarise(runs),
                "runs": runs,
            }
            write_json(config.output / "speedrun.json", content)
            (config.output / "speedrun.md").write_text(render(content), encoding="utf-8")
    draw_curves(content, config.output / "speedrun")
    return content


def _with_deviation(value: Mapping[str, float | None]) -> str:
    spread = "" if value["deviation"] is None else f" ± {value['deviation']:.2f}"
    return f"{value['mean']:.2f}{spread}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)

    def command() -> None:
        config = parse_flags(SpeedrunConfig, PROGRAM, arguments)
        config.validate()
        content = run(config, shlex.join([*PROGRAM.split(), *arguments]))
        print(f"\n{render(content)}\nresults: {config.output / 'speedrun.json'}")

    return run_command(command)


if __name__ == "__main__":
    sys.exit(main())

"""The comparison of recipes runs to its tables, resumes where it was stopped, and judges as it says."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from scipy import stats

from benchmarks import speedrun
from rotnet_fast.data import datasets, digits
from rotnet_fast.engine.step import TrainingStep
from rotnet_fast.errors import ArgumentError, CheckpointError
from rotnet_fast.evaluate import EvaluateConfig
from rotnet_fast.plots import curves
from rotnet_fast.presets import PRESETS

SHORT = "paper --epochs 1 --width 0.05 --batch-size 20 / --epochs 1"
LINEAR = "speedrun --epochs 1 --warmup 0.5 --width 0.05 --batch-size 20 / --epochs 1 --schedule linear --knn"


@pytest.fixture(autouse=True)
def _digits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(datasets.DATASETS, "digits", functools.cache(digits.load))


def flags(output: Path, *recipes: str) -> list[str]:
    tiny = "--dataset digits --limit-train 40 --limit-test 20 --device cpu --precision fp32 --seeds 0 7"
    return [*tiny.split(), "--output", str(output), "--recipes", *recipes]


def measured(recipe: str, seed: int, head: float, loss: float = 1.0) -> dict[str, Any]:
    measures = {speedrun.ROTATION_ACCURACY: 90.0, speedrun.ROTATION_LOSS: loss, "conv2 conv, %": head}
    return {"recipe": recipe, "seed": seed, "seconds": 10.0, "measures": measures}


def compared(*differences: float) -> dict[str, Any]:
    runs = [measured("a", seed, 80.0 + seed) for seed in range(len(differences))]
    runs += [measured("b", seed, 80.0 + seed + value) for seed, value in enumerate(differences)]
    found: dict[str, Any] = speedrun.summarise(runs)["b"]["measures"]["conv2 conv, %"]
    return found


def test_recipes_are_compared_with_the_first_by_seed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert speedrun.main(flags(tmp_path, SHORT, LINEAR)) == 0
    content = json.loads((tmp_path / "speedrun.json").read_text())
    assert [(run["recipe"], run["seed"]) for run in content["runs"]] == [
        (SHORT, 0), (LINEAR, 0), (SHORT, 7), (LINEAR, 7)
    ]  # fmt: skip
    assert len({run["data_fingerprint"] for run in content["runs"]}) == 1
    by_seed = {(run["recipe"], run["seed"]): run["measures"]["conv2 conv, %"] for run in content["runs"]}
    step = content["summary"][LINEAR]["measures"]["conv2 conv, %"]
    difference = sum(by_seed[LINEAR, seed] - by_seed[SHORT, seed] for seed in (0, 7)) / 2
    assert step["difference"] == pytest.approx(difference)
    assert "difference" not in content["summary"][SHORT]["measures"]["conv2 conv, %"]
    knn = content["summary"][LINEAR]["measures"]["conv2 knn, %"]  # which the first recipe did not measure
    assert set(knn) == {"mean", "deviation"}
    table = (tmp_path / "speedrun.md").read_text()
    assert table in capsys.readouterr().out
    assert f"| `{SHORT}` | " in table
    assert f"| `{LINEAR}` | conv2 conv, % | {difference:+.3f} | " in table
    assert "Seeds 0, 7, mean" in table


def test_rows_of_other_methods_do_not_take_the_place_of_frozen_features(tmp_path: Path) -> None:
    other = f"{SHORT} --random-init --fine-tune"
    assert speedrun.main([*flags(tmp_path, SHORT, other), "--seeds", "0"]) == 0
    summary = json.loads((tmp_path / "speedrun.json").read_text())["summary"]
    name = "conv2 conv, %"
    assert summary[other]["measures"][name]["difference"] == 0  # both on the same pretraining
    assert summary[other]["measures"].keys() - summary[SHORT]["measures"].keys() == {
        "random-init conv2 conv running statistics, %",
        "random-init conv2 conv batch statistics, %",
        "fine-tune conv2 conv lr 0.1, %",
    }


def test_features_of_other_pretext_tasks_are_compared_too(tmp_path: Path) -> None:
    recipe = SHORT.replace("paper", "paper --pretext-task jigsaw")
    assert speedrun.main([*flags(tmp_path, recipe), "--seeds", "0"]) == 0
    (run,) = json.loads((tmp_path / "speedrun.json").read_text())["runs"]
    assert list(run["measures"]) == ["conv2 conv, %"]


def test_what_is_finished_is_kept_and_other_images_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert speedrun.main(flags(tmp_path, SHORT)) == 0
    first = json.loads((tmp_path / "speedrun.json").read_text())["runs"]
    with monkeypatch.context() as patch:
        patch.delattr(TrainingStep, "__call__")  # nothing is trained again
        assert speedrun.main(flags(tmp_path, SHORT)) == 0
    assert json.loads((tmp_path / "speedrun.json").read_text())["runs"] == first
    assert speedrun.main([*flags(tmp_path, SHORT), "--limit-train", "30"]) == CheckpointError.exit_code
    assert "belongs to another run" in capsys.readouterr().err


def test_recipes_are_presets_and_heads_the_papers_unless_flags_say_otherwise(tmp_path: Path) -> None:
    config = speedrun.SpeedrunConfig(output=tmp_path)
    for name in ("paper", "speedrun"):
        assert config.pretraining(name, seed=0).recipe() == PRESETS[name]().recipe()
    head, published = config.heads("paper", seed=0), EvaluateConfig(str(tmp_path))
    assert head.recipe("paper") == published.recipe("paper")
    assert head.batch_size == published.batch_size
    other = config.heads("paper / --epochs 12 --schedule linear --weight-decay 0.01", seed=0).recipe("paper")
    assert (other.epochs, other.schedule, other.weight_decay) == (12, "linear", 0.01)


def test_recipes_that_differ_in_their_heads_share_a_pretraining(tmp_path: Path) -> None:
    config = speedrun.SpeedrunConfig(output=tmp_path)
    long, short = "speedrun --epochs 5 --warmup 1", "speedrun --epochs 5 --warmup 1 / --epochs 12"
    assert config.pretraining(long, 3) == config.pretraining(short, 3)
    assert config.heads(long, 3).output != config.heads(short, 3).output
    assert config.pretraining(long, 3).output != config.pretraining(long, 4).output


@pytest.mark.parametrize(
    ("differences", "verdict", "lost"),
    [
        ((0.5, 0.6, 0.55), "better", "at most 0.3"),
        ((-0.05, 0.1, 0.0), "no difference seen", "at most 0.3"),
        ((-0.9, -1.0, -1.1), "worse", "more than 0.3"),
        (
            (-0.5, 0.4, 0.1),
            "no difference seen",
            "undecided: more seeds",
        ),  # on the mean alone, nothing is lost
        ((0.4,), "one seed", "undecided: more seeds"),
    ],
)
def test_a_verdict_is_about_the_spread_over_seeds_too(
    differences: tuple[float, ...], verdict: str, lost: str
) -> None:
    found = compared(*differences)
    assert (found["verdict"], speedrun.loss_of(found, len(differences))) == (verdict, lost)
    if len(differences) > 1:
        assert found["p_value"] == pytest.approx(stats.ttest_1samp(differences, 0).pvalue)


def test_a_lower_loss_is_the_better_one() -> None:
    runs = [measured("a", seed, 80.0, 1.0) for seed in range(3)]
    runs += [measured("b", seed, 80.0, 0.9 + 0.001 * seed) for seed in range(3)]
    assert speedrun.summarise(runs)["b"]["measures"][speedrun.ROTATION_LOSS]["verdict"] == "better"


@pytest.mark.parametrize(
    ("values", "beginning"),
    [
        ({"seeds": ()}, "seeds is empty"),
        ({"seeds": (1, 1)}, "seeds is 1 1; give one or more, each once"),
        ({"recipes": ("fast",)}, "recipes holds 'fast', which begins with no preset; choose from quickstart"),
        ({"recipes": ("paper --seed 3",)}, "recipes holds 'paper --seed 3', but seed is the same for all"),
        ({"recipes": ("paper / runs/x",)}, "recipes holds 'paper / runs/x', but checkpoint is the same"),
        ({"recipes": ("paper --width 0",)}, "width is 0"),
        ({"recipes": ("paper / --epochs 0",)}, "epochs is 0"),
        ({"recipes": ("paper --epoch 3",)}, "unrecognized option --epoch"),
        (
            {"recipes": ("paper --preset slides",)},
            "recipes holds 'paper --preset slides', whose first word is",
        ),
        (
            {"recipes": ("paper 'x",)},
            'recipes holds "paper \'x", which cannot be read .No closing quotation.; ',
        ),
    ],
)
def test_unusable_values_are_refused_by_name(values: dict[str, Any], beginning: str) -> None:
    with pytest.raises(ArgumentError, match=f"^{beginning}"):
        speedrun.SpeedrunConfig(**values).validate()


def test_recipes_that_differ_in_length_are_a_learning_curve(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Sequence[curves.Line]] = []
    draw = curves.curves

    def record(lines: Sequence[curves.Line], **labels: Any) -> Figure:
        drawn.append(lines)
        return draw(lines, **labels)

    monkeypatch.setattr(curves, "curves", record)
    runs = []
    for recipe, seconds in (
        ("paper", 600.0),
        ("paper --epochs 5", 30.0),
        ("paper --epochs=20 --lr 0.1", 120.0),
    ):
        run = measured(recipe, seed=0, head=80.0 + seconds / 60)
        runs.append({**run, "seconds": seconds, "environment": {"device": "a machine"}})
    content = {"runs": runs, "summary": speedrun.summarise(runs)}
    speedrun.draw_curves(content, tmp_path / "curves")
    points = [(line.label, line.x, line.mean) for line in drawn[0]]
    assert points == [("paper", [0.5, 10.0], [80.5, 90.0]), ("paper --lr 0.1", [2.0], [82.0])]
    assert (tmp_path / "curves.png").stat().st_size > 0
    one = {"runs": runs[1:], "summary": speedrun.summarise(runs[1:])}
    speedrun.draw_curves(one, tmp_path / "none")
    assert not list(tmp_path.glob("none*"))


@pytest.mark.parametrize(
    ("recipe", "rest"),
    [
        ("paper", "paper"),
        ("paper --epochs 10", "paper"),
        ("speedrun --epochs=10 --warmup 1 --lr 0.2 / --epochs 12", "speedrun --lr 0.2 / --epochs 12"),
    ],
)
def test_the_length_of_the_pretraining_alone_does_not_name_a_curve(recipe: str, rest: str) -> None:
    assert speedrun._without_length(recipe) == rest

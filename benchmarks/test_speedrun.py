"""The comparison of recipes runs to its table, goes on where it was stopped, and judges as it says."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import speedrun
from rotnet_fast.data import datasets, digits
from rotnet_fast.engine.step import TrainingStep
from rotnet_fast.errors import ArgumentError, CheckpointError
from rotnet_fast.evaluate import EvaluateConfig
from rotnet_fast.presets import PRESETS


@pytest.fixture(autouse=True)
def _digits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(datasets.DATASETS, "digits", functools.cache(digits.load))


def flags(output: Path, *more: str) -> list[str]:
    tiny = "--dataset digits --limit-train 40 --limit-test 20 --width 0.05 --epochs-scale 0.02"
    return [*tiny.split(), "--device", "cpu", "--precision", "fp32", "--output", str(output), *more]


def measured(recipe: str, seed: int, seconds: float, head: float) -> dict[str, Any]:
    return {
        "recipe": recipe,
        "seed": seed,
        "seconds": seconds,
        "rotation_accuracy": 90.0,
        "head_accuracy": head,
    }


def test_a_trial_ends_in_a_table_and_says_that_it_is_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert speedrun.main(flags(tmp_path, "--seeds", "2")) == 0
    content = json.loads((tmp_path / "speedrun.json").read_text())
    assert [(run["recipe"], run["seed"]) for run in content["runs"]] == [
        ("paper", 0),
        ("speedrun", 0),
        ("paper", 1),
        ("speedrun", 1),
    ]
    assert len({run["data_fingerprint"] for run in content["runs"]}) == 1
    assert {run["head_epochs"] for run in content["runs"]} == {2}
    assert content["summary"]["seeds"] == 2
    table = (tmp_path / "speedrun.md").read_text()
    assert table in capsys.readouterr().out
    assert "| `paper` | 2 | " in table
    assert (
        "This is a trial, which does not decide the claim: width 0.05, 0.02 times the epochs, a part" in table
    )


def test_what_is_finished_is_kept_and_other_settings_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert speedrun.main(flags(tmp_path, "--seeds", "1")) == 0
    first = json.loads((tmp_path / "speedrun.json").read_text())["runs"]
    with monkeypatch.context() as patch:
        patch.delattr(TrainingStep, "__call__")  # nothing is trained again
        assert speedrun.main(flags(tmp_path, "--seeds", "1")) == 0
    assert json.loads((tmp_path / "speedrun.json").read_text())["runs"] == first
    assert speedrun.main([*flags(tmp_path), "--limit-train", "30"]) == CheckpointError.exit_code
    assert "belongs to another run" in capsys.readouterr().err


def test_both_recipes_are_the_presets_and_both_heads_the_papers(tmp_path: Path) -> None:
    config = speedrun.SpeedrunConfig(output=tmp_path)
    for name in speedrun.RECIPES:
        assert config.pretraining(name, seed=0).recipe() == PRESETS[name]().recipe()
    head = config.head(tmp_path, seed=0)
    published = EvaluateConfig(tmp_path)
    assert (head.epochs, head.lr, head.batch_size) == (published.epochs, published.lr, published.batch_size)
    assert speedrun.reservation(config) == ""


def test_a_shorter_comparison_shortens_schedules_alike(tmp_path: Path) -> None:
    config = speedrun.SpeedrunConfig(epochs_scale=0.5, output=tmp_path)
    paper, fast = (config.pretraining(name, seed=0) for name in speedrun.RECIPES)
    assert (paper.epochs, paper.milestones) == (50, (15, 30, 40))
    preset = PRESETS["speedrun"]()
    assert fast.warmup / fast.epochs == pytest.approx(preset.warmup / preset.epochs)


def test_fewer_epochs_of_the_fast_recipe_leave_the_papers_runs_as_they_are(tmp_path: Path) -> None:
    config, fewer = (speedrun.SpeedrunConfig(speedrun_epochs=epochs, output=tmp_path) for epochs in (None, 8))
    assert fewer.pretraining("paper", seed=0) == config.pretraining("paper", seed=0)
    fast, preset = fewer.pretraining("speedrun", seed=0), PRESETS["speedrun"]()
    assert (fast.epochs, fast.warmup) == (8, preset.warmup * 8 / preset.epochs)
    assert fast.output_folder() != config.pretraining("speedrun", seed=0).output_folder()


@pytest.mark.parametrize(("loss", "is_within"), [(-0.5, True), (0.25, True), (0.35, False)])
def test_the_claim_is_about_means_of_the_conv_head(loss: float, is_within: bool) -> None:
    runs = [measured("paper", seed, 100.0, 90.0 + seed) for seed in range(3)]
    runs += [measured("speedrun", seed, 20.0, 90.0 + seed - loss) for seed in range(3)]
    summary = speedrun.summarise(runs)
    assert summary["paper"]["head_accuracy"] == {"mean": 91.0, "deviation": 1.0}
    assert summary["difference"] == pytest.approx(-loss)
    assert summary["standard_error"] == pytest.approx(0.0, abs=1e-9)  # the same loss for every seed
    assert summary["speedup"] == 5.0
    assert summary["is_within_margin"] == is_within


def test_a_single_seed_has_no_deviation() -> None:
    summary = speedrun.summarise([measured("paper", 0, 3.0, 90.0), measured("speedrun", 0, 1.0, 90.0)])
    assert summary["paper"]["seconds"] == {"mean": 3.0, "deviation": None}
    assert summary["standard_error"] is None


@pytest.mark.parametrize(
    ("values", "beginning"),
    [
        ({"seeds": 0}, "seeds is 0"),
        ({"epochs_scale": 0.0}, "epochs-scale is 0"),
        ({"speedrun_epochs": 0}, "speedrun-epochs is 0"),
        ({"width": 0.0}, "width is 0"),
    ],
)
def test_unusable_values_are_refused_by_name(values: dict[str, Any], beginning: str) -> None:
    with pytest.raises(ArgumentError, match=f"^{beginning}"):
        speedrun.SpeedrunConfig(**values).validate()

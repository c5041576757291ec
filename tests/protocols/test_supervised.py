"""The supervised baseline follows the recipe of the pretraining, in an evaluation as in a study."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from study_tools import cifar10_data
from tiny import read_digits_once, tiny_config
from torch import nn

from rotnet_fast import evaluate
from rotnet_fast.engine import checkpoint
from rotnet_fast.engine.schedule import Schedule
from rotnet_fast.presets import PRESETS
from rotnet_fast.pretrain import pretrain
from rotnet_fast.study.builder import Builder
from rotnet_fast.study.settings import StudyPreset, study_settings


@pytest.fixture(autouse=True, scope="module")
def _digits() -> Iterator[None]:
    with read_digits_once():
        yield


def test_the_recipe_is_the_pretrainings_scaled_to_the_epochs() -> None:
    slides = PRESETS["slides"]().stretched(50)
    schedule, muon = slides.schedules()
    assert schedule == Schedule(0.1, "step", (15, 30, 40), 0.5, 50)
    assert (slides.nesterov, muon) == (False, None)
    schedule, _ = PRESETS["official"]().stretched(100).schedules()
    assert schedule == Schedule(0.1, "step", (30, 60, 80), 0.2, 100)
    speedrun = PRESETS["speedrun"]()
    schedule, muon = speedrun.stretched(speedrun.epochs // 2).schedules()
    assert muon is not None
    assert (muon.base_lr, muon.warmup) == (speedrun.muon_lr, speedrun.warmup / 2)
    assert (schedule.base_lr, muon.epochs) == (speedrun.lr, speedrun.epochs // 2)


@pytest.mark.parametrize("preset", get_args(StudyPreset))
@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_a_study_has_the_same_recipe(preset: StudyPreset, scale: float) -> None:
    settings = study_settings(preset, scale, cifar10_data(), "fp32")
    cell = Builder(settings, 0).supervised()
    recipe = settings.pretext.stretched(settings.supervised.epochs)
    assert {name: cell.settings[name] for name in recipe.optimisation()} == recipe.optimisation()


@pytest.mark.parametrize(
    "changes",
    [
        {"lr": 0.03, "schedule": "step", "milestones": (1,), "lr_factor": 0.5, "nesterov": False},
        {"lr": 0.02, "schedule": "cosine", "weight_decay": 1e-3},
        {"optimizer": "muon", "muon_lr": 0.01, "warmup": 0.5},
        {"optimizer": "muon", "schedule": "linear", "muon_weight_decay": 0.02},
    ],
    ids=["step", "cosine", "muon", "muon's decay"],
)
def test_an_evaluation_trains_by_the_recipe_of_its_run(changes: dict[str, Any], tmp_path: Path) -> None:
    config = tiny_config(tmp_path / "run", **changes)
    pretrain(config)
    flags = ["--no-frozen", "--supervised", "--epochs", "4", "--lr", "0.9", "--device", "cpu"]
    assert evaluate.main(["--checkpoint", str(tmp_path / "run"), *flags]) == 0
    state = checkpoint.load(tmp_path / "run" / "evaluate-001" / "supervised" / "checkpoints" / "last.pt")
    expected, muon = config.stretched(4).schedules()
    last = {
        group["name"]: (group["lr"], group["nesterov"], group["weight_decay"])
        for group in state["optimizer"]["param_groups"]
    }
    schedules = {"network": expected} if muon is None else {"network": expected, "network filters": muon}
    apart = config.muon_weight_decay
    decays = {
        "network": config.weight_decay,
        "network filters": config.weight_decay if apart is None else apart,
    }
    steps = -(-40 // 128)  # of an epoch, in batches of 128 images
    assert last == {
        # Muon's steps know no Nesterov.
        name: (
            schedule.lr(3, (steps - 1) / steps),
            config.nesterov and name != "network filters",
            decays[name],
        )
        for name, schedule in schedules.items()
    }


@pytest.mark.parametrize("mode", ["none", "default"])
def test_training_steps_alone_are_compiled(
    mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The compiler takes long on the CPU; a stand-in shows what is given to it, and when that is run.
    compiled: list[nn.Module] = []
    modes: list[bool] = []

    def stand_in(module: nn.Module, **settings: Any) -> Callable[[torch.Tensor], torch.Tensor]:
        compiled.append(module)

        def forward(views: torch.Tensor) -> torch.Tensor:
            modes.append(module.training)
            logits: torch.Tensor = module(views)
            return logits

        return forward

    pretrain(tiny_config(tmp_path / "run"))
    monkeypatch.setattr(torch, "compile", stand_in)
    flags = ["--no-frozen", "--supervised", "--epochs", "2", "--device", "cpu", "--compile", mode]
    assert evaluate.main(["--checkpoint", str(tmp_path / "run"), *flags]) == 0
    assert len(compiled) == (mode == "default")
    assert modes == [True] * 2 * (mode == "default")  # one step per epoch

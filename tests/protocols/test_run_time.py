"""What is said beforehand about the time that a pretraining takes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import tiny_config

from rotnet_fast.config import PretrainConfig
from rotnet_fast.data.datasets import Dataset, load_dataset
from rotnet_fast.engine.precision import resolve_precision
from rotnet_fast.engine.run_folder import RunFolder
from rotnet_fast.models.nin import NetworkInNetwork
from rotnet_fast.presets import PRESETS
from rotnet_fast.protocols import run_time
from rotnet_fast.protocols.pretext import pretraining
from rotnet_fast.protocols.run_time import VIEWS, expected, forecast, seconds_per_view

CPU = torch.device("cpu")
FP32 = resolve_precision("fp32", CPU)


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return load_dataset("digits", image_size=16, limit_train=40, limit_test=20, progress=False)


def network() -> NetworkInNetwork:
    return NetworkInNetwork(blocks=3, width=0.05)


class Steps:
    """A clock that moves on by the duration of a step: the first at the second look, the others later."""

    def __init__(self, first: float, others: float) -> None:
        self.now, self.looks = 0.0, 0
        self.first, self.others = first, others

    def __call__(self) -> float:
        self.looks += 1
        if self.looks == 2:
            self.now += self.first
        elif self.looks > 3:
            self.now += self.others
        return self.now


def test_the_first_step_is_not_measured() -> None:
    found = seconds_per_view(network, (8, 3, 16, 16), CPU, FP32, 0.0, clock=Steps(first=80.0, others=2.0))
    assert found == pytest.approx((2.0 + 2.0) / 8)  # two looks: to decide about another step, and at the end


def test_a_first_step_that_is_fast_enough_is_all(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Steps(first=0.8, others=1e9)
    assert seconds_per_view(network, (8, 3, 16, 16), CPU, FP32, 60.0, enough=0.2, clock=clock) == 0.1
    assert clock.looks == 2


def test_measuring_leaves_random_numbers_alone() -> None:
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    seconds_per_view(network, (8, 3, 16, 16), CPU, FP32, seconds=0.0)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_the_rest_of_a_run_is_what_is_expected() -> None:
    config = PretrainConfig(epochs=10, eval_every=5)
    assert expected(config, 300, 60, 1.0) == pytest.approx(4 * (10 * 300 + 2 * 60 / 3))
    assert expected(config, 300, 60, 0.5, epochs_done=7.5) == pytest.approx(0.5 * 4 * (2.5 * 300 + 60 / 3))


def forecast_of(config: PretrainConfig, dataset: Dataset, tmp_path: Path, epochs_done: int = 0) -> str | None:
    with RunFolder(tmp_path / "run") as run:
        trainer = pretraining(config, dataset, CPU, FP32, run, progress=False)
        trainer.progress.epoch = epochs_done
        return forecast(trainer, config, len(dataset.test))


@pytest.fixture
def rate(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], list[tuple[Any, ...]]]:
    """Function that sets the seconds of one multiplication of width and views, and returns what is timed."""
    timed: list[tuple[Any, ...]] = []

    def set_rate(seconds: float) -> list[tuple[Any, ...]]:
        def measured(
            make: Callable[[], NetworkInNetwork], shape: tuple[int, ...], *_: Any, **__: Any
        ) -> float:
            weights = sum(parameter.numel() for parameter in make().parameters())
            timed.append((shape, weights))
            return seconds * weights

        monkeypatch.setattr(run_time, "seconds_per_view", measured)
        return timed

    return set_rate


def test_a_long_run_on_a_cpu_is_told_of_with_a_preset_that_takes_less(
    dataset: Dataset, tmp_path: Path, rate: Callable[[float], list[tuple[Any, ...]]]
) -> None:
    config = tiny_config(tmp_path / "run", preset="paper", epochs=100, width=1.0, blocks=4)
    timed = rate(2e-6)
    said = forecast_of(config, dataset, tmp_path)
    (shape, weights), (other_shape, other_weights) = timed
    assert shape == other_shape == (VIEWS, 3, 16, 16)
    whole = 2e-6 * weights * 4 * (100 * 40 + 100 * 20 / 3)
    other = 2e-6 * other_weights * 4 * (8 * 40 + 8 * 20 / 3)
    assert other_weights < weights / 3
    assert said == (
        f"about {whole / 3600:.0f} h on this CPU; --preset quickstart takes about {other / 60:.0f} min"
    )


@pytest.mark.parametrize(
    ("changes", "epochs_done", "seconds"),
    [
        ({"preset": "quickstart"}, 0, 2e-6),  # is meant for a CPU
        ({"preset": "paper"}, 50, 2e-6),  # has begun
        ({"preset": "paper"}, 0, 1.2e-7),  # takes half an hour
        ({"preset": "paper", "epochs": 9, "width": 0.5}, 0, 2e-5),  # takes as long as the other one
    ],
)  # fmt: skip
def test_no_preset_is_named_where_that_would_not_help(
    changes: dict[str, Any],
    epochs_done: int,
    seconds: float,
    dataset: Dataset,
    tmp_path: Path,
    rate: Callable[[float], list[tuple[Any, ...]]],
) -> None:
    rate(seconds)
    config = tiny_config(tmp_path / "run", **{"epochs": 100, "width": 1.0, "blocks": 4, **changes})
    said = forecast_of(config, dataset, tmp_path, epochs_done)
    assert said is not None
    assert said.startswith("about ")
    assert said.endswith("on this CPU")


def test_a_short_run_and_a_finished_one_are_not_told_of(dataset: Dataset, tmp_path: Path) -> None:
    config = tiny_config(tmp_path / "run")
    assert forecast_of(config, dataset, tmp_path) is None
    assert forecast_of(config, dataset, tmp_path, epochs_done=config.epochs) is None


def test_the_preset_that_is_named_is_for_these_images() -> None:
    assert run_time.shorter(PRESETS["cpu"]()) is None
    other = run_time.shorter(
        PretrainConfig(preset="paper", dataset="folder", data_dir=Path("x"), image_size=64)
    )
    assert other is not None
    assert (other.preset, other.dataset, other.image_size, other.width) == ("cpu", "folder", 64, 0.5)
    assert run_time.shorter(PretrainConfig(preset="paper", model="resnet18")) is None

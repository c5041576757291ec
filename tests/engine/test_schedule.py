"""Learning rates, epoch by epoch, as published."""

from __future__ import annotations

import math

import pytest

from rotnet_fast.engine.schedule import Schedule, ScheduleKind
from rotnet_fast.presets import PRESETS

# (first epoch with the rate, rate) of the published recipes, epochs counted from 0.
PUBLISHED = {
    "paper": [(0, 0.1), (30, 0.02), (60, 0.004), (80, 0.0008)],
    "official": [(0, 0.1), (60, 0.02), (120, 0.004), (160, 0.0008)],
    "slides": [(0, 0.1), (30, 0.05), (60, 0.025), (80, 0.0125)],
}


@pytest.mark.parametrize("name", list(PUBLISHED))
def test_presets_follow_the_published_rates_in_every_epoch(name: str) -> None:
    config = PRESETS[name]()
    schedule = Schedule(config.lr, config.schedule, config.milestones, config.lr_factor, config.epochs)
    for epoch in range(config.epochs):
        expected = [rate for first, rate in PUBLISHED[name] if first <= epoch][-1]
        for fraction in (0.0, 0.999):
            assert schedule.lr(epoch, fraction) == pytest.approx(expected, rel=1e-12)


def test_linear_falls_by_equal_amounts_each_step_and_never_trains_with_zero() -> None:
    schedule = Schedule(0.5, "linear", epochs=4)
    rates = [schedule.lr(epoch, step / 5) for epoch in range(4) for step in range(5)]
    assert rates[0] == 0.5
    assert rates == pytest.approx([0.5 * (20 - step) / 20 for step in range(20)])
    assert rates[-1] > 0


def test_cosine_starts_at_the_base_rate_and_is_halved_half_way() -> None:
    schedule = Schedule(0.2, "cosine", epochs=10)
    assert schedule.lr(0) == 0.2
    assert schedule.lr(5) == pytest.approx(0.1)
    assert schedule.lr(2, 0.5) == pytest.approx(0.1 * (1 + math.cos(math.pi / 4)))


@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_a_warm_up_rises_by_equal_amounts_and_then_the_schedule_falls_to_zero(kind: ScheduleKind) -> None:
    schedule = Schedule(0.6, kind, epochs=6, warmup=1.5)
    rising = [schedule.lr(epoch, half / 2) for epoch, half in ((0, 0), (0, 1), (1, 0), (1, 1))]
    assert rising == pytest.approx([0.0, 0.2, 0.4, 0.6], rel=1e-12)
    assert schedule.lr(1, 0.5) == 0.6  # the end of the warm-up is the base rate itself
    # What follows is the schedule of a run of the epochs that are left.
    rest = Schedule(0.6, kind, epochs=6).lr
    assert schedule.lr(3, 0.75) == pytest.approx(rest(3), rel=1e-12)  # half of 4.5 epochs; half of 6
    assert schedule.lr(6) == pytest.approx(0.0, abs=1e-15)
    rates = [schedule.lr(epoch, step / 8) for epoch in range(6) for step in range(8)]
    assert rates == sorted(rates[:12]) + sorted(rates[12:], reverse=True)
    assert min(rates[1:]) > 0


@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_no_warm_up_is_the_schedule_as_it_was(kind: ScheduleKind) -> None:
    with_none, plain = Schedule(0.3, kind, epochs=7, warmup=0.0), Schedule(0.3, kind, epochs=7)
    position = [(epoch, step / 5) for epoch in range(8) for step in range(5)]
    assert [with_none.lr(*at) for at in position] == [plain.lr(*at) for at in position]
    assert plain.lr(0) == 0.3


def test_a_warm_up_of_less_than_a_step_costs_the_first_step_alone() -> None:
    schedule = Schedule(1.0, "linear", epochs=2, warmup=0.01)
    assert schedule.lr(0) == 0.0
    assert schedule.lr(0, 0.1) == pytest.approx(1 - 0.09 / 1.99)


def test_constant_stays() -> None:
    assert {Schedule(0.3).lr(epoch, 0.5) for epoch in range(1000)} == {0.3}


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"base_lr": -0.1}, "base_lr"),
        ({"base_lr": math.nan}, "base_lr"),
        ({"base_lr": 0.1, "kind": "stairs"}, "kind"),
        ({"base_lr": 0.1, "kind": "step", "milestones": (60, 30)}, "milestones"),
        ({"base_lr": 0.1, "kind": "step", "factor": 0.0}, "factor"),
        ({"base_lr": 0.1, "kind": "linear"}, "epochs"),
        ({"base_lr": 0.1, "kind": "linear", "epochs": 2, "warmup": 2.0}, "warmup"),
        ({"base_lr": 0.1, "kind": "cosine", "epochs": 2, "warmup": -0.5}, "warmup"),
        ({"base_lr": 0.1, "kind": "cosine", "epochs": 2, "warmup": math.nan}, "warmup"),
        ({"base_lr": 0.1, "kind": "step", "epochs": 2, "warmup": 1.0}, "warmup"),
        ({"base_lr": 0.1, "epochs": 2, "warmup": 1.0}, "warmup"),
    ],
)
def test_what_describes_no_schedule_is_refused_by_name(values: dict[str, object], named: str) -> None:
    with pytest.raises(ValueError, match=f"^{named} is "):
        Schedule(**values)  # type: ignore[arg-type]

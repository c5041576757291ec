"""Training repeats the recorded losses: to the bit where nothing that rounds differs, closely elsewhere."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from rotnet_fast.protocols import pretext
from tests.support.loss_trace import (
    CONFIGS,
    LOOSE,
    STRICT,
    TOLERANCE,
    config_of,
    distances,
    losses,
    machine,
    read,
)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_recorded_losses_are_repeated(name: str) -> None:
    recorded = read()
    trace = losses(config_of(name))
    if machine() == recorded["machine"]:
        assert [loss.hex() for loss in trace] == [loss.hex() for loss in recorded["losses"][name]]
    first, largest = distances(name, trace, recorded["losses"][name])
    assert first <= TOLERANCE[name]
    assert largest <= LOOSE


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("change", ["lr", "momentum", "pad"])
def test_a_small_change_of_the_recipe_is_beyond_the_tolerance(
    name: str, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes: dict[str, dict[str, Any]] = {"lr": {"lr": 0.1 * 1.0001}, "pad": {"pad": 3}, "momentum": {}}
    if change == "momentum":  # no setting of the command
        changed = partial(pretext.TrainerSettings, momentum=0.9001)
        monkeypatch.setattr(pretext, "TrainerSettings", changed)
    first, largest = distances(name, losses(config_of(name, **changes[change])), read()["losses"][name])
    print(f"{name}, {change}: {first:.1e} in the first {STRICT[name]} steps, {largest:.1e} in all")
    assert first > TOLERANCE[name]

"""A run can be resumed exactly from any step, and everything that its checkpoint holds matters for that."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from conftest import FaultLog
from image_files import write_jpegs
from tiny import EPOCHS, STEPS_PER_EPOCH, folder_config

from rotnet_fast.engine import checkpoint
from rotnet_fast.engine.trainer import Trainer
from rotnet_fast.errors import CheckpointError
from rotnet_fast.pretrain import pretrain
from rotnet_fast.rotations import FOUR_ROTATIONS

TIMINGS = ("images_per_second", "data_wait")

SETTINGS = "fp32 resident muon"
RECIPE: dict[str, Any] = {"warmup": 0.5, "log_every": 2}
"""With momentum of two kinds, and sums that were reported in part."""

Place = tuple[Any, ...]
"""Keys that lead to one value of a nested state."""


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_jpegs(tmp_path_factory.mktemp("images"))


class Saved(NamedTuple):
    """What a run came to, and a copy of each checkpoint that it saved on the way, in this order."""

    end: tuple[str, list[Any]]
    checkpoints: list[Path]


def end_of(run: Path, results: dict[str, Any]) -> tuple[str, list[Any]]:
    """The hash of the final state, and the last line of each kind of metrics."""
    lines = {}
    for text in (run / "metrics.jsonl").read_text().splitlines():
        line = {name: value for name, value in json.loads(text).items() if name not in TIMINGS}
        lines[line["kind"]] = line
    return results["state_hash"], sorted(lines.items())


def run_and_save_every_step(
    output: Path, images: Path, settings: str, patch: pytest.MonkeyPatch, **changes: Any
) -> Saved:
    copies: list[Path] = []
    save = checkpoint.save

    def saving(path: Path, state: Any) -> None:
        save(path, state)
        copies.append(output.with_name(f"{output.name}-{len(copies)}.pt"))
        copies[-1].write_bytes(path.read_bytes())

    with patch.context() as during:
        during.setattr(checkpoint, "save", saving)
        results = pretrain(folder_config(output, images, settings, **changes))
    return Saved(end_of(output, results), copies)


@pytest.mark.faults
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("loader", ["resident", pytest.param("dali", marks=pytest.mark.needs_dali)])
def test_a_run_cut_anywhere_resumes_to_the_same_state(
    precision: str,
    loader: str,
    device: torch.device,
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fault_log: FaultLog,
) -> None:
    if precision == "fp16" and device.type == "cpu":
        pytest.skip("fp16 is refused on the CPU")
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    settings, name = f"{precision} {loader} sgd", str(device)
    whole = run_and_save_every_step(tmp_path / "whole", images, settings, monkeypatch, device=name)
    cuts = [(state["epoch"], state["step"]) for state in map(checkpoint.load, whole.checkpoints)]
    # After every step, and once more after the evaluation that ends an epoch.
    assert cuts == [
        cut
        for epoch in range(EPOCHS)
        for cut in [*((epoch, step + 1) for step in range(STEPS_PER_EPOCH)), (epoch + 1, 0)]
    ]
    survived = 0
    for origin in [None, *map(str, whole.checkpoints)]:
        run = tmp_path / (Path(origin).stem if origin else "from the beginning")
        results = pretrain(folder_config(run, images, settings, device=name, resume=origin))
        survived += end_of(run, results)[0] == whole.end[0]
    fault_log(f"cut after any step: {precision}, {loader}", len(cuts) + 1, survived)


def places(state: Any, beginning: Place = ()) -> Iterator[Place]:
    """Where the values of a nested state lie."""
    if isinstance(state, (dict, list, tuple)):
        for key in state if isinstance(state, dict) else range(len(state)):
            yield from places(state[key], (*beginning, key))
    else:
        yield beginning


def with_item(state: Any, place: Place, *value: Any) -> Any:
    """A copy of a nested state with another value in one place, or with none there."""
    key, *rest = place
    items = list(state.items() if isinstance(state, dict) else enumerate(state))
    if rest:
        items = [(k, with_item(v, tuple(rest), *value) if k == key else v) for k, v in items]
    else:
        items = [(k, value[0] if k == key else v) for k, v in items if k != key or value]
    return dict(items) if isinstance(state, dict) else type(state)(v for _, v in items)


def state_hash(state: dict[str, Any]) -> str:
    """As the trainer computes it."""
    return Trainer.state_hash(SimpleNamespace(state=lambda: state))  # type: ignore[arg-type]


@pytest.fixture
def in_the_last_epoch(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Saved, Any]:
    """A run in which all that there is to save is saved, and its state before the last step."""
    saved = run_and_save_every_step(tmp_path / "whole", images, SETTINGS, monkeypatch, **RECIPE)
    state = checkpoint.load(saved.checkpoints[-3])
    assert (state["epoch"], state["step"]) == (EPOCHS - 1, STEPS_PER_EPOCH - 1)
    return saved, state


def test_the_hash_knows_every_item_of_the_state(in_the_last_epoch: tuple[Saved, Any]) -> None:
    _, state = in_the_last_epoch
    whole = state_hash(state)
    found = list(places({name: part for name, part in state.items() if name != "log"}))
    assert len(found) > 100
    for place in found:
        assert state_hash(with_item(state, place)) != whole, place
    assert state_hash({**state, "log": None}) == whole  # speed, and where files end


def altered(value: Any) -> Any:
    """Another value of the same kind: a zeroed momentum, a statistic as at the beginning, the next step."""
    if isinstance(value, torch.Tensor):
        return torch.zeros_like(value) if value.any() else torch.ones_like(value)
    if isinstance(value, bool):
        return not value
    return "another" if value is None else value + type(value)(1)


def kind(place: Place) -> Place:
    """The same for all layers, for all parameters of a group, and for all options and metrics."""
    last = place[-2] if isinstance(place[-1], int) else place[-1]
    return (place[0], str(last).rpartition(".")[2])


def test_what_the_hash_covers_decides_how_a_run_continues(
    in_the_last_epoch: tuple[Saved, Any], images: Path, tmp_path: Path
) -> None:
    saved, state = in_the_last_epoch
    found = places({name: part for name, part in state.items() if name != "log"})
    one_of_each = {kind(place): place for place in found}
    without_a_say = set()
    for number, (name, place) in enumerate(one_of_each.items()):
        value = state
        for key in place:
            value = value[key]
        path, run = tmp_path / f"{number}.pt", tmp_path / str(number)
        checkpoint.save(path, with_item(state, place, altered(value)))
        try:
            results = pretrain(folder_config(run, images, SETTINGS, **RECIPE, resume=str(path)))
        except (CheckpointError, TypeError, IndexError, KeyError):
            continue  # it belongs to another run, or to none
        if end_of(run, results) == saved.end:
            without_a_say.add(name)
    assert without_a_say == {
        ("optimizer", "lr"),  # that of the last step; the next one's follows from epoch and step alone
        # Which implementation computes is fixed by this version, not by the file.
        ("optimizer", "fused"),
        ("optimizer", "foreach"),
        ("guard", "in_a_row"),  # put back by the good step that follows here; see test_engine_guard.py
        *(("metrics", name) for name in ("loss", "rotation_accuracy", *METRICS_OF_TEST)),
    }


METRICS_OF_TEST = [f"rotation_accuracy/{degrees}" for degrees in FOUR_ROTATIONS]
"""Those of the epoch before: the end of the running one puts its own in their place."""

"""A training holds no more memory, open files or threads after hundreds of steps than after the first ones.

A short version of ``python -m benchmarks.soak``, which tells a planted leak of each kind from none.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.soak import LIMITS, Sample, config_of, judge, sampled
from rotnet_fast.engine.trainer import Trainer
from rotnet_fast.pretrain import pretrain

STEPS_PER_EPOCH = 20
EPOCHS = 10

SHORT = {**LIMITS, "memory": 20.0}
"""Memory settles for longer than this training lasts: it rises by some 1 MB per 1,000 steps here."""


def findings(loader: str, folder: Path) -> dict[str, bool]:
    """What is flat in a training of 200 steps."""
    gc.collect()  # the threads of a loader that an earlier training had would end in the middle of this one
    with sampled(every=10) as samples:
        pretrain(config_of(loader, folder, EPOCHS, STEPS_PER_EPOCH))
    assert samples[-1].step == EPOCHS * STEPS_PER_EPOCH
    return {name: found.is_flat for name, found in judge(samples, SHORT).items()}


@pytest.mark.parametrize("loader", ["resident", "dali"])
def test_a_training_is_flat(loader: str, tmp_path: Path) -> None:
    assert findings(loader, tmp_path) == {"memory": True, "files": True, "threads": True}


@pytest.mark.parametrize("leak", ["memory", "files", "threads"])
def test_a_planted_leak_is_found(leak: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[Any] = []
    end = threading.Event()

    def thread() -> threading.Thread:
        started = threading.Thread(target=end.wait)
        started.start()
        return started

    plant: dict[str, Callable[[], Any]] = {
        "memory": lambda: torch.zeros(25_000).add(1),  # 0.1 MB
        "files": lambda: (tmp_path / "left open").open("a"),
        "threads": thread,
    }
    train_step = Trainer.train_step
    steps = 0

    def leaking(self: Trainer, batch: Any) -> None:
        nonlocal steps
        train_step(self, batch)
        steps += 1
        if leak == "memory" or steps % 50 == 0:
            kept.append(plant[leak]())

    monkeypatch.setattr(Trainer, "train_step", leaking)
    try:
        assert findings("resident", tmp_path) == {
            name: name != leak for name in ("memory", "files", "threads")
        }
    finally:
        end.set()
        for one in kept:
            if leak == "files":
                one.close()


def test_the_first_quarter_does_not_count_and_the_line_is_per_thousand_steps() -> None:
    rising = [Sample(100 * n, 500.0 if n < 10 else 100 + 0.3 * n, 6, 7) for n in range(40)]
    found = judge(rising)
    assert found["memory"].slope == pytest.approx(3.0)
    assert (found["memory"].is_flat, found["files"].is_flat, found["threads"].is_flat) == (False, True, True)
    assert (found["files"].start, found["files"].end) == (6, 6)

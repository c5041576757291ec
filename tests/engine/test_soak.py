"""A training holds no more memory, open files or threads after hundreds of steps than after the first ones.

A short version of ``python -m benchmarks.soak``, which tells planted leaks from none. It runs in a process of
its own, because one that has done much before has freed memory, which a leak fills unseen.
"""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import pytest

from benchmarks.soak import LIMITS, Sample, config_of, fit_lines, sampled
from rotnet_fast.pretrain import pretrain

STEPS_PER_EPOCH = 20
pytestmark = [pytest.mark.long, pytest.mark.needs_dali]  # both loaders are watched in one process

EPOCHS = 10

SHORT = {**LIMITS, "memory": 20.0}
"""Memory settles for longer than this training lasts: it rises by some 1 MB per 1,000 steps here, and by ten
in the first 50, in which the pictures for TensorBoard are drawn for the first time."""

CASES = ("resident", "dali", "leaking")
"""Trainings without a leak, by their loader, and one with all of them."""


def flat(case: str) -> dict[str, bool]:
    """What is flat in a training of 200 steps."""
    import torch

    from rotnet_fast.engine.trainer import Trainer

    train_step, done = Trainer.train_step, 0
    end = threading.Event()
    kept: list[Any] = []
    with tempfile.TemporaryDirectory() as folder:

        def leaking(self: Trainer, batch: Any) -> None:
            nonlocal done
            train_step(self, batch)
            done += 1
            kept.append(torch.ones(25_000))  # 0.1 MB
            if done % 20 == 0:
                kept.append((Path(folder) / "left open").open("a"))
                threading.Thread(target=end.wait).start()

        if case == "leaking":
            Trainer.train_step = leaking  # type: ignore[method-assign]
        gc.collect()  # or the threads of an earlier loader end in the middle of this training
        try:
            with sampled(every=5) as samples:
                loader = "dali" if case == "dali" else "resident"
                pretrain(config_of(loader, Path(folder), EPOCHS, STEPS_PER_EPOCH))
        finally:
            end.set()
            Trainer.train_step = train_step  # type: ignore[method-assign]
    assert samples[-1].step == EPOCHS * STEPS_PER_EPOCH
    return {name: found.is_flat for name, found in fit_lines(samples, SHORT).items()}


@pytest.fixture(scope="module")
def verdicts() -> dict[str, dict[str, bool]]:
    """Case -> what is flat, of all cases in one process."""
    command = [sys.executable, "-m", "tests.engine.test_soak"]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, dict[str, bool]] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("loader", ["resident", "dali"])
def test_a_training_is_flat(loader: str, verdicts: dict[str, dict[str, bool]]) -> None:
    assert verdicts[loader] == {"memory": True, "files": True, "threads": True}


def test_planted_leaks_are_found(verdicts: dict[str, dict[str, bool]]) -> None:
    assert verdicts["leaking"] == {"memory": False, "files": False, "threads": False}


def test_the_first_quarter_does_not_count_and_the_line_is_per_thousand_steps() -> None:
    rising = [Sample(100 * n, 500.0 if n < 10 else 100 + 0.3 * n, 6, 7) for n in range(40)]
    found = fit_lines(rising)
    assert found["memory"].slope == pytest.approx(3.0)
    assert (found["memory"].is_flat, found["files"].is_flat, found["threads"].is_flat) == (False, True, True)
    assert (found["files"].start, found["files"].end) == (6, 6)


if __name__ == "__main__":
    print(json.dumps({case: flat(case) for case in CASES}))

"""torch.compile sees the op once, not once for each seed and epoch."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.testing import CompileCounter

import rotnet_fast
from rotnet_fast import rotate_batch

PACKAGE = Path(rotnet_fast.__file__).parent

MOST_GRAPHS = 3
"""A number that torch has not seen change yet is a constant of the graph: it compiles the first call, once
more where the epoch is another, and once where the seed is. From then on, both are variables."""


def graphs_of(calls: list[dict[str, Any]], device: torch.device) -> int:
    """How many graphs the calls of one compiled function take; their results are those of plain calls."""
    torch._dynamo.reset()
    counter = CompileCounter()
    images = torch.randint(0, 256, (8, 12, 12, 3), dtype=torch.uint8, device=device)
    indices = torch.tensor([3, 1, 4], device=device)

    def step(images: torch.Tensor, indices: torch.Tensor, settings: dict[str, Any]) -> torch.Tensor:
        return rotate_batch(images, indices, **settings)[0]

    compiled = torch.compile(step, backend=counter, fullgraph=True)
    for settings in calls:
        assert torch.equal(compiled(images, indices, settings), step(images, indices, settings))
    torch._dynamo.reset()
    return counter.frame_count


@pytest.mark.parametrize("rotations", [(0, 90, 180, 270), (0, 45)], ids=["quarter turns", "warped"])
def test_seeds_and_epochs_do_not_compile_anew(device: torch.device, rotations: tuple[int, ...]) -> None:
    seeds = (0, 1, 2, -3, 2**63 - 1)
    calls = [{"seed": seed, "epoch": epoch, "rotations": rotations} for seed in seeds for epoch in range(20)]
    assert graphs_of(calls, device) <= MOST_GRAPHS


def test_the_order_of_seeds_and_epochs_does_not_matter(device: torch.device) -> None:
    order = product((7, 1, 0, 2**32 - 1, 3), (1, 0, 9))
    assert graphs_of([{"seed": seed, "epoch": epoch} for epoch, seed in order], device) <= MOST_GRAPHS


def test_a_growing_border_does_not_compile_anew(device: torch.device) -> None:
    assert graphs_of([{"pad": pad} for pad in range(12)], device) <= MOST_GRAPHS


def test_a_tensor_of_seed_and_epoch_compiles_once(device: torch.device) -> None:
    calls = [{"seed": torch.tensor(key, device=device)} for key in product((0, 1, 5), range(5))]
    assert graphs_of(calls, device) == 1


SCRIPT = """
import torch, rotnet_fast
from torch._dynamo.testing import CompileCounter
from rotnet_fast.ops.library import LIBRARIES
assert not LIBRARIES["cpu"].loaded
counter = CompileCounter()
images = torch.randint(0, 256, (8, 12, 12, 3), dtype=torch.uint8)
def step(seed, epoch):
    return rotnet_fast.rotate_batch(images, seed=seed, epoch=epoch)[0]
compiled = torch.compile(step, backend=counter, fullgraph=True)
for seed in (0, 1, 5):
    for epoch in range(20):
        assert torch.equal(compiled(seed, epoch), step(seed, epoch))
print(counter.frame_count)
"""


def test_the_fallback_does_not_compile_anew_either(tmp_path: Path) -> None:
    shutil.copytree(PACKAGE, tmp_path / "rotnet_fast", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) <= MOST_GRAPHS

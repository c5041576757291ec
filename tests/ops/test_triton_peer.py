"""The Triton kernel that benchmarks compare the fused op with does the same work."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed on this machine")

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    "interpreted",
    [
        True,
        pytest.param(
            False,
            marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
        ),
    ],
)
def test_the_peer_makes_the_views_of_the_fused_op(interpreted: bool) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    if interpreted:
        environment["TRITON_INTERPRET"] = "1"
    comparison = "tests/support/triton_rotate_comparison.py"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", comparison]
    run = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    passed = re.search(r"(\d+) passed", run.stdout)
    assert passed is not None
    assert int(passed[1]) >= 4, run.stdout

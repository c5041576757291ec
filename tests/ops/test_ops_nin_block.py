"""Triton kernels of NIN blocks compute what torch does, and compile for every generation of GPUs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from rotnet_fast.errors import ArgumentError
from rotnet_fast.experimental.nin_block import check_layers
from rotnet_fast.experimental.triton_tiles import Tiles, column_tiles, matmul_tiles, weight_tiles
from rotnet_fast.models.nin import NetworkInNetwork
from rotnet_fast.models.sync_batchnorm import synchronise_batchnorm

triton = pytest.importorskip("triton", reason="Triton is not installed on this machine")

ROOT = Path(__file__).parents[2]
COMPARISONS = [f"tests/support/{name}_comparison.py" for name in ("nin_block", "triton_rotate")]
ROWS = 512 * 32 * 32  # of block 1, at 128 images in four rotations
# Shared memory that a program may have: CUDA C++ programming guide, technical specifications per capability.
SHARED_MEMORY = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024, 120: 99 * 1024}


def compare(interpreted: bool) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    if interpreted:
        environment["TRITON_INTERPRET"] = "1"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *COMPARISONS]
    run = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    passed = re.search(r"(\d+) passed", run.stdout)
    assert passed is not None
    assert int(passed[1]) >= 20, run.stdout


def test_kernels_compute_in_the_interpreter_what_separate_layers_do() -> None:
    compare(interpreted=True)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
def test_kernels_compute_on_the_gpu_what_separate_layers_do() -> None:
    compare(interpreted=False)


def resources(
    kernel: Any, capability: int, tiles: Tiles | None, dtype: str, **constants: Any
) -> tuple[int, int]:
    """Compile a kernel: bytes of shared memory, and of stack, which is where registers are spilled to."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    numbers = {"rows": "i32", "rows_per_group": "i32", "groups": "i32", "eps": "fp32", "momentum": "fp32"}
    single = ("state", "state_below", "slopes", "partials", "gamma", "beta", "running_mean", "running_var")
    signature = {}
    for name in kernel.arg_names:
        if name in constants:
            signature[name] = "constexpr"
        elif name in numbers:
            signature[name] = numbers[name]
        elif name == "batches_tracked":
            signature[name] = "*i64"
        else:
            wide = name in single or name.startswith("grad_") or name == "total"
            signature[name] = "*fp32" if wide else f"*{dtype}"
    aligned = {
        (position,): [["tt.divisibility", 16]]
        for position, name in enumerate(kernel.arg_names)
        if signature[name].startswith("*") or name.startswith("rows")
    }
    source = ASTSource(kernel, signature=signature, constexprs=constants, attrs=aligned)
    options = {} if tiles is None else {"num_warps": tiles.warps, "num_stages": tiles.stages}
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", file.name]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    stack = re.search(r"STACK:(\d+)", usage)
    assert stack is not None, usage
    return compiled.metadata.shared, int(stack[1])


@pytest.mark.parametrize(
    ("capability", "dtype"), [(80, "bf16"), (90, "bf16"), (90, "fp32"), (100, "bf16"), (120, "bf16")]
)
def test_products_compile_at_full_width_without_spilling(capability: int, dtype: str) -> None:
    from rotnet_fast.experimental import triton_matmul as kernels

    if capability == 80 and triton.__version__ < "3.7":
        pytest.skip("Triton 3.6 keeps 8 bytes of the forward product on the stack for compute capability 8.0")
    size = 2 if dtype == "bf16" else 4
    tiles = matmul_tiles(ROWS, 192, 192, size, capability // 10)
    shape = {"INPUTS": 192, "OUTPUTS": 192, "BLOCK_ROWS": tiles.rows, "CHUNK": tiles.chunk}
    forward = resources(kernels.convolve, capability, tiles, dtype, BLOCK_OUTPUTS=tiles.columns, **shape)
    backward = resources(
        kernels.convolve_backward, capability, tiles, dtype, BLOCK_INPUTS=tiles.columns, MASK=True, **shape
    )
    tiles = weight_tiles(ROWS, 192, 192, size, capability // 10)
    shape = {"INPUTS": 192, "OUTPUTS": 192, "BLOCK_ROWS": tiles.rows, "BLOCK_OUTPUTS": tiles.chunk}
    weight = resources(
        kernels.weight_gradient, capability, tiles, dtype, BLOCK_INPUTS=tiles.columns, MASK=True, **shape
    )
    assert [stack for _, stack in (forward, backward, weight)] == [0, 0, 0]
    assert max(shared for shared, _ in (forward, backward, weight)) <= SHARED_MEMORY[capability]


@pytest.mark.parametrize("capability", SHARED_MEMORY)
def test_the_other_kernels_compile_at_full_width_without_spilling(capability: int) -> None:
    from rotnet_fast.experimental import triton_batchnorm, triton_matmul

    tiles = column_tiles(ROWS, 192)
    block = {"CHANNELS": 192, "BLOCK_ROWS": tiles.rows, "BLOCK_CHANNELS": tiles.columns}
    finish = {"CHANNELS": 192, "BLOCK_GROUPS": 64, "BLOCK_CHANNELS": 16}
    found = [
        resources(getattr(triton_batchnorm, name), capability, tiles, "bf16", **constants)
        for name, constants in {
            "column_statistics": block,
            "normalise": block,
            "gradient_sums": block,
            "batchnorm_backward": {"MASK": True, **block},
        }.items()
    ]
    found += [
        resources(triton_batchnorm.finish_statistics, capability, None, "bf16", **finish),
        resources(triton_batchnorm.finish_gradients, capability, None, "bf16", **finish),
        resources(
            triton_matmul.add_groups, capability, None, "bf16", SIZE=192 * 192, BLOCK_GROUPS=64, BLOCK_SIZE=64
        ),
    ]
    assert [stack for _, stack in found] == [0] * 7
    assert max(shared for shared, _ in found) <= SHARED_MEMORY[capability]


def test_rows_are_divided_among_groups_of_which_none_is_empty() -> None:
    for rows in (1, 2, 63, 64, 65, 105, 10_000, 32_768, ROWS, ROWS + 1):
        for tiles in (
            column_tiles(rows, 96),
            matmul_tiles(rows, 192, 160, 2, 9),
            weight_tiles(rows, 192, 160, 4, 8),
        ):
            assert tiles.rows_per_group % tiles.rows == 0
            assert (tiles.groups - 1) * tiles.rows_per_group < rows <= tiles.groups * tiles.rows_per_group


def test_layers_that_the_kernels_would_compute_wrongly_are_refused() -> None:
    good = [nn.BatchNorm2d(8) for _ in range(3)]
    for norm, finding in (
        (nn.BatchNorm2d(8, momentum=None), "momentum"),
        (nn.BatchNorm2d(8, affine=False), "weights"),
        (nn.BatchNorm2d(8, track_running_stats=False), "running statistics"),
        (nn.BatchNorm2d(12), "12 channels"),
        (nn.BatchNorm2d(264), "264 channels"),
        (nn.InstanceNorm2d(8), "InstanceNorm2d"),
    ):
        with pytest.raises(ArgumentError, match=finding):
            check_layers([*good[:2], norm], [])
    for convolution in (
        nn.Conv2d(8, 8, 1),
        nn.Conv2d(8, 8, 3, bias=False),
        nn.Conv2d(8, 8, 1, 2, bias=False),
    ):
        with pytest.raises(ArgumentError, match="1x1"):
            check_layers(good, [convolution])
    with pytest.raises(ArgumentError, match="float64"):
        check_layers(good, [nn.Conv2d(8, 8, 1, bias=False).double()])


def test_a_network_refuses_kernels_that_do_not_fit_it() -> None:
    network = NetworkInNetwork(blocks=3, width=0.1)
    with pytest.raises(ArgumentError, match="choose from torch, triton-bn, triton"):
        network.use_kernels("cuda")
    with pytest.raises(ArgumentError, match="288 channels"):
        NetworkInNetwork(blocks=3, width=1.5).use_kernels("triton")
    synchronise_batchnorm(network, None)
    with pytest.raises(ArgumentError, match="SyncBatchNorm2d"):
        network.use_kernels("triton")
    assert network.kernels == "torch"


def test_missing_triton_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ArgumentError, match="Triton is not installed"):
        NetworkInNetwork(blocks=3, width=0.1).use_kernels("triton")


def test_on_the_cpu_and_in_eval_mode_torch_computes() -> None:
    network = NetworkInNetwork(blocks=3, width=0.1)
    x = torch.randn(2, 3, 16, 16)
    expected = network.eval()(x)
    network.use_kernels("triton")
    assert torch.equal(network(x), expected)
    assert network.train()(x).isfinite().all()
    assert set(network.state_dict()) == set(NetworkInNetwork(blocks=3, width=0.1).state_dict())

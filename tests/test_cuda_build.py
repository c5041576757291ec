"""The CUDA kernels keep their variables in registers, and a kernel that would not is noticed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.kernel_resources import CompileError, architectures, compile_kernels, find_nvcc, main, parse

REPORT = """ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '{name}' for 'sm_90'
ptxas info    : Function properties for {name}
    {stack} bytes stack frame, {stores} bytes spill stores, {loads} bytes spill loads
ptxas info    : Used 54 registers, used 1 barriers, 4224 bytes smem, 416 bytes cmem[0]
ptxas info    : Compile time = 21.974 ms
"""

# 96 values that are needed to the end, and threads so many that each gets 64 registers.
SPILLING = """
extern "C" __global__ void __launch_bounds__(1024) planted(const float* in, float* out) {
  float values[96];
#pragma unroll
  for (int i = 0; i < 96; ++i) values[i] = in[i * 1024 + threadIdx.x];
  __syncthreads();
#pragma unroll
  for (int i = 0; i < 96; ++i) out[i * 1024 + threadIdx.x] = values[i] * values[95 - i] + values[i * 7 % 96];
}
"""


@pytest.fixture(scope="module")
def nvcc() -> str:
    try:
        return find_nvcc()
    except CompileError as error:
        pytest.skip(f"the kernels cannot be compiled here: {error}")


def test_a_report_is_read() -> None:
    (kernel,) = parse(REPORT.format(name="one", stack=0, stores=0, loads=0), "a.cu")
    assert (kernel.kernel, kernel.architecture, kernel.registers) == ("one", "sm_90", 54)
    assert (kernel.shared_bytes, kernel.stack_bytes, kernel.spills) == (4224, 0, False)


@pytest.mark.parametrize(("stores", "loads"), [(8, 0), (0, 4), (8, 12)])
def test_a_spill_in_a_report_is_noticed(stores: int, loads: int) -> None:
    whole = REPORT.format(name="good", stack=0, stores=0, loads=0)
    whole += REPORT.format(name="bad", stack=40, stores=stores, loads=loads)
    good, bad = parse(whole, "a.cu")
    assert not good.spills
    assert bad.spills
    assert (bad.stack_bytes, bad.spill_store_bytes, bad.spill_load_bytes) == (40, stores, loads)


def test_a_spill_in_a_function_that_a_kernel_calls_is_noticed() -> None:
    called = (
        "ptxas info    : Function properties for called\n    64 bytes stack frame, 4 bytes spill stores, "
    )
    whole = REPORT.format(name="caller", stack=0, stores=0, loads=0) + called + "8 bytes spill loads\n"
    (kernel,) = parse(whole, "a.cu")
    assert (kernel.stack_bytes, kernel.spill_store_bytes, kernel.spill_load_bytes) == (64, 4, 8)


@pytest.mark.parametrize(
    "report",
    ["", REPORT.replace("spill stores", "spilled"), REPORT.replace("registers", "regs")],
)
def test_a_report_that_has_changed_is_an_error_and_not_a_kernel_without_spills(report: str) -> None:
    with pytest.raises(CompileError, match=r"a\.cu: "):
        parse(report.format(name="one", stack=0, stores=0, loads=0), "a.cu")


def test_a_planted_spill_is_noticed(nvcc: str, tmp_path: Path) -> None:
    source = tmp_path / "spilling.cu"
    source.write_text(SPILLING)
    (kernel,) = compile_kernels(nvcc, source, "90")
    assert kernel.kernel == "planted"
    assert kernel.spills


def test_a_spill_ends_the_command_with_1_and_its_name(
    nvcc: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.kernel_resources.architectures", lambda nvcc: ["90"])
    source = tmp_path / "spilling.cu"
    source.write_text(SPILLING)
    assert main(["--output", str(tmp_path / "found.json"), str(source)]) == 1
    assert "planted of spilling.cu spills on sm_90" in capsys.readouterr().err
    source.write_text("not C++")
    assert main(["--output", str(tmp_path / "found.json"), str(source)]) == 2
    assert "spilling.cu does not compile for sm_90" in capsys.readouterr().err


def test_no_kernel_spills_or_needs_a_stack_on_any_architecture(nvcc: str, tmp_path: Path) -> None:
    output = tmp_path / "found.json"
    assert main(["--output", str(output)]) == 0
    kernels = json.loads(output.read_text())["kernels"]
    assert {kernel["file"] for kernel in kernels} >= {"csrc/cuda/rotate_cuda.cu", "csrc/cuda/warp_cuda.cu"}
    assert {kernel["architecture"] for kernel in kernels} == {f"sm_{name}" for name in architectures(nvcc)}
    assert {"sm_80", "sm_90", "sm_90a"} < {kernel["architecture"] for kernel in kernels}
    # Threads that need a stack would wait for memory where they could have waited for nothing.
    assert [kernel for kernel in kernels if kernel["stack_bytes"] > 0] == []

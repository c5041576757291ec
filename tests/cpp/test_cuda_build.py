"""The CUDA kernels keep their variables in registers and their instructions few; what does not is noticed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.kernel_resources import CompileError, architectures, compile_kernels, find_nvcc, main, parse
from benchmarks.machine_code import DisassemblyError, ViewCost, find_nvdisasm, read, view_cost

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


@pytest.fixture(scope="module")
def kernels(nvcc: str, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """All kernels for all architectures."""
    output = tmp_path_factory.mktemp("resources") / "found.json"
    assert main(["--output", str(output)]) == 0
    return json.loads(output.read_text())["kernels"]


@pytest.mark.long
def test_no_kernel_spills_or_needs_a_stack_on_any_architecture(
    nvcc: str, kernels: list[dict[str, Any]]
) -> None:
    assert {kernel["file"] for kernel in kernels} >= {"csrc/cuda/rotate_cuda.cu", "csrc/cuda/warp_cuda.cu"}
    assert {kernel["architecture"] for kernel in kernels} == {f"sm_{name}" for name in architectures(nvcc)}
    assert {"sm_80", "sm_90", "sm_90a"} < {kernel["architecture"] for kernel in kernels}
    # Threads that need a stack would wait for memory where they could have waited for nothing.
    assert [kernel for kernel in kernels if kernel["stack_bytes"] > 0] == []


@pytest.mark.long
@pytest.mark.parametrize(("element", "stores", "most"), [("BFloat16", 4, 64), ("Float32", 8, 32)])
def test_a_view_takes_few_instructions(
    nvcc: str, kernels: list[dict[str, Any]], element: str, stores: int, most: int
) -> None:
    try:
        find_nvdisasm(nvcc)
    except DisassemblyError as error:
        pytest.skip(f"instructions cannot be counted here: {error}")
    counted = [
        kernel
        for kernel in kernels
        if f"<Cast{element}, 3, true>" in kernel["kernel"]
        # An older nvdisasm does not know the newest architecture.
        and (kernel["view_stores"] is not None or kernel["architecture"] in ("sm_80", "sm_90", "sm_90a"))
    ]
    assert len(counted) >= 6
    # With 96 threads, each stores that often: fewer would say that the wrong loop was counted.
    assert {kernel["view_stores"] for kernel in counted} == {stores}
    assert [kernel for kernel in counted if kernel["view_instructions"] > most * stores] == []


LISTING = """
\t.section\t.text.kernel,"ax",@progbits
.text.kernel:
        /*0000*/                   S2R R0, SR_TID.X ;
.L_x_1:
        /*0010*/                   ISETP.NE.AND P0, PT, R0, 0x1, PT ;
        /*0020*/               @P0 BRA `(.L_x_2) ;
        /*0030*/                   FADD R1, R1, R1 ;
        /*0040*/                   FADD R1, R1, R1 ;
        /*0050*/                   STG.E.128.STRONG.GPU desc[UR8][R2.64], R4 ;
        /*0060*/                   STG.E.128.STRONG.GPU desc[UR8][R2.64+0x10], R4 ;
        /*0070*/                   BRA `(.L_x_3) ;
.L_x_2:
        /*0080*/                   STG.E.128.STRONG.GPU desc[UR8][R2.64], R4 ;
        /*0090*/                   STG.E.128.STRONG.GPU desc[UR8][R2.64+0x10], R4 ;
.L_x_3:
        /*00a0*/                   ISETP.GE.AND P0, PT, R0, UR19, PT ;
        /*00b0*/              @!P0 BRA `(.L_x_1) ;
.L_x_4:
        /*00c0*/                   FADD R1, R1, R1 ;
        /*00d0*/                   STG.E.64 desc[UR8][R2.64], R4 ;
        /*00e0*/               @P1 BRA `(.L_x_4) ;
        /*00f0*/                   EXIT ;
"""


def test_the_cheapest_turn_is_counted() -> None:
    # From .L_x_1 by way of .L_x_2 back again, with the branches of both ends.
    assert view_cost(read(LISTING)["kernel"]) == ViewCost(start=1, instructions=6, stores=2)


def test_a_way_with_more_stores_goes_before_a_shorter_one() -> None:
    second = "        /*0090*/                   STG.E.128.STRONG.GPU desc[UR8][R2.64+0x10], R4 ;\n"
    assert second in LISTING
    assert view_cost(read(LISTING.replace(second, ""))["kernel"]) == ViewCost(
        start=1, instructions=9, stores=2
    )


def test_a_kernel_without_stores_of_16_bytes_has_no_count() -> None:
    assert view_cost(read(LISTING.replace("STG.E.128", "STG.E"))["kernel"]) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "names no kernel"),
        (LISTING.replace("BRA `(.L_x_2)", "BRX R2 -0x10"), "BRX R2 -0x10"),
        (LISTING.replace(".L_x_3:", ""), "L_x_3"),
    ],
)
def test_a_listing_that_cannot_be_read_is_an_error(text: str, message: str) -> None:
    with pytest.raises(DisassemblyError, match=message):
        read(text)

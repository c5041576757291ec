"""The CUDA kernels, executed on the CPU: thread by thread, device code included, against the CPU kernels."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cpp_build
import pytest
from executed_kernels import BARRIER, ROOT, Fault, as_cpp, build, not_run, plant, sources

from benchmarks.kernel_resources import CompileError

JOBS = 1000
"""Of each of two programs at a time."""

ROTATE, WARP = "csrc/cuda/rotate_cuda.cu", "csrc/cuda/warp_cuda.cu"
TILE, WARP_TILE, DISPATCH = "csrc/cuda/tile.h", "csrc/cuda/warp_tile.h", "csrc/cuda/dispatch.h"

FUNNEL = "__funnelshift_rc(low, high, shift)"
PART = "part_as_float<kBits>(parts, e % kParts)"
FUSED = f"fmaf({PART}, scale[e % C], offset[e % C])"
VIEW = "static_cast<int>(block.n) * job.num_views + k"
LABEL = "job.labels[block.n * job.num_views + k] = k"
SAMPLE_ID = "job.sample_ids ? job.sample_ids[block.n] : image_index(job, block.n)"

DIVERGENCE = "^barrier divergence: "
MISALIGNED = "^a store of 16 bytes to an address that is no multiple of 16"
OUTSIDE = "ERROR: AddressSanitizer: |runtime error: index .* out of bounds"
# Which of these comes first depends on the jobs.
ANYWHERE = f"^differs: |{MISALIGNED}|{OUTSIDE}"
# What nobody has written yet is random, and no row of an image or no flag: a sanitizer may say so first.
UNWRITTEN = f"{ANYWHERE}|runtime error: (signed integer overflow|load of value)"


def barriers_removed() -> list[Fault]:
    """One fault per barrier of every source, of those that are added later, too."""
    found = []
    for source in sources():
        places, name = source.read_text().count(BARRIER), source.relative_to(ROOT).as_posix()
        found += [
            Fault(
                f"{source.name}: barrier {number + 1} of {places} is missing",
                name,
                BARRIER,
                "void()",
                UNWRITTEN,
                number,
                places,
            )
            for number in range(places)
        ]
    return found


def swapped(function: str) -> tuple[str, str]:
    return f"{function}(values[0], values[1])", f"{function}(values[1], values[0])"


FAULTS = [
    *barriers_removed(),
    Fault(
        "half a warp stays away", ROTATE, BARRIER, f"threadIdx.x < 16 ? {BARRIER} : void()", DIVERGENCE, 1, 2
    ),
    # What only a device does.
    Fault("byte selector", TILE, "0x7440u", "0x7441u"),
    Fault("selector of the first half", TILE, "0x7410u", "0x7421u"),
    Fault("selector of the second half", TILE, "0x7432u", "0x7410u"),
    Fault("funnel shift, words swapped", TILE, FUNNEL, "__funnelshift_rc(high, low, shift)"),
    Fault("funnel shift to the left", TILE, FUNNEL, "__funnelshift_lc(low, high, shift)"),
    Fault("words of a vector", TILE, "vector.word[1]", "vector.word[2]"),
    Fault("bfloat16 pair swapped", DISPATCH, *swapped("__floats2bfloat162_rn")),
    Fault("float16 pair swapped", DISPATCH, *swapped("__floats2half2_rn")),
    # Vectors.
    Fault("first column", TILE, "column = first / C", "column = (first + 1) / C", ANYWHERE),
    Fault("first channel", TILE, "first - column * C", "0"),
    Fault("last column", TILE, "column + kPixels - 1 < columns", "true", OUTSIDE),
    Fault("first pixel", TILE, "maker_.column * walk.right", "(maker_.column + 1) * walk.right", ANYWHERE),
    Fault("two roundings", TILE, FUSED, f"{PART} * scale[e % C] + offset[e % C]"),
    Fault("rows of a whole tile", TILE, "row_ + i >= kTile", "row_ + i > kTile", OUTSIDE),
    Fault(
        "address not checked",
        TILE,
        "reinterpret_cast<uintptr_t>(job.views) % kVectorBytes == 0",
        "true",
        MISALIGNED,
    ),
    Fault("width not checked", TILE, "job.width * pixel_bytes % kVectorBytes == 0", "true", ANYWHERE),
    Fault("vectors of a part of a tile", TILE, "v - i * per_row", "v - i", ANYWHERE),
    Fault("channel of a lone element", TILE, "kBits * channel", "0"),
    # Tiles.
    Fault("a column too few", TILE, "column >= block.width", "column >= block.width - 1", ANYWHERE),
    Fault(
        "a column of samples too few",
        WARP_TILE,
        "column >= block.width",
        "column >= block.width - 1",
        ANYWHERE,
    ),
    Fault("a row too few", TILE, "row < block.height", "row < block.height - 1"),
    Fault("a row too many", TILE, "row < block.height", "row <= block.height", OUTSIDE),
    Fault("pitch of the tile", TILE, "row * kPitch + column", "row * kTile + column"),
    Fault("pitch of the window", WARP_TILE, "row * kWindowPitch + column", "row * kWindow + column"),
    Fault("distance of the second tile", TILE, "at[kTile * kPitch]", "at[kTile * kTile]"),
    Fault("corner of a half turn", TILE, "last_row + last_column", "last_row", ANYWHERE),
    Fault("corner of the window", WARP_TILE, "block.y0 + block.height - 1", "block.y0", ANYWHERE),
    # Views.
    Fault("a split view", TILE, VIEW, f"{VIEW} - block.first_view"),
    Fault("label of a split view", TILE, LABEL, f"{LABEL} - block.first_view"),
    Fault(
        "edge of a part of a tile",
        TILE,
        "job.width - block.x0 - block.width",
        "job.width - block.x0 - kTile",
        ANYWHERE,
    ),
    Fault("width of a turned view", TILE, "i * place.view_width * C", "i * job.height * C", ANYWHERE),
    Fault("views of another angle", WARP_TILE, "groups.of_view[k] == block.group", "true"),
    # Images.
    Fault("rows above not checked", TILE, "stored.row >= 0", "true", ANYWHERE),
    Fault("columns on the right not checked", TILE, "stored.column < job.width", "true", ANYWHERE),
    Fault(
        "border not mirrored",
        WARP_TILE,
        "mirror(stored.row, width)",
        "stored.row < 0 ? 0 : mirror(stored.row, width)",
    ),
    Fault("index behind the last", TILE, "index < job.num_images", "index <= job.num_images", ANYWHERE),
    Fault("index before the first", TILE, "index >= 0", "index >= -1", ANYWHERE),
    Fault(
        "no NaN",
        TILE,
        "block.valid ? job.normalisation.scale[c] * step : NAN",
        "job.normalisation.scale[c] * step",
    ),
    Fault("epoch of the key", TILE, "job.key ? job.key[1] : job.epoch", "job.epoch"),
    Fault("sample ids", TILE, SAMPLE_ID, "image_index(job, block.n)"),
]


@pytest.fixture(scope="module")
def program() -> Path:
    return built("executed", ())


@pytest.fixture(scope="module")
def planted() -> Path:
    """All faults in one program, each to be switched on by its number."""
    return built("planted", FAULTS)


def built(name: str, faults: Sequence[Fault]) -> Path:
    try:
        return build(name, sources(), faults)
    except (CompileError, cpp_build.NoSanitizersError) as error:
        pytest.skip(f"the kernels cannot be executed here: {error}")


def run(program: Path, jobs: int, seed: int, fault: int = 0) -> subprocess.CompletedProcess[str]:
    command = [program, str(jobs), str(seed), str(fault)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_kernels_give_the_bits_of_the_cpu_kernels(program: Path) -> None:
    with ThreadPoolExecutor() as pool:
        for result in pool.map(lambda seed: run(program, JOBS, seed), (1, 2)):
            assert result.returncode == 0, result.stdout + result.stderr
            assert f"\n{JOBS} jobs, " in result.stdout
            # Three output types, one to four channels, both kernels with and without vectors.
            assert " 48 kernels by type and channels, 0 differences\n" in result.stdout
            assert int(re.findall(r"(\d+) bad indices", result.stdout)[0]) > 0
            missing = not_run({source.name: as_cpp(source) for source in sources()}, result.stdout)
            assert missing == [], "compiled, but not run: give tests/cpp/executed/main.cpp jobs for these"


@pytest.mark.parametrize("number", range(1, len(FAULTS) + 1), ids=lambda number: FAULTS[number - 1].name)
def test_a_planted_fault_is_noticed(planted: Path, number: int) -> None:
    result = run(planted, JOBS, 3, number)
    assert result.returncode != 0, "the outputs were right all the same"
    printed = result.stdout + result.stderr
    assert re.search(FAULTS[number - 1].report, printed, re.MULTILINE), printed


def test_without_a_fault_switched_on_the_program_with_all_of_them_is_right(planted: Path) -> None:
    result = run(planted, 100, 3)
    assert result.returncode == 0, result.stdout + result.stderr


def test_barriers_were_found_in_each_kernel() -> None:
    assert {fault.file for fault in barriers_removed()} >= {ROTATE, WARP}


NEW = """
#include "tile.h"
namespace {
template <int C>
__global__ void __launch_bounds__(kThreads) another_kernel(const int number) {
  __shared__ Tile tile;
}
}
void start(int number, cudaStream_t stream) { another_kernel<1><<<number, kThreads, 0, stream>>>(number); }
"""


def test_a_kernel_that_is_added_and_never_run_is_named(tmp_path: Path) -> None:
    source = tmp_path / "another.cu"
    source.write_text(NEW.replace("tile.h", str(ROOT / TILE)))
    text = as_cpp(source)
    assert (
        'simt::launch("another_kernel<1>", [&] { another_kernel<1>(number); }, number, kThreads, 0, stream)'
        in text
    )
    assert not_run({"another.cu": text}, "") == ["another.cu: another_kernel<1>"]
    assert not_run({"another.cu": text}, "launched 3 times: another_kernel<1>\n") == []
    assert not_run({"another.cu": text.replace("simt::launch(", "start(")}, "") == [
        "another.cu: another_kernel"
    ]


@pytest.mark.parametrize(
    "line", ["__shared__ float sums[4];", "extern __shared__ float sums[];", "one<<<1, 2>>>(3), 4;"]
)
def test_what_cannot_be_rewritten_is_refused(line: str, tmp_path: Path) -> None:
    source = tmp_path / "another.cu"
    source.write_text(line)
    with pytest.raises(ValueError, match="cannot rewrite"):
        as_cpp(source)


def test_a_fault_that_does_not_fit_the_source_is_an_error() -> None:
    with pytest.raises(ValueError, match="0 times, not 1"):
        plant("a.h", "int a = 1;", [Fault("gone", "a.h", "b", "c")])
    with pytest.raises(ValueError, match="2 times, not 1"):
        plant("a.h", "int a = 1 + 1;", [Fault("unclear", "a.h", "1", "2")])
    with pytest.raises(ValueError, match="same text"):
        plant("a.h", "f(x + y);", [Fault("whole", "a.h", "x + y", "x"), Fault("part", "a.h", "y", "x")])
    faults = [
        Fault("one", "a.h", "x", "y", number=1, places=2),
        Fault("two", "a.h", "x", "z", number=1, places=2),
    ]
    assert plant("a.h", "x; x;", faults) == "x; (simt::planted == 2 ? z : simt::planted == 1 ? y : x);"

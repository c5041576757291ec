"""Registers, shared memory, stack and spills of every CUDA kernel, as the assembler reports them, and the
instructions that a view takes, as counted in the machine code.

python -m benchmarks.kernel_resources                # write benchmarks/results/kernel-resources.json
python -m benchmarks.kernel_resources --output FILE  # write it elsewhere

Needs nvcc and no GPU, and for the counts nvdisasm, which comes with the toolkit or with Triton. Exit codes: 1
where a kernel spills registers to memory, 2 without nvcc or where something does not compile.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks.machine_code import DisassemblyError, ViewCost, disassemble, find_nvdisasm, view_cost

ROOT = Path(__file__).resolve().parent.parent
OUTPUT = ROOT / "benchmarks" / "results" / "kernel-resources.json"
ARCHITECTURES = ("80", "90", "90a")
"""Beside the newest that nvcc knows."""


class CompileError(Exception):
    """nvcc is missing, or refuses a file."""


@dataclass(frozen=True)
class Kernel:
    """One kernel, compiled for one architecture.

    Attributes:
        file: relative to the checkout, or a name.
        architecture: such as ``sm_90``.
        kernel: its name with its template's arguments.
        registers: per thread.
        stack_bytes, spill_store_bytes, spill_load_bytes: per thread, in local memory.
        shared_bytes: static, per block.
        start_instructions: that a thread executes before the first view of a whole tile, but for loading
            pixels; None where the kernel does not store 16 bytes at a time, or without nvdisasm.
        view_instructions: likewise, for its part of one view.
        view_stores: of 16 bytes, among these.
    """

    file: str
    architecture: str
    kernel: str
    registers: int
    stack_bytes: int
    spill_store_bytes: int
    spill_load_bytes: int
    shared_bytes: int
    start_instructions: int | None = None
    view_instructions: int | None = None
    view_stores: int | None = None

    @property
    def spills(self) -> bool:
        """Whether registers are stored in memory."""
        return self.spill_store_bytes > 0 or self.spill_load_bytes > 0


_PROPERTIES = re.compile(
    r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads",
)


def parse(report: str, file: str) -> list[Kernel]:
    """Kernels in what ``ptxas -v`` prints.

    Raises:
        CompileError: part of the report could not be read, so that a change of its format is not taken for
            kernels without spills.
    """
    found = []
    for part in report.split("Compiling entry function ")[1:]:
        entry = re.match(r"'([^']+)' for '([^']+)'", part)
        # Functions that are called, not inlined, have properties of their own.
        properties = [tuple(map(int, match)) for match in _PROPERTIES.findall(part)]
        registers = re.search(r"Used (\d+) registers", part)
        shared = re.search(r"(\d+) bytes smem", part)
        if entry is None or not properties or registers is None:
            raise CompileError(f"{file}: cannot read what ptxas -v says of a kernel: {part.strip()!r}")
        stack, stores, loads = zip(*properties, strict=True)
        found.append(
            Kernel(
                file,
                entry[2],
                entry[1],
                int(registers[1]),
                max(stack),
                sum(stores),
                sum(loads),
                int(shared[1]) if shared else 0,
            )
        )
    if not found:
        raise CompileError(f"{file}: ptxas -v names no kernel; see whether its output has changed")
    return found


def find_nvcc() -> str:
    """Path of nvcc.

    Raises:
        CompileError: there is none.
    """
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    if home and (Path(home) / "bin" / "nvcc").is_file():
        return str(Path(home) / "bin" / "nvcc")
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        raise CompileError("nvcc was not found; install the CUDA toolkit or set CUDA_HOME")
    return nvcc


def architectures(nvcc: str) -> list[str]:
    """Those of the report: the usual ones and the newest, such as ``80`` and ``90a``."""
    listing = subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True, check=True).stdout
    newest = max(int(number) for number in re.findall(r"compute_(\d+)", listing))
    return list(dict.fromkeys([*ARCHITECTURES, str(newest)]))


def compile_kernels(
    nvcc: str, source: Path, architecture: str, name: str | None = None, nvdisasm: str | None = None
) -> list[Kernel]:
    """Compile one file for one architecture, optimised as in the build.

    Args:
        name: of the file in the report.
        nvdisasm: counts instructions, too.

    Raises:
        CompileError: it does not compile.
        DisassemblyError: its machine code cannot be read.
    """
    target = f"-gencode=arch=compute_{architecture},code=sm_{architecture}"
    name = name or source.name
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernels.cubin"
        command = [
            nvcc,
            "-std=c++17",
            "-O3",
            target,
            "-Xptxas",
            "-v",
            "-cubin",
            "-o",
            str(cubin),
            str(source),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise CompileError(f"{name} does not compile for sm_{architecture}:\n{done.stdout}{done.stderr}")
        kernels = parse(done.stdout + done.stderr, name)
        if nvdisasm is None:
            return kernels
        costs = {mangled: view_cost(kernel) for mangled, kernel in disassemble(nvdisasm, cubin).items()}
    return [_with_cost(kernel, costs.get(kernel.kernel)) for kernel in kernels]


def _with_cost(kernel: Kernel, cost: ViewCost | None) -> Kernel:
    if cost is None:
        return kernel
    return replace(
        kernel,
        start_instructions=cost.start,
        view_instructions=cost.instructions,
        view_stores=cost.stores,
    )


def readable(kernels: Sequence[Kernel]) -> list[Kernel]:
    """The same with names as in the source; mangled ones hold a hash of the path."""
    filt = shutil.which("c++filt")
    if filt is None:
        return list(kernels)
    names = "\n".join(kernel.kernel for kernel in kernels)
    lines = subprocess.run(
        [filt], input=names, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    found = []
    for kernel, line in zip(kernels, lines, strict=True):
        line = re.sub(r"^void |rotnet::cuda::|\(anonymous namespace\)::|\((int|bool)\)", "", line)
        found.append(Kernel(**{**asdict(kernel), "kernel": re.sub(r"\(.*\)$", "", line)}))
    return found


def _name(source: Path) -> str:
    """Relative to the checkout where the file lies in it."""
    path = source.resolve()
    return path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else path.name


def report(nvcc: str, sources: Sequence[Path], nvdisasm: str | None) -> dict[str, Any]:
    """All kernels of some files for all architectures.

    Raises:
        CompileError, DisassemblyError: as of `compile_kernels`.
    """
    version = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    release = re.search(r"release ([\d.]+), V([\d.]+)", version)
    jobs = list(product(sources, architectures(nvcc)))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        parts = pool.map(lambda job: compile_kernels(nvcc, job[0], job[1], _name(job[0]), nvdisasm), jobs)
        kernels = readable([kernel for part in parts for kernel in part])
    return {
        "nvcc": release[2] if release else "unknown",
        "kernels": [
            asdict(kernel)
            for kernel in sorted(kernels, key=lambda found: (found.file, found.kernel, found.architecture))
        ],
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Command-line entry point; returns the exit code."""
    parser = argparse.ArgumentParser(description="Registers, memory and spills of the CUDA kernels.")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    parser.add_argument("sources", type=Path, nargs="*", help="by default csrc/cuda/*.cu")
    options = parser.parse_args(arguments)
    sources = options.sources or sorted((ROOT / "csrc" / "cuda").glob("*.cu"))
    try:
        nvcc = find_nvcc()
        try:
            nvdisasm = find_nvdisasm(nvcc)
        except DisassemblyError as error:
            print(f"instructions are not counted: {error}", file=sys.stderr)
            nvdisasm = None
        found = report(nvcc, sources, nvdisasm)
    except (CompileError, DisassemblyError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    kernels = [Kernel(**fields) for fields in found["kernels"]]
    lines = ",\n".join(json.dumps(fields) for fields in found["kernels"])
    options.output.write_text(f'{{"nvcc": "{found["nvcc"]}", "kernels": [\n{lines}\n]}}\n')
    for architecture in sorted({kernel.architecture for kernel in kernels}):
        these = [kernel for kernel in kernels if kernel.architecture == architecture]
        print(
            f"{architecture}: {len(these)} kernels, up to {max(k.registers for k in these)} registers, "
            f"{max(k.shared_bytes for k in these)} bytes of shared memory and "
            f"{max(k.stack_bytes for k in these)} bytes of stack"
        )
    spilling = [kernel for kernel in kernels if kernel.spills]
    for kernel in spilling:
        print(
            f"error: {kernel.kernel} of {kernel.file} spills on {kernel.architecture}: "
            f"{kernel.spill_store_bytes} bytes stored, {kernel.spill_load_bytes} loaded per thread",
            file=sys.stderr,
        )
    return 1 if spilling else 0


if __name__ == "__main__":
    sys.exit(main())

"""Counts instructions in the machine code of the CUDA kernels, as nvdisasm prints it.

A count along a way through the code says what one thread executes where it takes that way. Nothing is run:
what instructions wait for is not in it.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

STORE = re.compile(r"STG\S*\.128\b")
"""Sixteen bytes of a view."""


class DisassemblyError(Exception):
    """nvdisasm is missing, or prints something else than this module can read."""


@dataclass(frozen=True)
class ViewCost:
    """What one thread executes for its part of the views of a whole tile.

    Attributes:
        start: instructions before the first view, the fewest; those that load pixels are not among them.
        instructions: of one view, from the head of the loop over views back to it, in the cheapest turn.
        stores: of 16 bytes, among these.
    """

    start: int
    instructions: int
    stores: int


@dataclass(frozen=True)
class Code:
    """The instructions of one kernel, and for each the numbers of those that may come next."""

    instructions: Sequence[str]
    following: Sequence[Sequence[int]]


def find_nvdisasm(nvcc: str) -> str:
    """Path of nvdisasm: of the toolkit, or the one that comes with Triton.

    Raises:
        DisassemblyError: there is none.
    """
    candidates = [Path(nvcc).resolve().parent / "nvdisasm"]
    if (found := shutil.which("nvdisasm")) is not None:
        candidates.append(Path(found))
    triton = importlib.util.find_spec("triton")
    if triton is not None and triton.origin is not None:
        candidates.append(Path(triton.origin).parent / "backends" / "nvidia" / "bin" / "nvdisasm")
    for candidate in candidates:
        if candidate.is_file():
            return str(candidate)
    raise DisassemblyError("nvdisasm was not found; install it with the CUDA toolkit, or Triton")


def disassemble(nvdisasm: str, cubin: Path) -> dict[str, Code]:
    """The kernels of a cubin by their mangled names; none where nvdisasm is older than the architecture.

    Raises:
        DisassemblyError: nvdisasm fails, or prints what cannot be read.
    """
    command = [nvdisasm, "-c", str(cubin)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "Cannot decode architecture" in done.stderr:
        return {}
    if done.returncode != 0:
        raise DisassemblyError(f"nvdisasm fails: {done.stderr.strip()}")
    return read(done.stdout)


def read(listing: str) -> dict[str, Code]:
    """The kernels in what ``nvdisasm -c`` prints.

    Raises:
        DisassemblyError: there is none, or it is not known where an instruction goes.
    """
    found = {}
    for section in re.split(r"^\s*\.section\s+\.text\.", listing, flags=re.MULTILINE)[1:]:
        name = section.partition(",")[0].strip().strip('"')
        instructions: list[str] = []
        labels: dict[str, int] = {}
        for line in section.splitlines():
            if label := re.match(r"(\.L\w+):", line):
                labels[label[1]] = len(instructions)
            elif instruction := re.match(r"\s*/\*[0-9a-f]+\*/\s+(.*?)\s*;", line):
                instructions.append(instruction[1])
        following = [list(_following(labels, *item)) for item in enumerate(instructions)]
        found[name] = Code(instructions, [[n for n in ns if n < len(instructions)] for ns in following])
    if not found:
        raise DisassemblyError("nvdisasm names no kernel; see whether its output has changed")
    return found


def _following(labels: dict[str, int], number: int, instruction: str) -> Iterator[int]:
    guard, operation, operands = re.findall(r"^(@\S+\s+)?(\S+)\s*(.*)$", instruction)[0]
    kind = operation.partition(".")[0]
    if kind in ("BRX", "BRXU", "JMP", "JMX", "JMXU"):
        raise DisassemblyError(f"where {instruction!r} goes is not known")
    # Before compute capability 9.0, loops are left by calls that do not return.
    branches = kind in ("BRA", "CALL")
    if branches:
        target = re.search(r"`\((\.L\w+)\)", operands)
        if target is None or target[1] not in labels:
            raise DisassemblyError(f"where {instruction!r} goes is not known")
        yield labels[target[1]]
    # A predicate stands before the instruction or, from compute capability 10.0 on, is its first operand.
    conditional = guard != "" or re.match(r"!?U?P\d", operands) is not None
    if conditional or not (branches or kind in ("EXIT", "RET")):
        yield number + 1


def view_cost(kernel: Code) -> ViewCost | None:
    """Of the loop over views that takes the fewest instructions per 16 bytes; None where none stores so many.

    A tile that is not whole takes another loop, with a set-up for every store.

    Raises:
        DisassemblyError: the ways through the code cannot be followed.
    """
    loops = [(to, at) for at, targets in enumerate(kernel.following) for to in targets if to < at]
    storing = [
        (head, end) for head, end in loops if any(map(STORE.search, kernel.instructions[head : end + 1]))
    ]
    found = []
    for head, end in storing:
        inside_another = any(to <= head and end <= at for to, at in storing if (to, at) != (head, end))
        if not inside_another:
            before, view = _fewest(kernel, 0, head), _fewest(kernel, head, end)
            stores = max(view, default=0)
            if 0 not in before or stores == 0:
                raise DisassemblyError("no way leads to and around a loop that stores")
            found.append(ViewCost(before[0] - 1, view[stores], stores))
    return min(found, key=lambda cost: cost.instructions / cost.stores) if found else None


def _fewest(kernel: Code, first: int, last: int) -> dict[int, int]:
    """The fewest instructions from ``first`` to ``last``, both included, by the stores among them."""
    found: dict[int, int] = {}
    seen = {(first, 0)}
    waiting = deque([(first, 0, 1)])
    while waiting:  # in the order of their instructions
        number, stores, instructions = waiting.popleft()
        stores += STORE.search(kernel.instructions[number]) is not None
        if number == last:
            found.setdefault(stores, instructions)
        for following in kernel.following[number]:
            # Forwards alone: a loop inside is passed once.
            if number < following <= last and (following, stores) not in seen:
                seen.add((following, stores))
                waiting.append((following, stores, instructions + 1))
    return found

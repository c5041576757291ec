"""Turns the CUDA sources of csrc/ into C++ that runs on the CPU, and plants faults in them.

What nvcc understands and a C++ compiler does not is rewritten: launches, and declarations of shared
variables. The rest stays as it is; `tests/cpp/executed/simt.h` supplies what it needs of CUDA. Headers are
written into the text, so that a fault can be planted in them, too.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cpp_build

from benchmarks.kernel_resources import CompileError, find_nvcc

ROOT = cpp_build.ROOT
CUDA = ROOT / "csrc" / "cuda"
PROGRAM = ROOT / "tests" / "cpp" / "executed"
CPU_KERNELS = tuple(
    ROOT / "csrc" / "cpu" / f"{name}.cpp" for name in ("rotate_scalar", "warp_scalar", "warp_cpu")
)

INCLUDE = re.compile(r'^#include "([^"]+)"$', re.MULTILINE)
LAUNCH = re.compile(r"(\w+(?:<[^;{}]*?>)?)<<<([^;]*?)>>>\(([^;]*)\);")
SHARED = re.compile(r"__shared__ (\w+) (\w+);")
BARRIER = "__syncthreads()"


@dataclass(frozen=True)
class Fault:
    """An expression of a source file, and a wrong one for it.

    Attributes:
        name: what is wrong.
        file: relative to the checkout.
        right: as it stands in the file.
        wrong: of the same type.
        report: regular expression of what the program must say.
        number: which of the places with ``right``, from 0 on.
        places: how many there are.
    """

    name: str
    file: str
    right: str
    wrong: str
    report: str = "^differs: "
    number: int = 0
    places: int = 1


def sources() -> list[Path]:
    """All files that nvcc compiles."""
    return sorted((ROOT / "csrc").rglob("*.cu"))


def plant(file: str, text: str, faults: Sequence[Fault]) -> str:
    """A file's text, in which the faults can be switched on: each by its position in ``faults``, from 1 on.

    Raises:
        ValueError: what a fault is to replace is not in the file, or more often than it says.
    """
    here: dict[tuple[str, int], str] = {}
    for position, fault in enumerate(faults, 1):
        if fault.file == file:
            if (found := text.count(fault.right)) != fault.places:
                raise ValueError(
                    f"{fault.name}: {file} has {fault.right!r} {found} times, not {fault.places}"
                )
            place = (fault.right, fault.number)
            here[place] = f"simt::planted == {position} ? {fault.wrong} : {here.get(place, fault.right)}"
    spans = {}
    for (right, number), replacement in here.items():
        start = [match.start() for match in re.finditer(re.escape(right), text)][number]
        spans[start, start + len(right)] = f"({replacement})"
    end = len(text)
    for start, stop in sorted(spans, reverse=True):
        if stop > end:
            raise ValueError(f"{file}: two faults are planted in the same text, {text[start:stop]!r}")
        text, end = text[:start] + spans[start, stop] + text[stop:], start
    return text


def as_cpp(source: Path, faults: Sequence[Fault] = ()) -> str:
    """A CUDA source as C++: with all headers of its own, and with ``faults`` planted.

    Raises:
        ValueError: a launch or a shared variable is written in a way that this does not know, or a fault
            cannot be planted.
    """
    text = '#include "simt.h"\n' + _expand(source, faults, set())
    text = LAUNCH.sub(r'simt::launch("\1", [&] { \1(\3); }, \2);', text)
    text = SHARED.sub(r'auto& \2 = simt::shared<\1>("\2");', text)
    for token in ("<<<", "__shared__", "cudaLaunchKernel"):
        if token in text:
            line = next(line for line in text.splitlines() if token in line)
            raise ValueError(f"{source.name}: executed_kernels.py cannot rewrite {line.strip()!r}")
    return text


def _expand(path: Path, faults: Sequence[Fault], seen: set[Path]) -> str:
    """The text of a file, and in place of its includes that of its headers, each once."""
    seen.add(path)
    name = path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else path.name
    text = plant(name, path.read_text(), faults).replace("#pragma once\n", "\n")

    def header(match: re.Match[str]) -> str:
        found = (path.parent / match[1]).resolve()
        if found in seen:
            return ""
        line = text.count("\n", 0, match.start()) + 2
        return f'{_expand(found, faults, seen)}#line {line} "{name}"'

    return f'#line 1 "{name}"\n{INCLUDE.sub(header, text)}'


def launches(cpp: str) -> list[str]:
    """Kernels with template arguments, as `as_cpp` left their launches."""
    return re.findall(r'simt::launch\("([^"]+)"', cpp)


def not_run(cpp: Mapping[str, str], output: str) -> list[str]:
    """Kernels and launches that the program was built with, and that did not run.

    Args:
        cpp: file -> what `as_cpp` made of it.
        output: of the program.
    """
    ran = set(re.findall(r"^launched \d+ times: (.*)$", output, re.MULTILINE))
    missing = []
    for file, text in cpp.items():
        text_of_kernels = re.sub(r"__launch_bounds__\([^)]*\)", "", text)
        kernels = re.findall(r"__global__[^;{(]*?(\w+)\s*\(", text_of_kernels)
        found = launches(text)
        missing += [f"{file}: {name}" for name in found if name not in ran]
        missing += [
            f"{file}: {name}"
            for name in kernels
            if not any(re.match(rf"{name}\b", launched) for launched in found)
        ]
    return missing


def cuda_includes() -> list[Path]:
    """Folders of the CUDA toolkit's headers.

    Raises:
        CompileError: there is no toolkit.
    """
    command = [find_nvcc(), "--dryrun", "-x", "cu", "/dev/null"]
    dryrun = subprocess.run(command, capture_output=True, text=True, check=False).stderr
    found = [Path(name) for name in re.findall(r'"-I([^"]+)"', dryrun)]
    if not any((folder / "cuda_bf16.h").is_file() for folder in found):
        raise CompileError("nvcc has no folder with cuda_bf16.h; install the CUDA toolkit's headers")
    return found


def build(name: str, files: Sequence[Path], faults: Sequence[Fault] = ()) -> Path:
    """The program of `tests/cpp/executed/main.cpp` with some CUDA sources.

    Raises:
        CompileError: there is no CUDA toolkit.
        cpp_build.NoSanitizersError: there is nothing to build it with.
        RuntimeError, ValueError: it does not compile, or cannot be rewritten.
    """
    options = [f"-isystem{folder}" for folder in cuda_includes()] + [f"-I{PROGRAM}"]
    if faults:
        options.append("-O0")  # each of its runs soon ends: compiling is what takes long
    folder = cpp_build.BUILD / name
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for file in files:
        made.append(folder / f"{file.stem}.cpp")
        made[-1].write_text(as_cpp(file, faults))
    others = [PROGRAM / "main.cpp", *made]
    return cpp_build.link(folder / "executed", CPU_KERNELS, cpp_build.ADDRESS, others, options)

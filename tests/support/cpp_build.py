"""Compiles C++ for tests, each source once: objects are kept by the digest of all that they are made of."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "sanitized"
COMPILER = shutil.which("c++") or shutil.which("g++")
FLAGS = (
    *("-std=c++17", "-Og", "-g1", "-ffp-contract=off", "-fPIC", "-fvisibility=hidden"),
    *("-Wall", "-Wextra", "-Werror", "-D_GLIBCXX_ASSERTIONS", "-fno-omit-frame-pointer"),
    # gcc's own AVX-512 headers trip these when a sanitizer is on.
    *("-Wno-maybe-uninitialized", "-Wno-uninitialized"),
    "-Wno-unknown-pragmas",  # the CUDA code's unroll
)
ADDRESS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=undefined")
THREAD = ("-fsanitize=thread",)
KERNELS = tuple(sorted((ROOT / "csrc" / "cpu").glob("*.cpp")))


class NoSanitizersError(Exception):
    """There is no compiler, or it has no such sanitizers."""


@cache
def check_compiler(sanitizers: tuple[str, ...]) -> None:
    """Build an empty program.

    Raises:
        NoSanitizersError: which cannot be built.
    """
    if COMPILER is None:
        raise NoSanitizersError("no C++ compiler on this machine")
    BUILD.mkdir(parents=True, exist_ok=True)
    command = [COMPILER, *sanitizers, "-x", "c++", "-", "-o", str(BUILD / f"probe-{os.getpid()}")]
    if subprocess.run(command, input="int main() {}", text=True, capture_output=True, check=False).returncode:
        raise NoSanitizersError(f"this compiler has no {' '.join(sanitizers)}")


def link(
    target: Path,
    sources: Sequence[Path],
    sanitizers: tuple[str, ...],
    others: Sequence[Path] = (),
    options: Sequence[str] = (),
    link_options: Sequence[str] = (),
) -> Path:
    """Build a program or a library out of C++ sources, and return where it lies.

    Args:
        sources: compiled alike for all that is built of them, so that they are compiled once.
        others: compiled with ``options``.

    Raises:
        NoSanitizersError: this machine has nothing to build it with.
        RuntimeError: an error in the sources.
    """
    check_compiler(sanitizers)
    target.parent.mkdir(parents=True, exist_ok=True)
    flags = (*FLAGS, *sanitizers)
    objects = compile_objects({**dict.fromkeys(sources, flags), **dict.fromkeys(others, (*flags, *options))})
    command = [str(COMPILER), *sanitizers, *map(str, objects), *link_options, "-o", str(target)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise RuntimeError(result.stderr)
    return target


def compile_objects(sources: Mapping[Path, tuple[str, ...]]) -> list[Path]:
    """One object per source and its flags, as many at a time as there are processors."""
    objects = {
        source: BUILD / f"{source.stem}-{digest(source, flags)}.o" for source, flags in sources.items()
    }
    # What takes longest goes first, and size is a fair guess.
    waiting = sorted((s for s in sources if not objects[s].exists()), key=lambda s: s.stat().st_size)
    running: list[tuple[Path, Path, subprocess.Popen[str]]] = []
    while waiting or running:
        while waiting and len(running) < (os.cpu_count() or 1):
            source = waiting.pop()
            made = objects[source].with_suffix(f".{os.getpid()}.o")
            command = [str(COMPILER), *sources[source], "-c", str(source), "-o", str(made)]
            running.append((source, made, subprocess.Popen(command, stderr=subprocess.PIPE, text=True)))
        finished = next((job for job in running if job[2].poll() is not None), running[0])
        running.remove(finished)
        source, made, process = finished
        _, errors = process.communicate()
        if process.returncode:
            raise RuntimeError(errors)
        made.replace(objects[source])
    return list(objects.values())


def digest(source: Path, flags: Sequence[str]) -> str:
    """Of a source, its flags, the compiler and every header that it could include."""
    found = hashlib.sha256(repr((flags, compiler_version(), source.name)).encode() + source.read_bytes())
    found.update(headers())
    return found.hexdigest()[:16]


@cache
def compiler_version() -> str:
    return subprocess.run([str(COMPILER), "--version"], capture_output=True, text=True, check=True).stdout


@cache
def headers() -> bytes:
    folders = (ROOT / "csrc", ROOT / "tests" / "cpp")
    paths = sorted(path for folder in folders for path in folder.rglob("*.h"))
    return b"".join(path.read_bytes() for path in paths)

"""The release checklist as one script: builds what would be uploaded, audits it, and tries it out.

    python build_tools/release.py FOLDER --pythons python3.10 python3.11 python3.12 python3.13

What is committed is archived, built to a source distribution, that to a wheel for every Python (with the
pybind11 module for those given), and the wheel installed into a clean environment of each, beside the newest
torch.
Set ROTNET_URL to the address of the repository, so that the links of the package's page lead there.
``--merge`` adds the CUDA library of another wheel, built on a machine with another toolkit.

The environment that runs this has torch and what ``pip install -e '.[dev]'`` installs.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TOOLS = ("abi3audit", "auditwheel", "build", "torch-abi-audit", "twine", "wheel")
LARGEST = 1 << 20
"""Bytes of a library of CPU kernels, and of a pybind11 module: more means that it was not stripped."""


def say(text: str) -> None:
    print(f"\n--- {text}", flush=True)


def run(*words: str | Path, cwd: Path | None = None, **environment: str) -> str:
    """Run a command and return what it says; what fails ends this script."""
    print("$", *words, flush=True)
    done = subprocess.run(
        list(map(str, words)),
        cwd=cwd,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        sys.exit(f"{done.stdout}\nrelease.py: this failed: {' '.join(map(str, words))}")
    return done.stdout


def check(is_right: bool, said: str) -> None:
    if not is_right:
        sys.exit(f"release.py: {said}")


def make_environment(folder: Path, python: str | Path, *packages: str | Path) -> Path:
    """Make a virtual environment and return the folder of its programs."""
    run(python, "-m", "venv", folder)
    run(folder / "bin" / "pip", "install", "--quiet", *packages)
    return folder / "bin"


def build(work: Path, programs: Path, pythons: list[str], merged: list[Path]) -> tuple[Path, Path]:
    """Return the folder where the source distribution was unpacked, and the wheel."""
    say("the source distribution, of what is committed")
    run("git", "archive", "--output", work / "committed.tar", "HEAD", cwd=ROOT)
    with tarfile.open(work / "committed.tar") as archive:
        archive.extractall(work / "committed", filter="data")
    run(programs / "python", "-m", "build", "--sdist", "--outdir", work / "dist", work / "committed")
    (sdist,) = (work / "dist").glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(work, filter="data")
    source = work / sdist.name.removesuffix(".tar.gz")

    say("the wheel, of the source distribution")
    run(
        *(sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation"),
        *("--wheel-dir", work / "built", source),
        ROTNET_PYTHONS=os.pathsep.join(pythons),
    )
    (wheel,) = (work / "built").glob("*.whl")
    if merged:
        run(programs / "wheel", "unpack", "--dest", work / "unpacked", wheel)
        (unpacked,) = (work / "unpacked").iterdir()
        for other in merged:
            with zipfile.ZipFile(other) as archive:
                names = [name for name in archive.namelist() if name.startswith("rotnet_fast/_C_cuda")]
                check(bool(names), f"{other} has no CUDA library")
                archive.extractall(unpacked, names)
        wheel.unlink()
        run(programs / "wheel", "pack", "--dest-dir", work / "built", unpacked)
    said = " ".join(run(programs / "auditwheel", "show", wheel).split())
    found = re.search(r'constrains the platform tag to "(\w+)"', said)
    check(found is not None, f"auditwheel says nothing of a platform tag: {said}")
    assert found is not None
    print(f"lowest platform tag that this compiler and C library allow: {found[1]}")
    name = run(programs / "wheel", "tags", "--remove", "--platform-tag", found[1], wheel).strip()
    tagged = work / "dist" / name.splitlines()[-1]
    (work / "built" / tagged.name).rename(tagged)
    return source, tagged


def audit(work: Path, programs: Path, wheel: Path, suffixes: set[str]) -> None:
    say("audits")
    print(run(programs / "twine", "check", "--strict", *wheel.parent.iterdir()))
    with zipfile.ZipFile(wheel) as archive:
        sizes = {Path(info.filename).name: info.file_size for info in archive.infolist()}
        archive.extractall(work / "content")
    libraries = {name: size for name, size in sizes.items() if name.endswith(".so")}
    print("\n".join(f"{size / 1024:8.0f} KiB  {name}" for name, size in libraries.items()))
    for name, size in libraries.items():
        check(size < LARGEST or "cuda" in name, f"{name} has {size} bytes: was it stripped?")
    wanted = {"_C_cpu.abi3.so", *(f"_core{suffix}" for suffix in suffixes)}
    check(wanted <= set(libraries), f"the wheel lacks {wanted - set(libraries)}")
    check(any("_C_cuda" in name for name in libraries), "the wheel lacks CUDA kernels")
    check(any(name.endswith(".safetensors") for name in sizes), "the wheel lacks the shipped model")
    check(wheel.name.split("-")[2:4] == ["py3", "none"], f"{wheel.name} is not for every Python")
    for path in sorted((work / "content" / "rotnet_fast").glob("_C_*.so")):
        print(run(programs / "torch-abi-audit", path))
        print(run(programs / "abi3audit", "--strict", "--assume-minimum-abi3", "3.10", path))


def try_wheel(programs: Path, folder: Path) -> None:
    """Run the installed package in a folder of its own."""
    folder.mkdir()
    said = run(programs / "python", "-m", "rotnet_fast.doctor", cwd=folder)
    check("All is well" in said and "CPU  library  in use" in said, said)
    flags = ("--preset", "quickstart", "--epochs", "2", "--output", "run")
    print(run(programs / "python", "-m", "rotnet_fast.pretrain", *flags, cwd=folder).splitlines()[-8])


def main() -> None:
    parser = argparse.ArgumentParser(description="Build, audit and try out what would be released.")
    parser.add_argument("folder", type=Path, help="where the distributions go; must not exist")
    parser.add_argument("--pythons", nargs="*", default=[], help="interpreters to build for and to try")
    parser.add_argument(
        "--merge", nargs="*", default=[], type=Path, help="wheels whose CUDA libraries to add"
    )
    arguments = parser.parse_args()
    check(sys.version_info >= (3, 11), "torch-abi-audit needs Python 3.11 or later; run this with one")
    check(not arguments.folder.exists(), f"{arguments.folder} exists; name another folder")
    ask = "import sysconfig; print(sysconfig.get_config_var('EXT_SUFFIX'))"
    suffixes = {python: run(python, "-c", ask).strip() for python in (sys.executable, *arguments.pythons)}
    others = [python for python, suffix in suffixes.items() if suffix != suffixes[sys.executable]]
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        programs = make_environment(work / "tools", sys.executable, *TOOLS)
        source, wheel = build(work, programs, others, arguments.merge)
        audit(work, programs, wheel, set(suffixes.values()))

        say("the tests of the source distribution, with the libraries of the wheel")
        for path in (work / "content" / "rotnet_fast").glob("*.so"):
            path.rename(source / "rotnet_fast" / path.name)
        tests = ("-q", "-n", str(os.cpu_count()), "--dist", "loadfile")
        print(run(sys.executable, "-m", "pytest", *tests, cwd=source).splitlines()[-1])

        say("try-outs in clean environments")
        for number, python in enumerate(arguments.pythons):
            tried = make_environment(work / f"tried-{number}", python, wheel)
            print(run(tried / "python", "-c", "import sys, torch; print(sys.version, torch.__version__)"))
            try_wheel(tried, work / f"try-{number}")
            shutil.rmtree(work / f"tried-{number}")
        shutil.move(work / "dist", arguments.folder)
    print(f"\nwritten to {arguments.folder}:", *sorted(path.name for path in arguments.folder.iterdir()))


if __name__ == "__main__":
    main()

"""What ``benchmarks.gpu_run`` needs on a machine without a network: python -m benchmarks.gpu_pack FOLDER

The folder gets wheels of the packages that such a machine lacks, the compiled libraries, and the name of the
commit. It is for Linux on x86-64. The libraries fit any torch from 2.10 on, and any Python but for the
compiled core, which only tests and pictures need.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

WHEELS = ("kymatio", "appdirs", "configparser")
"""Of the dependencies, those that machines made for PyTorch often lack, and what they need in turn."""

PLATFORMS = ("any", "manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")


def main(arguments: Sequence[str] | None = None) -> int:
    """Command-line entry point; returns the exit code."""
    parser = argparse.ArgumentParser(description="Pack what benchmarks.gpu_run needs without a network.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--python-version", default="3.12", help="of the other machine")
    parser.add_argument(
        "--with", nargs="*", default=[], dest="more", metavar="PACKAGE", help="further wheels"
    )
    options = parser.parse_args(arguments)
    folder: Path = options.folder
    folder.mkdir(parents=True, exist_ok=True)
    libraries = sorted((ROOT / "rotnet_fast").glob("*.so"))
    if not any(path.name.startswith("_C_cuda") for path in libraries):
        print("error: there are no CUDA kernels; run: ROTNET_CUDA=1 pip install -e .", file=sys.stderr)
        return 2
    tags = [flag for name in PLATFORMS for flag in ("--platform", name)]
    tags += ["--python-version", options.python_version, "--only-binary=:all:", "--no-deps"]
    pip = [sys.executable, "-m", "pip", "download", "-q", "-d", folder]
    if subprocess.run([*pip, *tags, *WHEELS, *options.more], check=False).returncode != 0:
        print("error: pip could not get all wheels; see above", file=sys.stderr)
        return 1
    for path in libraries:
        shutil.copyfile(path, folder / path.name)
        if strip := shutil.which("strip"):
            subprocess.run([strip, "--strip-unneeded", folder / path.name], check=True)
    described = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    (folder / "commit").write_text(described.stdout.strip() or "unknown")
    size = sum(path.stat().st_size for path in folder.iterdir()) / 2**20
    print(f"{folder}: {size:.1f} MiB; there: python -m benchmarks.gpu_run --pack {folder} --data-dir DATA")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""A folder of links to torch, NumPy, safetensors and what these need: the light core."""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import sys
from pathlib import Path

from pages import ROOT


def requirements(names: set[str]) -> set[str]:
    """Names of distributions, with all that they need."""
    found: set[str] = set()
    while names - found:
        name = (names - found).pop()
        found.add(name)
        for line in importlib.metadata.requires(name) or []:
            needed = re.split(r"[^\w.-]", line, maxsplit=1)[0]
            if "extra ==" not in line and any(importlib.metadata.distributions(name=needed)):
                names = names | {needed}
    return found


def make(folder: Path) -> Path:
    """Link the packages; returns the folder."""
    for name in requirements({"torch", "numpy", "safetensors"}):
        distribution = importlib.metadata.distribution(name)
        for file in distribution.files or []:
            top = Path(*file.parts[: 2 if file.parts[0] == "nvidia" else 1])  # DALI lies in nvidia/, too
            link = folder / top
            if ".." not in file.parts and not link.exists():
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(Path(str(distribution.locate_file(top))))
    return folder


def run(folder: Path, *words: str | Path) -> subprocess.CompletedProcess[str]:
    """Run Python with the packages of the folder and this checkout alone."""
    return subprocess.run(
        [sys.executable, "-S", *map(str, words)],
        cwd=folder,  # not the checkout, where runs may lie
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{folder}"},
        capture_output=True,
        text=True,
        check=False,
    )

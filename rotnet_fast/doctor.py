"""``python -m rotnet_fast.doctor`` reports what is installed, built and in use, and what to fix."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import rotnet_fast
from rotnet_fast.command import run_command
from rotnet_fast.dependencies import missing_libraries
from rotnet_fast.errors import ArgumentError
from rotnet_fast.flags import Parser
from rotnet_fast.next_steps import PRETRAIN, as_argument, print_next, shell
from rotnet_fast.plain import counted

PROGRAM = "python -m rotnet_fast.doctor"

TESTED_TORCH = ((2, 10), (2, 14), (2, 15))
"""Versions of torch that tests have been run beside, see docs/install.md."""

TESTED = f"tested: {', '.join(f'{major}.{minor}' for major, minor in TESTED_TORCH)}"


def _report() -> tuple[list[str], list[str], list[str]]:
    """Return lines of facts, lines of advice, and commands for it; no advice if everything required works."""
    facts = [
        f"rotnet_fast   {_version('rotnet_fast')}",
        f"python        {platform.python_version()} on {platform.platform()}",
    ]
    advice: list[str] = []
    commands: list[str] = []
    source = Path(rotnet_fast.__file__).parents[1]
    place = Path()
    if (source / "pyproject.toml").exists():
        try:
            place = Path(os.path.relpath(source))
        except ValueError:  # it is on another drive of Windows
            place = source
    install = f"pip install -e {as_argument(place)}"
    try:
        import torch
    except ImportError as error:
        facts.append(f"torch         does not import: {error}")
        return facts, ["install torch (2.10 or later), then rotnet_fast again"], ["pip install 'torch>=2.10'"]
    from rotnet_fast.ops.library import LIBRARIES, build_information, torch_build

    is_tested = tuple(map(int, re.findall(r"\d+", torch.__version__)[:2])) in TESTED_TORCH

    facts += [
        f"torch         {torch.__version__}, {torch_build()}{'' if is_tested else '; ' + TESTED}",
        f"threads       {torch.get_num_threads()} of {counted(os.cpu_count() or 1, 'core')}",
    ]
    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(number)
            memory = properties.total_memory / 2**30
            facts.append(
                f"GPU {number}         {properties.name}, compute capability "
                f"{properties.major}.{properties.minor}, {memory:.0f} GiB"
            )
    elif torch.backends.mps.is_available():
        facts.append("GPU           of Apple, with --device mps: the CPU makes the views")
    else:
        facts.append("GPU           none usable by torch")
    facts.append(f"nvcc          {shutil.which('nvcc') or 'not found'}")
    if (built := build_information()) is None:
        facts.append("built with    no compiled code is in use")
    else:
        facts.append(f"built with    {built[0]}, torch {built[1]}")
        facts.append(f"CUDA kernels  {built[2]}")
    for library in LIBRARIES.values():
        state = "in use" if library.loaded else "not in use"
        facts.append(f"{library.device.upper():4} library  {state}: {library.detail}")

    missing = missing_libraries()
    if missing:
        facts.append(
            f"libraries     without {', '.join(missing)}: the op and load_backbone need none of them; for "
            f"whatever else needs one: pip install {' '.join(missing)}"
        )
    if "pillow" not in missing:
        facts.append(f"DALI          {_dali()}")
    if not LIBRARIES["cpu"].loaded:
        advice.append(f"install a C++ compiler (g++ or clang++), then run: {install}")
        commands.append(install)
    if torch.version.hip is not None:
        facts.append("ROCm          the plain-torch fallback makes the views: no kernels for AMD GPUs")
    elif torch.cuda.is_available() and not LIBRARIES["cuda"].loaded:
        advice.append(
            f"install the CUDA {torch.version.cuda} toolkit (nvcc), then run: ROTNET_CUDA=1 {install}"
        )
        commands = [f"ROTNET_CUDA=1 {install}"]
    if LIBRARIES["cpu"].loaded:
        advice += _check_kernel()
    return facts, advice, commands


def _dali() -> str:
    """Return DALI's version, or why it is unusable; only the streaming loader needs it."""
    import torch

    from rotnet_fast.data.dali import require_dali

    try:
        require_dali(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    except ArgumentError as error:
        return f"not in use, so images are kept in memory: {error}"
    import nvidia.dali

    return f"{nvidia.dali.__version__}, CUDA {nvidia.dali.__cuda_version__ // 1000}"


def _check_kernel() -> list[str]:
    """Compare the kernels of this machine with the plain-torch definition."""
    import torch

    from rotnet_fast.ops import rotate_batch
    from rotnet_fast.ops.reference import rotate_batch_reference
    from rotnet_fast.paper import CIFAR10_MEAN, CIFAR10_STD

    advice = []
    for device in ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]:
        images = torch.randint(0, 256, (16, 32, 32, 3), dtype=torch.uint8).to(device)
        try:
            views, _ = rotate_batch(images, seed=1, epoch=2)
        except RuntimeError as error:
            advice.append(
                f"the {device} kernel does not run here ({error}): if this GPU's architecture is not listed "
                "above, install again with TORCH_CUDA_ARCH_LIST set to its compute capability"
            )
            continue
        expected, _ = rotate_batch_reference(
            images, None, None, 1, 2, [0, 1, 2, 3], 4, 0.5, CIFAR10_MEAN, CIFAR10_STD, torch.float32
        )
        if not torch.equal(views.permute(0, 2, 3, 1), expected):
            advice.append(
                f"the {device} kernel differs from the plain-torch definition on this machine: "
                "please report it with this output"
            )
    return advice


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the report; return 0 if all is well, 1 if something is to be fixed, 2 for wrong arguments."""

    def command() -> int:
        parser = Parser(PROGRAM, description="Report what is installed and in use, and what to fix.")
        parser.parse_args(arguments)
        facts, advice, commands = _report()
        print("\n".join(facts))
        if advice:
            print("\nTo do:\n" + "\n".join(f"- {line}" for line in advice))
            print_next([*commands, shell("doctor")] if commands else [])
            return 1
        print("\nAll is well: the kernels in use agree with the plain-torch definition.")
        print_next([PRETRAIN, shell("benchmark", "--what", "op")])
        return 0

    return run_command(command, is_shown_only=True)


if __name__ == "__main__":
    sys.exit(main())

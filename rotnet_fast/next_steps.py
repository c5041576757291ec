"""The next steps that a command names at its end: lines to paste, which work as they stand.

Importing this module does not import torch.
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TextIO

from rotnet_fast.engine.distributed import is_main
from rotnet_fast.pretrained import SHIPPED, find_model

PRETRAIN = "python -m rotnet_fast.pretrain --preset quickstart"

FEW_LABELS = ("--images-per-class", "1", "--epochs", "10", "--pad", "2")
"""How the digits are evaluated: with one label each, and the shifts that suit them."""

QUICK = ("--no-frozen", "--knn", "--linear")
"""A first look at the features of other images: nothing is trained for hours."""


def print_next(steps: Sequence[str], where: str = "", file: TextIO | None = None) -> None:
    """Print the next steps, in rank 0 only.

    Args:
        steps: at most three lines to paste into a shell; none prints nothing.
        where: into what else they are to be pasted, such as ``in Python``. They are not indented then.
        file: stream; None for standard output.
    """
    if steps and is_main():
        indent = "" if where else "  "
        print("\n".join([f"\nnext{where and ', '}{where}:", *(indent + step for step in steps)]), file=file)


def shell(command: str, *words: object) -> str:
    """Format a command of this package and its words for a shell; a path comes as a `Path`.

    Args:
        command: name of the command, such as ``evaluate``.
        words: flags and values.
    """
    parts = [as_argument(word) if isinstance(word, Path) else shlex.quote(str(word)) for word in words]
    return " ".join([f"python -m rotnet_fast.{command}", *parts])


def as_argument(path: Path) -> str:
    """Format a path for a shell; a relative one may look like a flag or a shipped model's name."""
    text = str(path)
    return shlex.quote(f"./{text}" if text.startswith("-") or text in SHIPPED else text)


def given_network(checkpoint: str) -> Path | str:
    """Return a checkpoint that the user gave as :func:`shell` takes it: a path or a name."""
    return find_model(checkpoint).shipped_as or Path(checkpoint)


def evaluation(checkpoint: Path | str, dataset: str, flags: Iterable[object] = ()) -> str:
    """First evaluation of a pretrained network.

    Args:
        checkpoint: the network, see :func:`given_network`.
        dataset: name of its images, which have classes.
        flags: where they lie, unless the pretraining's record says so.
    """
    return shell("evaluate", checkpoint, *(FEW_LABELS if dataset == "digits" else QUICK), *flags)


def curves(run: Path) -> str:
    """Command that shows the curves of a run."""
    return f"tensorboard --logdir {as_argument(run)}"


def look_at(path: Path) -> str:
    """Command that opens a file or folder on the desktop or, without one, serves its folder to a browser."""
    if sys.platform == "darwin":
        return f"open {as_argument(path)}"
    if shutil.which("xdg-open") and (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        return f"xdg-open {as_argument(path)}"
    folder = path if path.is_dir() else path.parent
    return f"python -m http.server --bind 127.0.0.1 --directory {as_argument(folder)}"

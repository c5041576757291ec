"""List the commands, or run one: ``python -m rotnet_fast [COMMAND ...]``, also installed as ``rotnet_fast``.

Importing this module does not import torch.
"""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Sequence

import rotnet_fast

COMMANDS = {
    "doctor": "check the installation, and say what to do about what is missing",
    "pretrain": "learn features by predicting rotations",
    "visualize": "draw what a pretrained network predicts and sees",
    "evaluate": "train classifiers on the features, or compare with supervised training",
    "embed": "write the features of every image under a folder",
    "orient": "find photos that are not upright, and write upright copies",
    "export": "write the network as safetensors, with a model card",
    "reproduce": "compute every table and figure of the method, with a report",
    "report": "print or write tables again from finished results",
    "benchmark": "measure the fused op and training steps on this machine",
}
"""Name of a module with a ``main`` -> what it does, in the order of a first session."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code; without one, list them.

    Args:
        arguments: name of a command and its flags; None for those of this process.
    """
    name, *rest = [*(sys.argv[1:] if arguments is None else arguments), ""]
    if name in COMMANDS:
        code: int = importlib.import_module(f"rotnet_fast.{name}").main(rest[:-1])
        return code
    if name == "--version":
        print(f"rotnet_fast {rotnet_fast.__version__}")
    elif name in ("", "-h", "--help"):
        print(overview())
    else:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        meant = f"did you mean {near[0]}?" if near else f"choose from {', '.join(COMMANDS)}"
        print(f"error: unknown command {name!r}; {meant}", file=sys.stderr)
        return 2
    return 0


def overview() -> str:
    """What is printed without a command."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {text}" for name, text in COMMANDS.items()]
    return "\n".join(
        [
            f"rotnet_fast {rotnet_fast.__version__}: self-supervised image features by predicting rotations",
            "",
            "python -m rotnet_fast.COMMAND [flags], or rotnet_fast COMMAND [flags]:",
            "",
            *lines,
            "",
            "--help after a command shows its flags. A first try, in under a minute on two CPU cores:",
            "",
            "  python -m rotnet_fast.pretrain --preset quickstart",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())

"""Checks the name of a network without importing its library, which takes seconds.

Importing this module does not import torch.
"""

from __future__ import annotations

import difflib
import re
from importlib.util import find_spec
from pathlib import Path

from rotnet_fast.config import NIN
from rotnet_fast.errors import ArgumentError, CheckpointError

TIMM = "timm/"
"""Prefix of the names of timm's networks."""

OWN = "own/"
"""Prefix of the names of modules that a program gave."""


def check_model_name(model: str) -> None:
    """Refuse a name that the sources of its library neither define nor contain as a string.

    A name that passes may still be refused by the library itself, when its network is built.

    Raises:
        ArgumentError: there cannot be such a network.
        CheckpointError: it is that of a module that a program gave.
    """
    if model == NIN:
        return
    if model.startswith(OWN):
        raise module_needed(model)
    library, prefix = ("timm", TIMM) if model.startswith(TIMM) else ("torchvision", "")
    found = find_spec(library)  # of the package itself, which is not imported by this
    if found is None or found.origin is None:
        return  # reported when the library is imported
    texts = [
        path.read_text(errors="replace") for path in (Path(found.origin).parent / "models").rglob("*.py")
    ]
    name, _, _ = model.removeprefix(prefix).partition(".")  # timm: the part after a point names weights
    if texts and not any(re.search(rf"(def |[\"']){re.escape(name)}\b", text) for text in texts):
        builders = r"^@register_model\b.*\n(?:@.*\n)*def (\w+)"
        names = [prefix + name for text in texts for name in re.findall(builders, text, re.MULTILINE)]
        raise unknown_model(model, names)


def own_name(module: object) -> str:
    """Return the name under which a module that a program gives is recorded."""
    return f"{OWN}{type(module).__name__}"


def module_needed(model: str) -> CheckpointError:
    """Make the error for a network that a program gave, where only its name is known."""
    return CheckpointError(
        f"model {model} is a module that a program gave, which its name alone cannot build again: in Python, "
        f"pass it to rotnet_fast.load_backbone or rotnet_fast.train_rotnet as model"
    )


def unknown_model(model: str, names: list[str]) -> ArgumentError:
    """Make the error for an unknown network, with similar names.

    Args:
        model: the unknown name.
        names: names of networks that exist.
    """
    near = difflib.get_close_matches(model, [NIN, *names], n=5, cutoff=0.5)
    return ArgumentError(
        f"unknown model {model!r}; "
        + (f"did you mean {', '.join(near)}? Otherwise " if near else "")
        + f"choose {NIN}, a classification network of torchvision, such as resnet18, or one of timm, such as "
        f"{TIMM}resnet18"
    )

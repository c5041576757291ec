"""Whether a network's name can be one at all, without the seconds that importing its library takes.

Importing this module does not import torch.
"""

from __future__ import annotations

import difflib
import re
from importlib.util import find_spec
from pathlib import Path

from rotnet_fast.config import NIN
from rotnet_fast.errors import ArgumentError

TIMM = "timm/"
"""What the names of timm's networks begin with."""


def check_model_name(model: str) -> None:
    """Refuse a name that its library's sources neither define nor hold as a string.

    A name that passes may still be refused by the library itself, when its network is made.

    Raises:
        ArgumentError: there cannot be such a network.
    """
    if model == NIN:
        return
    library, prefix = ("timm", TIMM) if model.startswith(TIMM) else ("torchvision", "")
    found = find_spec(library)  # of the package itself, which is not imported by this
    if found is None or found.origin is None:
        return  # said when the library is asked for
    texts = [
        path.read_text(errors="replace") for path in (Path(found.origin).parent / "models").rglob("*.py")
    ]
    name, _, _ = model.removeprefix(prefix).partition(".")  # timm: behind a point is the name of weights
    if texts and not any(re.search(rf"(def |[\"']){re.escape(name)}\b", text) for text in texts):
        builders = r"^@register_model\b.*\n(?:@.*\n)*def (\w+)"
        names = [prefix + name for text in texts for name in re.findall(builders, text, re.MULTILINE)]
        raise unknown_model(model, names)


def unknown_model(model: str, names: list[str]) -> ArgumentError:
    """The refusal of a network, with names that are like it.

    Args:
        names: of networks that there are.
    """
    near = difflib.get_close_matches(model, [NIN, *names], n=5, cutoff=0.5)
    return ArgumentError(
        f"model is {model!r}, which there is not; "
        + (f"did you mean {', '.join(near)}? " if near else "")
        + f"Choose {NIN}, a classification network of torchvision, such as resnet18, or one of timm, such as "
        f"{TIMM}resnet18"
    )

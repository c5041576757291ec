"""JSON that an earlier command wrote, read with errors that say what to do about it.

Importing this module does not import torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rotnet_fast.errors import ArgumentError, RotnetError

Parts = Mapping[str, type | tuple[type, ...]]
"""Name of a value that must be there -> its type."""


def read_object(
    path: Path, what: str, parts: Parts, remedy: str, error: type[RotnetError] = ArgumentError
) -> dict[str, Any]:
    """Read a JSON file that holds an object.

    Args:
        path: of the file.
        what: the object is, as in "holds no evaluation".
        parts: that it must have.
        remedy: what the user can do where it is not so.
        error: class of the errors.

    Raises:
        error: the file cannot be read, is no JSON, or holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as reason:
        raise error(f"{path} cannot be read ({reason}); {remedy}") from None
    if not isinstance(content, dict):
        raise error(f"{path} holds no {what}; {remedy}")
    for name, kind in parts.items():
        if not isinstance(content.get(name), kind):
            state = "of another type" if name in content else "missing"
            raise error(f"{path} holds no {what}, as its {name} is {state}; {remedy}")
    return content

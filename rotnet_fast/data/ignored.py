"""Counts of what a data folder contains besides the images in use, so that nothing is ignored silently."""

from __future__ import annotations

import os
from collections.abc import Mapping

_SHOWN = 8


class IgnoredFiles:
    """Count the files that are ignored, by kind, and keep the first name of each kind.

    Args:
        found: initial map from kind to count and first name.
    """

    def __init__(self, found: Mapping[str, tuple[int, str]] | None = None) -> None:
        self.found = dict(found or {})

    def add(self, kind: str, name: str, count: int = 1) -> None:
        """Add ``count`` files of a kind, of which ``name`` is one."""
        before, first = self.found.get(kind, (0, name))
        self.found[kind] = (before + count, first)

    def add_file(self, name: str) -> None:
        """Add a file under its suffix."""
        base = name.rpartition("/")[2]
        if base.startswith("."):
            self.add("hidden", name)
        else:
            self.add(os.path.splitext(base)[1].lower() or "without a suffix", name)

    def update(self, other: IgnoredFiles) -> None:
        """Add the counts of another instance."""
        for kind, (count, name) in other.found.items():
            self.add(kind, name, count)

    def __bool__(self) -> bool:
        return bool(self.found)

    def __str__(self) -> str:
        """Return ``3 .webp (such as train/a/1.webp), 1 hidden (such as .DS_Store)``, most frequent first."""
        kinds = sorted(self.found.items(), key=lambda item: (-item[1][0], item[0]))
        said = [f"{count} {kind} (such as {name})" for kind, (count, name) in kinds[:_SHOWN]]
        if len(kinds) > _SHOWN:
            said.append(f"{sum(count for _, (count, _) in kinds[_SHOWN:])} of other kinds")
        return ", ".join(said)

"""Cells: the units of a study, each with one result in one file that its configuration names.

Importing this module does not import torch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

RESULT_FORMAT = 1
"""Part of every key. Raise it when the same configuration would give other numbers."""


@dataclass(frozen=True, eq=False)
class StudyCell:
    """One result of a study: what is computed, from what, with which settings.

    Attributes:
        kind: key of `rotnet_fast.study.kinds.KINDS`.
        settings: everything that decides the result, as plain values. Cells that agree in kind,
            settings and needs form a group and are computed together: heads on one frozen backbone
            share its forward pass.
        member: what tells a cell from the others of its group, such as layer and head.
        needs: cells whose networks this one starts from.
    """

    kind: str
    settings: dict[str, Any]
    member: dict[str, Any] = field(default_factory=dict)
    needs: tuple[StudyCell, ...] = ()

    @cached_property
    def group_key(self) -> str:
        """16 hex digits, shared by the cells of a group."""
        needs = [need.key for need in self.needs]
        return _digest(
            {"format": RESULT_FORMAT, "kind": self.kind, "settings": self.settings, "needs": needs}
        )

    @cached_property
    def key(self) -> str:
        """16 hex digits that name this cell's result file."""
        return _digest({"group": self.group_key, "member": self.member})

    @property
    def placement(self) -> tuple[str, str]:
        """Layer and head of a classifier on features; kinds without a choice of heads are their own head."""
        values = {**self.settings, **self.member}
        return values["layer"], values.get("head", self.kind)

    @property
    def label(self) -> str:
        """Short text for progress lines."""
        member = " ".join(str(value) for value in self.member.values())
        return f"{self.kind} {member}".strip()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, StudyCell) and other.key == self.key

    def __hash__(self) -> int:
        return hash(self.key)


def _digest(content: dict[str, Any]) -> str:
    """Return the first 16 hex digits of SHA-256 over the content as canonical JSON."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def with_needs(cells: Iterable[StudyCell]) -> Iterator[StudyCell]:
    """Yield each cell once, after all the cells that it needs, otherwise in the order given."""
    seen: set[str] = set()

    def visit(cell: StudyCell) -> Iterator[StudyCell]:
        if cell.key in seen:
            return
        seen.add(cell.key)
        for need in cell.needs:
            yield from visit(need)
        yield cell

    for cell in cells:
        yield from visit(cell)

"""A report as a list of sections, which `rotnet_fast.study.pages.markdown` and `.html` render.

Texts are plain, except that text between backticks is code.
Importing this module does not import torch.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from rotnet_fast.plain import counted

NOT_RUN = "not run"

_OTHERS = re.compile("reference|published|paper|faithful")
"""Words in the titles of rows and columns that hold the numbers of others."""


@dataclass(frozen=True)
class Paragraph:
    """Running text."""

    text: str


@dataclass(frozen=True)
class Bullets:
    """A list of short texts."""

    texts: tuple[str, ...]


@dataclass(frozen=True)
class Code:
    """Commands to copy."""

    text: str


@dataclass(frozen=True)
class Table:
    """Rows of text; the first column names the row.

    Attributes:
        caption: what the table shows, complete without the text around it.
        header: column titles.
        rows: one text per column each.
        numeric: columns that are right-aligned.
        note: small print below the table.
    """

    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numeric: tuple[int, ...] = ()
    note: str = ""


@dataclass(frozen=True)
class Figure:
    """A picture of the folder ``figures``.

    Attributes:
        name: file name without its suffix.
        alt: what it shows, for readers who cannot see it.
        caption: text below the picture.
    """

    name: str
    alt: str
    caption: str


@dataclass(frozen=True)
class Row:
    """Pictures side by side where there is room."""

    figures: tuple[Figure, ...]


Block = Paragraph | Bullets | Code | Table | Figure | Row


@dataclass(frozen=True)
class Section:
    """A title and what stands below it."""

    title: str
    blocks: tuple[Block, ...]

    @property
    def anchor(self) -> str:
        """Target of links, by GitHub's rule for Markdown headings."""
        return re.sub(r"[^\w\- ]", "", self.title.lower()).replace(" ", "-")


@dataclass(frozen=True)
class Document:
    """A whole report: title, what stands above the table of contents, and sections."""

    title: str
    lead: tuple[Block, ...]
    sections: tuple[Section, ...]


def as_far_as_run(blocks: tuple[Block, ...]) -> tuple[Block, ...]:
    """Return blocks without the rows of tables of which nothing has been run; notes count them."""
    found: list[Block] = []
    for block in blocks:
        if isinstance(block, Table):
            rows = tuple(row for row in block.rows if NOT_RUN not in row or _results(row, block.header))
            if missing := len(block.rows) - len(rows):
                if not any(_results(row, block.header) for row in rows):
                    continue
                have = "has" if missing == 1 else "have"
                note = f"{block.note} {counted(missing, 'more row')} {have} not been run.".lstrip()
                block = replace(block, rows=rows, note=note)
        found.append(block)
    return tuple(found)


def _results(row: tuple[str, ...], header: tuple[str, ...]) -> set[str]:
    """Return the results of a study in a row, beside those of others."""
    if _OTHERS.search(row[0]):
        return set()
    own = {text for text, title in zip(row[1:], header[1:], strict=True) if not _OTHERS.search(title)}
    return own - {NOT_RUN, "", "-", "0"}


def escaped(text: str) -> str:
    """Make text from outside, such as a data set's name, safe to embed: its backticks are no markup."""
    return text.replace("`", "'")


def code_spans(text: str) -> list[tuple[bool, str]]:
    """Split a text into pieces: (whether it is code, piece)."""
    pieces = text.split("`")
    if len(pieces) % 2 == 0:
        return [(False, text)]
    return [(position % 2 == 1, piece) for position, piece in enumerate(pieces) if piece]


def figure(drawn: frozenset[str], name: str, alt: str, caption: str) -> tuple[Block, ...]:
    """Return a figure if it has been drawn, else a sentence saying that it was not."""
    if name in drawn:
        return (Figure(name, alt, caption),)
    return (Paragraph(f"Not run: no figure. ({caption})"),)

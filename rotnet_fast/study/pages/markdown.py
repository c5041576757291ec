"""Renders a report as Markdown for GitHub.

Importing this module does not import torch.
"""

from __future__ import annotations

import re

from rotnet_fast.study.pages.document import (
    Block,
    Bullets,
    Code,
    Document,
    Figure,
    Paragraph,
    Row,
    Table,
    code_spans,
)


def render_markdown(document: Document) -> str:
    """Render the whole report; pictures are links into the folder ``figures`` next to it."""
    parts = [f"# {_inline(document.title)}", *map(render_block, document.lead)]
    parts.append(
        "\n".join(f"- [{_inline(section.title)}](#{section.anchor})" for section in document.sections)
    )
    for section in document.sections:
        parts.append(f"## {_inline(section.title)}")
        parts += map(render_block, section.blocks)
    return "\n\n".join(parts) + "\n"


def render_block(block: Block) -> str:
    """Render one block, without blank lines around it."""
    if isinstance(block, Paragraph):
        return _inline(block.text)
    if isinstance(block, Bullets):
        return "\n".join(f"- {_inline(text)}" for text in block.texts)
    if isinstance(block, Code):
        return f"```sh\n{block.text}\n```"
    if isinstance(block, Row):
        return "\n\n".join(map(render_block, block.figures))
    if isinstance(block, Figure):
        return f"![{_inline(block.alt)}](figures/{block.name}.png)\n\n*{_inline(block.caption)}*"
    return _table(block)


def table_lines(table: Table) -> list[str]:
    """Render header, alignment and rows of a table, without its caption and note."""
    alignment = ["---:" if column in table.numeric else "---" for column in range(len(table.header))]
    lines = [table.header, *table.rows]
    rendered = ["| " + " | ".join(map(_inline, line)) + " |" for line in lines]
    return [rendered[0], "|" + "|".join(alignment) + "|", *rendered[1:]]


def _table(table: Table) -> str:
    parts = [f"**{_inline(table.caption)}**", "\n".join(table_lines(table))]
    if table.note:
        parts.append(_inline(table.note))
    return "\n\n".join(parts)


def _inline(text: str) -> str:
    """Keep code spans, and escape everything else that Markdown would interpret."""
    rendered = ""
    for is_code, piece in code_spans(text):
        if is_code:
            rendered += "`" + piece.replace("|", "\\|") + "`"
        else:
            piece = piece.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
            rendered += re.sub(r"([\\*_|\[\]])", r"\\\1", piece)
    return rendered

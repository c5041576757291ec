"""The pages of the documentation as Markdown, notebooks included."""

from __future__ import annotations

import json
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def page_text(path: Path) -> str:
    """A page's Markdown; of a notebook, that of its texts, with its cells of code as blocks of code."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".ipynb":
        return text
    return "\n\n".join(
        as_markdown(cell["cell_type"], "".join(cell["source"])) for cell in json.loads(text)["cells"]
    )


def as_markdown(kind: str, source: str) -> str:
    """A cell of a notebook as Markdown."""
    if kind == "markdown":
        return source
    is_shell = source.startswith("%%sh\n")
    return f"```{'sh' if is_shell else 'python'}\n{source.removeprefix('%%sh').strip()}\n```"

"""Renders a report as one HTML page that needs nothing else: no network, no script, no other file.

What matters stands first and open; each section below is folded, so that their titles are the contents.

Importing this module does not import torch.
"""

from __future__ import annotations

import base64
from collections.abc import Collection, Mapping
from html import escape

from rotnet_fast.study.pages.document import (
    NOT_RUN,
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

LARGEST_SVG = 300_000
"""Bytes; above, as for figures made of photographs, the page carries the PNG."""

STYLE = """
:root { --ink: #1b1f24; --muted: #59626d; --rule: #d5dae0; --tint: #f4f6f8; --link: #0b5394; }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; scroll-behavior: smooth; }
body {
  margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 62rem; color: var(--ink); background: #fff;
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "DejaVu Sans", sans-serif;
}
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 1rem; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; line-height: 1.3; margin: 0; }
p, li { max-width: 46rem; overflow-wrap: break-word; }
a { color: var(--link); }
main { margin-top: 2rem; }
details { border-top: 1px solid var(--rule); }
details:last-of-type { border-bottom: 1px solid var(--rule); }
summary { padding: .8rem 0; cursor: pointer; }
summary h2 { display: inline; }
details > div { padding-bottom: 1.5rem; scroll-margin-top: 4rem; }
.pictures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr));
  gap: 1.5rem; align-items: start; }
.pictures figure { margin: 0; }
.pictures figure:first-child { grid-row: span 2; }
code { font: .9em/1.4 ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace;
  overflow-wrap: anywhere; }
pre { margin: 1rem 0; padding: .8rem 1rem; background: var(--tint); border-radius: .4rem; overflow-x: auto;
  max-width: 100%; }
pre code { overflow-wrap: normal; }
.table { margin: 1.5rem 0; }
.scroll { max-width: 100%; overflow-x: auto; }
table { border-collapse: collapse; font-size: .92rem; line-height: 1.4; font-variant-numeric: tabular-nums; }
.caption { font-weight: 600; font-size: .92rem; margin: 0 0 .4rem; }
th, td { padding: .32rem .8rem .32rem 0; text-align: left; vertical-align: top;
  border-bottom: 1px solid var(--rule); }
th:last-child, td:last-child { padding-right: 0; }
thead th { border-bottom: 2px solid var(--ink); vertical-align: bottom; }
tbody th { font-weight: 400; }
tbody tr:hover { background: var(--tint); }
.number { text-align: right; white-space: nowrap; }
.missing { color: var(--muted); font-style: italic; }
.note, figcaption { color: var(--muted); font-size: .9rem; max-width: 46rem; margin: .5rem 0 0; }
figure { margin: 1.75rem 0; }
figure img { display: block; max-width: 100%; height: auto; }
@media (max-width: 40rem) {
  body { padding: 1.25rem .9rem 3rem; }
  h1 { font-size: 1.5rem; }
  h2 { font-size: 1.1rem; }
  table { font-size: .84rem; }
  th, td { padding-right: .6rem; }
  thead .number { white-space: normal; }
  tbody th { min-width: 6.5rem; }
}
@media print {
  @page { margin: 16mm 14mm; }
  body { max-width: none; padding: 0; font-size: 9.5pt; line-height: 1.4; }
  h1 { font-size: 18pt; }
  h2 { font-size: 13pt; break-after: avoid; }
  details::details-content { content-visibility: visible; block-size: auto; }
  a { color: inherit; text-decoration: none; }
  pre { background: none; border: 1px solid var(--rule); }
  .table { margin: 10pt 0; break-inside: avoid; }
  .scroll { overflow: visible; }
  table { font-size: 8.5pt; }
  .caption { break-after: avoid; }
  tr, figure { break-inside: avoid; }
  thead { display: table-header-group; }
  figure img { max-width: 100%; max-height: 225mm; margin: 0 auto; }
  p, li, .note, figcaption { max-width: none; }
}
"""


def render_html(document: Document, pictures: Mapping[str, str]) -> str:
    """Render the whole page.

    Args:
        document: the report.
        pictures: name of each figure -> its data URI, see :func:`data_uri`.
    """
    shown = {figure.name for block in document.lead if isinstance(block, Row) for figure in block.figures}
    parts = [
        "<!DOCTYPE html>",
        '<html lang="en">',
        "<head>",
        '<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        # The browser itself refuses anything that is not in this file.
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'\">",
        f"<title>{escape(document.title.replace('`', ''))}</title>",
        f"<style>{STYLE}</style>",
        "</head>",
        "<body>",
        "<header>",
        f"<h1>{_inline(document.title)}</h1>",
        *(_block(block, pictures) for block in document.lead),
        "</header>",
        "<main>",
    ]
    for section in document.sections:
        # The target of a link from outside is within, so that browsers open what it is folded into.
        parts.append(f"<details>\n<summary><h2>{_inline(section.title)}</h2></summary>")
        parts.append(f'<div id="{escape(section.anchor)}">')
        parts += (_block(block, pictures, shown) for block in section.blocks)
        parts.append("</div>\n</details>")
    parts += ["</main>", "</body>", "</html>"]
    return "\n".join(parts) + "\n"


def data_uri(svg: bytes, png: bytes) -> str:
    """Encode one picture as a URI: lines as SVG, photographs, which make an SVG huge, as PNG."""
    kind, content = ("svg+xml", svg) if len(svg) <= LARGEST_SVG else ("png", png)
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _block(block: Block, pictures: Mapping[str, str], shown: Collection[str] = ()) -> str:
    """Render one block; one of the pictures ``shown`` already is only referred to."""
    if isinstance(block, Paragraph):
        return f"<p>{_inline(block.text)}</p>"
    if isinstance(block, Bullets):
        items = "\n".join(f"<li>{_inline(text)}</li>" for text in block.texts)
        return f"<ul>\n{items}\n</ul>"
    if isinstance(block, Code):
        return f"<pre><code>{escape(block.text)}</code></pre>"
    if isinstance(block, Row):
        figures = "\n".join(_figure(figure, pictures) for figure in block.figures)
        return f'<div class="pictures">\n{figures}\n</div>'
    if isinstance(block, Figure):
        if block.name in shown:
            return f'<p class="note">At the top of this page: {_inline(block.caption)}</p>'
        return _figure(block, pictures)
    return _table(block)


def _figure(figure: Figure, pictures: Mapping[str, str]) -> str:
    return (
        f'<figure>\n<img src="{escape(pictures[figure.name])}" alt="{escape(figure.alt)}">\n'
        f"<figcaption>{_inline(figure.caption)}</figcaption>\n</figure>"
    )


def _table(table: Table) -> str:
    def cell(column: int, text: str, tag: str, attributes: str = "") -> str:
        classes = ["number"] if column in table.numeric else []
        if text == NOT_RUN:
            classes.append("missing")
        named = f' class="{" ".join(classes)}"' if classes else ""
        return f"<{tag}{attributes}{named}>{_inline(text)}</{tag}>"

    head = "".join(cell(column, text, "th", ' scope="col"') for column, text in enumerate(table.header))
    rows = [
        cell(0, row[0], "th", ' scope="row"')
        + "".join(cell(column, text, "td") for column, text in enumerate(row[1:], 1))
        for row in table.rows
    ]
    body = "\n".join(f"<tr>{row}</tr>" for row in rows)
    note = f'\n<p class="note">{_inline(table.note)}</p>' if table.note else ""
    name = escape(table.caption.replace("`", ""))
    # Wide tables scroll sideways on narrow screens, by keyboard too; a caption inside would be cut off.
    return (
        f'<div class="table">\n<p class="caption">{_inline(table.caption)}</p>\n'
        f'<div class="scroll" tabindex="0" role="region" aria-label="{name}">\n'
        f'<table aria-label="{name}">\n<thead>\n<tr>{head}</tr>\n</thead>\n'
        f"<tbody>\n{body}\n</tbody>\n</table>\n</div>{note}\n</div>"
    )


def _inline(text: str) -> str:
    return "".join(
        f"<code>{escape(piece)}</code>" if is_code else escape(piece) for is_code, piece in code_spans(text)
    )

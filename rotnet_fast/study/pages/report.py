"""Writes the report of a study: RESULTS.md, index.html and the figures, from its JSON files alone.

Importing this module does not import torch.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

from rotnet_fast.errors import ArgumentError
from rotnet_fast.files import named, resolve_path, write_atomically
from rotnet_fast.plain import counted
from rotnet_fast.study.pages import ablations, classes, extras, overview, paper_figures, paper_tables
from rotnet_fast.study.pages.document import Document, Figure, Paragraph, Row, Table, as_far_as_run, escaped
from rotnet_fast.study.pages.figures import draw_figures
from rotnet_fast.study.pages.html import data_uri, render_html
from rotnet_fast.study.pages.markdown import render_markdown, table_lines
from rotnet_fast.study.pages.orderings import (
    find_correlation,
    find_orderings,
    orderings_section,
    verdicts,
)
from rotnet_fast.study.pages.tables import few_labels, main_rows
from rotnet_fast.study.store import Results
from rotnet_fast.study.summary import Study, load_study

SECTION = "accuracy"
"""Name in the lines of a README between which the table of a study stands."""


def write_report(folder: Path, say: Callable[[str], None] = lambda line: None) -> list[Path]:
    """Write the report of the study in a folder; the study may be incomplete.

    Args:
        folder: results folder of the study.
        say: is told of each file before it is written.

    Returns:
        The files written.

    Raises:
        ArgumentError, DataError: see `rotnet_fast.study.summary.load_study`.
        CannotWriteError: disk full, read-only, ...
    """
    folder = resolve_path(folder)
    with Results(folder).waiting_lock("report"):  # one writer at a time
        return _write(load_study(folder), folder, say)


def _write(study: Study, folder: Path, say: Callable[[str], None]) -> list[Path]:
    drawn = draw_figures(study, folder / "figures", say)
    document = make_document(study, frozenset(drawn))
    pictures = {name: data_uri(svg.read_bytes(), png.read_bytes()) for name, (png, svg) in drawn.items()}
    texts = {
        folder / "RESULTS.md": render_markdown(document),
        folder / "index.html": render_html(document, pictures),
    }
    for path, text in texts.items():
        say(f"writing {path}")
        write_atomically(path, text.encode())
    return [*texts, *(path for paths in drawn.values() for path in paths)]


def make_document(study: Study, drawn: frozenset[str]) -> Document:
    """Make the report's sections.

    Args:
        drawn: names of the figures that have been drawn.
    """
    orderings, correlation = find_orderings(study), find_correlation(study)
    sections = (
        overview.main_numbers(study),
        overview.what_was_run(study),
        paper_tables.table1(study, drawn),
        paper_tables.table2(study, drawn),
        paper_tables.table3(study, drawn),
        paper_figures.figure5a(study, drawn),
        paper_figures.figure5b(study, drawn),
        paper_figures.figure3(study, drawn),
        paper_figures.figure4(study, drawn),
        extras.rotation_accuracy(study),
        extras.neighbours(study, drawn),
        classes.per_class(study, drawn),
        extras.calibration(study, drawn),
        extras.embedding(study, drawn),
        ablations.ablations(study, drawn),
        orderings_section(study, orderings, correlation),
        overview.how_to_regenerate(study),
    )
    found = verdicts(study, orderings, correlation)
    lead = overview.lead(study, found, overview.first_pictures(sections))
    shown, left_out = [], []
    for section in sections:
        blocks = as_far_as_run(section.blocks)
        has_results = any(isinstance(block, (Table, Figure, Row)) for block in blocks)
        if has_results or not any(isinstance(block, Table) for block in section.blocks):
            shown.append(replace(section, blocks=blocks))
        else:
            left_out.append(section.title)
    if left_out:
        what = Paragraph(f"Nothing has been run yet of: {'; '.join(left_out)}.")
        place = next(number for number, section in enumerate(shown) if section.title == overview.WHAT_WAS_RUN)
        shown[place] = replace(shown[place], blocks=(*shown[place].blocks, what))
    return Document(overview.title(study), as_far_as_run(lead), tuple(shown))


def readme_block(study: Study, source: str) -> str:
    """Return the main numbers as Markdown, with what they are, for a README.

    Args:
        source: the study as Markdown, see :func:`source_of`.

    Raises:
        ArgumentError: none of these numbers has been run.
    """
    table = main_rows(study, only_run=True)
    if not table.rows:
        raise ArgumentError(
            f"{study.folder} has no result yet that a README would show; run more of the study"
        )
    settings, data = study.settings, study.settings.data
    machines = "; ".join(
        f"{name}: {', '.join(map(escaped, facts))}" for facts, name in study.machine_names.items()
    )
    commits = f"; commits {', '.join(study.commits)}" if study.commits else ""
    notes = (
        f"{escaped(data.display_name)}: {data.train_images:,} training and "
        f"{counted(data.test_images, data.tested_on + ' image')}. Preset `{settings.preset}` at scale "
        f"{settings.scale:g}: "
        f"pretext {settings.pretext.epochs}, supervised {settings.supervised.epochs}, heads "
        f"{counted(settings.head.epochs, 'epoch')}, width {settings.pretext.width:g}, "
        f"{settings.precision}; {study.seeds}. "
        f"The study is {overview.state(study)}. {overview.meaning(study)} Measured on "
        f"{machines}{commits}. From {source}."
    )
    few = few_labels(study, "", only_run=True)
    labels = ["", "With few labels per class, in %:", "", *table_lines(few)] if few is not None else []
    return "\n".join([*table_lines(table), *labels, "", notes])


def source_of(folder: Path, page: Path) -> str:
    """Return the study's name, with a link from a page to its report where they are parts of one project.

    They are if the study lies below the page's folder or beside it, as ``results/`` lies beside ``docs/``. A
    path from anywhere else would be one of this machine.
    """
    folder, home = folder.resolve(), page.resolve().parent
    if not folder.is_relative_to(home.parent):
        return f"`{folder.name}`"
    path = Path(os.path.relpath(folder / "RESULTS.md", home)).as_posix()
    return f"[`{folder.name}`]({quote(path)})"


def update_readme(folder: Path, readme: Path) -> None:
    """Put the study's table between the two marker lines of a file.

    Raises:
        ArgumentError, CannotWriteError: see :func:`fill`; also see :func:`readme_block`.
        DataError: see `rotnet_fast.study.summary.load_study`.
    """
    folder, readme = named(folder), named(readme, "readme")
    fill(readme, SECTION, lambda: readme_block(load_study(folder), source_of(folder, readme)))


def fill(readme: Path, section: str, make: Callable[[], str]) -> None:
    """Replace what stands between the marker lines of a section in a Markdown file, and nothing else of it.

    Args:
        make: returns the new text; called once the lines have been found.

    Raises:
        ArgumentError: the file cannot be read, or has no such lines.
        CannotWriteError: it cannot be written.
    """
    try:
        document = readme.read_bytes().decode()
    except (OSError, ValueError) as error:
        raise ArgumentError(f"readme {readme} cannot be read ({error}); give a Markdown file") from None
    begin, end = (f"<!-- {section}: {edge} -->" for edge in ("begin", "end"))
    before, found, rest = document.partition(begin)
    _, found_too, after = rest.partition(end)
    if not found or not found_too:
        raise ArgumentError(
            f"readme {readme} has no lines '{begin}' and '{end}'; put them where the table belongs"
        )
    line_end = "\r\n" if "\r\n" in document else "\n"
    lines = line_end.join([begin, *make().split("\n"), end])
    write_atomically(resolve_path(readme), f"{before}{lines}{after}".encode())

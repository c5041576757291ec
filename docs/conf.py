"""Build the documentation as a site: ``sphinx-build -EW --keep-going -c docs . build/site``.

The root of the repository is the source folder, so that the links between README.md, docs/ and the other
documents work in the site as they do on a forge. Everything is built offline.
"""

from __future__ import annotations

import posixpath
import re
import shutil
from pathlib import Path

from sphinx.application import Sphinx

import rotnet_fast

project = "rotnet_fast"
author = "The rotnet_fast authors"
copyright = author
release = version = rotnet_fast.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
root_doc = "README"
include_patterns = [
    "*.md",
    "docs/**.md",
    "docs/**.ipynb",
    "examples/*.md",
    "results/*/RESULTS.md",
    "rotnet_fast/weights/*.md",
]
exclude_patterns = [".*", "build", "data", "runs", "studies", "docs/runs", "docs/my-rotnet"]
nitpicky = True
nitpick_ignore_regex = [
    ("py:.*", r"torch\..*|Path"),  # no index of another project is fetched
    ("py:class", r"rotnet_fast\.data\.(crop\.RandomResizedCrop|split\.EncodedSplit)"),  # not public
]
smartquotes_action = "D"  # dashes, and the quotation marks as they are

myst_heading_anchors = 4
nb_execution_mode = "off"  # the notebook is stored with its outputs, and tests execute it

default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # docstrings give types with their shapes
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_custom_sections = ["Shape"]
napoleon_use_rtype = False

html_theme = "furo"
html_title = "rotnet_fast"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_copyright = False
html_show_sphinx = False


def setup(app: Sphinx) -> None:
    """Connect what makes the sidebar and the front page."""
    app.connect("source-read", add_sidebar)
    app.connect("doctree-read", allow_outside_the_sidebar)
    app.connect("build-finished", copy_front_page)


def add_sidebar(_app: Sphinx, page: str, source: list[str]) -> None:
    """Append the lists of docs/README.md, as tables of contents, to the front page."""
    if page != root_doc:
        return
    index = (Path(__file__).parent / "README.md").read_text(encoding="utf-8")
    for caption, links in re.findall(r"^\*\*(\w+)\*\*\n\n((?:[-\s] .*\n)+)", index, re.MULTILINE):
        entries = [
            f"{name} </{posixpath.normpath(f'docs/{target}')}>"
            for name, target in re.findall(r"\[([^]]+)\]\(([^)]+)\)", links)
        ]
        source[0] += "\n".join(["", "```{toctree}", ":hidden:", f":caption: {caption}", *entries, "```", ""])


def allow_outside_the_sidebar(app: Sphinx, _doctree: object) -> None:
    """Accept pages with no place in the sidebar, such as model cards: Sphinx 8.1 cannot hide its warning."""
    app.env.metadata[app.env.docname]["orphan"] = "true"


def copy_front_page(app: Sphinx, error: Exception | None) -> None:
    """Give the site the first page that web servers look for."""
    if error is None and app.builder.format == "html":
        shutil.copyfile(app.outdir / f"{root_doc}.html", app.outdir / "index.html")

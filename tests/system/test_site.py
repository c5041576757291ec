"""The documentation as a site: it builds without a warning, and its links lead to pages and headings."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import make_cli
import pytest
from pages import ROOT

import rotnet_fast

COMMAND = "sphinx-build -EW --keep-going -c docs . build/site"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built by the command that CONTRIBUTING.md gives, in another folder."""
    folder = tmp_path_factory.mktemp("site")
    program, *flags = shlex.split(COMMAND.replace("build/site", str(folder)))
    assert program == "sphinx-build"
    built = subprocess.run(
        [sys.executable, "-m", "sphinx", "-q", *flags], cwd=ROOT, capture_output=True, text=True
    )
    assert (built.returncode, built.stderr) == (0, "")
    return folder


class Page(HTMLParser):
    """The anchors and links of a page, and what a browser loads for it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = {"", "top"}
        self.links: set[str] = set()
        self.loaded: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attributes}
        self.anchors |= {given[name] for name in ("id", "name") if name in given}
        self.loaded |= {given["src"]} if "src" in given else set()
        if "href" in given:
            (self.loaded if tag == "link" else self.links).add(given["href"])


def read_site(folder: Path) -> dict[Path, Page]:
    """The pages of a site by their paths."""
    return {path: Page(path.read_text(encoding="utf-8")) for path in folder.rglob("*.html")}


def broken(pages: dict[Path, Page]) -> list[str]:
    """What pages link to or load, in their own site, that does not exist."""
    found = []
    for path, page in pages.items():
        for link in sorted(page.links | page.loaded):
            if re.match(r"[a-z]+:", link):
                continue
            name, _, anchor = unquote(link).partition("#")
            target = (path.parent / name.partition("?")[0]).resolve() if name else path
            known = pages[target].anchors if target in pages else {""}
            if not target.is_file() or anchor not in known:
                found.append(f"{path.name}: {link}")
    return found


def test_the_command_is_that_of_the_guide_and_of_the_gate() -> None:
    assert COMMAND in (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert COMMAND.replace("-c docs", "-q -c docs") in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_links_of_the_site_lead_to_pages_and_anchors(site: Path) -> None:
    pages = read_site(site)
    assert sum(len(page.links) for page in pages.values()) > 1000
    assert broken(pages) == []


def test_broken_links_are_noticed(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text('<a href="b.html#here">1</a> <a href="c.html">2</a> <img src="d.png">')
    (tmp_path / "b.html").write_text(
        '<p id="there"></p> <a href="a.html">3</a> <a href="https://b.org">4</a>'
    )
    assert broken(read_site(tmp_path)) == ["a.html: b.html#here", "a.html: c.html", "a.html: d.png"]


def test_the_site_loads_nothing_from_elsewhere(site: Path) -> None:
    loaded = {link for page in read_site(site).values() for link in page.loaded}
    assert [link for link in loaded if "//" in link] == []


def test_the_sidebar_has_the_order_of_the_index(site: Path) -> None:
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    front = (site / "index.html").read_text(encoding="utf-8")
    sidebar = front.partition('class="sidebar-tree"')[2].partition("</aside>")[0]
    shown = re.findall(r'<a class="reference internal" href="([^"#]+)\.html">([^<]+)', sidebar)
    listed = re.findall(r"\[([^]]+)\]\(([^)]+)\.(?:md|ipynb)\)", index.partition("**Learn**")[2])
    assert [name for _, name in shown] == [name for name, _ in listed]
    assert [Path(path).name for path, _ in shown] == [Path(path).name for _, path in listed]
    assert re.findall(r'class="caption-text">(\w+)<', sidebar) == ["Learn", "Do", "Know"]


def test_the_page_of_commands_is_made_of_their_help() -> None:
    written = make_cli.PAGE.read_text(encoding="utf-8")
    assert written == make_cli.page(), "docs/cli.md is out of date; run: python docs/make_cli.py"


def test_the_page_of_commands_has_every_flag_and_default() -> None:
    text = make_cli.page()
    for said in (
        "## doctor\n",
        "### pretrain: augmentation\n",
        "- **`--loader`** `auto` | `resident` | `dali` (default: `auto`) \\\n  `resident`: decode all images",
        "- **`--nesterov`** / **`--no-nesterov`** (default: `on`)",
        "- **`--checkpoint`** `PATH` (required)",
        "- **`--rotations`** `INT` (one or more, default: `0 90 180 270`)",
        "- **`FOLDER`** (one or more, required)",
        "`runs/<preset>-<dataset>-seed<seed>`",
        "\npython -m rotnet_fast.benchmark --quick\n",
    ):
        assert said in text, said
    assert "%%" not in text


def test_the_page_of_the_interface_has_what_the_package_exports(site: Path) -> None:
    page = Page((site / "docs" / "api.html").read_text(encoding="utf-8"))
    exported = [name for name in rotnet_fast.__all__ if not name.startswith("__")]
    assert {f"rotnet_fast.{name}" for name in exported} <= page.anchors


def test_docstrings_of_the_interface_are_rendered(site: Path) -> None:
    html = (site / "docs" / "api.html").read_text(encoding="utf-8")
    text = re.sub(r"<[^>]+>", "", html)
    for section in ("Parameters", "Returns", "Raises", "Shape"):
        assert section in text
    for unread in ("Args:", "Returns:\n ", ":func:", ":class:", ":param", "``"):
        assert unread not in text, unread

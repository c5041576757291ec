"""Files around the code: what is installed, what is checked, and that texts point at things that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from pages import page_text
from setuptools import Distribution

import rotnet_fast

ROOT = Path(__file__).resolve().parents[2]
GUIDES = [ROOT / "CONTRIBUTING.md", ROOT / "docs" / "design.md"]
TEXTS = sorted(
    [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("docs/*.ipynb"), *ROOT.glob("examples/*.md")]
)
YAML = sorted([ROOT / ".pre-commit-config.yaml", ROOT / "CITATION.cff", *ROOT.glob(".github/**/*.yml")])


def installed_data(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Names of the files beside Python's own that an installation copies into the package."""
    monkeypatch.chdir(ROOT)
    distribution = Distribution({"long_description": "set by setup.py"})
    distribution.parse_config_files(["pyproject.toml"])
    build = distribution.get_command_obj("build_py")
    build.ensure_finalized()
    return {name for package, _, _, names in build.data_files if package == "rotnet_fast" for name in names}


def test_type_checkers_of_users_see_the_annotations(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (ROOT / "rotnet_fast" / "py.typed").read_bytes() == b""
    assert {"py.typed", "weights/nin4-cifar10-jpeg.safetensors"} <= installed_data(monkeypatch)


def prose(path: Path) -> str:
    """A text without its blocks of code."""
    return re.sub(r"^ *```.*?^ *```$", "", page_text(path), flags=re.DOTALL | re.MULTILINE)


def links(path: Path) -> list[str]:
    """Targets of a text's links and pictures within this repository."""
    found = re.findall(r"\]\(([^)\s]+)", prose(path)) + re.findall(r'(?:src|href)="([^"]+)"', prose(path))
    return [target for target in found if "://" not in target]


def anchors(path: Path) -> set[str]:
    """Names by which a text's headings can be linked to, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", prose(path), re.MULTILINE)
    shown = [re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading) for heading in headings]
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in shown}


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_to_files_and_headings(path: Path) -> None:
    for link in links(path):
        name, _, anchor = link.partition("#")
        target = path.parent / name if name else path
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_anchors_are_those_of_the_headings() -> None:
    assert "why-is-it-slow-on-a-busy-laptop" in anchors(ROOT / "docs" / "faq.md")
    assert "torchcompile-cuda-graphs-export" in anchors(ROOT / "docs" / "op.md")


@pytest.mark.parametrize("path", GUIDES, ids=lambda path: path.name)
def test_what_the_guides_name_exists(path: Path) -> None:
    folders = "rotnet_fast|csrc|tests|benchmarks|examples|docs|build_tools"
    named = re.findall(rf"`((?:{folders})/[\w/.]*)`", path.read_text(encoding="utf-8"))
    assert len(named) > 10
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_the_guide_for_contributors_stays_short() -> None:
    assert len((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").splitlines()) <= 100


@pytest.mark.parametrize("path", YAML, ids=lambda path: path.name)
def test_yaml_files_can_be_read(path: Path) -> None:
    assert isinstance(yaml.safe_load(path.read_text(encoding="utf-8")), dict)


def test_the_citation_is_of_this_version_and_of_the_paper() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == rotnet_fast.__version__
    (paper,) = citation["references"]
    assert [author["family-names"] for author in paper["authors"]] == ["Gidaris", "Singh", "Komodakis"]
    assert paper["identifiers"][0]["value"] == "arXiv:1803.07728"


def test_continuous_integration_runs_the_gate() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))
    (job,) = workflow["jobs"].values()
    assert [step["run"] for step in job["steps"] if "run" in step] == [".ci/run"]
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111

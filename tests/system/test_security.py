"""SECURITY.md speaks of the dependencies that there are, and of tests and names that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
SECURITY = (ROOT / "SECURITY.md").read_text(encoding="utf-8")


def dependencies() -> list[str]:
    """As pyproject.toml lists them; not with tomllib, which Python 3.10 lacks."""
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (listed,) = re.findall(r"^dependencies = (\[.*?^\])", project, re.MULTILINE | re.DOTALL)
    found = ast.literal_eval(listed)
    assert isinstance(found, list)
    return found


def test_the_table_of_dependencies_is_that_of_the_project() -> None:
    table = SECURITY.split("| dependency | why this range |\n|---|---|\n")[1].split("\n\n")[0]
    rows = [re.fullmatch(r"\| `([^`]+)` \| (.{10,}) \|", line) for line in table.splitlines()]
    assert [row[1] for row in rows if row is not None] == dependencies()


def test_the_tests_that_it_names_exist() -> None:
    named = re.findall(r"(test_\w+\*?)\.py", SECURITY)
    assert len(named) > 4
    assert [name for name in named if not list((ROOT / "tests").rglob(f"{name}.py"))] == []

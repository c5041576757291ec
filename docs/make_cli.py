"""Write docs/cli.md from the commands' own help: ``python docs/make_cli.py``."""

from __future__ import annotations

import importlib
import re
from argparse import Action
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from unittest.mock import patch

from rotnet_fast.__main__ import COMMANDS
from rotnet_fast.flags import Parser

PAGE = Path(__file__).parent / "cli.md"

LEAD = """\
# Commands

`python -m rotnet_fast` lists the commands, and `--help` after one shows its flags, as below. The package also
installs them as `rotnet_fast`: `rotnet_fast pretrain` is `python -m rotnet_fast.pretrain`.
[Exit codes](training.md#exit-codes) are the same for all. Where a command takes `--checkpoint`, the model may
stand first, without the flag: `python -m rotnet_fast.evaluate RUN`.

"None:" says what happens without the flag.
"""


def page() -> str:
    """The text of docs/cli.md."""
    return "\n".join([LEAD, *(line for name in COMMANDS for line in section(name))])


def section(name: str) -> Iterator[str]:
    """The lines of a command: what it is for, its flags by group, and its examples."""
    parser = parser_of(name)
    yield from (f"## {name}", "", marked(parser.description or ""), "")
    for number, group in enumerate(parser._action_groups):
        flags = [action for action in group._group_actions if action.dest != "help"]
        if flags and number > 1:
            yield from (f"### {name}: {group.title}", "")
        for action in flags:
            yield from (*item(action), "")
    examples = (parser.epilog or "").removeprefix("examples:").split("\n")
    if any(examples):
        yield from ("Examples:", "", "```sh", *(line.strip() for line in examples if line), "```", "")


def parser_of(name: str) -> Parser:
    """The parser with which a command answers ``--help``."""
    made: list[Parser] = []
    with patch.object(Parser, "print_help", lambda parser: made.append(parser)), suppress(SystemExit):
        importlib.import_module(f"rotnet_fast.{name}").main(["--help"])
    (parser,) = made
    return parser


def item(action: Action) -> Iterator[str]:
    """The lines of a flag or an argument, as an item of a list."""
    text = (action.help or "").replace("%%", "%")
    text, _, default = text.removesuffix(")").partition(" (default: ")
    text, required, _ = text.partition(" (required")
    is_flag = bool(action.option_strings)
    choices = str(action.metavar).strip("{}").split(",") if is_flag and action.nargs != 0 else []
    notes = [
        {"+": "one or more", 2: "two"}.get(action.nargs or 1),
        "required" if required or not is_flag else None,
        f"default: `{default}`" if default else None,
    ]
    shown = [
        " / ".join(f"**`{name}`**" for name in action.option_strings or [action.metavar]),
        " | ".join(f"`{choice}`" for choice in choices),
        f"({', '.join(filter(None, notes))})" if any(notes) else "",
    ]
    yield f"- {' '.join(filter(None, shown))} \\"
    yield f"  {marked(text, choices)}"


def marked(text: str, choices: Sequence[str] = ()) -> str:
    """A text of the help as Markdown: flags, modules, patterns and explained choices as code."""
    codes = [r"(?<!\w)--[a-z][\w-]*", r"rotnet_fast\.\w+", r"[\w./-]*<\w+>[\w./<>-]*"]
    codes += [rf"(?<![^ ]){re.escape(choice)}(?=(?:, \w+)*: )" for choice in choices]
    parts = re.split(f"({'|'.join(codes)})", text)
    plain = [re.sub(r"([*<\[])", r"\\\1", part) for part in parts[::2]]
    return "".join(a + b for a, b in zip(plain, [*(f"`{part}`" for part in parts[1::2]), ""], strict=True))


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")

"""Flags of the commands; whatever is wrong with them is one sentence.

Importing this module does not import torch.
"""

from __future__ import annotations

import argparse
import io
import itertools
import os
import re
import sys
from collections.abc import Collection, Sequence
from contextlib import redirect_stderr
from dataclasses import fields
from typing import Any, NoReturn, TypeVar, get_args, get_type_hints
from unittest.mock import patch

import tyro

from rotnet_fast.errors import ArgumentError

T = TypeVar("T")

_IN_WORDS = {
    "{None}|": "None or ",
    "[INT [INT ...]]": "whole numbers",
    "FLOAT FLOAT": "two numbers",
    "INT": "a whole number",
    "FLOAT": "a number",
}
"""What tyro's help calls a kind of value -> what errors call it."""


class Parser(argparse.ArgumentParser):
    """argparse's parser, for the few flags that no dataclass describes; it raises instead of leaving.

    Raises:
        ArgumentError: a wrong flag or value.
    """

    def error(self, message: str) -> NoReturn:
        raise ArgumentError(f"{message}; see {self.prog} --help")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:  # type: ignore[override]
        _check_none_is_empty(sys.argv[1:] if args is None else args)
        return super().parse_known_args(args, namespace)


def parse_flags(kind: type[T], program: str, arguments: Sequence[str], default: T | None = None) -> T:
    """Settings from flags, by tyro.

    Args:
        kind: dataclass of the settings.
        program: what the user called, such as ``python -m rotnet_fast.export``.
        arguments: what stands behind it.
        default: values of flags that are not given; None for those of the dataclass.

    Raises:
        ArgumentError: an unknown flag or an unreadable value.
        SystemExit: with 0, after ``--help``.
    """
    is_help = not {"-h", "--help"}.isdisjoint(arguments)
    if not is_help:
        _check_none_is_empty(arguments, _lists(kind))
    # tyro has no public way to get its errors but from stderr, in a box as wide as the terminal.
    drawn = io.StringIO()
    try:
        with patch.dict(os.environ, {} if is_help else {"COLUMNS": "100000"}), redirect_stderr(drawn):
            if default is None:
                return tyro.cli(kind, prog=program, args=arguments)
            return tyro.cli(kind, prog=program, args=arguments, default=default)
    except SystemExit as end:
        if not end.code:
            raise
    raise ArgumentError(f"{what_is_wrong(drawn.getvalue(), arguments)}; see {program} --help")


def _lists(kind: type) -> set[str]:
    """Flags of a dataclass that take one value or more."""
    hints = get_type_hints(kind)
    return {
        f"--{field.name.replace('_', '-')}"
        for field in fields(kind)
        if any(
            get_args(part)[1:] == (Ellipsis,) for part in (hints[field.name], *get_args(hints[field.name]))
        )
    }


def _check_none_is_empty(arguments: Sequence[str], lists: Collection[str] = ()) -> None:
    """Refuse values without a letter, as of a variable that is not set, and lists without a value.

    An empty path would be the current folder, and an empty list would be no choice, that is, everything.
    """
    for position, word in enumerate(arguments):
        flag, is_joined, value = word.partition("=")
        is_flag = word.startswith("--")
        if not word or (is_flag and is_joined and not value):
            before = [one for one in arguments[:position] if one.startswith("--")]
            name = (flag if is_flag else before[-1] if before else "an argument").removeprefix("--")
            raise ArgumentError(f"{name} is empty; give a value, or leave it out")
        following = arguments[position + 1 : position + 2]
        if word in lists and (not following or following[0].startswith("--")):
            name = word.removeprefix("--")
            raise ArgumentError(f"{name} is without a value; give one or more, or leave it out")


def what_is_wrong(box: str, arguments: Sequence[str]) -> str:
    """The finding of tyro's box, in the words of this package's own errors.

    Args:
        box: as tyro draws it, wide enough for its lines not to be wrapped. Of one in unknown words, the text
            is given without the frame.
        arguments: that were wrong.
    """
    lines = [line.strip(" │─╭╮╰╯") for line in box.splitlines()[1:]]
    finding, *explained = [line for line in lines if line] or [box.strip()]
    flags = [line.split() for line in explained if line.startswith("--")]
    if found := re.match(r"Unrecognized options: (.*)", finding):
        similar = f" (did you mean {flags[0][0]}?)" if flags else ""
        return f"{found[1].replace(', ', ' ')} is no option of this command{similar}"
    if found := re.match(r"Error parsing --([\w-]+):", finding):
        wanted = " ".join(flags[0][1:]) if flags else "of another kind"
        for metavar, words in _IN_WORDS.items():
            wanted = wanted.replace(metavar, words)
        return f"{found[1]} is {_value_of(found[1], arguments)}; it must be {wanted}"
    if found := re.match(r"invalid choice '(.*)' for argument '--([\w-]+)'. Expected one of (.*)", finding):
        choices = sorted(re.findall(r"'(.*?)'", found[3]))  # tyro's order differs from call to call
        return f"{found[2]} is {found[1]!r}; choose from {', '.join(choices)}"
    if found := re.match(r"Missing value for argument '--([\w-]+)'. Expected (\d+) value", finding):
        return f"{found[1]} is without a value; give {found[2]}"
    if finding.startswith("Missing from") and flags:
        return f"{flags[0][0].removeprefix('--')} is missing; give {' '.join(flags[0])}"
    return finding.rstrip(".")


def _value_of(name: str, arguments: Sequence[str]) -> str:
    """What was given for a flag, as it was written."""
    behind = list(arguments)[list(arguments).index(f"--{name}") + 1 :] if f"--{name}" in arguments else []
    return " ".join(itertools.takewhile(lambda word: not word.startswith("--"), behind)) or "unreadable"

"""Flags of the commands: argparse for the dataclasses that describe them.

Whatever is wrong with a command line is one sentence. Importing this module does not import torch.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import inspect
import sys
import textwrap
import types
from collections.abc import Sequence
from dataclasses import MISSING, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar, Union, get_args, get_origin, get_type_hints

from rotnet_fast.errors import ArgumentError

T = TypeVar("T")

_WANTED = {int: "a whole number", float: "a number", str: "a text", Path: "a path"}
_SEVERAL = {int: "whole numbers", float: "numbers", str: "texts"}
_COUNTS = {2: "two", 3: "three", 4: "four"}


class Parser(argparse.ArgumentParser):
    """argparse's parser, which raises an error instead of ending the program.

    Raises:
        ArgumentError: a wrong flag or value.
    """

    def error(self, message: str) -> NoReturn:
        raise ArgumentError(f"{message}; see {self.prog} --help")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:  # type: ignore[override]
        flag = "an argument"
        for word in sys.argv[1:] if args is None else args:
            name, is_joined, value = word.partition("=")
            if name.startswith("--"):
                flag = name.removeprefix("--")
            if not word or (name.startswith("--") and is_joined and not value):
                # As of a shell variable that is not set; an empty path would be the current folder.
                raise ArgumentError(f"{flag} is empty; give a value, or leave it out")
        return super().parse_known_args(args, namespace)


def parse_flags(kind: type[T], program: str, arguments: Sequence[str], base: T | None = None) -> T:
    """Make the settings that flags ask for.

    Args:
        kind: dataclass of the settings. Each field is a flag; the text below it is the flag's help.
        program: what the user called, such as ``python -m rotnet_fast.export``.
        arguments: what stands behind it.
        base: values of flags that are not given; None for those of the dataclass.

    Raises:
        ArgumentError: an unknown flag, an unreadable value, or a flag that is missing.
        SystemExit: with 0, after ``--help``.
    """
    if not {"-h", "--help"}.isdisjoint(arguments):
        _parser(kind, program, base, is_help=True).print_help()
        raise SystemExit(0)
    given = given_flags(kind, program, arguments)
    if base is not None:
        return replace(base, **given)  # type: ignore[type-var]
    for field in fields(kind):  # type: ignore[arg-type]
        if field.name not in given and field.default is MISSING:
            flag = f"{_flag(field.name)} {_metavar(kind, field.name)}"
            raise ArgumentError(f"{_name(field.name)} is missing; give {flag}; see {program} --help")
    return kind(**given)


def given_flags(kind: type, program: str, arguments: Sequence[str]) -> dict[str, Any]:
    """Read the flags that are given, by the names of their fields; ``--help`` is passed over.

    Raises:
        ArgumentError: an unknown flag, or an unreadable value.
    """
    # argparse takes -1e-3 for a flag, but not what begins with a space, which is nothing to numbers.
    words = [f" {word}" if word.startswith("-") and _is_number(word) else word for word in arguments]
    words = [_with_hyphens(word) for word in words if word not in ("-h", "--help")]
    flags = {_flag(name): hint for name, hint in _hints(kind).items()}
    for flag, is_joined, _ in (word.partition("=") for word in words):
        positive = flag.replace("--no-", "--", 1)
        if is_joined and bool in (flags.get(flag), flags.get(positive)):
            wanted = f"give {positive} or --no-{positive.removeprefix('--')}"
            raise ArgumentError(f"{flag} takes no value; {wanted}; see {program} --help")
    found, unknown = _parser(kind, program).parse_known_args(words)
    if unknown:
        word = unknown[0]
        similar = difflib.get_close_matches(word.partition("=")[0], flags, n=1)
        meant = f" (did you mean {similar[0]}?)" if similar else ""
        what = "option" if word.startswith("-") else "argument"
        raise ArgumentError(f"unrecognized {what} {word}{meant}; see {program} --help")
    try:
        return {
            name: value if isinstance(value, bool) else _read(_name(name), value, _hints(kind)[name])
            for name, value in vars(found).items()
        }
    except ArgumentError as error:
        raise ArgumentError(f"{error}; see {program} --help") from None


def _parser(kind: type, program: str, base: object = None, is_help: bool = False) -> Parser:
    """Make a parser with one option for each field; the result has only those that are given.

    Args:
        base: whose values the help names as defaults; None for those of the dataclass.
        is_help: show how many words each flag takes. For reading them, any number is taken, as what is
            wrong is said in this module's words.
    """
    parser = Parser(
        program,
        usage=f"{program} [flags]",
        description=(kind.__doc__ or "").strip(),
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
        add_help=False,
    )
    parser.add_argument("-h", "--help", action="store_true", help="show this help")
    texts = _field_docs(kind)
    own = inspect.get_annotations(kind)  # before those that commands share
    for field in sorted(fields(kind), key=lambda field: field.name not in own):  # type: ignore[arg-type]
        default = field.default if base is None else getattr(base, field.name)
        hint = _hints(kind)[field.name]
        text = texts.get(field.name, "").replace("%", "%%")
        shown = " ".join(map(str, default)) if isinstance(default, tuple) else str(default)
        text += " (required)" if default is MISSING else f" (default: {shown.replace('%', '%%')})"
        if hint is bool:
            parser.add_argument(_flag(field.name), action=_OnOff, help=text)
        else:
            nargs = _nargs(hint) if is_help else "*"
            parser.add_argument(_flag(field.name), nargs=nargs, metavar=_metavar(kind, field.name), help=text)
    return parser


class _OnOff(argparse.Action):
    """``--flag`` and ``--no-flag``. That of argparse repeats the default in its help."""

    def __init__(self, option_strings: Sequence[str], dest: str, **others: Any) -> None:
        negative = option_strings[0].replace("--", "--no-", 1)
        super().__init__([*option_strings, negative], dest, nargs=0, **others)

    def __call__(self, _parser: Any, namespace: Any, _values: Any, option: str | None = None) -> None:
        setattr(namespace, self.dest, option is not None and not option.startswith("--no-"))


def _read(name: str, words: Sequence[str], hint: Any) -> Any:
    """Make the value of a field from the words behind its flag."""
    kinds = _kinds(hint)
    is_optional = type(None) in kinds
    if is_optional and list(words) == ["None"]:
        return None
    (kind, *others) = (one for one in kinds if one is not type(None))
    if others:  # several sets of choices
        kind = Literal[tuple(choice for one in (kind, *others) for choice in get_args(one))]
    wanted = _wanted(kind)
    if not words and get_args(kind)[1:] == (Ellipsis,):
        raise ArgumentError(f"{name} is without a value; give one or more, or leave it out")
    if not words:
        raise ArgumentError(f"{name} is without a value; give {wanted}")
    if get_origin(kind) is tuple:
        parts = get_args(kind)
        is_complete = parts[-1] is Ellipsis or len(words) == len(parts)
        values = [_converted(name, word, parts[0]) for word in words]
        found: Any = tuple(values) if is_complete and None not in values else None
    else:
        found = _converted(name, words[0], kind) if len(words) == 1 else None
    if found is None:
        none = ", or None" if is_optional else ""
        raise ArgumentError(f"{name} is {' '.join(words).strip()}; it must be {wanted}{none}")
    return found


def _converted(name: str, word: str, kind: Any) -> Any:
    """A word as a value of one kind; None where it is not one."""
    choices = [choice for one in _kinds(kind) if get_origin(one) is Literal for choice in get_args(one)]
    if choices:
        for choice in choices:
            if str(choice) == word:
                return choice
        raise ArgumentError(f"{name} is {word!r}; choose from {', '.join(map(str, choices))}")
    try:
        return kind(word)
    except ValueError:
        return None


def _wanted(kind: Any) -> str:
    """What a value must be, as it follows "it must be"."""
    if get_origin(kind) is Literal:
        return f"one of {', '.join(map(str, get_args(kind)))}"
    if get_origin(kind) is not tuple:
        return _WANTED[kind]
    first, *rest = get_args(kind)
    several = _SEVERAL.get(first, "values")
    return several if rest == [Ellipsis] else f"{_COUNTS[1 + len(rest)]} {several}"


def _metavar(settings: type, name: str) -> str:
    """What stands for the value of a flag in the help."""
    hint = _hints(settings)[name]
    kind = next(one for one in _kinds(hint) if one is not type(None))
    if get_origin(kind) is tuple:
        hint = kind = get_args(kind)[0]
    if name in getattr(settings, "paths_as_text", ()):
        return "PATH"
    if get_origin(kind) is Literal or len(_kinds(kind)) > 1:
        choices = (str(choice) for one in _kinds(hint) for choice in get_args(one))
        return f"{{{','.join(choices)}}}"
    return {int: "INT", float: "FLOAT", str: "TEXT", Path: "PATH"}[kind]


def _nargs(hint: Any) -> int | str | None:
    """argparse's number of words: None for one, + for one or more."""
    kind = next(one for one in _kinds(hint) if one is not type(None))
    if get_origin(kind) is not tuple:
        return None
    return "+" if get_args(kind)[-1] is Ellipsis else len(get_args(kind))


def _kinds(hint: Any) -> tuple[Any, ...]:
    """The members of a union; of anything else, itself."""
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def _field_docs(kind: type) -> dict[str, str]:
    """Name of a field -> the text below it, which Python itself does not keep."""
    texts: dict[str, str] = {}
    for part in reversed(kind.__mro__):
        if not is_dataclass(part):
            continue
        (definition,) = ast.parse(textwrap.dedent(inspect.getsource(part))).body
        assert isinstance(definition, ast.ClassDef)
        texts |= {
            ast.unparse(field.target): " ".join(str(below.value.value).split())
            for field, below in zip(definition.body, definition.body[1:], strict=False)
            if isinstance(field, ast.AnnAssign)
            and isinstance(below, ast.Expr)
            and isinstance(below.value, ast.Constant)
        }
    return texts


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _with_hyphens(word: str) -> str:
    """``--data_dir`` is ``--data-dir``."""
    name, joined, value = word.partition("=")
    return f"{name.replace('_', '-')}{joined}{value}" if name.startswith("--") else word


def _flag(name: str) -> str:
    return f"--{_name(name)}"


def _name(name: str) -> str:
    return name.replace("_", "-")

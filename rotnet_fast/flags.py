"""Command-line flags: argparse for the dataclasses that describe the commands.

Every error about a command line is one sentence. Importing this module does not import torch.
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
from typing import Any, Literal, NoReturn, TypeVar, Union, get_args, get_origin

from rotnet_fast.errors import ArgumentError
from rotnet_fast.settings import field_types, flag_name

T = TypeVar("T")

_WANTED = {int: "an integer", float: "a number", str: "a string", Path: "a path"}
_SEVERAL = {int: "integers", float: "numbers", str: "strings"}
_COUNTS = {2: "two", 3: "three", 4: "four"}


GROUPS = {
    "images": "dataset data_dir dataset_name image_size validation limit_train limit_test bad_images "
    "check_images accept_changed_data loader decoder",
    "pretext task": "pretext_task rotations",
    "augmentation": "crop crop_scale crop_ratio pad flip_prob",
    "network": "model blocks width uniform_gamma init_from sync_batchnorm",
    "training": "epochs batch_size lr schedule warmup milestones lr_factor optimizer muon_lr nesterov "
    "weight_decay muon_weight_decay seed eval_every monitor monitor_every monitor_data",
    "speed": "device precision compile graph",
    "run folder": "output resume log_every checkpoint_every_steps checkpoint_every_seconds tensorboard",
}
"""Headings of the help -> the settings below each, by the names of their fields; others stand first."""


class Parser(argparse.ArgumentParser):
    """argparse's parser, except that it raises an error instead of exiting.

    Raises:
        ArgumentError: a flag or value is invalid.
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
                # For example from an unset shell variable; an empty path would be the current folder.
                raise ArgumentError(f"{flag} is empty; pass a value, or omit it")
        return super().parse_known_args(args, namespace)


def parse_flags(kind: type[T], program: str, arguments: Sequence[str], base: T | None = None) -> T:
    """Create settings from command-line flags.

    Args:
        kind: dataclass of the settings. Each field is a flag, and the string below it is the flag's help.
        program: name of the program, such as ``python -m rotnet_fast.export``.
        arguments: the command-line arguments after it.
        base: values of flags that are not given; None uses the defaults of the dataclass.

    Raises:
        ArgumentError: a flag is unknown or missing, or has an invalid value.
        SystemExit: with status 0, after ``--help``.
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
            raise ArgumentError(f"{flag_name(field.name)} is missing; pass {flag}; see {program} --help")
    return kind(**given)


def given_flags(kind: type, program: str, arguments: Sequence[str]) -> dict[str, Any]:
    """Return the values of the given flags by field name, ignoring ``--help``.

    Raises:
        ArgumentError: a flag is unknown or has an invalid value.
    """
    if arguments and not arguments[0].startswith("-") and hasattr(kind, "positional"):
        arguments = [_flag(kind.positional), *arguments]
    arguments = [word for word in _split_lists(kind, arguments) if word != "--"]
    # argparse takes -1e-3 for a flag, but not with a leading space, which number parsing ignores.
    words = [f" {word}" if word.startswith("-") and _is_number(word) else word for word in arguments]
    words = [_with_hyphens(word) for word in words if word not in ("-h", "--help")]
    flags = {_flag(field.name): field_types(kind)[field.name] for field in fields(kind)}  # type: ignore[arg-type]
    for flag, is_joined, _ in (word.partition("=") for word in words):
        positive = flag.replace("--no-", "--", 1)
        if is_joined and (_is_switch(flags.get(flag)) or _is_switch(flags.get(positive))):
            wanted = f"pass {positive} or --no-{positive.removeprefix('--')}"
            raise ArgumentError(f"{flag} takes no value; {wanted}; see {program} --help")
    found, unknown = _parser(kind, program).parse_known_args(words)
    if unknown:
        word = unknown[0].strip()
        typed = word.partition("=")[0]
        names = [
            *flags,
            *(flag.replace("--", "--no-", 1) for flag, hint in flags.items() if _is_switch(hint)),
        ]
        similar = [flag for flag in names if len(typed) > 3 and flag.startswith(typed)]
        similar += difflib.get_close_matches(typed, names, n=1, cutoff=0.75)
        meant = f" (did you mean {similar[0]}?)" if similar else ""
        what = "option" if word.startswith("-") else "argument"
        raise ArgumentError(f"unrecognized {what} {word}{meant}; see {program} --help")
    try:
        return {
            name: value if isinstance(value, bool) else _read(flag_name(name), value, field_types(kind)[name])
            for name, value in vars(found).items()
        }
    except ArgumentError as error:
        raise ArgumentError(f"{error}; see {program} --help") from None


def _parser(kind: type, program: str, base: object = None, is_help: bool = False) -> Parser:
    """Create a parser with one option per field; its result only has the options that are given.

    Args:
        base: settings whose values the help shows as defaults; None for those of the dataclass.
        is_help: declare how many words each flag takes. For parsing, every flag takes any number, so that
            this module can word the errors itself.
    """
    parser = Parser(
        program,
        usage=f"{program} [flags]",
        description=(kind.__doc__ or "").strip(),
        epilog="\n".join(["examples:", *(f"  {program} {flags}" for flags in getattr(kind, "examples", ()))]),
        formatter_class=_HelpFormatter,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
        add_help=False,
    )
    parser.add_argument("-h", "--help", action="store_true", help="show this help")
    texts = _field_docs(kind) if is_help else {}
    titles = ["", *GROUPS]
    group_of = {name: title for title, names in GROUPS.items() for name in names.split()}
    groups: dict[str, Any] = {"": parser}
    groups |= {title: parser.add_argument_group(title) for title in GROUPS}
    for field in sorted(fields(kind), key=lambda field: titles.index(group_of.get(field.name, ""))):  # type: ignore[arg-type]
        group = groups[group_of.get(field.name, "")]
        default = field.default if base is None else getattr(base, field.name)
        hint = field_types(kind)[field.name]
        text = texts.get(field.name, "").replace("%", "%%")
        if default is MISSING:
            text += " (required)"
        elif default is not None:  # of which the text tells
            text += f" (default: {_shown(default).replace('%', '%%')})"
        if _is_switch(hint):
            group.add_argument(_flag(field.name), action=_OnOff, help=text)
        else:
            nargs = _nargs(hint) if is_help else "*"
            group.add_argument(_flag(field.name), nargs=nargs, metavar=_metavar(kind, field.name), help=text)
    return parser


class _HelpFormatter(argparse.HelpFormatter):
    """Formatter that wraps the texts of flags, but leaves the examples as they are."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        if text.startswith("examples:"):
            return text if "\n" in text else ""
        return super()._fill_text(text, width, indent)


def _shown(default: Any) -> str:
    """Format a default as a user would type or say it."""
    if isinstance(default, bool):
        return "on" if default else "off"
    if isinstance(default, tuple):
        return " ".join(map(_shown, default)) or "none"
    return f"{default:g}" if isinstance(default, float) else str(default)


def _is_switch(hint: Any) -> bool:
    """Return whether a field is set by ``--flag`` and ``--no-flag``; None, if it may be, by neither."""
    return bool in _kinds(hint)


class _OnOff(argparse.Action):
    """Action of ``--flag`` and ``--no-flag``, because argparse's own repeats the default in its help."""

    def __init__(self, option_strings: Sequence[str], dest: str, **others: Any) -> None:
        negative = option_strings[0].replace("--", "--no-", 1)
        super().__init__([*option_strings, negative], dest, nargs=0, **others)

    def __call__(self, _parser: Any, namespace: Any, _values: Any, option: str | None = None) -> None:
        setattr(namespace, self.dest, option is not None and not option.startswith("--no-"))


def _read(name: str, words: Sequence[str], hint: Any) -> Any:
    """Convert the words after a flag to the value of its field."""
    words = [word[1:] if word.startswith(" -") and _is_number(word) else word for word in words]
    kinds = _kinds(hint)
    is_optional = type(None) in kinds
    if is_optional and list(words) == ["None"]:
        return None
    (kind, *others) = (one for one in kinds if one is not type(None))
    if others:  # several sets of choices
        kind = Literal[tuple(choice for one in (kind, *others) for choice in get_args(one))]
    wanted = _wanted(kind)
    if not words and get_args(kind)[1:] == (Ellipsis,):
        raise ArgumentError(f"{name} has no value; pass one or more, or omit it")
    if not words:
        raise ArgumentError(f"{name} has no value; it must be {wanted}")
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


def _split_lists(kind: type, arguments: Sequence[str]) -> list[str]:
    """Split ``--milestones=30 60`` at the equals sign, as argparse would only take the first value."""
    lists = {_flag(field.name) for field in fields(kind) if _nargs(field_types(kind)[field.name]) is not None}  # type: ignore[arg-type]
    words: list[str] = []
    for word in arguments:
        flag, _, value = word.partition("=")
        words += [flag, value] if flag.replace("_", "-") in lists and value else [word]
    return words


def _converted(name: str, word: str, kind: Any) -> Any:
    """Convert a word to a value of one kind, or return None if that fails."""
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
    """Describe the valid values, to follow "it must be"."""
    if get_origin(kind) is Literal:
        return f"one of {', '.join(map(str, get_args(kind)))}"
    if get_origin(kind) is not tuple:
        return _WANTED[kind]
    first, *rest = get_args(kind)
    several = _SEVERAL.get(first, "values")
    return several if rest == [Ellipsis] else f"{_COUNTS[1 + len(rest)]} {several}"


def _metavar(settings: type, name: str) -> str:
    """Return the placeholder of a flag's value in the help."""
    hint = field_types(settings)[name]
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
    """Return argparse's nargs: None for one word, + for one or more."""
    kind = next(one for one in _kinds(hint) if one is not type(None))
    if get_origin(kind) is not tuple:
        return None
    return "+" if get_args(kind)[-1] is Ellipsis else len(get_args(kind))


def _kinds(hint: Any) -> tuple[Any, ...]:
    """Return the members of a union, or the type itself if it is not a union."""
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _field_docs(kind: type) -> dict[str, str]:
    """Map each field to the string below it, which Python does not keep at runtime."""
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
    """Convert ``--data_dir`` to ``--data-dir``."""
    name, joined, value = word.partition("=")
    return f"{name.replace('_', '-')}{joined}{value}" if name.startswith("--") else word


def _flag(name: str) -> str:
    return f"--{flag_name(name)}"

"""What the settings of all commands have in common, from flags as from a program: numbers, paths and lists.

Importing this module does not import torch.
"""

from __future__ import annotations

import os
import types
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Literal, Union, get_args, get_origin, get_type_hints

from rotnet_fast.checks import check_device, check_images, check_precision
from rotnet_fast.errors import ArgumentError
from rotnet_fast.files import named
from rotnet_fast.plain import as_real, as_sequence, as_whole, plain_number, shown


class Settings:
    """Base of the dataclasses that describe a command: every field is made what its annotation says.

    Numbers may be numpy's, lists may be arrays, and paths may be text, in which ``~`` is the home folder.
    What cannot be a value of the field is refused, and so is an empty text or path.

    Raises:
        ArgumentError: by the constructor: the setting, the value found and what is allowed.
    """

    paths_as_text: ClassVar[tuple[str, ...]] = ()
    """Fields that hold a path, but are no `Path`, because certain words stand for something else."""

    def __post_init__(self) -> None:
        kind: Any = type(self)
        hints = _hints(kind)
        for field in fields(self):  # type: ignore[arg-type]
            given = getattr(self, field.name)
            value = _settled(field.name, given, hints[field.name])
            if field.name in self.paths_as_text and value is not None:
                value = os.fspath(named(value, field.name))
            if value is not given:
                object.__setattr__(self, field.name, value)  # the dataclasses are frozen


@cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)


def _settled(name: str, value: Any, hint: Any) -> Any:
    """A value as the annotation has it; the very object where it is so already."""
    kinds = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    if value is None and type(None) in kinds:
        return None
    kinds = tuple(kind for kind in kinds if kind is not type(None))
    if all(get_origin(kind) is Literal for kind in kinds):
        return _chosen(name, value, [choice for kind in kinds for choice in get_args(kind)])
    (kind,) = kinds
    if get_origin(kind) is tuple:
        return _listed(name, value, get_args(kind))
    return _PLAIN[kind](name, value)


def _chosen(name: str, value: Any, choices: list[Any]) -> Any:
    found = as_whole(value) if as_whole(value) is not None else value
    for choice in choices:
        if type(choice) is type(found) and choice == found:
            return value if type(value) is type(choice) else choice
    raise _refusal(name, value, f"choose from {', '.join(map(str, choices))}")


def _listed(name: str, values: Any, kinds: tuple[Any, ...]) -> tuple[Any, ...]:
    found = as_sequence(values)
    if found is None:
        raise _refusal(name, values, "it must be a list or a tuple")
    if kinds[-1] is not Ellipsis and len(found) != len(kinds):
        raise _refusal(name, values, f"it must have {len(kinds)} values")
    settled = tuple(_settled(name, value, kinds[0]) for value in found)
    is_same = type(values) is tuple and all(one is other for one, other in zip(settled, values, strict=True))
    return values if is_same else settled


def _whole(name: str, value: Any) -> int:
    number = as_whole(value)
    if number is None:
        raise _refusal(name, value, "it must be a whole number: give an int")
    return number


def _real(name: str, value: Any) -> float:
    number = as_real(value)
    if number is None:
        raise _refusal(name, value, "it must be a number: give a float")
    try:
        converted = float(number)
    except OverflowError:
        raise _refusal(name, value, "it must be a number that a float can hold") from None
    return number if type(number) is int else converted


def _flag(name: str, value: Any) -> bool:
    found = plain_number(value)
    if not isinstance(found, bool):
        raise _refusal(name, value, "it must be True or False")
    return found


def _text(name: str, value: Any) -> str:
    if name == "device" or isinstance(value, os.PathLike):  # torch.device's text is what the setting takes
        value = str(value)
    if not isinstance(value, str):
        raise _refusal(name, value, "it must be a text")
    if not value:
        raise ArgumentError(f"{_flag_name(name)} is empty; give a text, or leave it out")
    return value


def _path(name: str, value: Any) -> Path:
    if not isinstance(value, (str, os.PathLike)):
        raise _refusal(name, value, "it must be a path")
    return named(value, _flag_name(name))


def _flag_name(name: str) -> str:
    return name.replace("_", "-")


def _refusal(name: str, value: Any, rule: str) -> ArgumentError:
    return ArgumentError(f"{_flag_name(name)} is {shown(value)}; {rule}")


_PLAIN: dict[Any, Callable[[str, Any], Any]] = {
    bool: _flag,
    float: _real,
    int: _whole,
    str: _text,
    Path: _path,
}
"""Annotation of a field -> what makes a value of it."""


@dataclass(frozen=True, kw_only=True)
class DeviceSettings(Settings):
    """Where a command computes, and in which number format."""

    device: str = "auto"
    """auto (a CUDA device where there is one), cpu, cuda or cuda:N."""

    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Number format. auto: bf16 where the device computes in it, else fp32. fp16 needs a CUDA device."""

    def validate(self) -> None:
        """Check what the types alone do not.

        Raises:
            ArgumentError: a setting with a value that cannot be used.
        """
        check_device(self.device)
        check_precision(self.precision, self.device)


@dataclass(frozen=True, kw_only=True)
class ImageSettings(DeviceSettings):
    """Images that a command trains and tests on."""

    dataset: Literal["cifar10", "folder", "digits"] = "cifar10"
    """cifar10: the official archive, read where it lies or downloaded.
    folder: image files, or tar shards of them, in train/ and test/, with class folders or without.
    digits: scikit-learn's handwritten digits, no files needed."""

    data_dir: Path | None = None
    """Folder of the data set's files."""

    dataset_name: str | None = None
    """What results call the data set. None: its own name."""

    bad_images: Literal["fail", "skip"] = "fail"
    """What to do about damaged images in the data folder.
    fail: stop and name them. skip: leave them out, at most one in a thousand, and list them."""

    check_images: Literal["structure", "decode"] = "structure"
    """How closely the images of the data folder are looked at before the first step, each once.
    structure: markers, checksums, a PNG's pixels. decode: decoded, too, which takes as long as an epoch."""

    limit_train: int | None = None
    """Train on this many images only, balanced over the classes."""

    limit_test: int | None = None
    """Test on this many images only, balanced over the classes."""

    def validate(self) -> None:
        """Check what the types alone do not.

        Raises:
            ArgumentError: a setting with a value that cannot be used.
            DataError: the data folder is not there.
        """
        super().validate()
        at_least_one(self, "limit_train", "limit_test")
        check_images(self.dataset, self.data_dir, self.limit_train, self.limit_test)


@dataclass(frozen=True, kw_only=True)
class PretrainedImageSettings(DeviceSettings):
    """Images for a pretrained network: those that it was pretrained on, unless others are named."""

    data_dir: Path | None = None
    """Folder of the data set's files. None: that of the pretraining."""

    loader: Literal["auto", "resident", "dali"] | None = None
    """Keep all images in memory, or stream them, see rotnet_fast.pretrain. None: as in pretraining."""

    bad_images: Literal["fail", "skip"] | None = None
    """What to do about damaged images, see rotnet_fast.pretrain. None: as in pretraining."""

    limit_train: int | None = None
    """Use this many training images only, balanced over the classes. None: as in pretraining."""

    limit_test: int | None = None
    """Use this many test images only, balanced over the classes. None: as in pretraining."""

    def validate(self) -> None:
        """Check what the types alone do not.

        Raises:
            ArgumentError: a setting with a value that cannot be used.
        """
        super().validate()
        at_least_one(self, "limit_train", "limit_test")


def at_least_one(settings: Settings, *names: str) -> None:
    """Refuse counts below 1; None stands for no limit.

    Raises:
        ArgumentError: one of them is.
    """
    for name in names:
        value = getattr(settings, name)
        if value is not None and value < 1:
            raise ArgumentError(f"{_flag_name(name)} is {value}; it must be at least 1")

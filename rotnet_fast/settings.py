"""Base classes of the settings of all commands, whether they come from flags or from Python code.

Importing this module does not import torch.
"""

from __future__ import annotations

import math
import os
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from rotnet_fast.checks import check_device, check_images, check_precision
from rotnet_fast.engine.schedule import Schedule, stretched
from rotnet_fast.errors import ArgumentError
from rotnet_fast.files import named
from rotnet_fast.plain import as_real, as_sequence, as_whole, counted, plain_number, shown

OptimisationT = TypeVar("OptimisationT", bound="Optimisation")


class Settings:
    """Base of the dataclasses that describe a command; converts every field to its annotated type.

    Numbers may be numpy's, lists may be arrays, and paths may be strings, in which ``~`` is the home folder.
    Values that a field cannot have are refused, and so are empty strings and paths.

    Raises:
        ArgumentError: (by the constructor) a setting has an invalid value.
    """

    examples: ClassVar[tuple[str, ...]] = ()
    """Flags that the help of the command shows as examples."""

    positional: ClassVar[str]
    """Field whose flag may be omitted before the first argument, if there is one."""

    paths_as_text: ClassVar[tuple[str, ...]] = ()
    """Fields that hold a path, but are not a `Path`, because certain words have a special meaning."""

    def __post_init__(self) -> None:
        kind: Any = type(self)
        hints = field_types(kind)
        for field in fields(self):  # type: ignore[arg-type]
            given = getattr(self, field.name)
            value = _convert(field.name, given, hints[field.name])
            if field.name in self.paths_as_text and value is not None:
                value = os.fspath(named(value, field.name))
            if value is not given:
                object.__setattr__(self, field.name, value)  # the dataclasses are frozen

    def validate(self) -> None:
        """Check the values of the settings, beyond their types.

        Raises:
            ArgumentError: a setting has an invalid value.
        """


@cache
def field_types(kind: Any) -> dict[str, Any]:
    """Return the annotations of a class by field name, evaluated once."""
    return get_type_hints(kind)


def _convert(name: str, value: Any, hint: Any) -> Any:
    """Convert a value to its annotated type; return the same object if it already has that type."""
    kinds = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    if value is None and type(None) in kinds:
        return None
    kinds = tuple(kind for kind in kinds if kind is not type(None))
    if all(get_origin(kind) is Literal for kind in kinds):
        return _to_choice(name, value, [choice for kind in kinds for choice in get_args(kind)])
    (kind,) = kinds
    if get_origin(kind) is tuple:
        return _to_tuple(name, value, get_args(kind))
    return _CONVERTERS[kind](name, value)


def _to_choice(name: str, value: Any, choices: list[Any]) -> Any:
    found = as_whole(value) if as_whole(value) is not None else value
    for choice in choices:
        if type(choice) is type(found) and choice == found:
            return value if type(value) is type(choice) else choice
    raise _refusal(name, value, f"choose from {', '.join(map(str, choices))}")


def _to_tuple(name: str, values: Any, kinds: tuple[Any, ...]) -> tuple[Any, ...]:
    found = as_sequence(values)
    if found is None:
        raise _refusal(name, values, "it must be a list or a tuple")
    if kinds[-1] is not Ellipsis and len(found) != len(kinds):
        raise _refusal(name, values, f"it must have {counted(len(kinds), 'value')}")
    converted = tuple(_convert(name, value, kinds[0]) for value in found)
    is_same = type(values) is tuple and all(
        one is other for one, other in zip(converted, values, strict=True)
    )
    return values if is_same else converted


def _to_int(name: str, value: Any) -> int:
    number = as_whole(value)
    if number is None:
        raise _refusal(name, value, "it must be an integer")
    return number


def _to_float(name: str, value: Any) -> float:
    number = as_real(value)
    if number is None:
        raise _refusal(name, value, "it must be a number")
    try:
        converted = float(number)
    except OverflowError:
        raise _refusal(name, value, "it must be in the range of a float") from None
    return number if type(number) is int else converted


def _to_bool(name: str, value: Any) -> bool:
    found = plain_number(value)
    if not isinstance(found, bool):
        raise _refusal(name, value, "it must be True or False")
    return found


def _to_str(name: str, value: Any) -> str:
    if name == "device" or isinstance(value, os.PathLike):  # str(torch.device) is a valid device name
        value = str(value)
    if not isinstance(value, str):
        raise _refusal(name, value, "it must be a string")
    if not value:
        raise ArgumentError(f"{flag_name(name)} is empty; pass a value, or omit it")
    return value


def _to_path(name: str, value: Any) -> Path:
    if not isinstance(value, (str, os.PathLike)):
        raise _refusal(name, value, "it must be a path")
    return named(value, flag_name(name))


def flag_name(name: str) -> str:
    """Return a field's name as it stands in flags and messages: ``data-dir`` for ``data_dir``."""
    return name.replace("_", "-")


def _refusal(name: str, value: Any, rule: str) -> ArgumentError:
    return ArgumentError(f"{flag_name(name)} is {shown(value)}; {rule}")


_CONVERTERS: dict[Any, Callable[[str, Any], Any]] = {
    bool: _to_bool,
    float: _to_float,
    int: _to_int,
    str: _to_str,
    Path: _to_path,
}
"""Map the annotation of a field to the function that converts its values."""


@dataclass(frozen=True, kw_only=True)
class DeviceSettings(Settings):
    """Settings of the device and the precision of a command."""

    device: str = "auto"
    """Device: auto (a CUDA device if there is one), cpu, cuda, cuda:N or mps."""

    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Number format. auto: bf16 if the device computes in it, else fp32. fp16 needs a CUDA device."""

    def validate(self) -> None:
        """Check the values of the settings, beyond their types.

        Raises:
            ArgumentError: a setting has an invalid value.
        """
        super().validate()
        check_device(self.device)
        check_precision(self.precision, self.device)


@dataclass(frozen=True, kw_only=True)
class ImageSettings(DeviceSettings):
    """Settings of the images that a command trains and tests on."""

    dataset: Literal["cifar10", "folder", "digits"] = "cifar10"
    """cifar10: the official archive, which is downloaded if necessary.
    folder: image files or tar shards, in train/ and test/ or not, with or without class folders.
    digits: scikit-learn's handwritten digits, which need no files."""

    data_dir: Path | None = None
    """Folder of the data set's files. None: for cifar10, data in the current folder, which is where it is
    downloaded to."""

    dataset_name: str | None = None
    """Name of the data set in results. None: its own name."""

    bad_images: Literal["fail", "skip"] = "fail"
    """How to treat damaged images in the data folder.
    fail: stop and name them. skip: skip and list them, if they are at most one in a thousand."""

    check_images: Literal["structure", "decode"] = "structure"
    """How thoroughly to check the images of the data folder before the first step; each is checked once.
    structure: markers, checksums, a PNG's pixels. decode: also decode, which takes as long as an epoch."""

    validation: int | None = None
    """Hold out this many training images, in proportion to the classes, and test on them instead of on the
    test images: for choosing settings."""

    limit_train: int | None = None
    """Train on only this many images, balanced over the classes."""

    limit_test: int | None = None
    """Test on only this many images, balanced over the classes."""

    def validate(self) -> None:
        """Check the values of the settings, beyond their types.

        Raises:
            ArgumentError: a setting has an invalid value.
            DataError: the data folder does not exist.
        """
        super().validate()
        at_least_one(self, "validation", "limit_train", "limit_test")
        check_images(self.dataset, self.data_dir, self.limit_train, self.limit_test)


@dataclass(frozen=True, kw_only=True)
class PretrainedImageSettings(DeviceSettings):
    """Settings of the images for a pretrained network, by default those that it was pretrained on."""

    data_dir: Path | None = None
    """Folder of the data set's files. None: as in pretraining."""

    loader: Literal["auto", "resident", "dali"] | None = None
    """Keep all images in memory, or stream them, see rotnet_fast.pretrain. None: as in pretraining."""

    bad_images: Literal["fail", "skip"] | None = None
    """How to treat damaged images, see rotnet_fast.pretrain. None: as in pretraining."""

    validation: int | None = None
    """Test on this many held-out training images instead of the test images, see rotnet_fast.pretrain.
    0: on the test images. None: as in pretraining."""

    limit_train: int | None = None
    """Use only this many training images, balanced over the classes. None: as in pretraining."""

    limit_test: int | None = None
    """Use only this many test images, balanced over the classes. None: as in pretraining."""

    def validate(self) -> None:
        """Check the values of the settings, beyond their types.

        Raises:
            ArgumentError: a setting has an invalid value.
        """
        super().validate()
        at_least_one(self, "limit_train", "limit_test")
        if self.validation is not None and self.validation < 0:
            raise ArgumentError(
                f"validation is {self.validation}; it must be at least 1, or 0 for the test images"
            )


@dataclass(frozen=True, kw_only=True)
class Optimisation(Settings):
    """Settings of the optimiser and its schedule: how a network, or heads on its features, are trained."""

    epochs: int = 100
    """Passes over the training images."""

    lr: float = 0.1
    """Learning rate of the first step, or at the end of the warm-up."""

    schedule: Literal["step", "linear", "cosine"] = "step"
    """step: multiply lr by lr-factor at each milestone. linear, cosine: decay to 0 at the end."""

    warmup: float = 0.0
    """Epochs, possibly fractional, in which linear and cosine rise from 0 to lr before they decay."""

    milestones: tuple[int, ...] | None = None
    """Epochs after which the step schedule multiplies the learning rate. None: the published ones of each
    head, scaled to the epochs."""

    lr_factor: float = 0.2
    """Factor of the step schedule."""

    optimizer: Literal["sgd", "muon"] = "sgd"
    """sgd: for all parameters. muon: for the filters of convolutions, with sgd for the rest; its steps move
    all directions of a filter by about the same amount."""

    muon_lr: float = 0.05
    """Learning rate of muon; lr is that of the other parameters. Both follow the schedule."""

    nesterov: bool = True
    """Use Nesterov momentum; the momentum is 0.9."""

    weight_decay: float = 5e-4
    """Weight decay, on all parameters."""

    muon_weight_decay: float | None = None
    """Weight decay of the filters that follow muon. None: weight-decay."""

    def validate(self) -> None:
        """Check the values of the settings, beyond their types.

        Raises:
            ArgumentError: a setting has an invalid value.
        """
        super().validate()
        at_least_one(self, "epochs")
        require(self, "lr", 0 < self.lr < math.inf, "must be a number above 0")
        require(self, "muon_lr", 0 < self.muon_lr < math.inf, "must be a number above 0")
        is_used = self.optimizer == "muon" or self.muon_lr == Optimisation.muon_lr
        require(self, "muon_lr", is_used, "only applies to --optimizer muon: remove it")
        require(
            self,
            "warmup",
            self.warmup == 0 or (self.schedule != "step" and 0 < self.warmup < self.epochs),
            "must be 0 or, with schedule linear or cosine, above 0 and less than epochs",
        )
        require(self, "lr_factor", 0 < self.lr_factor < math.inf, "must be a number above 0")
        require(self, "weight_decay", 0 <= self.weight_decay < math.inf, "must be at least 0")
        if self.muon_weight_decay is not None:
            require(self, "muon_weight_decay", 0 <= self.muon_weight_decay < math.inf, "must be at least 0")
            is_muon = self.optimizer == "muon"
            require(self, "muon_weight_decay", is_muon, "only applies to --optimizer muon: remove it")
        given = self.milestones or ()
        increasing = [0, *given] == sorted({0, *given})
        require(self, "milestones", increasing, "must increase from above 0, such as 30 60 80")

    def optimisation(self) -> dict[str, Any]:
        """Return these settings by name, without those that a subclass adds and a decay that is not apart."""
        values = {field.name: getattr(self, field.name) for field in fields(Optimisation)}
        if self.muon_weight_decay is None:
            del values["muon_weight_decay"]
        return values

    def followed_by(self: OptimisationT, given: Mapping[str, Any]) -> OptimisationT:
        """Return a preset's settings for others that replace some: without what would not apply beside them.

        Args:
            given: settings by name.
        """
        changes: dict[str, Any] = {}
        if given.get("optimizer", self.optimizer) != "muon":
            changes |= {"muon_lr": Optimisation.muon_lr, "muon_weight_decay": None}
        if given.get("schedule", self.schedule) == "step":
            changes["warmup"] = 0.0
        return replace(self, **changes)

    def stretched(self: OptimisationT, epochs: int) -> OptimisationT:
        """Return these settings for another number of epochs, with milestones and warm-up in proportion."""
        kept = self.milestones
        milestones = None if kept is None else stretched(kept, self.epochs, epochs)
        warmup = self.warmup * epochs / self.epochs
        return replace(self, epochs=epochs, milestones=milestones, warmup=warmup)

    def schedules(self, published: tuple[int, ...] = ()) -> tuple[Schedule, Schedule | None]:
        """Return the schedules of SGD and of Muon; the latter is None if SGD trains everything.

        Args:
            published: milestones in 100 epochs to scale to these where the settings have None.
        """
        milestones = stretched(published, 100, self.epochs) if self.milestones is None else self.milestones

        def schedule(lr: float) -> Schedule:
            return Schedule(lr, self.schedule, milestones, self.lr_factor, self.epochs, self.warmup)

        return schedule(self.lr), schedule(self.muon_lr) if self.optimizer == "muon" else None


def require(settings: Settings, name: str, is_allowed: bool, rule: str) -> None:
    """Check the value of a setting.

    Args:
        settings, name: where the value is.
        is_allowed: whether it is valid.
        rule: what it must be, to follow "it".

    Raises:
        ArgumentError: the value is invalid.
    """
    if not is_allowed:
        raise ArgumentError(f"{flag_name(name)} is {getattr(settings, name)}; it {rule}")


def at_least_one(settings: Settings, *names: str) -> None:
    """Check that the named counts are at least 1, or None for no limit.

    Raises:
        ArgumentError: a count is below 1.
    """
    for name in names:
        value = getattr(settings, name)
        if value is not None and value < 1:
            raise ArgumentError(f"{flag_name(name)} is {value}; it must be at least 1")

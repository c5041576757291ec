"""Numbers in words, and the conversion of numpy's, torch's and other numbers to Python's own.

Importing this module imports neither torch nor numpy.
"""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

_MOST_SHOWN = 60
"""Largest number of characters of a value in an error message."""


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """Return a number with its noun: 1 image, 2 images, 10,000 images, 0 classes.

    Args:
        number: how many.
        noun: in the singular.
        plural: where it is not made from the end of the noun, such as "labels per class".
    """
    return f"{number:,} {noun if number == 1 else plural or plural_of(noun)}"


def plural_of(noun: str) -> str:
    """Return the regular plural of a noun."""
    if noun.endswith(("s", "x", "sh", "tch")):
        return f"{noun}es"
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return f"{noun[:-1]}ies"
    return f"{noun}s"


def duration(seconds: float) -> str:
    """Format as ``42 s``, ``7 min``, ``3 h 20 min`` or ``12 h``."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 100:
        return f"{minutes} min"
    if minutes >= 600:
        return f"{minutes / 60:.0f} h"
    return f"{minutes // 60} h {minutes % 60} min" if minutes % 60 else f"{minutes // 60} h"


def plain_number(value: Any) -> Any:
    """Return the value of a numpy scalar, or of an array or tensor with no dimensions; else the argument.

    A tensor on a GPU causes a synchronisation.
    """
    # All of them have `item`, but arrays with one element have dimensions.
    if getattr(value, "ndim", None) != 0 or not hasattr(value, "item"):
        return value
    try:
        return value.item()
    except (NotImplementedError, RuntimeError):  # a tensor without values, as on the meta device
        return value


def as_whole(value: object) -> int | None:
    """Return the integer in an int, a numpy integer, or an array or tensor with no dimensions.

    The result is None for anything else, including bools and floats such as 4.0.
    """
    if type(value) is int:  # the common case
        return value
    number = plain_number(value)
    if isinstance(number, bool) or not isinstance(number, (int, Integral)):
        return None
    return int(number)


def as_real(value: object) -> Any:
    """Return the real number in a value as `as_whole` does, including floats and fractions, or None.

    It is not converted to a float, because an int may be larger than any float.
    """
    if type(value) is float or type(value) is int:
        return value
    number = plain_number(value)
    if isinstance(number, bool) or not isinstance(number, (float, int, Real)):
        return None
    return number


def as_sequence(values: object) -> Sequence[Any] | None:
    """Return a sequence as it is, and an array or tensor with one dimension as a list of its values.

    The result is None for anything else, including strings, sets and iterators.
    """
    if type(values) is tuple or type(values) is list:
        return values
    if isinstance(values, (str, bytes)):
        return None
    if isinstance(values, Sequence):
        return values
    if getattr(values, "ndim", None) == 1 and hasattr(values, "tolist"):
        try:
            listed: list[Any] = values.tolist()
        except (NotImplementedError, RuntimeError):
            return None
        return listed
    return None


def shown(value: object) -> str:
    """Format a value for an error message: arrays and tensors by type and shape, long values truncated."""
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    if shape is not None and dtype is not None and not isinstance(value, (Real, type)):
        return f"{type(value).__name__} of {dtype} with shape {list(shape)}"
    text = repr(value)
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}..."


def wrapped_seed(seed: int) -> int:
    """Wrap a seed of any size to the number in [-2**63, 2**63) that is equal to it modulo 2**64."""
    if -(2**63) <= seed < 2**63:
        return seed
    return (seed + 2**63) % 2**64 - 2**63

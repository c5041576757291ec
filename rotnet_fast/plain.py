"""Python's own numbers from those of numpy, torch and others, so that callers need not convert them.

Importing this module imports neither torch nor numpy.
"""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

_MOST_SHOWN = 60
"""Characters of a value in an error."""


def plain_number(value: Any) -> Any:
    """What a number of numpy, or an array or tensor without dimensions, holds; everything else as it is.

    A tensor on a GPU is waited for.
    """
    # Numbers of numpy are told from arrays of one by their number of dimensions; all three have `item`.
    if getattr(value, "ndim", None) != 0 or not hasattr(value, "item"):
        return value
    try:
        return value.item()
    except (NotImplementedError, RuntimeError):  # a tensor without values, as on the meta device
        return value


def as_whole(value: object) -> int | None:
    """The whole number that a value is: an int, a numpy integer, or an array or tensor without dimensions.

    None of anything else, flags and floats such as 4.0 included.
    """
    if type(value) is int:  # nearly always
        return value
    number = plain_number(value)
    if isinstance(number, bool) or not isinstance(number, (int, Integral)):
        return None
    return int(number)


def as_real(value: object) -> Any:
    """The real number that a value is, as `as_whole` takes them, floats and fractions included; else None.

    It is not converted to a float, as whole numbers may be larger than any.
    """
    if type(value) is float or type(value) is int:
        return value
    number = plain_number(value)
    if isinstance(number, bool) or not isinstance(number, (float, int, Real)):
        return None
    return number


def as_sequence(values: object) -> Sequence[Any] | None:
    """A sequence of numbers; of an array or a tensor with one dimension, a list of what it holds.

    None of anything else, texts, sets and iterators included.
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
    """A value as an error names it: an array or tensor by type and shape; cut where it is long."""
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    if shape is not None and dtype is not None and not isinstance(value, Real):
        return f"{type(value).__name__} of {dtype} with shape {list(shape)}"
    text = repr(value)
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}..."


def wrapped_seed(seed: int) -> int:
    """A seed of any size, modulo 2**64: the number in [-2**63, 2**63) whose 64 bits are its lowest."""
    if -(2**63) <= seed < 2**63:
        return seed
    return (seed + 2**63) % 2**64 - 2**63

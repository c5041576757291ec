"""Encoding of arrays as JSON values, so that JSON files can hold results with pictures.

Importing this module does not import torch.
"""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rotnet_fast.errors import ArgumentError
from rotnet_fast.plain import counted

DTYPES = ("uint8", "int64", "float16", "float32")
"""Supported dtypes of an encoded array."""


def encode_array(array: NDArray[Any]) -> dict[str, Any]:
    """Encode an array as a dictionary that JSON can hold.

    Args:
        array: array of any shape, with a dtype in ``DTYPES``.

    Returns:
        ``dtype``, ``shape`` (a list) and ``base64``, the bytes in C order and little endian.

    Raises:
        ArgumentError: the dtype is not supported.
    """
    if array.dtype.name not in DTYPES:
        raise ArgumentError(f"array has the dtype {array.dtype}; convert it to one of {', '.join(DTYPES)}")
    content = array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
    return {
        "dtype": array.dtype.name,
        "shape": list(array.shape),
        "base64": base64.b64encode(content).decode("ascii"),
    }


def decode_array(encoded: Mapping[str, Any]) -> NDArray[Any]:
    """Decode the result of :func:`encode_array` to a writable array in the machine's byte order.

    Raises:
        ArgumentError: the argument is not a result of :func:`encode_array`.
    """
    missing = [name for name in ("dtype", "shape", "base64") if name not in encoded]
    if missing:
        raise ArgumentError(f"the encoded array lacks {', '.join(missing)}; it needs dtype, shape and base64")
    name, shape = encoded["dtype"], encoded["shape"]
    if name not in DTYPES:
        raise ArgumentError(
            f"the encoded array has the dtype {name!r}; it must be one of {', '.join(DTYPES)}"
        )
    if not isinstance(shape, list) or not all(type(length) is int and length >= 0 for length in shape):
        raise ArgumentError(f"the encoded array has the shape {shape!r}; it must be a list of lengths")
    try:
        content = base64.b64decode(encoded["base64"], validate=True)
    except (binascii.Error, TypeError, ValueError) as error:
        raise ArgumentError(f"the encoded array's base64 text is damaged: {error}") from error
    dtype = np.dtype(name)
    expected = math.prod(shape) * dtype.itemsize
    if len(content) != expected:
        raise ArgumentError(
            f"the encoded array has {counted(len(content), 'byte')}; {name} of shape {shape} takes {expected}"
        )
    return np.frombuffer(content, dtype.newbyteorder("<")).reshape(shape).astype(dtype)

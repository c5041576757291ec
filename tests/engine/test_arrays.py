"""Arrays survive the way through JSON, and damage is named."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from rotnet_fast.arrays import DTYPES, decode_array, encode_array
from rotnet_fast.errors import ArgumentError


@pytest.mark.parametrize("name", DTYPES)
@pytest.mark.parametrize("shape", [(), (0, 3), (5,), (2, 3, 4)])
def test_an_array_comes_back_through_json(name: str, shape: tuple[int, ...]) -> None:
    array = (np.random.default_rng(0).random(shape) * 200).astype(name)
    back = decode_array(json.loads(json.dumps(encode_array(array))))
    assert back.dtype == array.dtype
    assert back.dtype.isnative
    np.testing.assert_array_equal(back, array)


def test_bytes_are_little_endian_and_in_c_order() -> None:
    content = b"\1" + b"\0" * 8 + b"\1" + b"\0" * 6
    expected = {"dtype": "int64", "shape": [2], "base64": base64.b64encode(content).decode()}
    assert encode_array(np.array([1, 256], "<i8")) == expected
    assert encode_array(np.array([1, 256], ">i8")) == expected
    transposed = np.arange(6, dtype=np.uint8).reshape(2, 3).T
    assert base64.b64decode(encode_array(transposed)["base64"]) == bytes([0, 3, 1, 4, 2, 5])


def test_a_decoded_array_can_be_changed() -> None:
    decode_array(encode_array(np.zeros(3, np.uint8)))[0] = 1


def test_other_types_are_refused() -> None:
    with pytest.raises(ArgumentError, match="array has the dtype float64; convert it to one of uint8"):
        encode_array(np.zeros(3))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"dtype": "object"}, "has the dtype 'object'; it must be one of uint8"),
        ({"shape": [4]}, "has 3 bytes; uint8 of shape .4. takes 4"),
        ({"shape": [-3]}, "has the shape .-3.; it must be a list of lengths"),
        ({"shape": 3}, "has the shape 3"),
        ({"base64": "AA!="}, "base64 text is damaged"),
        ({"base64": None}, "base64 text is damaged"),
    ],
)
def test_damage_is_named(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ArgumentError, match=sentence):
        decode_array({**encode_array(np.zeros(3, np.uint8)), **change})


def test_a_missing_part_is_named() -> None:
    with pytest.raises(ArgumentError, match="lacks shape, base64"):
        decode_array({"dtype": "uint8"})


def test_arrays_need_no_torch() -> None:
    program = "import sys, rotnet_fast.arrays; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)

"""Where a process runs Triton kernels: in the interpreter where TRITON_INTERPRET is 1, else on a GPU."""

from __future__ import annotations

import os
from typing import Any

import torch

DEVICE = torch.device("cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda")


def _repair_bf16() -> None:
    """The interpreter holds bf16 as bits in uint16: it multiplies those, and cuts off where a GPU rounds."""
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle, tl

    multiply, cast = InterpreterBuilder.create_dot, InterpreterBuilder.cast_impl

    def to_float(x: Any) -> Any:
        return TensorHandle((x.data.astype("uint32") << 16).view("float32"), tl.float32)

    def multiply_numbers(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        if a.dtype == tl.bfloat16:
            a, b = to_float(a), to_float(b)
        return multiply(self, a, b, *rest)

    def cast_to_nearest(self: Any, x: Any, to: Any) -> Any:
        if (x.dtype.scalar, to.scalar) != (tl.float32, tl.bfloat16):
            return cast(self, x, to)
        rounded = torch.tensor(x.data).to(torch.bfloat16).view(torch.uint16)
        return TensorHandle(rounded.numpy(), tl.bfloat16)

    InterpreterBuilder.create_dot, InterpreterBuilder.cast_impl = multiply_numbers, cast_to_nearest


def _repair_sizes() -> None:
    """Triton 3.6 takes numbers from arrays of one element in a way that numpy refuses from 2.4 on."""
    from triton.runtime import interpreter

    patch = interpreter._patch_lang_tensor

    def patch_again(tensor: Any, *rest: Any) -> None:
        patch(tensor, *rest)
        tensor.__index__ = lambda self: int(self.handle.data.squeeze())

    interpreter._patch_lang_tensor = patch_again


if DEVICE.type == "cpu":
    _repair_bf16()
    _repair_sizes()
else:
    torch.backends.cudnn.allow_tf32 = False  # what the kernels are compared with has to be fp32

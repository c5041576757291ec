"""Number formats of the forward and backward pass.

Weights, their momentum and the BatchNorm statistics are fp32 in every mode: autocast lowers the
convolutions, the linear layers and the activations between them, and a BatchNorm fed with bf16
or fp16 still accumulates in fp32.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from rotnet_fast.data.workers import available_cores
from rotnet_fast.errors import ArgumentError

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def resolve_device(name: str) -> torch.device:
    """Turn a setting into a device that is there, and use no more threads than this process has cores.

    Args:
        name: ``auto`` (the first CUDA device, else the CPU), ``cpu``, ``cuda`` or ``cuda:N``.

    Raises:
        ArgumentError: there is no such CUDA device.
    """
    if "OMP_NUM_THREADS" not in os.environ:  # torch does not look at the quota of a container
        torch.set_num_threads(min(torch.get_num_threads(), available_cores()))
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda":
        index = device.index or 0
        count = torch.cuda.device_count()
        if index >= count:
            raise ArgumentError(
                f"device is {name}, but torch {torch.__version__} finds {count} CUDA devices; use --device "
                f"cpu, or see python -m rotnet_fast.doctor"
            )
        device = torch.device("cuda", index)
        torch.backends.cudnn.benchmark = True  # sizes repeat: let it time its algorithms once
    return device


@dataclass(frozen=True)
class Precision:
    """The number format in use on a device: fp32, bf16 or fp16. Made by :func:`resolve_precision`."""

    name: str
    device_type: str

    @property
    def dtype(self) -> torch.dtype:
        """The type of views and activations."""
        return _DTYPES[self.name]

    def autocast(self) -> torch.autocast:
        """Context for the forward pass."""
        return torch.autocast(self.device_type, dtype=self.dtype, enabled=self.name != "fp32")

    def grad_scaler(self) -> torch.amp.GradScaler:
        """Loss scaling, which only fp16 needs; it passes everything through otherwise."""
        return torch.amp.GradScaler(self.device_type, enabled=self.name == "fp16")


def resolve_precision(name: str, device: torch.device) -> Precision:
    """Turn a setting into the format to use.

    Args:
        name: ``fp32``, ``bf16``, ``fp16``, or ``auto``: bf16 where the device computes in it, else fp32.

    Raises:
        ArgumentError: an unknown name, or a format that does not work on the device.
    """
    if name == "auto":
        name = "bf16" if _computes_in_bf16(device) else "fp32"
    if name not in _DTYPES:
        raise ArgumentError(f"precision is {name!r}; choose from auto, {', '.join(_DTYPES)}")
    if name == "fp16" and device.type != "cuda":
        raise ArgumentError(
            f"precision is fp16, which needs a CUDA device (this run uses {device}): in fp16 on a CPU the "
            f"backward pass of BatchNorm overflows to NaN; use --precision bf16 or fp32"
        )
    return Precision(name, device.type)


def _computes_in_bf16(device: torch.device) -> bool:
    """Whether bf16 is computed natively, not emulated (which is slower than fp32)."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())

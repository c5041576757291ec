"""Where to compute, and in which number format.

Weights, momentum and BatchNorm statistics are fp32 in every format. Autocast lowers the precision of
convolutions, linear layers and the activations between them; a BatchNorm that is fed bf16 or fp16 still
accumulates in fp32.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from rotnet_fast.checks import check_precision
from rotnet_fast.errors import ArgumentError
from rotnet_fast.system import available_cores

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def resolve_device(name: str) -> torch.device:
    """Find the device that a setting names.

    Args:
        name: ``auto`` (the first CUDA device, or else the CPU), ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.

    Raises:
        ArgumentError: there is no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ArgumentError(f"device is mps, which torch {torch.__version__} finds none of; use --device cpu")
    if device.type == "cuda":
        index = device.index or 0
        count = torch.cuda.device_count()
        if index >= count:
            raise ArgumentError(
                f"device is {name}, but torch {torch.__version__} finds {count} CUDA devices; use --device "
                f"cpu, or see python -m rotnet_fast.doctor"
            )
        device = torch.device("cuda", index)
    return device


def working_device(name: str) -> torch.device:
    """Find the device of a command, and set torch up to work on it, until `plain_torch` restores it.

    Args:
        name: see :func:`resolve_device`.

    Raises:
        ArgumentError: there is no such device.
    """
    device = resolve_device(name)
    if "OMP_NUM_THREADS" not in os.environ:  # torch ignores the CPU quota of a container
        torch.set_num_threads(min(torch.get_num_threads(), available_cores()))
    torch.backends.cudnn.benchmark = True  # sizes repeat: let it time its algorithms once
    return device


@dataclass(frozen=True)
class Precision:
    """The number format in use on a device, made by :func:`resolve_precision`.

    Attributes:
        name: ``fp32``, ``bf16`` or ``fp16``.
        device_type: ``cpu``, ``cuda`` or ``mps``.
    """

    name: str
    device_type: str

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of views and activations."""
        return _DTYPES[self.name]

    def autocast(self) -> torch.autocast:
        """Make a context for the forward pass."""
        return torch.autocast(self.device_type, dtype=self.dtype, enabled=self.name != "fp32")

    def grad_scaler(self) -> torch.amp.GradScaler:
        """Make a loss scaler, which passes everything through unless the format is fp16."""
        return torch.amp.GradScaler(self.device_type, enabled=self.name == "fp16")


def resolve_precision(name: str, device: torch.device) -> Precision:
    """Find the number format that a setting names.

    Args:
        name: ``fp32``, ``bf16``, ``fp16``, or ``auto``: bf16 where the device computes in it, or else fp32.
        device: the device in use.

    Raises:
        ArgumentError: the name is unknown, or the format does not work on the device.
    """
    if name == "auto":
        name = "bf16" if _computes_in_bf16(device) else "fp32"
    if name not in _DTYPES:
        raise ArgumentError(f"precision is {name!r}; choose from auto, {', '.join(_DTYPES)}")
    check_precision(name, device.type)
    return Precision(name, device.type)


def _computes_in_bf16(device: torch.device) -> bool:
    """Whether bf16 is computed natively rather than emulated, which is slower than fp32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "mps":
        return False
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())

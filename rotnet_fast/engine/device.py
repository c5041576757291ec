"""Where to compute."""

from __future__ import annotations

import torch

from rotnet_fast.errors import ArgumentError


def resolve_device(name: str) -> torch.device:
    """Turn a setting into a device that is there.

    Args:
        name: ``auto`` (the first CUDA device, else the CPU), ``cpu``, ``cuda`` or ``cuda:N``.

    Raises:
        ArgumentError: there is no such CUDA device.
    """
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
    return device

"""Where to compute."""

from __future__ import annotations

import os

import torch

from rotnet_fast.data.workers import available_cores
from rotnet_fast.errors import ArgumentError


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

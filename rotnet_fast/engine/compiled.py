"""Training steps compiled by torch.compile."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from rotnet_fast.config import NIN
from rotnet_fast.engine.distributed import Processes
from rotnet_fast.engine.precision import Precision
from rotnet_fast.models.network import FeatureNetwork

# Without the compiler's own CUDA graphs: whole steps are captured, see `rotnet_fast.engine.replay`.
_MODES = {"default": "default", "max": "max-autotune-no-cudagraphs"}

STEPS_WORTH_COMPILING = 10_000
"""On an H200, the compiler took some 22 s and saved 2.4 of the 7.9 ms of a step (docs/performance.md)."""

Forward = Callable[[torch.Tensor], torch.Tensor]


def choose_compile(
    setting: str,
    device: torch.device,
    precision: Precision,
    network: FeatureNetwork,
    processes: Processes,
    steps: int,
) -> str:
    """Decide whether training steps are compiled.

    Args:
        setting: ``none``, ``default``, ``max``, or ``auto``: ``default`` where that is known to be faster,
            compiling included.
        device, precision, network, processes: of the training.
        steps: of the whole training, so that a resumed run chooses as its first part did.

    Returns:
        ``none``, ``default`` or ``max``.
    """
    if setting != "auto":
        return setting
    # On the CPU, compiled steps were slower. Other networks, fp32 and several processes were not measured.
    is_faster = device.type == "cuda" and precision.name == "bf16" and network.name == NIN
    return "default" if is_faster and processes.world == 1 and steps >= STEPS_WORTH_COMPILING else "none"


def compile_forward(module: nn.Module, mode: str, is_optional: bool) -> Any:
    """Compile a network's forward pass, and the backward pass with it.

    Args:
        module: the network.
        mode: ``default`` or ``max``.
        is_optional: whether to continue with the plain network where compiling fails, for want of a C
            compiler or of Python's headers, say.
    """
    # dynamic=False: the smaller last batch gets a graph of its own and slows no other down.
    compiled = torch.compile(module, mode=_MODES[mode], dynamic=False)
    return _CompiledOrPlain(module, compiled) if is_optional else compiled


class _CompiledOrPlain:
    """Runs a compiled network until it fails, and the plain one from then on.

    Args:
        plain: the network.
        compiled: the same network, compiled.
    """

    def __init__(self, plain: nn.Module, compiled: Forward) -> None:
        self._plain = plain
        self._forward: Forward = compiled

    def __call__(self, views: torch.Tensor) -> torch.Tensor:
        """[V,C,H,W] -> the network's output."""
        try:
            return self._forward(views)
        except Exception as error:
            if self._forward is self._plain:
                raise
            # Whatever it was: if the plain network fails, too, its error is the one to report.
            logits: torch.Tensor = self._plain(views)
            said = (str(error).strip() or type(error).__name__).splitlines()[0]
            remedy = "training continues without, as with --compile none"
            print(f"the network could not be compiled ({said}); {remedy}", file=sys.stderr)
            self._forward = self._plain
            return logits

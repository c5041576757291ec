"""The optimiser of a training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from rotnet_fast.engine.muon import Muon
from rotnet_fast.engine.task import ParameterGroup
from rotnet_fast.engine.trainer_settings import TrainerSettings


def make_optimizer(
    groups: Sequence[ParameterGroup], lrs: Sequence[torch.Tensor], settings: TrainerSettings
) -> torch.optim.SGD:
    """SGD, or Muon where a group asks for it.

    Args:
        groups: what to train.
        lrs: learning rate of each group, 0-dimensional, on the device: steps read it anew each time.
        settings: momentum and weight decay.
    """
    options: list[dict[str, Any]] = [
        {"params": group.parameters, "name": group.name, "lr": lr}
        for group, lr in zip(groups, lrs, strict=True)
    ]
    common: dict[str, Any] = {
        "momentum": settings.momentum,
        "nesterov": settings.nesterov,
        "weight_decay": settings.weight_decay,
    }
    optimizer: torch.optim.SGD
    if any(group.is_orthogonalised for group in groups):
        for group, values in zip(groups, options, strict=True):
            values["is_orthogonalised"] = group.is_orthogonalised
        optimizer = Muon(options, **common)
    else:
        # One kernel for all parameters, which skips a step that the guard has marked; torch's other
        # implementations cannot, and round differently in the last bits.
        optimizer = torch.optim.SGD(options, **common, fused=True)
    for values in optimizer.param_groups:
        if values["momentum"] != 0:
            # torch would make it in the first step, uninitialised, and it would stay so if that step were
            # not applied.
            for parameter in values["params"]:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer

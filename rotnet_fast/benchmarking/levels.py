"""Levels of a training step to compare, from plain torch to all of the package's optimisations.

The command and ``benchmarks/`` share the table; one line adds a level to both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from rotnet_fast.config import PretrainConfig
from rotnet_fast.data.loader import Batch
from rotnet_fast.engine.rotation_task import RotationTask
from rotnet_fast.models.nin import ConvBnRelu, NetworkInNetwork


class PlainTask(RotationTask):
    """Train as without this package: with torch's own modules, and all tensors [N,C,H,W] in memory.

    The views still come from the fused op, so that only the training step is compared.
    """

    def __init__(self, module: nn.Module, *args: Any, **kwargs: Any) -> None:
        assert isinstance(module, NetworkInNetwork)
        super().__init__(plain_network(module), *args, **kwargs)

    def views(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the same as `RotationTask.views`, but not channels_last."""
        views, labels = super().views(batch)
        return views.contiguous(), labels


class FixedViews(RotationTask):
    """Reuse the views of the first batch at every step, to measure a step without its data path."""

    _made: tuple[torch.Tensor, torch.Tensor] | None = None

    def views(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the views of the first batch."""
        if self._made is None:
            self._made = super().views(batch)
        return self._made


class FixedPlainTask(FixedViews, PlainTask):
    """Combine fixed views with the plain task."""


WITHOUT_DATA: dict[type[RotationTask], type[RotationTask]] = {
    RotationTask: FixedViews,
    PlainTask: FixedPlainTask,
}


def plain_network(network: NetworkInNetwork) -> nn.Sequential:
    """Return the same network with only torch's modules, and weights in torch's default memory format."""
    modules: list[nn.Module] = []
    for layer in network.layers:
        for module in network.get_submodule(layer).children():
            if isinstance(module, ConvBnRelu):
                modules += [module.conv, module.bn, nn.ReLU(inplace=True)]
            else:
                modules.append(module)
    plain = nn.Sequential(*modules, nn.AdaptiveAvgPool2d(1), nn.Flatten(), network.classifier)
    for parameter in plain.parameters():
        # Not Module.to: the weights of a 1x1 convolution would keep channels_last strides, which libraries
        # then treat as their memory format.
        parameter.data = parameter.data.clone(memory_format=torch.contiguous_format)
    return plain


@dataclass(frozen=True)
class Level:
    """Define one way to run a training step.

    Attributes:
        name: name in tables.
        devices: types of devices that support it.
        settings: settings of pretraining that differ from the defaults.
        cudnn_benchmark: let cuDNN benchmark its algorithms, as the package does.
        task: class of the task to train.
    """

    name: str
    devices: tuple[str, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    cudnn_benchmark: bool = True
    task: type[RotationTask] = RotationTask

    @property
    def is_compiled(self) -> bool:
        """Return whether the level uses the compiler, whose first steps take minutes."""
        return bool(self.settings.get("compile", "none") != "none")

    def config(self, config: PretrainConfig) -> PretrainConfig:
        """Return ``config`` with the settings of this level."""
        return replace(config, **self.settings)


BASELINE = "fp32 NCHW, eager"
DEFAULT = "default"
BOTH = ("cpu", "cuda")
_EAGER = {"compile": "none", "graph": "off"}
_FP32 = {"precision": "fp32", **_EAGER}
_BF16 = {"precision": "bf16", **_EAGER}
_COMPILED = {**_BF16, "compile": "default"}
_GRAPH = {**_BF16, "graph": "on"}

LEVELS = (
    Level(BASELINE, BOTH, _FP32, cudnn_benchmark=False, task=PlainTask),
    Level("fp32 channels_last, eager", BOTH, _FP32, cudnn_benchmark=False),
    Level("bf16 channels_last, eager", BOTH, _BF16, cudnn_benchmark=False),
    Level("bf16, cudnn.benchmark", ("cuda",), _BF16),
    Level("bf16, cudnn.benchmark, graph", ("cuda",), _GRAPH),
    Level("bf16, compiled", BOTH, _COMPILED),
    Level("bf16, compiled, graph", ("cuda",), {**_GRAPH, "compile": "default"}),
    Level("bf16, max-autotune, graph", ("cuda",), {**_GRAPH, "compile": "max"}),
    Level(DEFAULT, BOTH),  # whatever the package chooses by default
)
"""All levels, starting with plain torch."""


def levels_of(device: torch.device) -> list[Level]:
    """Return the levels for a type of device."""
    return [level for level in LEVELS if device.type in level.devices]

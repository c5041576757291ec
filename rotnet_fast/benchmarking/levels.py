"""The ways to run a training step that are compared: from plain torch to all that this package does.

The table is for the command and for ``benchmarks/``; one line adds a level to both.
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
    """What the method takes without this package: torch's own modules, all tensors [N,C,H,W] in memory.

    The views come from the fused step all the same, so that the comparison is of the training step alone.
    """

    def __init__(self, module: nn.Module, *args: Any, **kwargs: Any) -> None:
        assert isinstance(module, NetworkInNetwork)
        super().__init__(plain_network(module), *args, **kwargs)

    def views(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """As `RotationTask.views`, but not channels_last."""
        views, labels = super().views(batch)
        return views.contiguous(), labels


class FixedViews(RotationTask):
    """Makes the views of the first batch, and shows them at every step: a step without its data path."""

    _made: tuple[torch.Tensor, torch.Tensor] | None = None

    def views(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """As `RotationTask.views`, always the same."""
        if self._made is None:
            self._made = super().views(batch)
        return self._made


class FixedPlainTask(FixedViews, PlainTask):
    """Both."""


WITHOUT_DATA: dict[type[RotationTask], type[RotationTask]] = {
    RotationTask: FixedViews,
    PlainTask: FixedPlainTask,
}


def plain_network(network: NetworkInNetwork) -> nn.Sequential:
    """The same network of torch's modules alone, with weights in memory as torch makes them."""
    modules: list[nn.Module] = []
    for layer in network.layers:
        for module in network.get_submodule(layer).children():
            if isinstance(module, ConvBnRelu):
                modules += [module.conv, module.bn, nn.ReLU(inplace=True)]
            else:
                modules.append(module)
    plain = nn.Sequential(*modules, nn.AdaptiveAvgPool2d(1), nn.Flatten(), network.classifier)
    for parameter in plain.parameters():
        # Not Module.to: the strides of a 1x1 convolution's weights would stay those of channels_last, which
        # libraries then take for its memory format.
        parameter.data = parameter.data.clone(memory_format=torch.contiguous_format)
    return plain


@dataclass(frozen=True)
class Level:
    """One way to run a training step.

    Attributes:
        name: in tables.
        devices: kinds of devices that it is for.
        settings: of pretraining, where they differ from the defaults.
        cudnn_benchmark: let cuDNN try its algorithms, as the package does.
        task: what is trained.
    """

    name: str
    devices: tuple[str, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    cudnn_benchmark: bool = True
    task: type[RotationTask] = RotationTask

    @property
    def is_compiled(self) -> bool:
        """Whether the level is about the compiler, whose first steps take minutes."""
        return bool(self.settings.get("compile", "none") != "none")

    def config(self, config: PretrainConfig) -> PretrainConfig:
        """``config`` at this level."""
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
    Level("bf16, triton-bn, graph", ("cuda",), {**_GRAPH, "kernels": "triton-bn"}),
    Level("bf16, triton, graph", ("cuda",), {**_GRAPH, "kernels": "triton"}),
    Level(DEFAULT, BOTH),  # whatever the package chooses by itself
)
"""From plain torch upwards."""


def levels_of(device: torch.device) -> list[Level]:
    """The levels for a kind of device."""
    return [level for level in LEVELS if device.type in level.devices]

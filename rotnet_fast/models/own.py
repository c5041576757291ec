"""A network of a program's own, for which no name stands."""

from __future__ import annotations

import copy
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from rotnet_fast.errors import ArgumentError
from rotnet_fast.models.library import ModuleNetwork
from rotnet_fast.models.names import own_name
from rotnet_fast.models.network import FeatureNetwork
from rotnet_fast.plain import counted, shown

_WRAPPERS = {
    "OptimizedModule": "the module in it: model._orig_mod",
    "DataParallel": "the module in it: model.module",
    "DistributedDataParallel": "the module in it: model.module",
    "RecursiveScriptModule": "the module that it was made from",
}
"""Class of modules that wrap another -> what to pass instead."""


def check_module(model: object) -> None:
    """Refuse what is no module that can be copied and looked into.

    Raises:
        TypeError: it is no module.
        ArgumentError: it wraps another module, or has parameters without a shape.
    """
    if not isinstance(model, nn.Module):
        made = ", made by calling it" if isinstance(model, type) else ""
        raise TypeError(f"model is {shown(model)}; it must be a module{made}")
    kind = type(model).__name__
    if kind in _WRAPPERS:
        raise ArgumentError(f"model is a {kind}; pass {_WRAPPERS[kind]}")
    if any(map(is_lazy, [*model.parameters(), *model.buffers()])):
        raise ArgumentError(
            f"model {own_name(model)} has parameters without a shape; call it once on an image"
        )
    extra = sorted(name for name, part in model.state_dict().items() if not isinstance(part, torch.Tensor))
    if extra:
        raise ArgumentError(
            f"model {own_name(model)} saves {extra[0]}, which is no tensor; keep it in a buffer, or leave "
            f"out get_extra_state"
        )


def wrap_module(module: nn.Module, num_classes: int, in_channels: int, image_size: int) -> FeatureNetwork:
    """Make a copy of a module a `FeatureNetwork`, on the CPU and in float32, with the weights that it has.

    Args:
        module: an `OwnNetwork`'s model, or a `FeatureNetwork`.
        num_classes, in_channels, image_size: see `OwnNetwork`.

    Raises:
        ArgumentError: the module is unsuitable.
    """
    try:
        own = copy.deepcopy(module).cpu().float()
    except RuntimeError as error:  # old weight_norm, after a call
        reason = str(error).partition(".")[0]
        raise ArgumentError(
            f"model {own_name(module)} cannot be copied ({reason}); use modules of "
            f"torch.nn.utils.parametrizations instead, or pass a module that was not called yet"
        ) from error
    for holder in own.modules():
        for name, buffer in list(holder.named_buffers(recurse=False)):
            setattr(holder, name, buffer.contiguous())  # an expanded one cannot be restored in place
    if not isinstance(own, FeatureNetwork):
        return OwnNetwork(own, num_classes, in_channels, image_size)
    if (own.num_classes, own.in_channels) != (num_classes, in_channels):
        raise ArgumentError(
            f"model {own.name} has {counted(own.num_classes, 'output')} and takes images of "
            f"{counted(own.in_channels, 'channel')}; build it with num_classes={num_classes} and "
            f"in_channels={in_channels}"
        )
    return own


class OwnNetwork(ModuleNetwork):
    """A module that a program gives, with one output for each rotation, or with a head that adds them.

    Args:
        model: maps normalised images [B,C,H,W] to logits [B,num_classes]; or to features [B,F] or maps
            [B,F,h,w] with another F, on whose mean over places a linear head, ``rotation_head``, then sits.
            Its layers are its direct children that return maps, or those of a ModuleList or of a child that
            wraps the network, see `ModuleNetwork`.
        num_classes: number of outputs.
        in_channels: number of channels of the images.
        image_size: height and width of images that it accepts.

    Raises:
        ArgumentError: the module is unsuitable.
    """

    another: ClassVar[str] = (
        "its layers are those of its children that return one map each, and its own forward has to be "
        "traceable by torch.fx, without branches on values or shapes"
    )
    descends = True
    rotation_head: nn.Linear | None

    def __init__(self, model: nn.Module, num_classes: int, in_channels: int, image_size: int) -> None:
        super().__init__(model, own_name(model), num_classes, in_channels, image_size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits of a batch: [B,C,H,W] -> [B,num_classes]."""
        output = super().forward(x)
        if self.rotation_head is None:
            return output
        logits: torch.Tensor = self.rotation_head(output.mean(dim=(2, 3)) if output.dim() == 4 else output)
        return logits

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Weights and buffers under the keys of the module itself, and those of the head."""
        state = super().state_dict(*args, **kwargs)
        if self.rotation_head is not None:
            prefix = f"{kwargs.get('prefix', '')}rotation_head."
            self.rotation_head.state_dict(
                destination=state, prefix=prefix, keep_vars=kwargs.get("keep_vars", False)
            )
        return state

    def _check_output(self, output: Any) -> None:
        """Make the head that the output needs, unless there is one."""
        is_usable = isinstance(output, torch.Tensor) and output.dim() in (2, 4) and len(output) == 1
        if not is_usable:
            shape = list(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
            raise ArgumentError(
                f"model {self.name} returns {shape} for one image; it must return logits "
                f"[1, {self.num_classes}], features [1, F] or maps [1, F, h, w]"
            )
        if "rotation_head" not in self._modules:
            has_logits = list(output.shape) == [1, self.num_classes]
            if not has_logits and hasattr(self.model, "rotation_head"):
                raise ArgumentError(
                    f"model {self.name} returns {list(output.shape)} for one image, so that a rotation_head "
                    f"is added, but it has one; rename it, or let it return [1, {self.num_classes}]"
                )
            self.rotation_head = None if has_logits else nn.Linear(output.shape[1], self.num_classes)
        elif self.rotation_head is not None and output.shape[1] != self.rotation_head.in_features:
            raise ArgumentError(
                f"model {self.name} returns {output.shape[1]} features for an image of this size and "
                f"{self.rotation_head.in_features} for another; let it pool its maps, or return them"
            )

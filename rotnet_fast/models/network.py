"""What every network has, so that pretraining, evaluation and analysis need not know which one it is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import nn

from rotnet_fast.errors import ArgumentError


class FeatureNetwork(nn.Module, ABC):
    """An image classifier whose feature maps can be tapped by the names of its layers.

    A base class and no `typing.Protocol`, because those who use it need the methods of `nn.Module` as well.

    Attributes:
        name: as ``--model`` takes it.
        layers: names of the feature maps, from the image to the logits.
        default_layer: the one to take where nobody says another: conv2 of the paper's network, else the last
            of the stage before the last, because the last layers turn towards the pretext task.
        stride: pixels of the image per cell of the last feature map, along each side: a power of two.
        num_classes: outputs; the number of rotations, or of object classes.
        in_channels: channels of the images.
        is_capturable: whether its training steps are known to work in a CUDA graph.
        most_cells: longest side of a feature map that a non-linear head takes in as it is; None for any, as
            in the paper, whose maps have 8x8 but for conv1. Larger maps of other networks are averaged down:
            flattened, layer1 of resnet18 on 224x224 images would give a first layer of 40 million weights.
        uses_rng: whether a step in train mode may draw random numbers, as dropout does.

    Shape:
        normalised images [B,C,H,W] -> logits [B,num_classes]. Weights are channels_last; give images in the
        same memory format.
    """

    name: str
    layers: tuple[str, ...]
    default_layer: str
    stride: int
    num_classes: int
    in_channels: int
    is_capturable: bool = False
    most_cells: int | None = 8
    uses_rng: bool

    @abstractmethod
    def features(self, x: torch.Tensor, layers: Sequence[str]) -> dict[str, torch.Tensor]:
        """Feature maps of the layers asked for; what comes after the last one does not run.

        Args:
            x: [B,C,H,W].
            layers: names, in any order; see :meth:`check_layers`.

        Returns:
            layer name -> [B,C_layer,H_layer,W_layer], from the image to the logits.

        Raises:
            ArgumentError: a layer that this network does not have, or none at all.
            TypeError: see :func:`check_input`.
        """

    @abstractmethod
    def feature_channels(self, layer: str) -> int:
        """Channels of a layer's feature map."""

    @abstractmethod
    def feature_parameters(self, layer: str) -> list[nn.Parameter]:
        """The parameters that a layer's feature map depends on, in a fixed order."""

    @abstractmethod
    def check_layers(self, layers: Sequence[str]) -> None:
        """Raise an ArgumentError unless every name is one of a feature map of this network."""

    @abstractmethod
    def check_image_size(self, height: int, width: int) -> None:
        """Raise an ArgumentError unless the network takes images of that many pixels."""

    def use_kernels(self, kernels: str) -> None:
        """Choose what computes the network in training mode.

        Args:
            kernels: ``torch``; the paper's network knows others.

        Raises:
            ArgumentError: kernels that this network does not have.
        """
        if kernels != "torch":
            raise ArgumentError(f"kernels is {kernels!r}, which {self.name} does not have; use torch")


def check_input(x: torch.Tensor, weight: torch.Tensor) -> None:
    """Refuse what no layer takes; torch names the types, but not the remedy.

    Args:
        x: what a network is given.
        weight: one of its parameters.

    Raises:
        TypeError: images that are not normalised yet, or float64 beside weights of another type.
    """
    if not isinstance(x, torch.Tensor):  # torch.fx looks at the layers
        return
    if not x.is_floating_point():
        raise TypeError(
            f"x is {x.dtype}; a network takes normalised images, floating [B,C,H,W]: make a "
            f"rotnet_fast.backbone.Backbone of it, which normalises uint8 [B,H,W,C]"
        )
    if x.dtype == torch.float64 and weight.dtype != torch.float64:
        raise TypeError(
            f"x is torch.float64, and the network's weights are {weight.dtype}: "
            f"give it x.to({weight.dtype}), or convert it by .double()"
        )


def uses_rng(module: nn.Module) -> bool:
    """Whether any network in a module may draw random numbers in a training step, as dropout does."""
    return any(isinstance(part, FeatureNetwork) and part.uses_rng for part in module.modules())

"""The interface of all networks, so that pretraining, evaluation and analysis work with any of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import chain

import torch
from torch import nn

from rotnet_fast.errors import ArgumentError
from rotnet_fast.plain import as_whole, shown


class FeatureNetwork(nn.Module, ABC):
    """An image classifier whose feature maps can be accessed by the names of its layers.

    This is a base class, not a `typing.Protocol`, because its users need the methods of `nn.Module`, too.

    Attributes:
        name: name for ``--model``.
        layers: names of the feature maps, from the image to the logits.
        default_layer: the layer to use by default: conv2 of the paper's network, otherwise the last layer of
            the second-to-last stage, because the last layers specialise in the pretext task.
        stride: pixels of the image per cell of the last feature map, along each side; a power of two.
        num_classes: number of outputs: of rotations, or of object classes.
        in_channels: number of channels of the images.
        is_capturable: whether its training steps are known to work in a CUDA graph.
        most_cells: longest side of a feature map that a non-linear head uses unchanged; None means any, as in
            the paper, whose maps are 8x8 except for conv1. Larger maps of other networks are averaged down:
            flattened, layer1 of resnet18 on 224x224 images would need a first layer of 40 million weights.
        uses_rng: whether a training step may draw random numbers, as dropout does.
        is_standardised: whether the channels of its feature maps are of about the same size; a head on others
            begins with a BatchNorm.

    Shape:
        normalised images [B,C,H,W] -> logits [B,num_classes]. Weights are channels_last; pass images in the
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
    is_standardised: bool = True

    @property
    def device(self) -> torch.device:
        """Device of the weights, or of the buffers of a network without weights."""
        return next(chain(self.parameters(), self.buffers())).device

    @abstractmethod
    def features(self, x: torch.Tensor, layers: Sequence[str]) -> dict[str, torch.Tensor]:
        """Compute the feature maps of the given layers; layers after the last one do not run.

        Args:
            x: [B,C,H,W].
            layers: names, in any order; see :meth:`check_layers`.

        Returns:
            layer name -> [B,C_layer,H_layer,W_layer], from the image to the logits.

        Raises:
            ArgumentError: a layer is unknown, or none is given.
            TypeError: see `check_input`.
        """

    def feature_module(self, layer: str) -> nn.Module:
        """The module whose output, the first time it runs in a forward pass, is a layer's feature map."""
        return self.get_submodule(layer)

    @abstractmethod
    def feature_channels(self, layer: str) -> int:
        """Number of channels of a layer's feature map."""

    @abstractmethod
    def feature_parameters(self, layer: str) -> list[nn.Parameter]:
        """The parameters that a layer's feature map depends on, in a fixed order."""

    @abstractmethod
    def check_layers(self, layers: Sequence[str]) -> None:
        """Raise an ArgumentError unless every name is that of a feature map of this network."""

    @abstractmethod
    def check_image_size(self, height: int, width: int) -> None:
        """Raise an ArgumentError unless the network accepts images of this size."""


def checked_count(name: str, count: object, least: int) -> int:
    """Return a number of outputs or channels as an int, or raise an ArgumentError."""
    number = as_whole(count)
    if number is None or number < least:
        raise ArgumentError(f"{name} is {shown(count)}; it must be a whole number and at least {least}")
    return number


def check_names(layers: Sequence[str], known: Sequence[str]) -> None:
    """Raise an ArgumentError unless ``layers`` holds names; ``known`` are those to choose from."""
    if isinstance(layers, str):
        raise ArgumentError(f"layers is {layers!r}; pass a sequence, such as ({layers!r},)")
    if not layers:
        raise ArgumentError(f"layers is empty; choose from {', '.join(known)}")


def check_input(x: torch.Tensor, weight: torch.Tensor) -> None:
    """Refuse input that no layer accepts; torch's own error names the dtypes, but not the remedy.

    Args:
        x: input of the network.
        weight: one of its parameters.

    Raises:
        TypeError: images are not normalised yet, or are float64 while the weights are not.
        ValueError: it is no batch.
    """
    if not isinstance(x, torch.Tensor):  # torch.fx is tracing
        return
    if not x.is_floating_point():
        raise TypeError(
            f"x is {x.dtype}; a network takes normalised floating-point images [B,C,H,W]: wrap it in a "
            f"rotnet_fast.backbone.Backbone, which normalises uint8 [B,H,W,C]"
        )
    if x.dtype == torch.float64 and weight.dtype != torch.float64:
        raise TypeError(
            f"x is torch.float64, and the network's weights are {weight.dtype}: "
            f"pass x.to({weight.dtype}), or convert the network by .double()"
        )
    if x.dim() != 4:
        raise ValueError(
            f"x has shape {list(x.shape)}; a network takes a batch [B,C,H,W]: pass one image as x[None]"
        )


def uses_rng(module: nn.Module) -> bool:
    """Whether any network in a module may draw random numbers in a training step, as dropout does."""
    return any(isinstance(part, FeatureNetwork) and part.uses_rng for part in module.modules())

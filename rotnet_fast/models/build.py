"""Builds networks from settings; no other code does."""

from __future__ import annotations

from torch import nn

from rotnet_fast.config import NIN
from rotnet_fast.models.library import LibraryNetwork
from rotnet_fast.models.names import OWN, module_needed
from rotnet_fast.models.network import FeatureNetwork
from rotnet_fast.models.nin import NetworkInNetwork
from rotnet_fast.models.own import wrap_module


def make_network(
    num_classes: int,
    in_channels: int = 3,
    model: str = NIN,
    *,
    blocks: int = 4,
    width: float = 1.0,
    uniform_gamma: bool = False,
    module: nn.Module | None = None,
    image_size: int = 32,
) -> FeatureNetwork:
    """Build an untrained network on the CPU, with weights drawn from torch's global generator.

    Args:
        num_classes: number of outputs: of rotations, or of object classes.
        in_channels: number of channels of the images.
        model: ``nin``, a name of torchvision such as ``resnet18``, or ``timm/NAME``.
        blocks, width, uniform_gamma: see `NetworkInNetwork`; other networks have no such settings.
        module: the network that a program gave, which is copied, with its weights; None builds ``model``.
        image_size: height and width in pixels of the images.

    Raises:
        ArgumentError: the model is unknown or unsuitable, or a size is out of range.
        CheckpointError: the model is a module that a program gave, and is not given now.
    """
    if module is not None:
        return wrap_module(module, num_classes, in_channels, image_size)
    if model.startswith(OWN):
        raise module_needed(model)
    if model == NIN:
        return NetworkInNetwork(num_classes, blocks, width, in_channels, uniform_gamma)
    return LibraryNetwork(model, num_classes, in_channels, image_size)

"""The one place where networks are made from settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from rotnet_fast.config import NIN
from rotnet_fast.engine.ambient import plain_torch
from rotnet_fast.models.library import LibraryNetwork
from rotnet_fast.models.network import FeatureNetwork
from rotnet_fast.models.nin import NetworkInNetwork


def make_network(
    num_classes: int,
    in_channels: int = 3,
    model: str = NIN,
    *,
    blocks: int = 4,
    width: float = 1.0,
    uniform_gamma: bool = False,
) -> FeatureNetwork:
    """An untrained network, on the CPU; torch's global generator decides its weights.

    Args:
        num_classes: outputs; the number of rotations, or of object classes.
        in_channels: channels of the images.
        model: ``nin``, a name of torchvision such as ``resnet18``, or ``timm/NAME``.
        blocks, width, uniform_gamma: see `NetworkInNetwork`; other networks have no such settings.

    Raises:
        ArgumentError: a model that there is not or that cannot be used, or a wrong size.
    """
    if model == NIN:
        return NetworkInNetwork(num_classes, blocks, width, in_channels, uniform_gamma)
    return LibraryNetwork(model, num_classes, in_channels)


@plain_torch()
def pretrained_network(recipe: Mapping[str, Any], state: Mapping[str, torch.Tensor]) -> FeatureNetwork:
    """The network of a pretraining with its weights, on the CPU.

    Args:
        recipe: ``rotations``, ``in_channels``, ``model`` (nin where it lacks) and, of nin, ``blocks`` and
            ``width``.
        state: state dict.

    Raises:
        KeyError: the recipe lacks one of them.
        ArgumentError: it describes a network that cannot be made.
        RuntimeError: the weights are not of this network.
    """
    model = recipe.get("model", NIN)
    sizes = {name: recipe[name] for name in ("blocks", "width")} if model == NIN else {}
    network = make_network(len(recipe["rotations"]), recipe["in_channels"], model, **sizes)
    network.load_state_dict(state)
    return network

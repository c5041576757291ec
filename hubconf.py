"""Entry points of torch.hub.

    backbone = torch.hub.load(FOLDER_OF_THE_REPOSITORY, "rotnet_nin", source="local", path="runs/cpu/export")

Compiled kernels are used where the package was built; without them plain torch gives the same results.
Other names begin with an underscore, as torch.hub lists all that do not.
"""

from __future__ import annotations

import os

import torch

import rotnet_fast
from rotnet_fast.backbone import Backbone as _Backbone
from rotnet_fast.errors import ArgumentError as _ArgumentError
from rotnet_fast.models.nin import NetworkInNetwork as _NetworkInNetwork

dependencies = ["torch", "numpy", "safetensors"]


def rotnet_nin(
    path: str | os.PathLike[str] | None = None,
    name: str | None = None,
    device: str | torch.device = "auto",
) -> _Backbone:
    """A pretrained RotNet, frozen and in eval mode, as an extractor of features.

    ``rotnet_nin(...).features(images, layer="conv2")`` gives fp32 [N,C_layer,H_layer,W_layer] for images
    uint8 [N,H,W,C], or floating [N,C,H,W] that are normalised; calling it gives pooled features
    [N,C_layer]; its ``network`` is the nn.Module, for fine-tuning: the NetworkInNetwork, or another network
    where the weights are of one (which needs torchvision, and timm for one of timm).

    Args:
        path: an exported folder or .safetensors file, a run folder, or a .pt checkpoint or snapshot.
        name: a pretrained model that ships with the package. Give either a path or a name.
        device: ``auto`` (the first CUDA device, else the CPU), ``cpu``, ``cuda`` or ``cuda:N``.
    """
    if (path is None) == (name is None):
        raise _ArgumentError(f"path is {path} and name is {name}; give one of the two")
    return rotnet_fast.load_backbone(os.fspath(path) if name is None else name, device)


def nin(
    num_classes: int = 4,
    blocks: int = 4,
    width: float = 1.0,
    in_channels: int = 3,
    uniform_gamma: bool = False,
) -> _NetworkInNetwork:
    """An untrained Network in Network.

    Args:
        num_classes: outputs; the number of rotations, or of object classes.
        blocks: conv blocks: 3, 4 or 5.
        width: multiplies the number of channels.
        in_channels: channels of the images.
        uniform_gamma: draw BatchNorm's scales from U(0, 1) instead of starting at 1.
    """
    return _NetworkInNetwork(num_classes, blocks, width, in_channels, uniform_gamma)

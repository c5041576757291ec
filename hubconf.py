"""Entry points of torch.hub.

    backbone = torch.hub.load(FOLDER_OF_THE_REPOSITORY, "rotnet_nin", source="local", path="runs/cpu/export")

Compiled kernels are used where the package was built; without them plain torch gives the same results.
torch.hub looks into this folder before all others. Where nothing was built in it, but an installed package of
the same version has kernels, that one is taken. A process has one rotnet_fast: one that is imported stays.

Other names begin with an underscore, as torch.hub lists all that do not.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import os
import re
import sys
import warnings
from pathlib import Path as _Path

import torch

_HERE = _Path(__file__).resolve().parent


def _has_kernels(package: _Path) -> bool:
    return any(package.glob("_C_cpu*.so"))


def _version(package: _Path) -> str | None:
    """What a package says of itself, without importing it."""
    found = re.search(r'^__version__ = "(.*)"$', (package / "__init__.py").read_text(encoding="utf-8"), re.M)
    return None if found is None else found[1]


def _installed() -> _Path | None:
    """Folder of the package that would be imported if this folder were not there."""
    elsewhere = [place for place in sys.path if _Path(place or os.curdir).resolve() != _HERE]
    for finder in sys.meta_path:
        is_of_paths = finder is importlib.machinery.PathFinder
        find_spec = getattr(finder, "find_spec", None)
        # Installations that can be edited bring a finder of their own, which knows where they lie.
        spec = None if find_spec is None else find_spec("rotnet_fast", elsewhere if is_of_paths else None)
        if spec is not None and spec.origin is not None:
            package = _Path(spec.origin).resolve().parent
            if package != _HERE / "rotnet_fast":
                return package
    return None


def _choose_package() -> None:
    """Import rotnet_fast from where it has kernels."""
    ours, imported = _HERE / "rotnet_fast", sys.modules.get("rotnet_fast")
    if imported is not None:
        package = _Path(str(imported.__file__)).resolve().parent
        if package != ours and _version(package) != _version(ours):
            warnings.warn(
                f"rotnet_fast {_version(package)} of {package} is imported already and is used instead of "
                f"{_version(ours)} of {_HERE}: load from torch.hub before you import it, or use one version",
                stacklevel=3,
            )
        return
    installed = None if _has_kernels(ours) else _installed()
    if installed is None or not _has_kernels(installed):
        return
    if _version(installed) != _version(ours):
        warnings.warn(
            f"rotnet_fast {_version(installed)} of {installed} has compiled kernels, but {_HERE} is version "
            f"{_version(ours)} and has none, so that plain torch runs, slowly: build it (pip install -e "
            f"{_HERE}), or check out the version that is installed",
            stacklevel=3,
        )
        return
    before = sys.path
    sys.path = [str(installed.parent), *(place for place in before if place != str(_HERE))]
    try:
        importlib.import_module("rotnet_fast")
    finally:
        sys.path = before


_choose_package()

import rotnet_fast  # noqa: E402
from rotnet_fast.backbone import Backbone as _Backbone  # noqa: E402
from rotnet_fast.errors import ArgumentError as _ArgumentError  # noqa: E402
from rotnet_fast.models.nin import NetworkInNetwork as _NetworkInNetwork  # noqa: E402

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

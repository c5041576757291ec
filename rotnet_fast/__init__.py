"""RotNet: self-supervised image features by predicting rotations, with fused kernels.

Public names are imported on first use, so that ``--help`` and wrong flags answer before torch is
loaded.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from rotnet_fast.backbone import load_backbone as load_backbone
    from rotnet_fast.modules import RotateBatch as RotateBatch
    from rotnet_fast.modules import RotationLoss as RotationLoss
    from rotnet_fast.ops import augmentation_draws as augmentation_draws
    from rotnet_fast.ops import rotate_batch as rotate_batch
    from rotnet_fast.sklearn_features import RotNetFeatures as RotNetFeatures
    from rotnet_fast.train import train_rotnet as train_rotnet

_LAZY = {
    "RotNetFeatures": "rotnet_fast.sklearn_features",
    "RotateBatch": "rotnet_fast.modules",
    "RotationLoss": "rotnet_fast.modules",
    "augmentation_draws": "rotnet_fast.ops",
    "load_backbone": "rotnet_fast.backbone",
    "rotate_batch": "rotnet_fast.ops",
    "train_rotnet": "rotnet_fast.train",
}

__all__ = [
    "RotNetFeatures",
    "RotateBatch",
    "RotationLoss",
    "__version__",
    "augmentation_draws",
    "load_backbone",
    "rotate_batch",
    "train_rotnet",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        from rotnet_fast.dependencies import named_if_missing

        with named_if_missing(f"rotnet_fast.{name}"):
            return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'rotnet_fast' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)

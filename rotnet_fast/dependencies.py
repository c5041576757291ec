"""The libraries of the package. The op, backbones and ``doctor`` need torch, NumPy and safetensors alone.

Importing this module does not import torch.
"""

from __future__ import annotations

from importlib.util import find_spec

LIBRARIES = {
    "PIL": "pillow",
    "joblib": "joblib",
    "kymatio": "kymatio",
    "matplotlib": "matplotlib",
    "skimage": "scikit-image",
    "sklearn": "scikit-learn",
    "scipy": "scipy",
    "tensorboard": "tensorboard",
    "torchvision": "torchvision",
    "tqdm": "tqdm",
    "typing_extensions": "typing_extensions",
}
"""Module -> name to install it by, of all that is imported only where it is needed. DALI is left out: it
exists for Linux alone, and there is a loader without it."""


def missing_libraries() -> list[str]:
    """Return the names of the libraries that are not installed."""
    return [name for module, name in LIBRARIES.items() if find_spec(module) is None]


def library_of(error: ModuleNotFoundError) -> str | None:
    """Return the name of the library whose absence an error reports; None if it is about something else."""
    return LIBRARIES.get((error.name or "").partition(".")[0])

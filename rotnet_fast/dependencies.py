"""The libraries of the package. The op, backbones and ``doctor`` need torch, NumPy and safetensors alone.

Importing this module does not import torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

from rotnet_fast.errors import MissingLibraryError

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


@contextmanager
def named_if_missing(what: str) -> Iterator[None]:
    """Name the library to install where one is missing.

    Args:
        what: who needs it, as the subject of the message.

    Raises:
        MissingLibraryError: instead of an import's own error.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        library = LIBRARIES.get((error.name or "").partition(".")[0])
        if library is None or isinstance(error, MissingLibraryError):
            raise
        others = [name for name in missing_libraries() if name != library]
        raise MissingLibraryError(
            f"{what} needs {library}, which is not installed: pip install {' '.join([library, *others])}"
        ) from error

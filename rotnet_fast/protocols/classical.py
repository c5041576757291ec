"""Hand-made features and logistic regression, from libraries: what learned features have to beat.

Paper: Table 3 quotes scattering networks by others. Ours: measured, on the very images of the study.
Source: Dalal, Triggs, "Histograms of Oriented Gradients", CVPR 2005 (scikit-image); Bruna, Mallat,
"Invariant Scattering Convolution Networks", TPAMI 2013 (kymatio).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from rotnet_fast.data.datasets import Dataset
from rotnet_fast.protocols.classification import outcome_of
from rotnet_fast.protocols.result import Outcome

Features = npt.NDArray[np.float32]
_BATCH = 256


def pixels(images: torch.Tensor) -> Features:
    """Return the image itself: uint8 [N,H,W,C] -> [N,H*W*C] in [0, 1]."""
    flat: Features = (images.flatten(1).float() / 255).numpy()
    return flat


def hog(images: torch.Tensor) -> Features:
    """Compute histograms of oriented gradients: uint8 [N,H,W,C] -> [N,1764] of 7x7 blocks of 2x2 cells.

    An image has 8x8 cells of 9 orientations; in each pixel the channel with the largest gradient counts.

    Raises:
        ImportError: scikit-image is not installed.
    """
    from skimage.feature import hog as histograms

    cell = max(1, images.shape[1] // 8)
    return np.stack(
        [
            histograms(
                image, orientations=9, pixels_per_cell=(cell, cell), cells_per_block=(2, 2), channel_axis=2
            ).astype(np.float32)
            for image in images.numpy()
        ]
    )


def scattering(images: torch.Tensor) -> Features:
    """Compute second-order scattering of scale 4, pooled 2x2: uint8 [N,H,W,C] -> [N,C*81*(H/8)*(W/8)].

    Raises:
        ImportError: kymatio is not installed.
    """
    # Not kymatio.torch, which imports parts that fail with SciPy 1.17.
    from kymatio.scattering2d.frontend.torch_frontend import ScatteringTorch2D

    transform = ScatteringTorch2D(J=2, shape=(images.shape[1], images.shape[2]), L=8)
    parts = []
    for batch in torch.split(images, _BATCH):
        scattered = transform(batch.permute(0, 3, 1, 2).float().div(255).contiguous())  # [B,C,81,H/4,W/4]
        parts.append(functional.avg_pool2d(scattered.flatten(1, 2), 2).flatten(1))
    features: Features = torch.cat(parts).numpy()
    return features


FEATURES: dict[str, Callable[[torch.Tensor], Features]] = {
    "pixels": pixels,
    "hog": hog,
    "scattering": scattering,
}
"""Name -> function from images to features."""

PENALTY = 1e-3
"""scikit-learn's C, chosen once for all features on held-out training images."""


def classical(dataset: Dataset, features: str) -> Outcome:
    """Train logistic regression on standardised features of all training images, on the CPU.

    Args:
        features: key of ``FEATURES``.

    Returns:
        Outcome on the test images.

    Raises:
        ImportError: a library is not installed.
    """
    # Here: scikit-learn takes a second to import.
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    extract = FEATURES[features]
    model = make_pipeline(StandardScaler(), LogisticRegression(C=PENALTY, max_iter=1000))
    model.fit(extract(dataset.train.images), dataset.train.labels.numpy())
    predicted = torch.from_numpy(model.predict(extract(dataset.test.images)))
    return outcome_of(dataset.test.labels, predicted, len(dataset.classes))

"""Features of test images in the plane: PCA and t-SNE."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rotnet_fast.analysis.images import Images
from rotnet_fast.analysis.views import PlainViews, pooled
from rotnet_fast.arrays import encode_array
from rotnet_fast.errors import ArgumentError
from rotnet_fast.models.network import FeatureNetwork

PERPLEXITY = 30.0
MOST_IMAGES = 2000

_FEWEST_FOR_TSNE = 8


def embedding(
    network: FeatureNetwork,
    images: Images,
    labels: torch.Tensor,
    classes: Sequence[str],
    layer: str,
    views: PlainViews,
    *,
    seed: int = 0,
    most_images: int = MOST_IMAGES,
) -> dict[str, Any]:
    """Project a layer's global-average-pooled features to two dimensions.

    Args:
        network: put in eval mode.
        images: uint8 [N,H,W,C] on the network's device, N at least 2.
        labels: int64 [N].
        classes: names of the classes; empty where there are none.
        layer: of the network.
        views: how views are made.
        seed: of the random choice of images and of t-SNE.
        most_images: beyond so many, a random choice of the images is taken.

    Returns:
        ``layer``, ``classes``, ``images`` (n, those in the picture), ``indices`` and ``labels`` (int64
        [n]), ``pca`` (float32 [n,2]), ``explained_variance`` (shares of the two components), ``tsne``
        (float32 [n,2]; None for fewer than 8 images) and its ``perplexity``.

    Raises:
        ArgumentError: an unknown layer, or fewer than two images.
    """
    network.check_layers([layer])
    if len(images) < 2:
        raise ArgumentError(f"images holds {len(images)}; an embedding needs at least 2")
    indices = np.arange(len(images))
    if len(images) > most_images:
        indices = np.sort(np.random.default_rng(seed).choice(len(images), most_images, replace=False))
    chosen = torch.from_numpy(indices).to(images.device)
    features = pooled(network, images[chosen], layer, views).double().cpu().numpy()
    coordinates, explained = principal_components(features)
    perplexity = min(PERPLEXITY, (len(indices) - 1) / 3)
    enough = len(indices) >= _FEWEST_FOR_TSNE and bool(np.any(np.ptp(features, axis=0) > 0))
    return {
        "layer": layer,
        "classes": list(classes),
        "images": len(indices),
        "indices": encode_array(indices.astype(np.int64)),
        "labels": encode_array(labels.cpu().numpy()[indices]),
        "pca": encode_array(coordinates.astype(np.float32)),
        "explained_variance": explained,
        "tsne": encode_array(_tsne(features, perplexity, seed)) if enough else None,
        "perplexity": perplexity if enough else None,
    }


def principal_components(features: NDArray[np.float64]) -> tuple[NDArray[np.float64], list[float]]:
    """Project on the two directions of largest variance.

    The sign of a direction is that which makes its largest entry positive.

    Args:
        features: [N,D], N at least 2.

    Returns:
        Coordinates [N,2] and the two shares of the variance (zeros where there is none).
    """
    centred = features - features.mean(axis=0)
    _, values, directions = np.linalg.svd(centred, full_matrices=False)
    size = max(2, len(values))
    values = np.pad(values, (0, size - len(values)))
    directions = np.pad(directions, ((0, size - len(directions)), (0, 0)))[:2]  # [2,D]
    largest = np.abs(directions).argmax(axis=1)
    signs = np.where(directions[np.arange(2), largest] < 0, -1.0, 1.0)
    total = float((values**2).sum())
    shares = [float(value**2 / total) if total > 0 else 0.0 for value in values[:2]]
    return centred @ (directions * signs[:, None]).T, shares


def _tsne(features: NDArray[np.float64], perplexity: float, seed: int) -> NDArray[np.float32]:
    from sklearn.manifold import TSNE  # here: it takes a second to import, and only this needs it

    tsne = TSNE(perplexity=perplexity, init="pca", learning_rate="auto", random_state=seed % 2**32)
    coordinates: NDArray[np.float32] = tsne.fit_transform(features.astype(np.float32)).astype(np.float32)
    return coordinates

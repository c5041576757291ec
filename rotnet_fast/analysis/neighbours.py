"""Nearest labelled images of a few test images, and the classes that neighbours vote for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional

from rotnet_fast.analysis.images import LabelledImages
from rotnet_fast.analysis.views import PlainViews, pooled, thumbnails
from rotnet_fast.arrays import encode_array
from rotnet_fast.errors import ArgumentError
from rotnet_fast.models.network import FeatureNetwork
from rotnet_fast.plain import counted
from rotnet_fast.protocols.classification import confusion_matrix
from rotnet_fast.protocols.knn import NEIGHBOURS, knn_predict
from rotnet_fast.protocols.result import accuracy

SHOWN_NEIGHBOURS = 8


def neighbours(
    network: FeatureNetwork,
    queries: LabelledImages,
    bank: LabelledImages,
    classes: Sequence[str],
    layer: str,
    shown: Sequence[int],
    views: PlainViews,
    *,
    shown_neighbours: int = SHOWN_NEIGHBOURS,
) -> dict[str, Any]:
    """Find neighbours by cosine similarity of global-average-pooled features.

    Args:
        network: put in eval mode.
        queries: test images uint8 [Q,H,W,C] and labels int64 [Q], on the network's device.
        bank: images to look among, uint8 [N,H,W,C], and labels int64 [N], there as well.
        classes: names of the classes; empty where there are none, so that nothing is voted on.
        layer: of the network.
        shown: positions of the queries whose nearest images are kept.
        views: how views are made.
        shown_neighbours: how many of them (M; at most N).

    Returns:
        ``layer``, ``classes``, ``k`` (neighbours that vote), ``images`` (Q), ``bank_images`` (N),
        ``accuracy`` of the vote in percent (None without classes), ``confusion`` ([classes][classes] counts,
        true x voted),
        ``queries``: {``indices``, ``images``: uint8 [S,H,W,C], ``labels`` [S]} and ``neighbours``:
        {``indices`` [S][M] in the bank, ``images``: uint8 [S,M,H,W,C], ``labels`` and ``similarity``
        [S][M]}, nearest first.

    Raises:
        ArgumentError: an unknown layer, a position in ``shown`` outside the images, or nothing to compare.
    """
    network.check_layers([layer])
    if not len(queries.images) or not len(bank.images):
        raise ArgumentError(
            f"there are {len(queries.images)} queries and {counted(len(bank.images), 'image')} to look "
            "among; give at "
            f"least one of each"
        )
    query_images = thumbnails(queries.images, shown)
    bank_features = pooled(network, bank.images, layer, views)
    features = pooled(network, queries.images, layer, views)
    confusion: list[list[int]] = []
    if classes:
        predicted = knn_predict(bank_features, bank.labels, features, len(classes))
        confusion = confusion_matrix(queries.labels, predicted, len(classes))
    places = torch.tensor(list(shown), dtype=torch.int64, device=features.device)
    cosines = functional.normalize(features[places], dim=1) @ functional.normalize(bank_features, dim=1).T
    count = min(shown_neighbours, len(bank.images))
    similarity, nearest = cosines.topk(count, dim=1)  # [S,M]
    images = thumbnails(bank.images, nearest.flatten().tolist())
    return {
        "layer": layer,
        "classes": list(classes),
        "k": min(NEIGHBOURS, len(bank.images)),
        "images": len(queries.images),
        "bank_images": len(bank.images),
        "accuracy": accuracy(confusion) if classes else None,
        "confusion": confusion,
        "queries": {
            "indices": list(shown),
            "images": encode_array(query_images),
            "labels": queries.labels[places].tolist(),
        },
        "neighbours": {
            "indices": nearest.tolist(),
            "images": encode_array(images.reshape(len(shown), count, *images.shape[1:])),
            "labels": bank.labels[nearest].tolist(),
            "similarity": similarity.tolist(),
        },
    }

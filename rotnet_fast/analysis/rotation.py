"""How well rotations are told, how sure the network is, and which images it finds hardest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from rotnet_fast.analysis.images import Images
from rotnet_fast.analysis.views import PlainViews, rotated_thumbnails, thumbnails
from rotnet_fast.arrays import encode_array
from rotnet_fast.errors import ArgumentError
from rotnet_fast.models.network import FeatureNetwork
from rotnet_fast.protocols.classification import confusion_matrix

BINS = 15
HARDEST = 16


def rotation(
    network: FeatureNetwork,
    images: Images,
    labels: torch.Tensor,
    classes: Sequence[str],
    rotations: Sequence[int],
    shown: Sequence[int],
    views: PlainViews,
    *,
    hardest: int = HARDEST,
) -> dict[str, Any]:
    """Predict the rotations of all K views of each image.

    Args:
        network: with K outputs, put in eval mode.
        images: uint8 [N,H,W,C] on the network's device.
        labels: int64 [N], classes of the images.
        classes: their names; empty where there are none.
        rotations: K degrees, in the order of the outputs.
        shown: positions of the images whose views are kept with their predictions.
        views: how views are made.
        hardest: how many of the hardest images to keep.

    Returns:
        ``rotations``, ``images`` (N), ``accuracy`` and ``accuracy_by_rotation`` (K) in percent,
        ``confusion`` ([K][K] counts, true rotation x predicted), ``mean_confidence``,
        ``calibration`` (see :func:`calibration`) and two galleries: ``shown``: {``indices``,
        ``views``: uint8 [S,K,H,W,C], ``class_names``, ``predicted`` and ``confidence`` [S][K]: degrees and
        their probability}, and ``hardest``, by lowest mean probability of the correct rotation over the K
        views: {``indices``, ``images``: uint8 [M,H,W,C], ``class_names``, ``probability`` [M],
        ``predicted`` and ``confidence`` [M][K]}.

    Raises:
        ArgumentError: a network without K outputs, or a position in ``shown`` outside the images.
    """
    if network.num_classes != len(rotations):
        raise ArgumentError(
            f"rotations has {len(rotations)} angles; the network has {network.num_classes} outputs"
        )
    shown_views = rotated_thumbnails(images, shown, rotations)
    probabilities = rotation_probabilities(network, images, rotations, views)  # [N,K,K]
    turned = len(rotations)
    confidence, predicted = probabilities.max(dim=2)  # [N,K]
    correct = torch.arange(turned).expand_as(predicted)
    hits = predicted == correct
    by_rotation = 100.0 * hits.double().mean(dim=0)  # [K]
    of_correct = probabilities.diagonal(dim1=1, dim2=2).double().mean(dim=1)  # [N]
    hard = of_correct.argsort(stable=True)[:hardest].tolist()
    degrees = torch.tensor(list(rotations))[predicted]  # [N,K]

    def gallery(indices: Sequence[int]) -> dict[str, Any]:
        return {
            "indices": list(indices),
            "class_names": [classes[int(labels[index])] if classes else "" for index in indices],
            "predicted": [degrees[index].tolist() for index in indices],
            "confidence": [confidence[index].tolist() for index in indices],
        }

    return {
        "rotations": list(rotations),
        "images": len(images),
        "accuracy": by_rotation.mean().item(),
        "accuracy_by_rotation": by_rotation.tolist(),
        "confusion": confusion_matrix(correct.flatten(), predicted.flatten(), turned),
        "mean_confidence": confidence.double().mean().item(),
        "calibration": calibration(confidence.flatten(), hits.flatten()),
        "shown": {**gallery(shown), "views": encode_array(shown_views)},
        "hardest": {
            **gallery(hard),
            "images": encode_array(thumbnails(images, hard)),
            "probability": of_correct[hard].tolist(),
        },
    }


@torch.no_grad()
def rotation_probabilities(
    network: FeatureNetwork, images: Images, rotations: Sequence[int], views: PlainViews
) -> torch.Tensor:
    """Return the softmax over the rotations of every view: fp32 [N,K,K] (CPU), image x true x predicted."""
    network.eval()
    parts = []
    for _, batch in views.rotated(images, rotations):
        with views.precision.autocast():
            logits = network(batch)  # [B*K,K]
        parts.append(logits.float().softmax(dim=1).unflatten(0, (-1, len(rotations))).cpu())
    return torch.cat(parts)


def calibration(confidence: torch.Tensor, hits: torch.Tensor, bins: int = BINS) -> dict[str, Any]:
    """Compute reliability diagram and expected calibration error.

    Source: Guo et al., "On Calibration of Modern Neural Networks", ICML 2017: bins of equal width,
    each without its lower edge, errors weighted by the number of predictions.

    Args:
        confidence: [N], probability of each prediction, in [0, 1].
        hits: bool [N], whether it was right.

    Returns:
        ``edges`` (bins + 1), and per bin ``counts``, ``confidence`` (mean) and ``accuracy`` (share, in
        [0, 1]), None in an empty bin; ``expected_calibration_error`` in [0, 1].
    """
    which = (torch.ceil(confidence.double() * bins).long() - 1).clamp(0, bins - 1)
    counts = torch.bincount(which, minlength=bins)
    sums = torch.bincount(which, weights=confidence.double(), minlength=bins)
    right = torch.bincount(which, weights=hits.double(), minlength=bins)
    error = (right - sums).abs().sum().item() / len(confidence)

    def means(values: torch.Tensor) -> list[float | None]:
        return [
            value / count if count else None
            for value, count in zip(values.tolist(), counts.tolist(), strict=True)
        ]

    return {
        "edges": [edge / bins for edge in range(bins + 1)],
        "counts": counts.tolist(),
        "confidence": means(sums),
        "accuracy": means(right),
        "expected_calibration_error": error,
    }

"""k-nearest-neighbour classification of frozen features: no training, no hyper-parameters to tune.

Paper: none; RotNet reports no kNN accuracy. Ours: the weighted vote that has become the field's
standard, so that features can be compared without training a head.
Source: Wu et al., "Unsupervised Feature Learning via Non-Parametric Instance Discrimination",
CVPR 2018 (cosine similarity, votes weighted by exp(similarity / 0.07)); k = 20 as in Caron et al.,
"Emerging Properties in Self-Supervised Vision Transformers", ICCV 2021.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch.nn import functional

from rotnet_fast.data.loader import Loader
from rotnet_fast.errors import diverged
from rotnet_fast.models.network import FeatureNetwork
from rotnet_fast.protocols.classification import outcome_of
from rotnet_fast.protocols.evaluation import EvaluationSetup, Placement, Subject
from rotnet_fast.protocols.result import Outcome

NEIGHBOURS = 20
TEMPERATURE = 0.07
_MOST_SIMILARITIES = 2**26
"""Elements of the matrix of similarities that is held at once: 256 MB."""


def knn_predict(
    bank: torch.Tensor,
    bank_labels: torch.Tensor,
    queries: torch.Tensor,
    num_classes: int,
    k: int = NEIGHBOURS,
    temperature: float = TEMPERATURE,
) -> torch.Tensor:
    """Predict the class of each query by a weighted vote of its nearest features.

    Args:
        bank: fp32 [N,D], features of the labelled images; need not have unit length.
        bank_labels: int64 [N] in [0, num_classes).
        queries: fp32 [Q,D].
        num_classes: object classes.
        k: neighbours that vote; a bank of fewer features votes as a whole.
        temperature: a neighbour of cosine similarity s has the weight exp(s / temperature).

    Returns:
        int64 [Q].
    """
    bank = functional.normalize(bank, dim=1)
    predictions = []
    for chunk in torch.split(functional.normalize(queries, dim=1), max(1, _MOST_SIMILARITIES // len(bank))):
        similarity, nearest = (chunk @ bank.T).topk(min(k, len(bank)), dim=1)  # [Q,k]
        # Relative to the nearest: the same vote, and no overflow at small temperatures.
        weights = torch.exp((similarity - similarity[:, :1]) / temperature)
        votes = torch.zeros(len(chunk), num_classes, device=chunk.device)
        votes.scatter_add_(1, bank_labels[nearest], weights)
        predictions.append(votes.argmax(dim=1))
    return torch.cat(predictions)


Summarise = Callable[[torch.Tensor], torch.Tensor]
"""Feature maps fp32 [B,C,H,W] -> one vector for each image, fp32 [B,D]."""


def pooled(maps: torch.Tensor) -> torch.Tensor:
    """Average over the positions: [B,C,H,W] -> [B,C]."""
    return maps.mean(dim=(2, 3))


@torch.no_grad()
def frozen_features(
    backbone: FeatureNetwork,
    batches: Iterable[tuple[torch.Tensor, torch.Tensor]],
    count: int,
    layers: Sequence[str],
    summarise: Summarise = pooled,
) -> dict[str, torch.Tensor]:
    """Compute a vector from each feature map of each image.

    Args:
        backbone: in eval mode.
        batches: ``(indices, views)`` on its device: positions int64 [B] in 0 .. count - 1, each once, and
            [B,C,H,W].
        count: number of images.
        layers: layers of the backbone.
        summarise: makes the vectors.

    Returns:
        layer -> fp32 [count,D], in the order of the positions.
    """
    found: dict[str, torch.Tensor] = {}
    for indices, views in batches:
        for layer, maps in backbone.features(views, layers).items():
            vectors = summarise(maps.float())
            if layer not in found:
                found[layer] = vectors.new_empty(count, vectors.shape[1])
            found[layer][indices] = vectors
    return found


Predict = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, int], torch.Tensor]
"""Features [N,D] and labels [N] of labelled images, features [Q,D] of others, number of classes -> classes
int64 [Q]."""


def classify_features(
    setup: EvaluationSetup,
    subject: Subject,
    classifiers: Mapping[str, Predict],
    summarise: Summarise = pooled,
) -> dict[Placement, Outcome]:
    """Classify the test images by their frozen features; images of both splits are not augmented.

    Args:
        setup: setup of the evaluation.
        subject: network and layers whose features are classified; a placement's head names the classifier.
        classifiers: name -> classifier.
        summarise: makes the features of feature maps.

    Returns:
        Placement -> outcome.

    Raises:
        NonFiniteError: the network's feature maps overflow.
    """
    backbone = setup.backbone(subject).eval()
    views = setup.views(is_augmented=False)

    def features(loader: Loader) -> dict[str, torch.Tensor]:
        batches = ((batch.indices, images) for batch, images in views.plain(loader))
        with setup.precision.autocast():
            found = frozen_features(backbone, batches, len(loader.labels), subject.layers, summarise)
        overflowing = [layer for layer, vectors in found.items() if not vectors.isfinite().all()]
        if overflowing:
            raise diverged(f"the features of {', '.join(overflowing)}")
        return found

    bank, queries = features(views.loader), features(views.test_loader)
    classes = len(setup.dataset.classes)
    return {
        (layer, head): outcome_of(
            views.test_loader.labels,
            classifiers[head](bank[layer], views.loader.labels, queries[layer], classes),
            classes,
        )
        for layer, head in subject.placements
    }

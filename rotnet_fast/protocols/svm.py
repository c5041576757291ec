"""A linear support vector machine on whole frozen feature maps, one class against the rest.

The classifier of the methods that RotNet's Table 3 quotes. Features are standardised, and the penalty is
chosen on held-out training images, so that nothing is tuned by hand.

Source: the L2-regularised squared hinge loss of Fan et al., "LIBLINEAR: A library for large linear
classification", JMLR 2008. Ours: minimised by L-BFGS for all classes at once, because 50,000 feature maps in
the float64 that liblinear needs do not fit into the memory of most machines.
"""

from __future__ import annotations

import torch
from torch.nn import functional

from rotnet_fast.protocols.evaluation import EvaluationSetup, Placement, Subject
from rotnet_fast.protocols.knn import classify_features
from rotnet_fast.protocols.result import Outcome

PENALTIES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2)
"""Values of C to choose from: how much an image counts beside the length of the weights."""

HELD_OUT = 0.2
"""Share of the labelled images of each class on which C is chosen."""

_ITERATIONS = 200


def svm_weights(
    features: torch.Tensor, labels: torch.Tensor, num_classes: int, penalty: float
) -> torch.Tensor:
    """Minimise 0.5 |w|^2 + C * sum(max(0, 1 - y f(x))^2) for every class against the rest.

    Args:
        features: fp32 [N,D], the last of which is 1 for a bias that is penalised as the weights are.
        labels: int64 [N] in [0, num_classes).
        num_classes: object classes.
        penalty: C.

    Returns:
        fp32 [num_classes,D].
    """
    targets = 2.0 * functional.one_hot(labels, num_classes).float() - 1.0  # [N,num_classes]
    weights = torch.zeros(num_classes, features.shape[1], device=features.device, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weights],
        max_iter=_ITERATIONS,
        history_size=10,
        tolerance_grad=1e-7,
        tolerance_change=1e-9,
        line_search_fn="strong_wolfe",
    )

    def objective() -> torch.Tensor:
        margins = functional.relu(1.0 - targets * (features @ weights.T))
        # Divided by the number of images, which moves no minimum, so that tolerances mean the same for any.
        loss: torch.Tensor = (0.5 * weights.square().sum() + penalty * margins.square().sum()) / len(features)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    with torch.enable_grad():
        optimizer.step(objective)
    return weights.detach()


def held_out(labels: torch.Tensor) -> torch.Tensor:
    """Choose the images on which C is chosen: a fifth of each class, always the same.

    Args:
        labels: int64 [N].

    Returns:
        bool [N]; nothing is held out of a class of fewer than five images.
    """
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    generator = torch.Generator().manual_seed(0)
    for label in labels.unique().tolist():
        places = (labels.cpu() == label).nonzero()[:, 0]
        order = torch.randperm(len(places), generator=generator)
        chosen[places[order[: int(HELD_OUT * len(places))]]] = True
    return chosen.to(labels.device)


def choose_penalty(features: torch.Tensor, labels: torch.Tensor, num_classes: int) -> float:
    """Return the value of ``PENALTIES`` that classifies most held-out images, the smallest of equals.

    Args:
        features, labels, num_classes: as in :func:`svm_weights`. Where no image can be held out, the middle
            value is returned.
    """
    is_held_out = held_out(labels)
    if not is_held_out.any():
        return PENALTIES[len(PENALTIES) // 2]
    correct = {}
    for penalty in PENALTIES:
        weights = svm_weights(features[~is_held_out], labels[~is_held_out], num_classes, penalty)
        predicted = (features[is_held_out] @ weights.T).argmax(dim=1)
        correct[penalty] = int((predicted == labels[is_held_out]).sum())
    return max(correct, key=correct.__getitem__)


def svm_predict(
    bank: torch.Tensor, bank_labels: torch.Tensor, queries: torch.Tensor, num_classes: int
) -> torch.Tensor:
    """Predict the class of each query by the largest of the linear functions.

    Args:
        bank: fp32 [N,D], features of the labelled images, whose mean and deviation standardise all.
        bank_labels: int64 [N] in [0, num_classes).
        queries: fp32 [Q,D].
        num_classes: object classes.

    Returns:
        int64 [Q].
    """
    deviation, mean = torch.std_mean(bank, dim=0, correction=0)
    deviation = torch.where(deviation > 0, deviation, 1.0)  # a constant feature tells nothing

    def standardised(values: torch.Tensor) -> torch.Tensor:
        return functional.pad((values - mean) / deviation, (0, 1), value=1.0)

    known = standardised(bank)
    weights = svm_weights(known, bank_labels, num_classes, choose_penalty(known, bank_labels, num_classes))
    return (standardised(queries) @ weights.T).argmax(dim=1)


def flattened(maps: torch.Tensor) -> torch.Tensor:
    """[B,C,H,W] -> [B,C*H*W]."""
    return maps.flatten(1)


def svm(setup: EvaluationSetup, subject: Subject) -> dict[Placement, Outcome]:
    """Fit a machine to each layer's whole feature maps."""
    return classify_features(setup, subject, svm_predict, flattened)

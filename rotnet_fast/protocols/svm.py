"""A linear support vector machine on whole frozen feature maps, one class against the rest.

The classifier of the methods that RotNet's Table 3 quotes. Features are standardised, and the penalty is
chosen on held-out training images, so that nothing is tuned by hand.

Source: the L2-regularised squared hinge loss of Fan et al., "LIBLINEAR: A library for large linear
classification", JMLR 2008. Ours: minimised by L-BFGS for all classes at once, because 50,000 feature maps in
the float64 that liblinear needs do not fit into the memory of most machines.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.nn import functional

from rotnet_fast.protocols.evaluation import EvaluationSetup, Placement, Subject
from rotnet_fast.protocols.knn import classify_features
from rotnet_fast.protocols.result import Outcome

PENALTIES = (1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2)
"""Values of C to choose from: how much an image counts beside the length of the weights."""

FOLDS = 5
"""C is chosen on one fifth of the labelled images of each class, or on each in turn."""

ENOUGH = 1000
"""Labelled images from which on one fifth is enough to choose C on."""

_ITERATIONS = 300


@dataclass(frozen=True)
class LinearSVM:
    """A fitted support vector machine.

    Attributes:
        weights: fp32 [num_classes,D+1], of which the last is the bias.
        has_converged: whether a minimum was found before the last iteration or evaluation.
    """

    weights: torch.Tensor
    has_converged: bool

    def predict(self, features: torch.Tensor) -> torch.Tensor:
        """Return the class of the largest of the linear functions: fp32 [Q,D] -> int64 [Q]."""
        return _linear(features, self.weights).argmax(dim=1)


def _linear(features: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    return torch.addmm(weights[:, -1], features, weights[:, :-1].T)


def fit(
    features: torch.Tensor,
    labels: torch.Tensor,
    num_classes: int,
    penalty: float,
    start: torch.Tensor | None = None,
    is_known: torch.Tensor | None = None,
) -> LinearSVM:
    """Minimise 0.5 |w|^2 + C * sum(max(0, 1 - y f(x))^2) for every class against the rest.

    Args:
        features: fp32 [N,D]; the bias is penalised as the weights are.
        labels: int64 [N] in [0, num_classes).
        num_classes: object classes.
        penalty: C.
        start: weights to begin with, fp32 [num_classes,D+1]; None for zeros.
        is_known: bool [N], images to learn from, in place of a copy of their features; None for all.
    """
    targets = 2.0 * functional.one_hot(labels, num_classes).float() - 1.0  # [N,num_classes]
    weights = features.new_zeros(num_classes, features.shape[1] + 1) if start is None else start.clone()
    weights.requires_grad_()
    counts = None if is_known is None else is_known[:, None].float()
    images = len(features) if is_known is None else int(is_known.sum())
    optimizer = torch.optim.LBFGS(
        [weights],
        max_iter=_ITERATIONS,
        max_eval=2 * _ITERATIONS,
        history_size=10,
        tolerance_grad=1e-5,
        tolerance_change=1e-9,
        line_search_fn="strong_wolfe",
    )

    def objective() -> torch.Tensor:
        margins = functional.relu(1.0 - targets * _linear(features, weights))
        if counts is not None:
            margins = margins * counts
        # Divided by C and the number of images, which moves no minimum: gradients at zero weights are then of
        # order 1, and tolerances mean the same for any C. Undivided, a small C stops before its first step.
        length = 0.5 / (penalty * images) * weights.square().sum()
        loss: torch.Tensor = length + margins.square().sum() / images
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    with torch.enable_grad():
        optimizer.step(objective)
    state = optimizer.state[weights]
    is_cut_short = state["n_iter"] >= _ITERATIONS or state["func_evals"] >= 2 * _ITERATIONS
    return LinearSVM(weights.detach(), not is_cut_short)


def fold_of(labels: torch.Tensor) -> torch.Tensor:
    """Deal the images of each class to five folds, always in the same way.

    Args:
        labels: int64 [N].

    Returns:
        int64 [N] in 0 .. 4. A class of fewer than five images has none in the last folds.
    """
    folds = torch.zeros(len(labels), dtype=torch.int64)
    generator = torch.Generator().manual_seed(0)
    for label in labels.unique().tolist():
        places = (labels.cpu() == label).nonzero()[:, 0]
        folds[places[torch.randperm(len(places), generator=generator)]] = torch.arange(len(places)) % FOLDS
    return folds.to(labels.device)


def choose_penalty(features: torch.Tensor, labels: torch.Tensor, num_classes: int) -> float:
    """Return the value of ``PENALTIES`` that classifies most held-out images, the smallest of equals.

    Fewer than ``ENOUGH`` images are held out fold by fold, because one fold of few decides nothing.

    Args:
        features, labels, num_classes: as in :func:`fit`. Where a class has one image alone, which cannot be
            held out, the middle value is returned.
    """
    if (labels.bincount() == 1).any():
        return PENALTIES[len(PENALTIES) // 2]
    folds = fold_of(labels)
    correct = dict.fromkeys(PENALTIES, 0)
    for fold in range(FOLDS if len(labels) < ENOUGH else 1):
        is_held_out = folds == fold
        weights = None
        for penalty in PENALTIES:  # each begins at the minimum of the one before it
            machine = fit(features, labels, num_classes, penalty, weights, ~is_held_out)
            weights = machine.weights
            correct[penalty] += int((is_held_out & (machine.predict(features) == labels)).sum())
    return max(correct, key=correct.__getitem__)


def svm_predict(
    bank: torch.Tensor, bank_labels: torch.Tensor, queries: torch.Tensor, num_classes: int
) -> tuple[torch.Tensor, dict[str, Any]]:
    """Predict the class of each query by the largest of the linear functions.

    Both sets of features are standardised in place, as 50,000 feature maps are not to need memory twice.

    Args:
        bank: fp32 [N,D], features of the labelled images, whose mean and deviation standardise all.
        bank_labels: int64 [N] in [0, num_classes).
        queries: fp32 [Q,D].
        num_classes: object classes.

    Returns:
        int64 [Q], and what was found: ``penalty`` and ``has_converged``.
    """
    deviation, mean = torch.std_mean(bank, dim=0, correction=0)
    deviation = torch.where(deviation > 0, deviation, 1.0)  # a constant feature tells nothing
    for values in (bank, queries):
        values.sub_(mean).div_(deviation)
    penalty = choose_penalty(bank, bank_labels, num_classes)
    machine = fit(bank, bank_labels, num_classes, penalty)
    found = {"penalty": penalty, "has_converged": machine.has_converged}
    return machine.predict(queries), found


def flattened(maps: torch.Tensor) -> torch.Tensor:
    """[B,C,H,W] -> [B,C*H*W]."""
    return maps.flatten(1)


def svm(setup: EvaluationSetup, subject: Subject) -> dict[Placement, Outcome]:
    """Fit a machine to each layer's whole feature maps; outcomes say which penalty was chosen."""
    found = []

    def predict(*arguments: Any) -> torch.Tensor:
        predicted, facts = svm_predict(*arguments)
        found.append(facts)
        return predicted

    outcomes = classify_features(setup, subject, {"svm": predict}, flattened)
    return {
        placement: replace(outcome, found=facts)
        for (placement, outcome), facts in zip(outcomes.items(), found, strict=True)
    }

"""The support vector machine is liblinear's, and chooses its penalty on training images alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from sklearn.svm import LinearSVC

from rotnet_fast.protocols import svm
from rotnet_fast.protocols.svm import (
    FOLDS,
    PENALTIES,
    LinearSVM,
    _linear,
    choose_penalty,
    fit,
    fold_of,
    svm_predict,
)

CLASSES = 3


def clusters(count: int, seed: int, noise: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Features [N,20] around one point for each class, and labels."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(CLASSES, 20, generator=torch.Generator().manual_seed(99))
    labels = torch.randint(CLASSES, (count,), generator=generator)
    return centres[labels] + noise * torch.randn(count, 20, generator=generator), labels


def with_ones(features: torch.Tensor) -> torch.Tensor:
    return torch.cat([features, torch.ones(len(features), 1)], dim=1)


def objective(weights: torch.Tensor, features: torch.Tensor, labels: torch.Tensor, penalty: float) -> float:
    signs = torch.where(labels[:, None] == torch.arange(len(weights)), 1.0, -1.0)
    losses = (1 - signs * (with_ones(features) @ weights.T)).clamp_min(0).square()
    return float(0.5 * weights.square().sum() + penalty * losses.sum())


@pytest.mark.parametrize("penalty", [*PENALTIES, 0.1])
@pytest.mark.parametrize(("count", "more"), [(12, 0), (200, 0), (200, 500)])  # images, further features
def test_weights_are_those_of_liblinear(penalty: float, count: int, more: int) -> None:
    features, labels = clusters(count, seed=1)
    further = torch.randn(count, more, generator=torch.Generator().manual_seed(2))
    features = torch.cat([features, further], dim=1)
    machine = LinearSVC(C=penalty, fit_intercept=False, dual=True, tol=1e-9, max_iter=1_000_000)
    machine.fit(with_ones(features).double().numpy(), labels.numpy())
    expected = torch.from_numpy(machine.coef_).float()
    found = fit(features, labels, CLASSES, penalty)
    assert found.has_converged
    ours, theirs = (objective(weights, features, labels, penalty) for weights in (found.weights, expected))
    assert ours <= 1.0001 * theirs
    assert (found.weights - expected).norm() < 0.01 * expected.norm()


def test_a_fit_that_is_cut_short_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(svm, "_ITERATIONS", 3)
    features, labels = clusters(200, seed=1)
    assert not fit(features, labels, CLASSES, penalty=1e-2).has_converged


def test_predictions_do_not_depend_on_the_scale_of_features_nor_on_constant_ones() -> None:
    (bank, labels), (queries, truth) = clusters(300, seed=1, noise=2.0), clusters(500, seed=2, noise=2.0)
    predicted, found = svm_predict(bank.clone(), labels, queries.clone(), CLASSES)
    assert found["penalty"] in PENALTIES
    assert (predicted == truth).float().mean() > 0.6
    scale, shift = torch.logspace(-3, 3, 20), torch.linspace(-5, 5, 20)

    def changed(values: torch.Tensor) -> torch.Tensor:
        return torch.cat([values * scale + shift, torch.full((len(values), 1), 7.0)], dim=1)

    again, _ = svm_predict(changed(bank), labels, changed(queries), CLASSES)
    assert (again == predicted).float().mean() > 0.99


def test_a_query_is_predicted_alike_whatever_the_others_are() -> None:
    (bank, labels), (queries, _) = clusters(100, seed=1, noise=2.0), clusters(40, seed=2, noise=2.0)
    all_at_once, found = svm_predict(bank.clone(), labels, queries.clone(), CLASSES)
    others = 100 * torch.randn(200, queries.shape[1], generator=torch.Generator().manual_seed(3))
    among_others, found_again = svm_predict(bank, labels, torch.cat([queries, others]), CLASSES)
    assert torch.equal(among_others[:40], all_at_once)
    assert found_again == found


def test_each_class_is_dealt_to_the_folds_evenly() -> None:
    labels = torch.tensor([0] * 50 + [1] * 11 + [2] * 4)
    folds = fold_of(labels)
    assert [folds[labels == label].bincount(minlength=FOLDS).tolist() for label in range(CLASSES)] == [
        [10, 10, 10, 10, 10], [3, 2, 2, 2, 2], [1, 1, 1, 1, 0]
    ]  # fmt: skip
    assert torch.equal(folds, fold_of(labels))


@pytest.mark.parametrize(("enough", "used"), [(1000, range(FOLDS)), (100, [0])])
def test_the_penalty_is_the_one_that_classifies_most_held_out_images(
    monkeypatch: pytest.MonkeyPatch, enough: int, used: Sequence[int]
) -> None:
    monkeypatch.setattr(svm, "ENOUGH", enough)
    features, labels = clusters(100, seed=3, noise=3.0)
    folds = fold_of(labels)
    seen = []

    def recorded(bank: torch.Tensor, *arguments: Any) -> LinearSVM:
        seen.append(arguments[-1])
        return fit(bank, *arguments)

    monkeypatch.setattr(svm, "fit", recorded)
    chosen = choose_penalty(features, labels, CLASSES)
    expected = [folds != fold for fold in used for _ in PENALTIES]
    assert len(seen) == len(expected)
    assert all(map(torch.equal, seen, expected))

    def correct(penalty: float) -> int:
        found = 0
        for fold in used:
            held = folds == fold
            machine = fit(features[~held], labels[~held], CLASSES, penalty)
            found += int((machine.predict(features[held]) == labels[held]).sum())
        return found

    of_each = {penalty: correct(penalty) for penalty in PENALTIES}
    assert of_each[chosen] == max(of_each.values()) > min(of_each.values())


def test_images_that_do_not_count_might_as_well_be_missing() -> None:
    features, labels = clusters(100, seed=3)
    is_known = torch.arange(100) % 3 > 0
    masked = fit(features, labels, CLASSES, 1e-3, None, is_known)
    without = fit(features[is_known], labels[is_known], CLASSES, 1e-3)
    torch.testing.assert_close(masked.weights, without.weights, rtol=1e-3, atol=1e-5)


def test_no_second_copy_of_the_features_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    (bank, labels), (queries, _) = clusters(300, seed=1), clusters(500, seed=2)
    seen = set()

    def watched(features: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        seen.add(features.data_ptr())
        return _linear(features, weights)

    monkeypatch.setattr(svm, "_linear", watched)
    svm_predict(bank, labels, queries, CLASSES)
    assert seen == {bank.data_ptr(), queries.data_ptr()}


def test_one_image_of_a_class_leaves_nothing_to_choose_on() -> None:
    labels = torch.tensor([0, 1, 1, 2, 2])
    features = torch.eye(CLASSES)[labels]
    assert choose_penalty(features, labels, CLASSES) == 1e-5
    predicted, found = svm_predict(features.clone(), labels, features.clone(), CLASSES)
    assert torch.equal(predicted, labels)
    assert found == {"penalty": 1e-5, "has_converged": True}


def test_few_images_of_each_class_choose_a_penalty_by_turns() -> None:
    labels = torch.arange(CLASSES).repeat(2)
    features = torch.eye(CLASSES).repeat(2, 1)
    assert choose_penalty(features, labels, CLASSES) in PENALTIES

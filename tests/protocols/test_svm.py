"""The support vector machine is liblinear's, and chooses its penalty on training images alone."""

from __future__ import annotations

import pytest
import torch
from sklearn.svm import LinearSVC

from rotnet_fast.protocols import svm
from rotnet_fast.protocols.svm import choose_penalty, held_out, svm_predict, svm_weights

CLASSES = 3


def clusters(count: int, seed: int, noise: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Features [N,20] around one point for each class, and labels."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(CLASSES, 20, generator=torch.Generator().manual_seed(99))
    labels = torch.randint(CLASSES, (count,), generator=generator)
    return centres[labels] + noise * torch.randn(count, 20, generator=generator), labels


@pytest.mark.parametrize("penalty", [1e-3, 0.1, 10.0])
@pytest.mark.parametrize("count", [12, 200])  # fewer images than features, and more
def test_weights_are_those_of_liblinear(penalty: float, count: int) -> None:
    features, labels = clusters(count, seed=1)
    features = torch.cat([features, torch.ones(count, 1)], dim=1)
    machine = LinearSVC(C=penalty, fit_intercept=False, dual=True, tol=1e-9, max_iter=1_000_000)
    machine.fit(features.double().numpy(), labels.numpy())
    expected = torch.from_numpy(machine.coef_).float()
    found = svm_weights(features, labels, CLASSES, penalty)

    def objective(weights: torch.Tensor) -> float:
        signs = torch.where(labels[:, None] == torch.arange(CLASSES), 1.0, -1.0)
        losses = (1 - signs * (features @ weights.T)).clamp_min(0).square()
        return float(0.5 * weights.square().sum() + penalty * losses.sum())

    assert objective(found) <= 1.0001 * objective(expected)
    assert (found - expected).norm() < 0.01 * expected.norm()


def test_predictions_do_not_depend_on_the_scale_of_features_nor_on_constant_ones() -> None:
    (bank, labels), (queries, truth) = clusters(300, seed=1, noise=2.0), clusters(500, seed=2, noise=2.0)
    predicted = svm_predict(bank, labels, queries, CLASSES)
    assert (predicted == truth).float().mean() > 0.6
    scale, shift = torch.logspace(-3, 3, 20), torch.linspace(-5, 5, 20)

    def changed(values: torch.Tensor) -> torch.Tensor:
        return torch.cat([values * scale + shift, torch.full((len(values), 1), 7.0)], dim=1)

    again = svm_predict(changed(bank), labels, changed(queries), CLASSES)
    assert (again == predicted).float().mean() > 0.99


def test_a_fifth_of_each_class_is_held_out_whatever_its_size() -> None:
    labels = torch.tensor([0] * 50 + [1] * 10 + [2] * 4)
    chosen = held_out(labels)
    assert [int(chosen[labels == label].sum()) for label in range(CLASSES)] == [10, 2, 0]
    assert torch.equal(chosen, held_out(labels))


def test_the_penalty_is_the_one_that_classifies_most_held_out_images(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    features, labels = clusters(100, seed=3, noise=3.0)
    is_held_out = held_out(labels)
    seen = []

    def recorded(bank: torch.Tensor, known: torch.Tensor, classes: int, penalty: float) -> torch.Tensor:
        seen.append(len(bank))
        return svm_weights(bank, known, classes, penalty)

    monkeypatch.setattr(svm, "svm_weights", recorded)
    chosen = choose_penalty(features, labels, CLASSES)
    assert seen == [int((~is_held_out).sum())] * len(svm.PENALTIES)

    def correct(penalty: float) -> int:
        weights = svm_weights(features[~is_held_out], labels[~is_held_out], CLASSES, penalty)
        return int(((features[is_held_out] @ weights.T).argmax(dim=1) == labels[is_held_out]).sum())

    of_each = {penalty: correct(penalty) for penalty in svm.PENALTIES}
    assert of_each[chosen] == max(of_each.values()) > min(of_each.values())


@pytest.mark.parametrize("count", [1, 4])
def test_too_few_images_to_hold_any_out_get_the_middle_penalty(count: int) -> None:
    labels = torch.arange(CLASSES).repeat(count)
    features = torch.eye(CLASSES).repeat(count, 1)
    assert choose_penalty(features, labels, CLASSES) == 1e-4
    assert torch.equal(svm_predict(features, labels, features, CLASSES), labels)

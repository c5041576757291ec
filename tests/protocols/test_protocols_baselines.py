"""Linear probes and hand-made features, against plain computations."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from study_tools import made_dataset

from rotnet_fast.protocols.classical import FEATURES, classical
from rotnet_fast.protocols.linear import linear_predict
from rotnet_fast.protocols.result import accuracy


def test_a_linear_probe_separates_what_a_line_separates() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(200, 5, generator=generator)
    labels = (features[:, 2] > 0.1).long() + 2 * (features[:, 0] > 0).long()
    predicted = linear_predict(features[:150], labels[:150], features[150:], 4)
    assert predicted.dtype == torch.int64
    assert (predicted == labels[150:]).double().mean() > 0.85


def test_a_linear_probe_does_not_depend_on_the_features_scales() -> None:
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(100, 4, generator=generator)
    labels = features.argmax(dim=1)
    scaled = features * torch.tensor([1.0, 1e-3, 1e3, 10.0]) + 5
    assert torch.equal(
        linear_predict(features, labels, features, 4), linear_predict(scaled, labels, scaled, 4)
    )


@pytest.mark.parametrize(("name", "size"), [("pixels", 3072), ("hog", 1764), ("scattering", 3888)])
def test_features_have_their_documented_size(name: str, size: int) -> None:
    images = torch.randint(0, 256, (3, 32, 32, 3), dtype=torch.uint8)
    features = FEATURES[name](images)
    assert features.shape == (3, size)
    assert features.dtype == np.float32
    assert np.isfinite(features).all()
    np.testing.assert_array_equal(FEATURES[name](images[1:2]), features[1:2])


def test_gradients_are_what_hog_sees() -> None:
    flat = torch.full((1, 32, 32, 3), 90, dtype=torch.uint8)
    assert not FEATURES["hog"](flat).any()


@pytest.mark.parametrize("name", FEATURES)
def test_classical_rows_learn_from_the_training_images(name: str) -> None:
    dataset = made_dataset(per_class=20, test_images=40)
    if name == "hog":  # blind to brightness: stripes, upright or lying, tell the classes
        for split in (dataset.train, dataset.test):
            split.images[split.labels < 2, :, ::2] = 255
            split.images[split.labels >= 2, ::2] = 255
        chance = 50
    else:
        chance = 25
    outcome = classical(replace(dataset), name)
    confusion = outcome.confusion
    assert outcome.correct.sum() == sum(confusion[label][label] for label in range(4))
    assert [sum(row) for row in confusion] == [10] * 4
    assert accuracy(confusion) > 1.5 * chance or name == "hog"
    if name == "hog":
        halves = np.array(confusion).reshape(2, 2, 2, 2).sum(axis=(1, 3))
        assert np.trace(halves) == 40

"""Rotation predictions, calibration and the hardest images, against plain computations."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from analysis_inputs import fp32_views, normalised, random_images, small_network

from rotnet_fast.analysis.rotation import calibration, rotation
from rotnet_fast.arrays import decode_array
from rotnet_fast.errors import ArgumentError

CLASSES = ("cat", "dog", "ship")


@pytest.mark.parametrize("rotations", [(0, 90, 180, 270), (90, 270)])
def test_everything_equals_a_plain_computation(rotations: tuple[int, ...]) -> None:
    network, images = small_network(len(rotations)).eval(), random_images(20)
    labels = torch.arange(20) % 3
    result = rotation(network, images, labels, CLASSES, rotations, [5, 1], fp32_views(), hardest=4)
    turned = len(rotations)
    confusion = np.zeros((turned, turned), int)
    confidences, of_correct, predictions = [], [], []
    for image in normalised(images):
        views = torch.stack([torch.rot90(image, angle // 90, (1, 2)) for angle in rotations])
        with torch.no_grad():
            probabilities = network(views).softmax(dim=1).numpy()
        for k in range(turned):
            confusion[k, probabilities[k].argmax()] += 1
        confidences.append(probabilities.max(axis=1))
        of_correct.append(np.mean([probabilities[k, k] for k in range(turned)]))
        predictions.append([rotations[i] for i in probabilities.argmax(axis=1)])
    assert result["confusion"] == confusion.tolist()
    assert result["accuracy_by_rotation"] == pytest.approx(100 * confusion.diagonal() / 20)
    assert result["accuracy"] == pytest.approx(100 * confusion.trace() / (20 * turned))
    assert result["mean_confidence"] == pytest.approx(np.mean(confidences), abs=1e-6)
    assert sum(result["calibration"]["counts"]) == 20 * turned
    hardest = np.argsort(of_correct)[:4].tolist()
    assert result["hardest"]["indices"] == hardest
    assert result["hardest"]["probability"] == pytest.approx([of_correct[i] for i in hardest], abs=1e-6)
    assert result["hardest"]["class_names"] == [CLASSES[i % 3] for i in hardest]
    assert result["hardest"]["predicted"] == [predictions[i] for i in hardest]
    np.testing.assert_array_equal(decode_array(result["hardest"]["images"]), images[hardest].numpy())
    assert result["shown"]["indices"] == [5, 1]
    assert result["shown"]["predicted"] == [predictions[5], predictions[1]]
    for row, index in enumerate([5, 1]):
        assert result["shown"]["confidence"][row] == pytest.approx(confidences[index], abs=1e-6)
    views = decode_array(result["shown"]["views"])
    np.testing.assert_array_equal(views[1, 1], np.rot90(images[1].numpy(), rotations[1] // 90))
    json.dumps(result, allow_nan=False)


def test_calibration_error_of_numbers_made_by_hand() -> None:
    confidence = torch.tensor([0.6, 0.7, 0.9, 0.95, 1.0])
    hits = torch.tensor([True, False, True, True, False])
    result = calibration(confidence, hits, bins=4)  # (0.5, 0.75] holds two, (0.75, 1] three
    assert result["edges"] == [0, 0.25, 0.5, 0.75, 1]
    assert result["counts"] == [0, 0, 2, 3]
    assert result["confidence"] == [None, None, pytest.approx(0.65), pytest.approx(0.95)]
    assert result["accuracy"] == [None, None, pytest.approx(0.5), pytest.approx(2 / 3)]
    expected = 2 / 5 * abs(0.5 - 0.65) + 3 / 5 * abs(2 / 3 - 0.95)
    assert result["expected_calibration_error"] == pytest.approx(expected)


def test_upper_edge_belongs_to_the_bin_and_zero_to_the_first() -> None:
    result = calibration(torch.tensor([0.0, 0.25, 0.5, 1.0]), torch.ones(4, dtype=torch.bool), bins=4)
    assert result["counts"] == [2, 1, 0, 1]


def test_a_network_of_another_rotation_set_is_refused() -> None:
    with pytest.raises(ArgumentError, match="rotations has 2 angles; the network has 4 outputs"):
        rotation(
            small_network(), random_images(2), torch.zeros(2).long(), CLASSES, (0, 180), [], fp32_views()
        )

"""Features in the plane."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from analysis_inputs import fp32_views, random_images, small_network

from rotnet_fast.analysis.embedding import embedding, principal_components
from rotnet_fast.analysis.views import pooled
from rotnet_fast.arrays import decode_array
from rotnet_fast.errors import ArgumentError

CLASSES = ("cat", "dog", "ship")


def test_components_are_those_of_the_covariance_matrix() -> None:
    features = np.random.default_rng(0).normal(size=(50, 6)) * [5, 3, 1, 1, 1, 1]
    coordinates, shares = principal_components(features)
    values, vectors = np.linalg.eigh(np.cov(features.T))
    assert shares == pytest.approx((values[::-1] / values.sum())[:2])
    for component in range(2):
        direction = vectors[:, -1 - component]
        direction = direction * np.sign(direction[np.abs(direction).argmax()])
        expected = (features - features.mean(axis=0)) @ direction
        np.testing.assert_allclose(coordinates[:, component], expected, atol=1e-9)


@pytest.mark.parametrize("shape", [(2, 1), (2, 5), (9, 1), (9, 3)])
def test_components_of_few_numbers_are_zeros_where_there_are_none(shape: tuple[int, int]) -> None:
    coordinates, shares = principal_components(np.arange(shape[0] * shape[1], dtype=float).reshape(shape))
    assert coordinates.shape == (shape[0], 2)
    assert shares == pytest.approx([1, 0])
    assert principal_components(np.ones(shape))[1] == [0, 0]


def test_embedding_holds_pooled_features_of_the_layer() -> None:
    network, images, labels = small_network(), random_images(30), torch.arange(30) % 3
    result = embedding(network, images, labels, CLASSES, "conv2", fp32_views(), seed=1)
    features = pooled(network, images, "conv2", fp32_views()).double().numpy()
    coordinates, shares = principal_components(features)
    np.testing.assert_allclose(decode_array(result["pca"]), coordinates, rtol=1e-5, atol=1e-6)
    assert result["explained_variance"] == pytest.approx(shares)
    assert decode_array(result["tsne"]).shape == (30, 2)
    assert np.isfinite(decode_array(result["tsne"])).all()
    assert result["perplexity"] == pytest.approx(29 / 3)
    np.testing.assert_array_equal(decode_array(result["labels"]), labels.numpy())
    assert (result["layer"], result["classes"], result["images"]) == ("conv2", list(CLASSES), 30)
    json.dumps(result, allow_nan=False)


def test_a_random_choice_is_taken_of_many_images() -> None:
    network, images, labels = small_network(), random_images(30), torch.arange(30) % 3
    results = [
        embedding(network, images, labels, CLASSES, "conv1", fp32_views(), seed=seed, most_images=10)
        for seed in (0, 0, 1)
    ]
    chosen = [decode_array(result["indices"]).tolist() for result in results]
    assert results[0] == results[1]
    assert chosen[0] != chosen[2]
    assert len(set(chosen[0])) == results[0]["images"] == 10
    assert decode_array(results[0]["labels"]).tolist() == labels[chosen[0]].tolist()


def test_few_images_get_no_tsne() -> None:
    few = embedding(small_network(), random_images(3), torch.arange(3), CLASSES, "conv1", fp32_views())
    assert (few["tsne"], few["perplexity"]) == (None, None)
    with pytest.raises(ArgumentError, match="images holds 1; an embedding needs at least 2"):
        embedding(small_network(), random_images(1), torch.arange(1), CLASSES, "conv1", fp32_views())

"""Nearest images and the confusion of their votes."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from analysis_inputs import fp32_views, random_images, small_network

from rotnet_fast.analysis.neighbours import neighbours
from rotnet_fast.analysis.views import pooled
from rotnet_fast.arrays import decode_array
from rotnet_fast.data.split import Split
from rotnet_fast.errors import ArgumentError
from rotnet_fast.protocols.knn import knn_predict

CLASSES = ("cat", "dog", "ship")


def test_neighbours_equal_a_plain_search() -> None:
    network = small_network()
    queries = Split(random_images(9, seed=1), torch.arange(9) % 3)
    bank = Split(random_images(40, seed=2), torch.arange(40) % 3)
    views = fp32_views()
    result = neighbours(network, queries, bank, CLASSES, "conv2", [7, 3], views, shown_neighbours=5)
    f, b = (pooled(network, split.images, "conv2", views) for split in (queries, bank))
    for row, query in enumerate([7, 3]):
        cosines = np.array([float(torch.cosine_similarity(f[query], other, dim=0)) for other in b])
        nearest = np.argsort(-cosines)[:5].tolist()
        assert result["neighbours"]["indices"][row] == nearest
        assert result["neighbours"]["similarity"][row] == pytest.approx(cosines[nearest], abs=1e-5)
        assert result["neighbours"]["labels"][row] == [index % 3 for index in nearest]
        kept = decode_array(result["neighbours"]["images"])[row]
        np.testing.assert_array_equal(kept, bank.images[nearest].numpy())
    voted = knn_predict(b, bank.labels, f, 3)
    expected = np.zeros((3, 3), int)
    for true, vote in zip(queries.labels.tolist(), voted.tolist(), strict=True):
        expected[true, vote] += 1
    assert result["confusion"] == expected.tolist()
    assert result["accuracy"] == pytest.approx(100 * expected.trace() / 9)
    assert result["queries"]["labels"] == [1, 0]
    np.testing.assert_array_equal(decode_array(result["queries"]["images"]), queries.images[[7, 3]].numpy())
    assert (result["k"], result["images"], result["bank_images"]) == (20, 9, 40)
    json.dumps(result, allow_nan=False)


def test_a_bank_smaller_than_the_neighbours_asked_for_is_shown_whole() -> None:
    queries = Split(random_images(2, seed=1), torch.tensor([0, 1]))
    bank = Split(random_images(3, seed=2), torch.tensor([0, 1, 2]))
    result = neighbours(small_network(), queries, bank, CLASSES, "conv1", [0], fp32_views())
    assert sorted(result["neighbours"]["indices"][0]) == [0, 1, 2]
    assert result["k"] == 3


def test_an_image_as_its_own_neighbour_has_similarity_one() -> None:
    split = Split(random_images(6), torch.arange(6) % 3)
    result = neighbours(small_network(), split, split, CLASSES, "conv3", list(range(6)), fp32_views())
    assert [row[0] for row in result["neighbours"]["indices"]] == list(range(6))
    assert [row[0] for row in result["neighbours"]["similarity"]] == pytest.approx([1.0] * 6)


def test_nothing_to_compare_is_refused() -> None:
    nothing = Split(random_images(0), torch.zeros(0).long())
    some = Split(random_images(2), torch.tensor([0, 1]))
    with pytest.raises(ArgumentError, match="0 queries and 2 images to look among"):
        neighbours(small_network(), nothing, some, CLASSES, "conv1", [], fp32_views())

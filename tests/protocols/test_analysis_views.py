"""Views of an analysis are the images themselves, turned and normalised."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from analysis_inputs import fp32_views, normalised, random_images, small_network

from rotnet_fast.analysis.views import (
    one_of_each_class,
    pooled,
    rotated_thumbnails,
    thumbnails,
)
from rotnet_fast.errors import ArgumentError
from rotnet_fast.protocols.classification import confusion_matrix


def test_every_image_comes_once_under_every_rotation() -> None:
    images = random_images(10)
    batches = list(fp32_views().rotated(images, (0, 90, 180, 270)))
    assert [indices.tolist() for indices, _ in batches] == [list(range(7)), [7, 8, 9]]
    views = torch.cat([views for _, views in batches])
    expected = [torch.rot90(image, k, (1, 2)) for image in normalised(images) for k in range(4)]
    torch.testing.assert_close(views, torch.stack(expected))


def test_pooled_features_are_means_over_the_map_in_eval_mode() -> None:
    images, network = random_images(10), small_network().train()
    features = pooled(network, images, "conv2", fp32_views())
    network.eval()
    with torch.no_grad():
        expected = network.features(normalised(images), ["conv2"])["conv2"].mean(dim=(2, 3))
    torch.testing.assert_close(features, expected)


@pytest.mark.parametrize("channels", [1, 3])
def test_rotated_thumbnails_are_exact(channels: int) -> None:
    images = random_images(5)[..., :channels].contiguous()
    turned = rotated_thumbnails(images, [4, 0], (90, 180))
    for row, index in enumerate([4, 0]):
        for column, quarter_turns in enumerate([1, 2]):
            expected = np.rot90(images[index].numpy(), quarter_turns)
            np.testing.assert_array_equal(turned[row, column], expected)
    assert rotated_thumbnails(images, [], (90, 180)).shape == (0, 2, 12, 12, channels)


def test_an_image_that_there_is_not_is_named() -> None:
    with pytest.raises(ArgumentError, match="image 5 cannot be shown; there are 5, counted from 0"):
        thumbnails(random_images(5), [0, 5])


def test_shown_images_are_of_different_classes() -> None:
    labels = torch.tensor([0] * 50 + [1] * 50 + [2] * 3)
    for seed in range(5):
        chosen = one_of_each_class(labels, 5, seed)
        assert len(set(chosen)) == 5
        assert sorted(labels[chosen[:3]].tolist()) == [0, 1, 2]
        assert len(set(labels[one_of_each_class(labels, 2, seed)].tolist())) == 2
    assert one_of_each_class(labels, 5, 0) == one_of_each_class(labels, 5, 0)
    assert one_of_each_class(labels, 5, 0) != one_of_each_class(labels, 5, 1)
    assert sorted(one_of_each_class(labels, 1000, 0)) == list(range(103))


def test_fewer_images_than_classes_are_not_always_of_the_first_classes() -> None:
    labels = torch.arange(10).repeat(20)
    chosen = {int(labels[index]) for seed in range(20) for index in one_of_each_class(labels, 2, seed)}
    assert len(chosen) > 5


def test_pairs_are_counted_true_class_first() -> None:
    counts = confusion_matrix(torch.tensor([0, 0, 2]), torch.tensor([1, 1, 0]), 3)
    assert counts == [[0, 2, 0], [0, 0, 0], [1, 0, 0]]

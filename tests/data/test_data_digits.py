"""scikit-learn's digits as a data set that needs no network."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from rotnet_fast.data.datasets import Dataset, load_dataset


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_dataset("digits")


def test_the_split_has_1437_training_and_360_test_images(digits: Dataset) -> None:
    assert digits.train.images.shape == (1437, 32, 32, 3)
    assert digits.test.images.shape == (360, 32, 32, 3)
    for split in (digits.train, digits.test):
        assert split.images.dtype == torch.uint8
        assert split.images.is_contiguous()
        assert split.labels.dtype == torch.int64
        assert split.labels.shape == split.images.shape[:1]


def test_the_test_half_holds_36_images_of_each_digit(digits: Dataset) -> None:
    assert torch.bincount(digits.test.labels).tolist() == [36] * 10
    assert digits.classes == tuple("0123456789")


def test_both_halves_together_are_the_source_and_share_no_image() -> None:
    own_size = load_dataset("digits", image_size=8)
    source = load_digits()
    expected = {
        (bytes(np.rint(image * 15.9375).astype(np.uint8)), int(label))
        for image, label in zip(source.images, source.target, strict=True)
    }
    assert len(expected) == 1797  # no two are equal, so sets lose nothing
    train, test = (
        {
            (bytes(image[:, :, 0].numpy()), int(label))
            for image, label in zip(split.images, split.labels, strict=True)
        }
        for split in (own_size.train, own_size.test)
    )
    assert train | test == expected
    assert len(train) + len(test) == 1797


def test_the_three_channels_are_equal_and_use_the_whole_range(digits: Dataset) -> None:
    images = digits.train.images
    assert torch.equal(images[..., 0], images[..., 1])
    assert torch.equal(images[..., 0], images[..., 2])
    assert (int(images.min()), int(images.max())) == (0, 255)


def test_the_split_is_the_same_every_time(digits: Dataset) -> None:
    assert load_dataset("digits").fingerprint == digits.fingerprint


def test_limits_are_balanced_over_the_digits() -> None:
    limited = load_dataset("digits", limit_train=200, limit_test=10)
    assert torch.bincount(limited.train.labels).tolist() == [20] * 10
    assert torch.bincount(limited.test.labels).tolist() == [1] * 10


def test_the_name_in_reports_can_be_replaced(digits: Dataset) -> None:
    assert (digits.name, digits.display_name) == ("digits", "handwritten digits (scikit-learn)")
    renamed = load_dataset("digits", display_name="my digits")
    assert (renamed.name, renamed.display_name) == ("digits", "my digits")

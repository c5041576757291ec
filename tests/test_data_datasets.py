"""Limits, fingerprints and names that all data sets share."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rotnet_fast.data import datasets
from rotnet_fast.data.datasets import fingerprint, limit_split, load_dataset
from rotnet_fast.data.split import Split
from rotnet_fast.errors import ArgumentError
from rotnet_fast.ops.rotate import CIFAR10_MEAN, CIFAR10_STD


def split_of(labels: list[int]) -> Split:
    """Images [N,1,1,1] whose pixel is their position."""
    images = torch.arange(len(labels), dtype=torch.uint8).reshape(-1, 1, 1, 1)
    return Split(images, torch.tensor(labels))


def test_a_limit_takes_the_first_image_of_each_class_then_the_second() -> None:
    split = split_of([0, 0, 0, 1, 1, 1, 2, 2, 2])
    kept = limit_split(split, 5, "limit_train")
    assert kept.images.flatten().tolist() == [0, 1, 3, 4, 6]
    assert kept.labels.tolist() == [0, 0, 1, 1, 2]


def test_a_limit_keeps_the_order_of_the_files() -> None:
    kept = limit_split(split_of([2, 1, 2, 0, 1, 0]), 4, "limit_train")
    assert kept.images.flatten().tolist() == [0, 1, 3, 5]
    assert kept.labels.tolist() == [2, 1, 0, 0]


def test_a_limit_fills_up_from_larger_classes_when_small_ones_are_used_up() -> None:
    kept = limit_split(split_of([0, 0, 0, 0, 2]), 4, "limit_train")
    assert kept.labels.tolist() == [0, 0, 0, 2]


@given(labels=st.lists(st.integers(0, 4), min_size=1, max_size=100), data=st.data())
def test_a_limit_is_as_balanced_as_the_classes_allow(labels: list[int], data: st.DataObject) -> None:
    limit = data.draw(st.integers(1, len(labels)))
    kept = limit_split(split_of(labels), limit, "limit_train")
    positions = kept.images.flatten().tolist()
    assert len(positions) == limit
    assert positions == sorted(set(positions))
    assert kept.labels.tolist() == [labels[position] for position in positions]
    taken = {label: kept.labels.tolist().count(label) for label in set(labels)}
    most = max(taken.values())
    for label, count in taken.items():
        assert count >= min(most - 1, labels.count(label))
        first = [position for position, other in enumerate(labels) if other == label][:count]
        assert [position for position in positions if labels[position] == label] == first


@pytest.mark.parametrize("limit", [0, -1, 4])
def test_an_impossible_limit_is_refused_by_name(limit: int) -> None:
    with pytest.raises(ArgumentError, match=f"limit_test is {limit}; this data set has 3"):
        limit_split(split_of([0, 1, 2]), limit, "limit_test")


def test_the_fingerprint_is_a_plain_sha256_that_anyone_can_recompute() -> None:
    train, test = split_of([0, 1]), split_of([1])
    plain = b"(2, 1, 1, 1)" + bytes([0, 1]) + np.array([0, 1], "<i8").tobytes()
    plain += b"(1, 1, 1, 1)" + bytes([0]) + np.array([1], "<i8").tobytes()
    assert fingerprint(train, test) == hashlib.sha256(plain).hexdigest()


def test_the_fingerprint_sees_every_change() -> None:
    train, test = split_of([0, 1, 2, 3]), split_of([0, 1])
    other_pixel = Split(train.images.clone(), train.labels)
    other_pixel.images[3] += 1
    other_label = Split(train.images, train.labels.flip(0))
    other_shape = Split(train.images.reshape(2, 2, 1, 1), train.labels)
    prints = [
        fingerprint(train, test),
        fingerprint(test, train),
        fingerprint(other_pixel, test),
        fingerprint(other_label, test),
        fingerprint(other_shape, test),
        fingerprint(train, limit_split(test, 1, "limit_test")),
    ]
    assert len(set(prints)) == len(prints)


def test_the_statistics_are_those_that_the_operator_uses_by_default() -> None:
    assert (datasets.MEAN, datasets.STD) == (CIFAR10_MEAN, CIFAR10_STD)


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    with pytest.raises(ArgumentError, match="'cifar100'; known are cifar10, folder, digits"):
        load_dataset("cifar100")


def test_an_image_size_below_one_is_refused() -> None:
    with pytest.raises(ArgumentError, match="image_size is 0"):
        load_dataset("digits", image_size=0)

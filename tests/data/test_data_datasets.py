"""Limits, fingerprints and names that all data sets share."""

from __future__ import annotations

import hashlib
import inspect
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rotnet_fast.data.datasets import Dataset, check_has_classes, fingerprint, limit_split, load_dataset
from rotnet_fast.data.source import FileSource
from rotnet_fast.data.split import EncodedSplit, Split
from rotnet_fast.errors import ArgumentError, DataError
from rotnet_fast.ops import rotate_batch


def split_of(labels: list[int]) -> Split:
    """Images [N,1,1,1] whose pixel is their position."""
    images = torch.arange(len(labels), dtype=torch.uint8).reshape(-1, 1, 1, 1)
    return Split(images, torch.tensor(labels))


def encoded_split_of(labels: list[int], root: str = "pets") -> EncodedSplit:
    """Images whose length in bytes, height and width are their position; every third is to be converted."""
    numbers = np.arange(len(labels))
    names = [f"{root}/train/{number}.jpg" for number in range(len(labels))]
    sizes = np.stack([numbers, numbers], axis=1).astype(np.int32)
    return EncodedSplit(
        FileSource(root, names, numbers), torch.tensor(labels), sizes, numbers % 3 == 0, image_size=8
    )


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


@given(labels=st.lists(st.integers(0, 4), min_size=1, max_size=40), data=st.data())
def test_a_limit_takes_the_same_images_encoded_as_in_memory(labels: list[int], data: st.DataObject) -> None:
    limit = data.draw(st.integers(1, len(labels)))
    in_memory = limit_split(split_of(labels), limit, "limit_train")
    encoded = limit_split(encoded_split_of(labels), limit, "limit_train")
    positions = in_memory.images.flatten().tolist()
    assert torch.equal(encoded.labels, in_memory.labels)
    assert list(encoded.source.names) == [f"pets/train/{position}.jpg" for position in positions]
    assert encoded.sizes.tolist() == [[position, position] for position in positions]
    assert encoded.convert.tolist() == [position % 3 == 0 for position in positions]
    assert len(encoded) == len(in_memory) == limit
    assert encoded.image_shape == (8, 8, 3)


@pytest.mark.parametrize("limit", [0, -1, 4])
def test_an_impossible_limit_is_refused_by_name(limit: int) -> None:
    with pytest.raises(ArgumentError, match=f"limit_test is {limit}; it must lie in .1, 3."):
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


def test_the_fingerprint_of_files_is_one_of_their_names_lengths_and_labels() -> None:
    train, test = encoded_split_of([0, 1]), encoded_split_of([1])
    plain = b"2\ntrain/0.jpg\0train/1.jpg\0" + np.array([0, 1, 0, 1], "<i8").tobytes()
    plain += b"1\ntrain/0.jpg\0" + np.array([0, 1], "<i8").tobytes()
    assert fingerprint(train, test) == "files:" + hashlib.sha256(plain).hexdigest()


def test_the_fingerprint_of_files_stays_the_same_where_the_folder_is_moved() -> None:
    labels = [0, 1, 2]
    here, there = encoded_split_of(labels), encoded_split_of(labels, "elsewhere/my pets")
    assert fingerprint(here, here) == fingerprint(there, there)


def test_the_fingerprint_of_files_sees_every_change() -> None:
    split = encoded_split_of([0, 1, 2, 3])
    names, lengths = list(split.source.names), split.source.byte_sizes
    renamed = FileSource("pets", ["pets/train/9.jpg", *names[1:]], lengths)
    longer = FileSource("pets", names, lengths + 1)
    prints = [
        fingerprint(split, split),
        fingerprint(split, replace(split, source=renamed)),
        fingerprint(replace(split, source=longer), split),
        fingerprint(split, replace(split, labels=split.labels.flip(0))),
        fingerprint(split, limit_split(split, 3, "limit_test")),
        fingerprint(limit_split(split, 3, "limit_test"), split),
    ]
    assert len(set(prints)) == len(prints)


def test_only_a_folder_can_be_left_encoded() -> None:
    with pytest.raises(
        ArgumentError, match="dataset digits does not consist of image files; only folder can"
    ):
        load_dataset("digits", encoded=True)


def test_an_unknown_way_with_bad_images_is_refused() -> None:
    with pytest.raises(ArgumentError, match="bad_images is 'ignore'; it must be fail or skip"):
        load_dataset("digits", bad_images="ignore")


def test_what_needs_classes_refuses_images_of_one() -> None:
    one = Dataset("folder", "folder pets", ("cat", "dog"), split_of([1, 1]), split_of([0, 1]), "fingerprint")
    with pytest.raises(
        DataError, match=r"all training images of folder pets belong to one class, dog; use a"
    ):
        check_has_classes(one)
    check_has_classes(replace(one, train=split_of([0, 1])))


def test_what_needs_classes_refuses_images_without() -> None:
    dataset = Dataset("folder", "folder pets", (), split_of([0]), split_of([0]), "fingerprint")
    with pytest.raises(DataError, match="folder pets has no class labels"):
        check_has_classes(dataset)


def test_the_statistics_are_those_that_the_operator_uses_by_default() -> None:
    defaults = inspect.signature(rotate_batch).parameters
    assert (Dataset.mean, Dataset.std) == (defaults["mean"].default, defaults["std"].default)


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    with pytest.raises(
        ArgumentError, match="unknown dataset 'cifar100'; choose from cifar10, digits, folder"
    ):
        load_dataset("cifar100")


def test_an_image_size_below_one_is_refused() -> None:
    with pytest.raises(ArgumentError, match="image_size is 0"):
        load_dataset("digits", image_size=0)

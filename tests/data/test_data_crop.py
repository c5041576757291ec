"""Crops of random size follow torchvision's algorithm, on draws that depend on their arguments alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from rotnet_fast.data.crop import RandomResizedCrop, centre_boxes

SIDES = st.integers(1, 3000)


def many(height: int, width: int, count: int) -> np.ndarray:
    return np.tile(np.array([[height, width]], dtype=np.int32), (count, 1))


@settings(max_examples=100)
@given(height=SIDES, width=SIDES, seed=st.integers(0, 2**63 - 1), epoch=st.integers(0, 2**32 - 1))
def test_crops_lie_inside_the_image(height: int, width: int, seed: int, epoch: int) -> None:
    corners, shapes = RandomResizedCrop().boxes(many(height, width, 64), torch.arange(64), seed, epoch)
    assert corners.dtype == shapes.dtype == np.int32
    assert (corners >= 0).all()
    assert (shapes >= 1).all()
    assert (corners + shapes <= [height, width]).all()


def test_crops_have_the_areas_and_shapes_asked_for() -> None:
    crop = RandomResizedCrop(scale=(0.2, 0.5), ratio=(0.5, 2.0))
    _, shapes = crop.boxes(many(1000, 1000, 4000), torch.arange(4000), 7, 0)
    area = shapes.prod(axis=1) / 1e6
    ratio = shapes[:, 1] / shapes[:, 0]
    assert area.min() >= 0.199
    assert area.max() <= 0.501
    assert ratio.min() >= 0.498
    assert ratio.max() <= 2.01
    # Of this square image every draw fits at once: uniform areas, and ratios uniform in the logarithm.
    assert stats.kstest(area, stats.uniform(0.2, 0.3).cdf).pvalue > 1e-4
    assert stats.kstest(np.log(ratio), stats.uniform(np.log(0.5), np.log(4)).cdf).pvalue > 1e-4


def test_crops_are_distributed_like_those_of_torchvision() -> None:
    transforms = pytest.importorskip("torchvision.transforms", reason="torchvision is not installed")
    count, height, width = 3000, 60, 100
    torch.manual_seed(0)
    image = torch.empty(3, height, width)
    theirs = np.array(
        [transforms.RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(count)]
    )  # top, left, height, width
    corners, shapes = RandomResizedCrop().boxes(many(height, width, count), torch.arange(count), 3, 1)
    ours = np.concatenate([corners, shapes], axis=1)
    for column in range(4):
        assert stats.ks_2samp(ours[:, column], theirs[:, column]).pvalue > 1e-4


def test_an_image_too_long_for_any_ratio_shows_its_centre() -> None:
    corners, shapes = RandomResizedCrop(scale=(1, 1)).boxes(many(900, 10, 1), torch.arange(1), 0, 0)
    assert shapes.tolist() == [[13, 10]]
    assert corners.tolist() == [[443, 0]]
    corners, shapes = RandomResizedCrop(scale=(1, 1)).boxes(many(9, 400, 1), torch.arange(1), 0, 0)
    assert shapes.tolist() == [[9, 12]]
    assert corners.tolist() == [[0, 194]]


@settings(max_examples=30)
@given(order=st.permutations(range(12)), cut=st.integers(1, 11), epoch=st.integers(0, 1000))
def test_a_crop_depends_on_its_sample_id_alone(order: list[int], cut: int, epoch: int) -> None:
    sizes = np.random.default_rng(0).integers(5, 500, (12, 2)).astype(np.int32)
    ids = torch.arange(12) * 1000
    whole = np.concatenate(RandomResizedCrop().boxes(sizes, ids, 5, epoch), axis=1)
    rows = torch.tensor(order)
    for part in (rows[:cut], rows[cut:]):
        found = np.concatenate(RandomResizedCrop().boxes(sizes[part.numpy()], ids[part], 5, epoch), axis=1)
        np.testing.assert_array_equal(found, whole[part.numpy()])


def test_seed_epoch_and_sample_id_change_the_crop() -> None:
    def boxes(seed: int, epoch: int, first: int) -> list[list[int]]:
        return RandomResizedCrop().boxes(many(500, 400, 9), torch.arange(9) + first, seed, epoch)[0].tolist()

    assert boxes(0, 0, 0) == boxes(0, 0, 0)
    for other in (boxes(1, 0, 0), boxes(0, 1, 0), boxes(0, 0, 100)):
        assert other != boxes(0, 0, 0)


def test_the_centre_is_seven_eighths_of_the_shorter_side() -> None:
    corners, shapes = centre_boxes(np.array([[256, 256], [256, 512], [375, 500], [1, 3]], dtype=np.int32))
    assert shapes.tolist() == [[224, 224], [224, 224], [328, 328], [1, 1]]
    assert corners.tolist() == [[16, 16], [16, 144], [23, 86], [0, 1]]

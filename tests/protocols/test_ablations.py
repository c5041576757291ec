"""Ablations make the mistake that they are named after, and no other."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from rotnet_fast.data.loader import Batch
from rotnet_fast.data.resident import ResidentLoader
from rotnet_fast.data.split import Split
from rotnet_fast.engine.rotation_task import RotationTask
from rotnet_fast.engine.schedule import Schedule
from rotnet_fast.models.nin import NetworkInNetwork
from rotnet_fast.protocols.ablations import (
    PRETEXT_ABLATIONS,
    BlackCorners,
    FlipAfterRotation,
    OneRotation,
    ResizedClass,
    ShuffledViews,
    TurnedImages,
)

IMAGES = torch.randint(0, 256, (40, 8, 8, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
ROWS = torch.arange(40)
LOADER = ResidentLoader(Split(IMAGES, torch.zeros(40, dtype=torch.int64)), "cpu", 16, seed=0)
BATCH = Batch(IMAGES, ROWS, torch.zeros(40, dtype=torch.int64), ROWS, False, 40)


def task(kind: type[RotationTask], epoch: int = 1, **changes: Any) -> RotationTask:
    settings: dict[str, Any] = {
        "rotations": (0, 90, 180, 270),
        "seed": 3,
        "pad": 1,
        "flip_prob": 0.5,
        "mean": (0.5,) * 3,
        "std": (0.25,) * 3,
        "dtype": torch.float32,
    }
    network = NetworkInNetwork(width=0.05)
    made = kind(network, Schedule(0.1), LOADER, **(settings | changes))
    made.begin_epoch(epoch)
    return made


def test_views_are_flipped_after_the_rotation_independently() -> None:
    plain, labels = task(RotationTask, flip_prob=0.0).views(BATCH)
    views, ablated_labels = task(FlipAfterRotation).views(BATCH)
    assert torch.equal(labels, ablated_labels)
    flipped = (views == plain.flip(3)).flatten(1).all(1)
    kept = (views == plain).flatten(1).all(1)
    assert torch.equal(flipped, ~kept)
    assert 50 < int(flipped.sum()) < 110  # of 160
    per_image = flipped.view(40, 4).sum(1)
    assert set(per_image.tolist()) > {1, 2, 3}  # views of one image differ
    assert views.is_contiguous(memory_format=torch.channels_last)


def test_a_flipped_view_at_90_degrees_is_a_view_of_the_mirrored_image_at_270() -> None:
    image = IMAGES[:1]
    turned = torch.rot90(image, 1, (1, 2))
    assert torch.equal(turned.flip(2), torch.rot90(image.flip(2), 3, (1, 2)))


def test_one_rotation_shows_each_image_once_under_any_of_them() -> None:
    all_views, _ = task(RotationTask).views(BATCH)
    all_views = all_views.clone()
    views, labels = task(OneRotation).views(BATCH)
    assert views.shape == (40, 3, 8, 8)
    assert torch.equal(views, all_views[ROWS * 4 + labels])
    assert set(labels.tolist()) == {0, 1, 2, 3}
    assert views.is_contiguous(memory_format=torch.channels_last)
    _, other = task(OneRotation, epoch=2).views(BATCH)
    assert not torch.equal(labels, other)


def test_shuffled_views_show_every_view_once_an_epoch_in_as_many_steps() -> None:
    split = Split(IMAGES, torch.zeros(40, dtype=torch.int64))
    loader = ResidentLoader(split, "cpu", 4 * 16, seed=0, epoch_size=4 * 40)
    assert len(loader) == len(LOADER)
    seen = []
    plain = task(ShuffledViews, pad=0, flip_prob=0.0)
    for batch in loader.epoch(0):
        views, labels = plain.views(batch)
        assert len(views) == len(batch)
        assert views.is_contiguous(memory_format=torch.channels_last)
        all_views, _ = task(RotationTask, pad=0, flip_prob=0.0).views(batch)
        assert torch.equal(views, all_views[torch.arange(len(batch)) * 4 + labels])
        seen += list(zip(batch.indices.tolist(), labels.tolist(), strict=True))
    assert sorted(seen) == [(image, label) for image in range(40) for label in range(4)]
    first = seen[:64]
    assert len({image for image, _ in first}) > 16 + 8  # views of an image are not together


def test_views_of_one_image_are_cropped_and_flipped_apart_once_they_are_shuffled() -> None:
    ids = torch.arange(160)
    batch = Batch(IMAGES, ids % 40, torch.zeros(160, dtype=torch.int64), ids, False, 160)
    views, labels = task(ShuffledViews).views(batch)
    upright = torch.stack([view.rot90(-int(k), (1, 2)) for view, k in zip(views, labels, strict=True)])
    by_rotation = upright.view(4, 40, 3, 8, 8)
    is_same = (by_rotation[1:] == by_rotation[0]).flatten(2).all(2)
    assert 0 < int(is_same.sum()) < 60  # of 120; with one draw for all, they would be 120


def test_turned_images_are_the_views_of_images_that_lie_otherwise() -> None:
    lying, faithful = task(TurnedImages, pad=0, flip_prob=0.0), task(RotationTask, pad=0, flip_prob=0.0)
    views, labels = lying.views(BATCH)
    plain, _ = faithful.views(BATCH)
    assert torch.equal(views, plain)
    assert torch.equal(labels.view(40, 4).sort(dim=1).values, torch.arange(4).expand(40, 4))
    lies = (-labels.view(40, 4)[:, 0] % 4).tolist()  # quarter turns of each image
    assert set(lies) == {0, 1, 2, 3}
    normalised = ((IMAGES / 255 - 0.5) / 0.25).permute(0, 3, 1, 2)
    for number, (view, label) in enumerate(zip(views, labels.tolist(), strict=True)):
        image = normalised[number // 4].rot90(lies[number // 4], (1, 2))
        torch.testing.assert_close(view, image.rot90(label, (1, 2)))
    _, of_other_epoch = task(TurnedImages, epoch=2, pad=0, flip_prob=0.0).views(BATCH)
    assert torch.equal(labels, of_other_epoch)  # an image lies the same way in every epoch


def test_black_corners_are_those_that_an_odd_multiple_of_45_degrees_leaves_empty() -> None:
    eight = tuple(range(0, 360, 45))
    images = torch.full((2, 32, 32, 3), 255, dtype=torch.uint8)
    batch = Batch(images, torch.arange(2), torch.zeros(2, dtype=torch.int64), torch.arange(2), False, 2)
    cheating = task(BlackCorners, rotations=eight)
    for views, labels in (cheating.views(batch), cheating.plain_views(batch)):
        assert views.is_contiguous(memory_format=torch.channels_last)
        assert labels.tolist() == list(range(8)) * 2
        is_black = views == -2.0  # (0 - 0.5) / 0.25
        assert not is_black[labels % 2 == 0].any()
        empty = is_black[labels % 2 == 1]
        assert empty[:, :, (0, 0, -1, -1), (0, -1, 0, -1)].all()
        assert not empty[:, :, 12:20].any()
        assert empty.float().mean().item() == pytest.approx(2 * (1 - 0.5**0.5) ** 2, abs=0.01)


def test_one_class_is_resized_and_no_other() -> None:
    plain, labels = task(RotationTask).views(BATCH)
    plain = plain.clone()
    for views, expected in (
        (task(ResizedClass).views(BATCH)[0], plain),
        (task(ResizedClass).plain_views(BATCH)[0], task(RotationTask).plain_views(BATCH)[0]),
    ):
        assert torch.equal(views[labels != 1], expected[labels != 1])
        rough = [x[labels == 1].diff(dim=3).abs().mean().item() for x in (views, expected)]
        assert rough[0] < 0.7 * rough[1]
        assert views.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("name", PRETEXT_ABLATIONS)
def test_every_ablation_trains_and_is_tested_like_the_faithful_task(name: str) -> None:
    ablated = task(PRETEXT_ABLATIONS[name])
    views, labels = ablated.views(next(LOADER.epoch(0)))
    output = ablated.loss(ablated.forward(views), labels)
    output.loss.backward()
    assert output.sums["count"] == (16 if name in ("one-rotation", "shuffled-views") else 64)
    faithful = RotationTask.evaluate(ablated)
    assert ablated.evaluate() == faithful
    assert set(faithful) == {
        "loss",
        "rotation_accuracy",
        *(f"rotation_accuracy/{d}" for d in (0, 90, 180, 270)),
    }

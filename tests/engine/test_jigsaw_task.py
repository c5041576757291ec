"""Jigsaw puzzles are the tiles of an image in another order, and nothing else gives the order away."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from rotnet_fast.data.loader import Batch
from rotnet_fast.data.resident import ResidentLoader
from rotnet_fast.data.split import Split
from rotnet_fast.engine.jigsaw_task import ORDERS, JigsawTask, cropped, puzzles
from rotnet_fast.engine.schedule import Schedule
from rotnet_fast.models.nin import NetworkInNetwork

IMAGES = torch.randint(0, 256, (40, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
ROWS = torch.arange(40)
LABELS = torch.zeros(40, dtype=torch.int64)
LOADER = ResidentLoader(Split(IMAGES, LABELS), "cpu", 16, seed=0)
BATCH = Batch(IMAGES, ROWS, LABELS, ROWS + 1000, False, 40)
IDENTITY = torch.arange(4)


def task(epoch: int = 1, dtype: torch.dtype = torch.float32, **changes: Any) -> JigsawTask:
    settings: dict[str, Any] = {
        "rotations": (0,),
        "seed": 3,
        "pad": 4,
        "flip_prob": 0.5,
        "mean": (0.5,) * 3,
        "std": (0.25,) * 3,
        "dtype": dtype,
    }
    made = JigsawTask(NetworkInNetwork(24, width=0.05), Schedule(0.1), LOADER, **(settings | changes))
    made.begin_epoch(epoch)
    return made


def tiles(views: torch.Tensor) -> torch.Tensor:
    """[V,C,S,S] -> its quarters [V,4,C,S/2,S/2], from left to right and from top to bottom."""
    tile = views.shape[-1] // 2
    parts = views.unfold(2, tile, tile).unfold(3, tile, tile)  # [V,C,2,2,tile,tile]
    return parts.flatten(2, 3).transpose(1, 2)


def test_there_are_24_orders_of_which_the_first_is_that_of_the_image() -> None:
    assert len(set(ORDERS)) == 24
    assert ORDERS[0] == (0, 1, 2, 3)


def test_a_puzzle_has_the_tiles_of_the_image_in_the_order_of_its_label() -> None:
    of_task = task()
    views, labels = of_task.views(BATCH)
    assert views.shape == (160, 3, 32, 32)
    assert views.is_contiguous(memory_format=torch.channels_last)
    images = of_task.make_views(BATCH, of_task.flip_prob)[0].repeat_interleave(4, dim=0)
    top, left = of_task.draw_crops(BATCH.sample_ids, 16)
    unpermuted = tiles(puzzles(images, IDENTITY.expand(160, 4), top, left))
    for found, known, label in zip(tiles(views), unpermuted, labels.tolist(), strict=True):
        assert torch.equal(found, known[list(ORDERS[label])])


def test_a_tile_is_what_the_image_shows_there() -> None:
    images, _ = task().plain_views(BATCH)
    top, left = torch.tensor([[0, 1, 2, 2]]).expand(40, 4), torch.tensor([[2, 0, 1, 2]]).expand(40, 4)
    found = tiles(puzzles(images, IDENTITY.expand(40, 4), top, left))
    for tile, (row, column) in enumerate([(0, 2), (1, 16), (18, 1), (18, 18)]):
        part = images[:, :, row : row + 14, column : column + 14]
        deviation, mean = torch.std_mean(part, dim=(2, 3), keepdim=True, correction=0)
        shown = found[:, tile, :, 1:15, 1:15]
        torch.testing.assert_close(shown, (part - mean) / deviation, rtol=1e-3, atol=1e-4)


def test_all_orders_are_drawn_alike_and_four_different_ones_of_an_image() -> None:
    ids = torch.arange(6000)
    labels = task().draw_orders(ids, 3, 1).view(6000, 4)
    assert all(len(set(row)) == 4 for row in labels[:200].tolist())
    counts = labels.flatten().bincount(minlength=24)
    assert ((counts - 1000).abs() < 150).all()  # 1000 of each are expected, with a deviation of 29
    first = labels[:, 0].bincount(minlength=24)
    assert ((first - 250).abs() < 80).all()


def test_draws_depend_on_seed_epoch_and_sample_alone() -> None:
    views, labels = task().views(BATCH)
    again, same = task().views(BATCH)
    assert torch.equal(views, again)
    assert torch.equal(labels, same)
    for other in (task(epoch=2), task(seed=4)):
        assert not torch.equal(other.views(BATCH)[1], labels)
    part = replace(BATCH, indices=ROWS[10:20], sample_ids=ROWS[10:20] + 1000, labels=LABELS[10:20])
    some, of_some = task().views(part)
    assert torch.equal(of_some, labels[40:80])
    torch.testing.assert_close(some, views[40:80])


def test_every_crop_of_a_tile_is_drawn() -> None:
    top, left = task().draw_crops(torch.arange(500), 16)
    assert top.shape == left.shape == (2000, 4)
    for draws in (top, left):
        assert all(set(draws[:, tile].tolist()) == {0, 1, 2} for tile in range(4))
    assert not torch.equal(top, left)
    assert not torch.equal(top[:, 0], top[:, 1])


@pytest.mark.parametrize("is_training", [True, False])
def test_neither_brightness_nor_contrast_nor_edges_tell_a_tile(is_training: bool) -> None:
    # Bright above, colourful on the left, with more contrast below: without a normalisation, statistics of a
    # tile would tell where it belongs.
    ramp = torch.linspace(0, 1, 32)
    noise = IMAGES.float() / 255
    images = 0.2 + 0.4 * ramp[:, None, None] + 0.2 * noise * (0.2 + ramp[:, None, None])
    images[..., 0] += 0.2 * ramp
    made = (images * 255).to(torch.uint8)
    of_task = task(pad=0)
    batch = replace(BATCH, images=made)
    views, labels = of_task.views(batch) if is_training else of_task.plain_puzzles(batch)
    assert len(labels.unique()) > 20
    found = tiles(views)
    margins = found.clone()
    margins[..., 1:15, 1:15] = 0
    assert margins.abs().max() == 0  # no tile touches another, or an edge
    deviation, mean = torch.std_mean(found[..., 1:15, 1:15], dim=(3, 4), correction=0)
    assert mean.abs().max() < 1e-3
    assert (deviation - 1).abs().max() < 0.02


def test_no_border_marks_the_outer_edges_of_tiles() -> None:
    white = replace(BATCH, images=torch.full_like(IMAGES, 255))
    views, _ = task(pad=4).views(white)
    assert views.abs().max() < 1e-3  # black bars would remain after the normalisation of the tiles


def test_an_even_tile_has_no_contrast_rather_than_noise() -> None:
    images = torch.full((2, 3, 16, 16), 0.3)
    zero = torch.zeros(2, 4, dtype=torch.int64)
    assert puzzles(images, IDENTITY.expand(2, 4), zero, zero).abs().max() < 1e-3


@pytest.mark.parametrize(("tile", "inner"), [(16, 14), (8, 7), (112, 98), (4, 3), (2, 1)])
def test_seven_eighths_of_a_tile_are_shown_whatever_its_side(tile: int, inner: int) -> None:
    assert cropped(tile) == inner
    images = torch.rand(1, 1, 2 * tile, 2 * tile)
    zero = torch.zeros(1, 4, dtype=torch.int64)
    assert puzzles(images, IDENTITY[None], zero, zero).shape == images.shape


def test_views_have_the_dtype_of_the_training() -> None:
    exact, labels = task().views(BATCH)
    views, same = task(dtype=torch.bfloat16).views(BATCH)
    assert views.dtype == torch.bfloat16
    assert torch.equal(labels, same)
    assert torch.equal(views, exact.bfloat16())


def test_guessing_is_right_for_one_view_in_24_and_tests_are_always_the_same() -> None:
    of_task = task()
    of_task.module.eval()
    torch.nn.init.zeros_(of_task.module.classifier.weight)  # type: ignore[operator, union-attr, arg-type]
    loss = of_task.loss(of_task.forward(of_task.views(BATCH)[0]), of_task.views(BATCH)[1])
    assert loss.sums["count"] == 160
    found = [task(epoch=epoch, seed=epoch).plain_puzzles(BATCH) for epoch in (1, 2)]
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])
    torch.nn.init.zeros_(of_task.module.classifier.bias)  # type: ignore[operator, union-attr, arg-type]
    metrics = of_task.evaluate()
    assert metrics["loss"] == pytest.approx(torch.tensor(24.0).log().item(), abs=1e-5)
    share_of_order_0 = (task().plain_puzzles(BATCH)[1] == 0).float().mean().item()
    assert metrics["permutation_accuracy"] == pytest.approx(100 * share_of_order_0)

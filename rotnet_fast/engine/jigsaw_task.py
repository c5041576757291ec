"""Jigsaw puzzles of four tiles: tell in which order the quarters of an image were put together.

Source: after Noroozi and Favaro, "Unsupervised learning of visual representations by solving jigsaw
puzzles", ECCV 2016. Paper: nine tiles in some of their orders, each tile through a network of its own. Ours:
four tiles in all of their 24 orders, put together to one image, because RotNet's network and its cost then
stay as they are, and a ninth of an image of 32 pixels shows next to nothing.
"""

from __future__ import annotations

from itertools import permutations
from typing import Any

import torch
from torch.nn import functional

from rotnet_fast import philox
from rotnet_fast.data.loader import Batch
from rotnet_fast.engine.metrics import sum_type
from rotnet_fast.engine.pretext_task import PretextTask, cross_entropy
from rotnet_fast.engine.task import StepOutput
from rotnet_fast.pretext_tasks import PRETEXT_TASKS

ORDERS = tuple(permutations(range(4)))
"""Order k puts tile ``ORDERS[k][place]`` at each place; tiles and places count from left to right, then from
top to bottom. Order 0 is that of the image."""

EPSILON = 1e-5
"""Added to the variance of a tile, in squares of normalised pixels; 1/24 of one grey level squared."""

SHOWN = PRETEXT_TASKS["jigsaw"].views or 0
"""Orders of each image in a step: as many views as RotNet shows."""


class JigsawTask(PretextTask):
    """Classifies views of unlabelled images by the order of their quarters.

    Every image is flipped as RotNet's, and shown in 4 of the 24 orders, which are drawn at every visit.
    Nothing but what tiles show tells the order:

    - the image is not cropped within a black border, which would mark the outer edges of tiles;
    - each tile is cropped to 7/8 of its side at a position drawn for it, and put into an empty margin, so
      that lines do not go on from one tile to its true neighbour;
    - mean and standard deviation of each channel of a tile are removed, so that brightness and colours do
      not, either. The margin has the mean.

    The loss is the mean cross-entropy over the B*4 views.
    """

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.pad = 0
        self.dtype: torch.dtype = self.view_settings["dtype"]
        self.view_settings["dtype"] = torch.float32  # rounded once, after the normalisation of the tiles
        self.orders = torch.tensor(ORDERS, device=self.test_loader.device)  # [24,4]

    def views(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Make 4 puzzles of each image.

        Returns:
            Views [B*4,C,H,W], channels_last, and the numbers of their orders, int64 [B*4], image-major.
        """
        images = self.make_views(batch, self.flip_prob)[0].repeat_interleave(SHOWN, dim=0)  # [B*4,C,H,W]
        labels = self.draw_orders(batch.sample_ids, self.key[0], self.key[1])
        top, left = self.draw_crops(batch.sample_ids, images.shape[-1] // 2)
        return puzzles(images, self.orders[labels], top, left).to(self.dtype), labels

    def draw_orders(
        self, ids: torch.Tensor, seed: int | torch.Tensor, epoch: int | torch.Tensor
    ) -> torch.Tensor:
        """Draw 4 different orders of each image: int64 [B] -> int64 [B*4], values in [0, 24)."""
        of_orders = ids[:, None] * len(ORDERS) + torch.arange(len(ORDERS), device=ids.device)
        draws = philox.draw(of_orders.flatten(), seed, epoch, philox.PURPOSE_JIGSAW_ORDER)[0]
        return draws.view(of_orders.shape).argsort(dim=1, stable=True)[:, :SHOWN].flatten()

    def draw_crops(self, ids: torch.Tensor, tile: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw where each tile of each view is cropped.

        Args:
            ids: int64 [B].
            tile: side of a tile.

        Returns:
            Top and left of the crop in the tile, int64 [B*4,4].
        """
        of_tiles = ids[:, None] * (SHOWN * 4) + torch.arange(SHOWN * 4, device=ids.device)
        draws = philox.draw(of_tiles.flatten(), self.key[0], self.key[1], philox.PURPOSE_JIGSAW_CROP)
        places = tile - cropped(tile) + 1
        top, left = ((draw * places >> 32).view(-1, 4) for draw in draws[:2])
        return top, left

    def plain_puzzles(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """:meth:`views` of test images: not flipped, with tiles cropped at their centres.

        The 4 orders of an image are drawn, too, but are the same at every test of every training.
        """
        images = self.plain_views(batch)[0].repeat_interleave(SHOWN, dim=0)
        labels = self.draw_orders(batch.indices, 0, 0)
        tile = images.shape[-1] // 2
        centre = torch.full((len(labels), 4), (tile - cropped(tile)) // 2, device=labels.device)
        return puzzles(images, self.orders[labels], centre, centre).to(self.dtype), labels

    def forward(self, views: torch.Tensor) -> dict[str, torch.Tensor]:
        """[V,C,H,W] -> ``{"jigsaw": logits}``, fp32 [V,24]."""
        return {"jigsaw": self._train_forward(views).float()}

    def loss(self, logits: dict[str, torch.Tensor], labels: torch.Tensor) -> StepOutput:
        """See `rotnet_fast.engine.pretext_task.cross_entropy`."""
        return cross_entropy(logits["jigsaw"], labels, "permutation_accuracy")

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """``loss`` and ``permutation_accuracy`` in percent over 4 orders of each test image."""
        self.module.eval()
        device, number = self.test_loader.device, self.test_loader.epoch_size * SHOWN
        sums = torch.zeros(2, dtype=sum_type(device), device=device)
        for batch in self.test_loader.epoch(0):
            views, labels = self.plain_puzzles(batch)
            logits = self.module(views).float()
            sums[0] += functional.cross_entropy(logits, labels, reduction="sum")
            sums[1] += (logits.argmax(dim=1) == labels).sum()
        loss, correct = self.processes.sum(sums).tolist()
        return {"loss": loss / number, "permutation_accuracy": 100.0 * correct / number}

    def results(self, metrics: dict[str, float]) -> dict[str, Any]:
        """Permutation accuracy in percent, and the loss."""
        return {
            "permutation_accuracy": metrics["permutation_accuracy"],
            "permutation_loss": metrics["loss"],
        }


def cropped(tile: int) -> int:
    """Side of what is shown of a tile, in pixels: 14 of 16."""
    return 7 * tile // 8


def puzzles(
    images: torch.Tensor, orders: torch.Tensor, top: torch.Tensor, left: torch.Tensor
) -> torch.Tensor:
    """Put the quarters of images together in other orders.

    Args:
        images: fp32 [V,C,S,S], S even.
        orders: int64 [V,4]: which tile comes to each place.
        top, left: int64 [V,4]: where each tile, by its number in the image, is cropped.

    Returns:
        fp32 [V,C,S,S], channels_last. Each channel of a tile has mean 0 and standard deviation 1 (less where
        it is nearly flat, and 0 where all its pixels are equal), and its margin is 0.
    """
    views, channels, side, _ = images.shape
    tile = side // 2
    inner = cropped(tile)
    steps = torch.arange(inner, device=images.device)
    # First row and first column of what comes to each place: [V,4].
    rows = orders // 2 * tile + top.gather(1, orders)
    columns = orders % 2 * tile + left.gather(1, orders)
    pixels = (rows[..., None, None] + steps[:, None]) * side + columns[..., None, None] + steps  # [V,4,i,i]
    tiles = images.flatten(2).gather(2, pixels.flatten(1)[:, None].expand(-1, channels, -1))  # [V,C,4*i*i]
    tiles = tiles.view(views, channels * 4, inner, inner)
    variance, mean = torch.var_mean(tiles, dim=(2, 3), correction=0, keepdim=True)
    tiles = (tiles - mean) * (variance + EPSILON).rsqrt()
    before = (tile - inner) // 2
    after = tile - inner - before
    tiles = functional.pad(tiles, (before, after, before, after)).view(views, channels, 2, 2, tile, tile)
    together = tiles.permute(0, 1, 2, 4, 3, 5).reshape(views, channels, side, side)
    return together.contiguous(memory_format=torch.channels_last)

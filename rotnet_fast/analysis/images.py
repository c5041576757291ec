"""Images of an analysis, in memory or decoded as they are looked at."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from rotnet_fast.data.datasets import Dataset, take
from rotnet_fast.data.loader import Loader
from rotnet_fast.data.loaders import make_loader
from rotnet_fast.data.split import AnySplit, EncodedSplit


class EncodedImages:
    """Images of a folder as tests see them, of which no more than asked for are in memory.

    They stand for a tensor uint8 [N,H,W,C] where that is all that an analysis needs: its length and shape,
    some of its rows, and all of them in batches.

    Args:
        dataset: says how they are read.
        split: which.
        device: where they are needed.
        batch_size: images that are decoded at once.
    """

    def __init__(
        self, dataset: Dataset[AnySplit], split: EncodedSplit, device: torch.device, batch_size: int
    ) -> None:
        self.dataset = dataset
        self.split = split
        self.device = device
        self.batch_size = batch_size
        self.shape = (len(split), *split.image_shape)

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, rows: torch.Tensor) -> torch.Tensor:
        """Return some of the images: uint8 [S,H,W,C] for positions int64 [S]."""
        if len(rows) == 0:
            return torch.zeros((0, *self.shape[1:]), dtype=torch.uint8, device=self.device)
        once, places = rows.cpu().unique(return_inverse=True)
        batches = [batch.images.clone() for batch in self._loader(take(self.split, once)).epoch(0)]
        return torch.cat(batches)[places.to(self.device)]

    def batches(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield all images in order: positions int64 [B] and images uint8 [B,H,W,C], valid until the next."""
        for batch in self._loader(self.split).epoch(0):
            yield batch.indices, batch.images

    def _loader(self, split: EncodedSplit) -> Loader:
        return make_loader(
            self.dataset, split, self.device, self.batch_size, seed=0, is_test=True, shuffle=False
        )


Images = torch.Tensor | EncodedImages
"""uint8 [N,H,W,C]."""


@dataclass(frozen=True)
class LabelledImages:
    """Images on the device of a network, and their labels int64 [N], all 0 where there are no classes."""

    images: Images
    labels: torch.Tensor


def images_of(
    dataset: Dataset[AnySplit], split: AnySplit, device: torch.device, batch_size: int
) -> LabelledImages:
    """Take one half of a data set as tests see it."""
    images: Images
    if isinstance(split, EncodedSplit):
        images = EncodedImages(dataset, split, device, batch_size)
    else:
        images = split.images.to(device)
    return LabelledImages(images, split.labels.to(device))


def is_grey(images: Images, most: int = 64) -> bool:
    """Return whether all channels of the first so many images are alike, as in grey images stored as RGB."""
    some = images[torch.arange(min(most, len(images)), device=images.device)]  # [S,H,W,C]
    return bool((some == some[..., :1]).all())


def batches_of(images: Images, batch_size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield all images in order, in batches: positions int64 [B] and images uint8 [B,H,W,C].

    Args:
        batch_size: of images in memory; encoded ones have a size of their own.
    """
    if isinstance(images, EncodedImages):
        yield from images.batches()
        return
    for indices in torch.split(torch.arange(len(images), device=images.device), batch_size):
        yield indices, images[indices]

"""Interface of all loaders: batches that carry their images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch


@dataclass(frozen=True)
class Batch:
    """Hold one batch in the form that the fused op takes; all tensors are on the loader's device.

    Attributes:
        images: uint8 [N,H,W,C], the whole set, or uint8 [B,H,W,C], only this batch.
        indices: int64 [B], positions in the set.
        labels: int64 [B], the images' classes.
        sample_ids: int64 [B], virtual ids for the random draws (see
            :func:`rotnet_fast.data.sampling.epoch_order`).
        is_gathered: whether ``images`` contains only this batch.
        global_size: images in this step over all processes; B for a single process.
    """

    images: torch.Tensor
    indices: torch.Tensor
    labels: torch.Tensor
    sample_ids: torch.Tensor
    is_gathered: bool
    global_size: int

    def __len__(self) -> int:
        return len(self.indices)

    def copy(self) -> Batch:
        """Return a copy in its own memory, except for a store of images that all batches share."""
        images = self.images.clone() if self.is_gathered else self.images
        rows = (self.indices.clone(), self.labels.clone(), self.sample_ids.clone())
        return Batch(images, *rows, self.is_gathered, self.global_size)

    def take(self, other: Batch) -> None:
        """Overwrite this batch, which :meth:`copy` made, with another batch of the same size."""
        mine, theirs = (
            [self.indices, self.labels, self.sample_ids],
            [other.indices, other.labels, other.sample_ids],
        )
        torch._foreach_copy_(mine, theirs)  # one kernel for the three of them
        if self.is_gathered:
            self.images.copy_(other.images)

    @property
    def source(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return ``images`` and ``indices`` as `rotnet_fast.rotate_batch` takes them."""
        return self.images, None if self.is_gathered else self.indices


class Loader(Protocol):
    """Yield batches in an order that is a pure function of (seed, epoch).

    Attributes:
        device: device of the batches.
        batch_size: images per step over all processes; the last batch of an epoch may be smaller.
        seed: seed of the order.
        epoch_size: visits per epoch.
        labels: int64 [N], the classes of the whole set, on the device.
    """

    device: torch.device
    batch_size: int
    seed: int
    epoch_size: int
    labels: torch.Tensor

    def __len__(self) -> int:
        """Return the number of batches per epoch, including an incomplete last one."""
        ...

    def epoch(self, epoch: int, start_batch: int = 0) -> Iterator[Batch]:
        """Yield the batches of one epoch in order, starting with ``start_batch``.

        Raises:
            ValueError: start_batch is out of range (raised with the first batch).
        """
        ...

"""Loader that keeps the whole uint8 set on the device and yields index batches."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from rotnet_fast.data.loader import Batch
from rotnet_fast.data.sampling import WHOLE, BatchShare, Order
from rotnet_fast.data.split import Split


class ResidentLoader:
    """Yield index batches over a set that is copied to the device once.

    CIFAR-10 takes 154 MB, so neither workers nor transfers are needed: an epoch's order is made on the
    device, and a batch is three slices of it. The order is a pure function of (seed, epoch): a resumed run
    continues with exactly the batch that would have come next.

    Args:
        split: images uint8 [N,H,W,C] and labels int64 [N].
        device: device of images, labels and batches.
        batch_size: images per batch over all processes, at least 1; the last, incomplete batch of an epoch
            is kept.
        seed: seed of the order.
        epoch_size: visits per epoch, at least N; None means N. More than N revisits images, each time
            with another sample id and therefore another augmentation.
        shuffle: False keeps the order of the set.
        share: the share of every batch that this process yields.

    Attributes:
        images: uint8 [N,H,W,C] on the device.
        labels: int64 [N] on the device.

    Raises:
        ValueError: batch_size is below 1, the split is empty, or epoch_size is below N.
    """

    def __init__(
        self,
        split: Split,
        device: torch.device | str,
        batch_size: int,
        seed: int,
        epoch_size: int | None = None,
        shuffle: bool = True,
        share: BatchShare = WHOLE,
    ) -> None:
        self.order = Order(len(split.images), batch_size, seed, epoch_size, shuffle, share)
        self.device = torch.device(device)
        there = split.on(self.device)
        self.images, self.labels = there.images, there.labels
        self.batch_size = batch_size
        self.seed = seed
        self.epoch_size = self.order.visits

    def __len__(self) -> int:
        """Return the number of batches per epoch, including an incomplete last one."""
        return len(self.order)

    def epoch(self, epoch: int, start_batch: int = 0) -> Iterator[Batch]:
        """Yield the batches of one epoch in order.

        Args:
            epoch: number of the epoch; each has its own order.
            start_batch: first batch to yield, 0 .. len(self), to resume within an epoch.

        Raises:
            ValueError: start_batch is out of range (raised with the first batch).
        """
        parts = self.order.parts(start_batch)
        indices, sample_ids = self.order.epoch(epoch, self.device)
        labels = self.labels.index_select(0, indices)
        for part, size in parts:
            yield Batch(self.images, indices[part], labels[part], sample_ids[part], False, size)

"""A loader that keeps the whole uint8 set on the device and hands out index batches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from rotnet_fast.data.sampling import epoch_order
from rotnet_fast.data.split import Split


@dataclass(frozen=True)
class Batch:
    """One batch as the fused operator wants it: rows of the resident images, not pixels.

    Attributes:
        indices: int64 [B] on the device, rows of ``ResidentLoader.images``.
        labels: int64 [B] on the device, the images' classes.
        sample_ids: int64 [B] on the device, virtual ids for the random draws (see
            :func:`rotnet_fast.data.sampling.epoch_order`).
    """

    indices: torch.Tensor
    labels: torch.Tensor
    sample_ids: torch.Tensor


class ResidentLoader:
    """Index batches over a set that is copied to the device once.

    CIFAR-10 takes 154 MB, so that neither workers nor transfers are needed: an epoch's order is made
    on the device, and a batch is three slices of it. The order is a pure function of
    (seed, epoch): a resumed run continues with the very batch that would have come next.

    Args:
        split: images uint8 [N,H,W,C] and labels int64 [N].
        device: where images, labels and batches live.
        batch_size: images per batch, at least 1; the last, incomplete batch of an epoch is kept.
        seed: seed of the order.
        epoch_size: visits per epoch, at least N; None means N. More than N revisits images, each time
            with another sample id and so with another augmentation.
        shuffle: False keeps the set's own order.

    Attributes:
        images: uint8 [N,H,W,C] on the device.
        labels: int64 [N] on the device.

    Raises:
        ValueError: batch_size below 1, an empty split, or epoch_size below N.
    """

    def __init__(
        self,
        split: Split,
        device: torch.device | str,
        batch_size: int,
        seed: int,
        epoch_size: int | None = None,
        shuffle: bool = True,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; it must be at least 1")
        n = split.images.shape[0]
        if n == 0:
            raise ValueError("the split holds no images; a loader needs at least one")
        if epoch_size is not None and epoch_size < n:
            raise ValueError(f"epoch_size is {epoch_size}, less than the {n} images of the split")
        self.device = torch.device(device)
        self.images = split.images.to(self.device)
        self.labels = split.labels.to(self.device)
        self.batch_size = batch_size
        self.seed = seed
        self.epoch_size = n if epoch_size is None else epoch_size
        self.shuffle = shuffle

    def __len__(self) -> int:
        """Batches per epoch, the incomplete last one included."""
        return -(-self.epoch_size // self.batch_size)

    def epoch(self, epoch: int, start_batch: int = 0) -> Iterator[Batch]:
        """Batches of one epoch, in order.

        Args:
            epoch: number of the epoch; each has its own order.
            start_batch: first batch to give, 0 .. len(self); how a run resumes in mid-epoch.

        Raises:
            ValueError: start_batch out of range (when the first batch is asked for).
        """
        if not 0 <= start_batch <= len(self):
            raise ValueError(f"start_batch is {start_batch}; an epoch has batches 0 to {len(self) - 1}")
        n = self.images.shape[0]
        indices, sample_ids = epoch_order(n, self.epoch_size, self.seed, epoch, self.shuffle, self.device)
        labels = self.labels.index_select(0, indices)
        for start in range(start_batch * self.batch_size, self.epoch_size, self.batch_size):
            part = slice(start, start + self.batch_size)
            yield Batch(indices[part], labels[part], sample_ids[part])

"""Order of an epoch: a pure function of (seed, epoch), independent of the number of processes."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from rotnet_fast import philox


def epoch_order(
    n: int,
    epoch_size: int,
    seed: int,
    epoch: int,
    shuffle: bool = True,
    device: torch.device | str = "cpu",
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the order in which images are visited, and the ids that seed each visit's augmentation.

    An epoch is ``epoch_size`` visits with virtual ids v = 0 .. epoch_size - 1, and visit v shows image
    v mod n. So a small set is revisited as often as a large epoch needs (every image floor(epoch_size / n)
    times or once more), and each visit has its own id and therefore its own crop and flip.

    The visits are sorted by one 64-bit Philox draw per virtual id. The order depends on nothing else, so an
    exact resume needs no generator state, and the order is the same on every device.

    Args:
        n: images in the set, at least 1.
        epoch_size: visits per epoch, at least n.
        seed, epoch: key and counter of the draws, see `rotnet_fast.philox.draw`.
        shuffle: False keeps the virtual ids in ascending order.
        device: device of the result.

    Returns:
        ``(indices, sample_ids)``, both int64 [epoch_size]: images in [0, n) and virtual ids in
        [0, epoch_size), in the order of the visits.

    Raises:
        ValueError: n is below 1, or epoch_size is below n, so that some images would never be visited.
    """
    if n < 1:
        raise ValueError(f"n is {n}; an epoch needs at least one image")
    if epoch_size < n:
        raise ValueError(
            f"epoch_size is {epoch_size}; it must be at least {n}, the number of images, or some would never "
            f"be visited: limit the training images instead"
        )
    sample_ids = torch.arange(epoch_size, dtype=torch.int64, device=device)
    if shuffle:
        high, low, _, _ = philox.draw(sample_ids, seed, epoch, philox.PURPOSE_SHUFFLE)
        # The shift wraps into the sign bit: still one of 2**64 equally likely values, and the sort is
        # stable, so that even equal draws have a defined order.
        sample_ids = torch.argsort((high << 32) | low, stable=True)
    return sample_ids % n, sample_ids


@dataclass(frozen=True)
class BatchShare:
    """Define the batch share of this process, ``rank`` among ``world`` processes.

    Attributes:
        rank: number of the process, in [0, world).
        world: number of processes.
    """

    rank: int = 0
    world: int = 1

    def part(self, start: int, stop: int) -> slice:
        """Return this process's share of the batch of visits ``start`` .. ``stop - 1`` of an epoch.

        The shares of all ranks are disjoint, cover the batch in order and differ by at most one visit. If a
        batch has fewer visits than there are processes, some shares are empty.
        """
        size = stop - start
        first, last = (size * rank // self.world for rank in (self.rank, self.rank + 1))
        return slice(start + first, start + last)


WHOLE = BatchShare()
"""Share of a single process: the whole of every batch."""


@dataclass(frozen=True)
class Order:
    """Define which images the batches of an epoch show.

    Attributes:
        n: images in the set.
        batch_size: images per batch over all processes; the last, incomplete batch is kept.
        seed: seed of the order.
        epoch_size: visits per epoch, at least n; None means n. More than n revisits images, each time with
            another sample id and therefore another augmentation.
        shuffle: False keeps the order of the set.
        share: the share of every batch that this process takes.

    Raises:
        ValueError: batch_size is below 1, the set is empty, or epoch_size is below n.
    """

    n: int
    batch_size: int
    seed: int
    epoch_size: int | None = None
    shuffle: bool = True
    share: BatchShare = WHOLE

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size is {self.batch_size}; it must be at least 1")
        if self.n == 0:
            raise ValueError("the split holds no images; a loader needs at least one")
        if self.visits < self.n:
            raise ValueError(
                f"epoch_size is {self.epoch_size}; it must be at least {self.n}, the number of images"
            )

    @property
    def visits(self) -> int:
        """Return the number of visits per epoch over all processes."""
        return self.n if self.epoch_size is None else self.epoch_size

    def __len__(self) -> int:
        """Return the number of batches per epoch, including an incomplete last one."""
        return -(-self.visits // self.batch_size)

    def epoch(self, epoch: int, device: torch.device | str = "cpu") -> tuple[torch.Tensor, torch.Tensor]:
        """Return the image indices and sample ids of an epoch, see :func:`epoch_order`."""
        return epoch_order(self.n, self.visits, self.seed, epoch, self.shuffle, device)

    def parts(self, start_batch: int = 0) -> list[tuple[slice, int]]:
        """Return this process's share of each batch from ``start_batch`` on, and the size of the whole batch.

        Raises:
            ValueError: start_batch is not in 0 .. len(self).
        """
        if not 0 <= start_batch <= len(self):
            raise ValueError(f"start_batch is {start_batch}; it must lie in [0, {len(self)}]")
        found = []
        for start in range(start_batch * self.batch_size, self.visits, self.batch_size):
            stop = min(start + self.batch_size, self.visits)
            found.append((self.share.part(start, stop), stop - start))
        return found

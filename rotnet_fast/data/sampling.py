"""The order of an epoch: a pure function of (seed, epoch)."""

from __future__ import annotations

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
    """Which image to visit when, and the id that each visit's random augmentation depends on.

    An epoch is ``epoch_size`` visits with virtual ids v = 0 .. epoch_size - 1, and visit v shows image
    v mod n. So a small set is revisited as often as a large epoch asks for (every image
    floor(epoch_size / n) or one more times), and each visit, having its own id, gets its own crop and flip.

    The visits are sorted by one 64-bit Philox draw per virtual id. The order depends on nothing
    else: there is no generator state to save for an exact resume, and it is the same on every device.

    Args:
        n: images in the set, at least 1.
        epoch_size: visits per epoch, at least n.
        seed, epoch: key and counter of the draws, see :func:`rotnet_fast.philox.draw`.
        shuffle: False keeps the virtual ids in ascending order.
        device: where the result is made.

    Returns:
        ``(indices, sample_ids)``, both int64 [epoch_size]: images in [0, n) and virtual ids in
        [0, epoch_size), in the order of the visits.

    Raises:
        ValueError: n below 1, or epoch_size below n (some images would never be seen).
    """
    if n < 1:
        raise ValueError(f"n is {n}; an epoch needs at least one image")
    if epoch_size < n:
        raise ValueError(
            f"epoch_size is {epoch_size}, less than the {n} images of the set, so that some would never be "
            f"seen; limit the training images instead"
        )
    sample_ids = torch.arange(epoch_size, dtype=torch.int64, device=device)
    if shuffle:
        high, low, _, _ = philox.draw(sample_ids, seed, epoch, philox.PURPOSE_SHUFFLE)
        # The shift wraps into the sign bit: still one of 2**64 equally likely values, and the sort is
        # stable, so that even equal draws have a defined order.
        sample_ids = torch.argsort((high << 32) | low, stable=True)
    return sample_ids % n, sample_ids

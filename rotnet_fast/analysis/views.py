"""Views of images for an analysis, features of them, and which images to show."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from rotnet_fast.analysis.images import Images, batches_of
from rotnet_fast.engine.precision import Precision
from rotnet_fast.errors import ArgumentError
from rotnet_fast.models.network import FeatureNetwork
from rotnet_fast.ops import rotate_batch
from rotnet_fast.protocols.knn import frozen_features


@dataclass(frozen=True)
class PlainViews:
    """Makes views of whole sets of images, without crop and flip.

    Attributes:
        mean, std: per channel, for pixel values in [0, 1].
        precision: number format of views and forward passes.
        batch_size: images per forward pass.
    """

    mean: Sequence[float]
    std: Sequence[float]
    precision: Precision
    batch_size: int = 128

    def rotated(
        self, images: Images, rotations: Sequence[int]
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield each image under all rotations, batch after batch, in the order of the images.

        Args:
            images: uint8 [N,H,W,C].
            rotations: K degrees counter-clockwise.

        Yields:
            ``(indices, views)``: which images, int64 [B], and [B*K,C,H,W], image-major.
        """
        for indices, batch in batches_of(images, self.batch_size):
            views, _ = rotate_batch(
                batch,
                rotations=rotations,
                pad=0,
                flip_prob=0.0,
                mean=self.mean,
                std=self.std,
                dtype=self.precision.dtype,
            )
            yield indices, views

    def plain(self, images: Images) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield the images as they are: ``(indices, views)``, int64 [B] and [B,C,H,W]."""
        return self.rotated(images, (0,))


def pooled(network: FeatureNetwork, images: Images, layer: str, views: PlainViews) -> torch.Tensor:
    """Compute a layer's global-average-pooled feature maps, in eval mode: fp32 [N,C_layer]."""
    network.eval()
    with views.precision.autocast():
        return frozen_features(network, views.plain(images), len(images), [layer])[layer]


def thumbnails(images: Images, indices: Sequence[int]) -> NDArray[np.uint8]:
    """Return some of the images: uint8 [S,H,W,C].

    Args:
        images: uint8 [N,H,W,C].
        indices: S positions in [0, N).

    Raises:
        ArgumentError: a position outside the images.
    """
    for index in indices:
        if not 0 <= index < len(images):
            raise ArgumentError(f"image {index} cannot be shown; there are {len(images)}, counted from 0")
    chosen = torch.tensor(list(indices), dtype=torch.int64, device=images.device)
    array: NDArray[np.uint8] = images[chosen].cpu().numpy()
    return array


def rotated_thumbnails(images: Images, indices: Sequence[int], rotations: Sequence[int]) -> NDArray[np.uint8]:
    """Return some of the images under all rotations, as the network sees them: uint8 [S,K,H,W,C]."""
    chosen = torch.from_numpy(thumbnails(images, indices))
    count, height, width, channels = chosen.shape
    if count == 0:
        return np.zeros((0, len(rotations), height, width, channels), np.uint8)
    views, _ = rotate_batch(
        chosen, rotations=rotations, pad=0, flip_prob=0.0, mean=[0.0] * channels, std=[1.0] * channels
    )
    levels = (255.0 * views).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
    array: NDArray[np.uint8] = levels.reshape(count, len(rotations), height, width, channels).numpy()
    return array


def one_of_each_class(labels: torch.Tensor, count: int, seed: int) -> list[int]:
    """Choose images to show at random, of as many different classes as possible.

    Args:
        labels: int64 [N].
        count: how many; all of them where there are fewer.
        seed: decides which.

    Returns:
        Positions, class after class in turn.
    """
    order = np.random.default_rng(seed).permutation(len(labels))
    seen: dict[int, int] = {}
    ranked = []
    for position, label in zip(order.tolist(), labels.cpu().numpy()[order].tolist(), strict=True):
        ranked.append((seen.get(label, 0), label, position))
        seen[label] = seen.get(label, 0) + 1
    if count < len(seen):  # random classes, too, not the first ones
        rank_of_class = {label: rank for rank, label in enumerate(seen)}
        ranked = [(rank, rank_of_class[label], position) for rank, label, position in ranked]
    return [position for _, _, position in sorted(ranked)[:count]]

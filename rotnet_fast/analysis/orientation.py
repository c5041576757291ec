"""How far an image is turned from upright, and how often a rotation network errs at which confidence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from rotnet_fast.backbone import Backbone
from rotnet_fast.ops import rotate_batch
from rotnet_fast.rotations import FOUR_ROTATIONS
from rotnet_fast.verdict import wilson

THRESHOLDS = (0.0, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999)
"""Confidences at which the error is listed; at the first, every image is decided on."""

TOLERATED = 0.01
"""Largest share of wrong decisions at a threshold that is advised."""

COPIES = 4
"""Turned copies of each image that the error is measured on."""


def orientation_probabilities(backbone: Backbone, images: torch.Tensor, is_averaged: bool) -> torch.Tensor:
    """Return the probability that an image is turned by q quarter turns counter-clockwise.

    The network sees the image as it is, or in all four positions: then the probabilities are the means of
    what it says of them. Turning an image then permutes its probabilities and does not change them, which is
    not so with one position, and takes four forward passes instead of one.

    Args:
        backbone: a network for the four multiples of 90 degrees, in any order.
        images: uint8 [B,H,W,3], H = W.
        is_averaged: use all four positions.

    Returns:
        float64 [B,4] on the CPU.
    """
    order = [[angle % 360 for angle in backbone.rotations].index(angle) for angle in FOUR_ROTATIONS]
    positions = 4 if is_averaged else 1
    with torch.inference_mode():
        views, _ = rotate_batch(  # [B*positions,3,H,W]
            images.to(next(backbone.parameters()).device),
            rotations=FOUR_ROTATIONS[:positions],
            pad=0,
            flip_prob=0.0,
            mean=backbone.mean,
            std=backbone.std,
        )
        logits: torch.Tensor = backbone.network(views)[:, order].cpu().double()
    found = logits.softmax(dim=1).view(len(images), positions, 4)
    # Position k of an image turned by q quarter turns is turned by q + k.
    of_image = torch.stack([found[:, k].roll(-k, dims=1) for k in range(positions)], dim=1)
    # Sorted, so that rounding does not depend on the position.
    return of_image.sort(dim=1).values.mean(dim=1)


@dataclass(frozen=True)
class Point:
    """What a confidence threshold leads to.

    Attributes:
        min_confidence: the threshold.
        decided, wrong: number of images whose confidence reaches it, and of wrong decisions among them.
        judged: number of all images, of which turned copies count each.
    """

    min_confidence: float
    decided: int
    wrong: int
    judged: int

    @property
    def coverage(self) -> float:
        """Return the share of images that are decided on."""
        return self.decided / self.judged

    @property
    def error(self) -> float:
        """Return the share of wrong decisions; 0 if there are no decisions."""
        return self.wrong / max(self.decided, 1)

    @property
    def error_bound(self) -> float:
        """Return the upper end of the 95 % interval of the error, in percent.

        It is that of so many images: what the network says of the turned copies of one depends on each other.
        """
        return wilson(100 * self.error, max(self.decided // COPIES, 1))[1]


def coverage_points(
    confidences: torch.Tensor, is_right: torch.Tensor, thresholds: Sequence[float] = THRESHOLDS
) -> list[Point]:
    """Count decisions and errors at each threshold, in the order of the thresholds.

    Args:
        confidences: float64 [N], largest probability of each copy.
        is_right: bool [N], whether it is that of the true orientation.
    """
    found = []
    for threshold in thresholds:
        is_decided = confidences >= threshold
        counts = (int(is_decided.sum()), int((is_decided & ~is_right).sum()), len(confidences))
        found.append(Point(threshold, *counts))
    return found


def advised(points: Sequence[Point]) -> Point | None:
    """Return the lowest threshold at which at most ``TOLERATED`` of the decisions are wrong, or None."""
    good = [point for point in points if point.decided and point.error <= TOLERATED]
    return min(good, key=lambda point: point.min_confidence, default=None)


def as_text(points: Sequence[Point]) -> str:
    """Format as a table to print, with shares in percent."""
    lines = ["min-confidence  coverage, %  error, %  wrong / decided"]
    for point in points:
        counts = f"{point.wrong:,} / {point.decided:,}"
        shares = f"{100 * point.coverage:11.1f}  {100 * point.error:8.2f}"
        lines.append(f"{point.min_confidence:14g}  {shares}  {counts:>15}")
    return "\n".join(lines)

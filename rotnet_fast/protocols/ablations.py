"""Deviations from the protocol, made on purpose: how much each costs.

Switches of the study alone, which no command offers for a training that is meant to be good. Source:
bugs of public re-implementations, and other readings of the paper.
"""

from __future__ import annotations

import torch
from torch.nn import functional

from rotnet_fast import philox
from rotnet_fast.data.loader import Batch
from rotnet_fast.engine.rotation_task import RotationTask


class FlipAfterRotation(RotationTask):
    """Flips each view left-right after the rotation instead of each image before it.

    With the probability of the faithful run, or 0.5 where that flips nothing.

    A mirrored view at 90 degrees is the view at 270 degrees of the mirrored image: the two classes
    cannot be told apart, and a perfect network would be right three times out of four.
    """

    def views(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """As `RotationTask.views`, with the flip in the wrong place."""
        views, labels = self.make_views(batch, flip_prob=0.0)
        turned = len(self.rotations)
        view_ids = batch.sample_ids.repeat_interleave(turned) * turned + labels
        draw = philox.draw(view_ids, self.key[0], self.key[1], philox.PURPOSE_ABLATION)[0]
        flip = draw < int((self.flip_prob or 0.5) * 2.0**32)
        views = torch.where(flip[:, None, None, None], views.flip(3), views)
        return views.contiguous(memory_format=torch.channels_last), labels


class OneRotation(RotationTask):
    """Shows one random rotation of each image instead of all K: views [B,C,H,W], labels [B]."""

    def views(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """As `RotationTask.views`, one view per image."""
        views, labels = self.make_views(batch, self.flip_prob)
        turned = len(self.rotations)
        draw = philox.draw(batch.sample_ids, self.key[0], self.key[1], philox.PURPOSE_ABLATION)[0]
        chosen = torch.arange(len(batch), device=views.device) * turned + (draw * turned >> 32)
        return views[chosen].contiguous(memory_format=torch.channels_last), labels[chosen]


class ShuffledViews(RotationTask):
    """Shuffles all (image, rotation) pairs one by one: a batch has as many views, each of another image.

    It is what a data set K times as large would give whose samples are single views. An epoch shows every
    pair once, in as many steps as the faithful run. Every view has a crop and a flip of its own.
    """

    shows_views_apart = True

    def views(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """As `RotationTask.views`, one view per visit: visit v shows image v mod N under rotation v div N."""
        assert not batch.is_gathered, "studies keep all images in memory"
        views, _ = self.make_views(batch, self.flip_prob)
        labels = batch.sample_ids // len(batch.images)
        chosen = torch.arange(len(batch), device=views.device) * len(self.rotations) + labels
        return views[chosen].contiguous(memory_format=torch.channels_last), labels


class TurnedImages(RotationTask):
    """Trains on images that are not upright: each was turned once and for all by a random quarter turn.

    The network sees the very views of the faithful run, but the rotation that it has to name is relative to
    how its image lies. Nothing in an image tells that.
    """

    def views(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """As `RotationTask.views`, with the labels of an image rotated among its views."""
        views, labels = super().views(batch)
        turned = len(self.rotations)
        draw = philox.draw(batch.indices, self.key[0], 0, philox.PURPOSE_ABLATION)[0]
        lies = draw * turned >> 32  # of the same image in every epoch
        return views, (labels - lies.repeat_interleave(turned)) % turned


class _GivenAway(RotationTask):
    """Shows views that give the rotation away by something that is not in the image, in training and test."""

    def views(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """As `RotationTask.views`, with the artefact."""
        return self._with_artefact(*super().views(batch))

    def plain_views(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """As `RotationTask.plain_views`, with the artefact."""
        return self._with_artefact(*super().plain_views(batch))

    def _with_artefact(self, views: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        raise NotImplementedError


class BlackCorners(_GivenAway):
    """Leaves the corners black that a rotation by an odd multiple of 45 degrees leaves empty.

    Faithful: all views show the central square, over a mirrored border.
    """

    def _with_artefact(self, views: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        side = views.shape[-1]
        # A rotated square covers the points whose distances from the centre along both diagonals are small.
        place = torch.arange(side, device=views.device) - (side - 1) / 2
        along, across = place[:, None] + place, place[:, None] - place
        outside = torch.maximum(along.abs(), across.abs()) > 0.5 * 2**0.5 * side
        degrees = torch.tensor(self.rotations, device=views.device)[labels]
        is_empty = outside & (degrees % 90 != 0)[:, None, None, None]
        levels = zip(self.view_settings["mean"], self.view_settings["std"], strict=True)
        black = torch.tensor([-mean / std for mean, std in levels], dtype=views.dtype, device=views.device)
        return torch.where(is_empty, black[:, None, None], views), labels


class ResizedClass(_GivenAway):
    """Blurs the views of the second rotation, as if they alone had been resized.

    Faithful: no view is resampled, or all are alike.
    """

    def _with_artefact(self, views: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        side = views.shape[-1]
        smaller = functional.interpolate(views.float(), size=3 * side // 4, mode="bilinear", antialias=True)
        resized = functional.interpolate(smaller, size=side, mode="bilinear").to(views.dtype)
        return torch.where((labels == 1)[:, None, None, None], resized, views), labels


PRETEXT_ABLATIONS: dict[str, type[RotationTask]] = {
    "flip-after-rotation": FlipAfterRotation,
    "one-rotation": OneRotation,
    "shuffled-views": ShuffledViews,
    "turned-images": TurnedImages,
    "black-corners": BlackCorners,
    "resized-class": ResizedClass,
    "lr-halved": RotationTask,
}
"""Name in a study -> task to pretrain with. ``lr-halved`` is a matter of the schedule alone."""

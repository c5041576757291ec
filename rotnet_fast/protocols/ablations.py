"""Deviations from the protocol, made on purpose: how much each costs.

Switches of the study alone, which no command offers for a training that is meant to be good. Source:
bugs of public re-implementations, and other readings of the paper.
"""

from __future__ import annotations

import torch

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


PRETEXT_ABLATIONS: dict[str, type[RotationTask]] = {
    "": RotationTask,
    "flip-after-rotation": FlipAfterRotation,
    "one-rotation": OneRotation,
    "shuffled-views": ShuffledViews,
    "lr-halved": RotationTask,
}
"""Name in a study -> task to pretrain with. ``lr-halved`` is a matter of the schedule alone."""

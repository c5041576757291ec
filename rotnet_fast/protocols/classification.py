"""Object classification as a task of the training loop: what every trained protocol shares."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from rotnet_fast.data.loader import Batch, Loader
from rotnet_fast.engine.task import ParameterGroup, StepOutput
from rotnet_fast.ops import rotate_batch
from rotnet_fast.protocols.result import Outcome


class ObjectViews:
    """Normalised views of a labelled data set: augmented for training, plain for testing.

    Buffers are reused: views are valid until the next call with as many images.

    Args:
        loader: labelled training images; its seed drives the augmentation.
        test_loader: all test images once, in pseudo-random order: a network that normalises with the
            statistics of its batch must not see one class at a time, which the file order of class folders
            would give it.
        mean, std: statistics per channel.
        dtype: type of the views.
        pad, flip_prob: augmentation of training images, see :func:`rotnet_fast.rotate_batch`.
    """

    def __init__(
        self,
        loader: Loader,
        test_loader: Loader,
        mean: Sequence[float],
        std: Sequence[float],
        dtype: torch.dtype,
        pad: int,
        flip_prob: float,
    ) -> None:
        self.loader = loader
        self.test_loader = test_loader
        self.pad = pad
        self.flip_prob = flip_prob
        self.key = torch.tensor([loader.seed, 0], device=loader.device)  # (seed, epoch), where steps read it
        self._settings: dict[str, Any] = {"rotations": (0,), "mean": mean, "std": std, "dtype": dtype}
        self._buffers: dict[int, torch.Tensor] = {}

    def begin_epoch(self, epoch: int) -> None:
        """Draw the augmentation of this epoch from now on."""
        self.key[1] = epoch

    def augmented(self, batch: Batch) -> torch.Tensor:
        """Return cropped and flipped images: [B,C,H,W], channels_last."""
        return self._views(
            batch,
            sample_ids=batch.sample_ids,
            seed=self.key,
            pad=self.pad,
            flip_prob=self.flip_prob,
        )

    def plain(self, loader: Loader) -> Iterator[tuple[Batch, torch.Tensor]]:
        """Yield the batches of epoch 0, each with its normalised, otherwise unchanged images [B,C,H,W]."""
        for batch in loader.epoch(0):
            yield batch, self._views(batch, pad=0, flip_prob=0.0)

    def _views(self, batch: Batch, **settings: Any) -> torch.Tensor:
        images, indices = batch.source
        views, _ = rotate_batch(
            images, indices, out=self._buffers.get(len(batch)), **settings, **self._settings
        )
        self._buffers[len(batch)] = views
        return views


class ObjectClassification:
    """One or several classifiers of object images that train on the same batches.

    Their losses are added up. Classifiers that share no trainable parameter get the very gradients
    that they would get alone, so that each trains as if it were the only one. Two things they do share:
    in fp16 the loss scaler, which skips a step of all where the gradients of one overflow, and the end of
    the run at a non-finite loss.

    Args:
        module: everything with state, on the device of the views.
        classify: views [B,C,H,W] -> name of each classifier -> its logits [B,classes].
        groups: trainable parameters.
        views: training and test images.
    """

    def __init__(
        self,
        module: nn.Module,
        classify: Callable[[torch.Tensor], dict[str, torch.Tensor]],
        groups: list[ParameterGroup],
        views: ObjectViews,
    ) -> None:
        self.module = module
        self.classify = classify
        self.groups = groups
        self.source = views
        self._outcomes: dict[str, Outcome] | None = None

    def parameter_groups(self) -> list[ParameterGroup]:
        """Return one group per classifier."""
        return self.groups

    def begin_epoch(self, epoch: int) -> None:
        """Set train mode, and the draws of this epoch; frozen parts stay in eval mode by themselves."""
        self.module.train()
        self.source.begin_epoch(epoch)
        self._outcomes = None

    def views(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Augmented images [B,C,H,W], channels_last, and their classes int64 [B]."""
        return self.source.augmented(batch), batch.labels

    def forward(self, views: torch.Tensor) -> dict[str, torch.Tensor]:
        """[B,C,H,W] -> name of each classifier -> logits [B,classes]."""
        return self.classify(views)

    def loss(self, logits: dict[str, torch.Tensor], labels: torch.Tensor) -> StepOutput:
        """Summed mean cross-entropy of all classifiers, and the metric sums."""
        count = torch.full((), len(labels), device=labels.device)
        losses = []
        sums = {"count": count}
        for name, values in logits.items():
            losses.append(functional.cross_entropy(values.float(), labels))
            sums[f"{name}_accuracy"] = (values.argmax(dim=1) == labels).sum()
        loss = torch.stack(losses).sum()
        sums["loss"] = loss.detach() * count
        return StepOutput(loss, sums)

    def evaluate(self) -> dict[str, float]:
        """Return ``{name}_accuracy`` of each classifier, in percent, on the plain test images."""
        self._outcomes = None
        return {f"{name}_accuracy": outcome.accuracy for name, outcome in self.outcomes().items()}

    def pictures(self) -> dict[str, NDArray[np.uint8]]:
        """Return nothing: there is no picture of these classifiers."""
        return {}

    @torch.no_grad()
    def outcomes(self) -> dict[str, Outcome]:
        """Return what each classifier says of the plain test images, in eval mode."""
        if self._outcomes is None:
            self.module.eval()
            labels = self.source.test_loader.labels
            predicted: dict[str, torch.Tensor] = {}
            classes: dict[str, int] = {}
            for batch, views in self.source.plain(self.source.test_loader):
                for name, logits in self.forward(views).items():
                    classes[name] = logits.shape[1]
                    predicted.setdefault(name, torch.empty_like(labels))[batch.indices] = logits.argmax(dim=1)
            self._outcomes = {
                name: outcome_of(labels, values, classes[name]) for name, values in predicted.items()
            }
        return self._outcomes


def outcome_of(labels: torch.Tensor, predicted: torch.Tensor, num_classes: int) -> Outcome:
    """Compare predicted classes with the true ones, int64 [N] each, in the order of the data set."""
    is_correct = (labels == predicted).cpu().numpy()
    return Outcome(confusion_matrix(labels, predicted, num_classes), is_correct)


def confusion_matrix(labels: torch.Tensor, predicted: torch.Tensor, num_classes: int) -> list[list[int]]:
    """Count the images of each true class (row) and predicted class (column), from int64 [N] each."""
    counts = torch.bincount(labels * num_classes + predicted, minlength=num_classes**2)
    matrix: list[list[int]] = counts.view(num_classes, num_classes).tolist()
    return matrix

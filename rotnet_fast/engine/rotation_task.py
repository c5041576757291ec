"""RotNet's pretext task: recognize by how many degrees an image was rotated."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from rotnet_fast.data.loader import Batch
from rotnet_fast.engine.metrics import sum_type
from rotnet_fast.engine.predictions import draw_predictions
from rotnet_fast.engine.pretext_task import PretextTask, cross_entropy
from rotnet_fast.engine.task import StepOutput

EXAMPLES = 6
"""Number of test images whose views and predictions a picture shows."""


class RotationTask(PretextTask):
    """Classifies rotated views of unlabelled images.

    All K views of the B images of a batch go through one forward pass. The loss is the mean cross-entropy
    over the B*K views.

    Args:
        module: network with K outputs; output k stands for ``rotations[k]``.
        rotations: K whole degrees, counter-clockwise.

    Other arguments are those of `PretextTask`.

    Source: Gidaris et al., ICLR 2018, section 3.
    """

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self._examples: list[tuple[torch.Tensor, torch.Tensor]] = []

    def views(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Make all K augmented views of each image with the fused op.

        Returns:
            Views [B*K,C,H,W], channels_last, in a buffer that the next call overwrites; labels int64 [B*K],
            image-major: view n*K + k is image n under rotation k.
        """
        return self.make_views(batch, self.flip_prob)

    def forward(self, views: torch.Tensor) -> dict[str, torch.Tensor]:
        """[V,C,H,W] -> ``{"rotation": logits}``, fp32 [V,K]."""
        return {"rotation": self._train_forward(views).float()}

    def loss(self, logits: dict[str, torch.Tensor], labels: torch.Tensor) -> StepOutput:
        """See `rotnet_fast.engine.pretext_task.cross_entropy`."""
        return cross_entropy(logits["rotation"], labels, "rotation_accuracy")

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Loss and rotation accuracy over all K views of each test image, without augmentation.

        Returns:
            ``loss``, the mean cross-entropy; ``rotation_accuracy`` in percent, and
            ``rotation_accuracy/<degrees>`` for the views of each rotation.
        """
        self.module.eval()
        number, rotations = self.test_loader.epoch_size, len(self.rotations)
        # The loss first, then how many views of each rotation are right; float64 keeps counts exact.
        device = self.test_loader.device
        sums = torch.zeros(1 + rotations, dtype=sum_type(device), device=device)
        self._examples = []
        for place, batch in enumerate(self.test_loader.epoch(0)):
            views, labels = self.plain_views(batch)
            logits = self.module(views).float()
            sums[0] += functional.cross_entropy(logits, labels, reduction="sum")
            hits = logits.argmax(dim=1) == labels
            sums[1:] += hits.view(-1, rotations).sum(dim=0)  # views are image-major
            self._keep_examples(place, views, logits)
        loss, *correct = self.processes.sum(sums).tolist()
        percent = [100.0 * count / number for count in correct]
        metrics = {"loss": loss / (number * rotations), "rotation_accuracy": sum(percent) / rotations}
        for degrees, value in zip(self.rotations, percent, strict=True):
            metrics[f"rotation_accuracy/{degrees}"] = value
        return metrics

    def results(self, metrics: dict[str, float]) -> dict[str, Any]:
        """Rotation accuracy in percent, over all views and by degrees, and the loss."""
        return {
            "rotation_accuracy": metrics["rotation_accuracy"],
            "rotation_loss": metrics["loss"],
            "rotation_accuracy_by_degrees": {
                degrees: metrics[f"rotation_accuracy/{degrees}"] for degrees in self.rotations
            },
        }

    def _keep_examples(self, place: int, views: torch.Tensor, logits: torch.Tensor) -> None:
        """Keep the views and logits of a few images, spread over the test images, without a further pass.

        Args:
            place: number of the batch.
            views, logits: [B*K,C,H,W] and fp32 [B*K,K].
        """
        rotations, batches = len(self.rotations), len(self.test_loader)
        images = len(views) // rotations
        wanted = min(images, sum(number * batches // EXAMPLES == place for number in range(EXAMPLES)))
        for row in (number * images // wanted for number in range(wanted)):
            part = slice(row * rotations, (row + 1) * rotations)
            self._examples.append((views[part].clone(), logits[part].clone()))

    def pictures(self) -> dict[str, NDArray[np.uint8]]:
        """``predictions``: a few test images in their rotations, with what the last evaluation predicted."""
        if not self._examples:
            return {}
        views, logits = (torch.stack(parts) for parts in zip(*self._examples, strict=True))
        std, mean = (
            torch.tensor(self.view_settings[name], device=views.device).view(-1, 1, 1)
            for name in ("std", "mean")
        )
        pixels = (255 * (views.float() * std + mean)).round().clamp(0, 255).to(torch.uint8)  # [S,K,C,H,W]
        probabilities = logits.softmax(dim=2).cpu().numpy()
        return {
            "predictions": draw_predictions(
                pixels.permute(0, 1, 3, 4, 2).cpu().numpy(), probabilities, self.rotations
            )
        }

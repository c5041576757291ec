"""RotNet's pretext task: recognize by how many degrees an image was rotated."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from rotnet_fast.data.loader import Batch, Loader
from rotnet_fast.engine.compiled import compile_forward
from rotnet_fast.engine.distributed import ALONE, Processes
from rotnet_fast.engine.metrics import sum_type
from rotnet_fast.engine.predictions import draw_predictions
from rotnet_fast.engine.schedule import Schedule
from rotnet_fast.engine.task import ParameterGroup, StepOutput, parameter_groups
from rotnet_fast.ops import rotate_batch

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

EXAMPLES = 6
"""Number of test images whose views and predictions a picture shows."""


class UnlessEmpty(nn.Module):
    """Runs a compiled network, except on empty batches, which compiled convolutions cannot take.

    Args:
        plain: the network.
        compiled: the same network, compiled.
    """

    def __init__(self, plain: nn.Module, compiled: nn.Module) -> None:
        super().__init__()
        self.plain = plain
        self.compiled = compiled

    def forward(self, views: torch.Tensor) -> torch.Tensor:
        """[V,C,H,W] -> the network's output."""
        network = self.compiled if len(views) > 0 else self.plain
        logits: torch.Tensor = network(views)
        return logits


class RotationTask:
    """Classifies rotated views of unlabelled images.

    All K views of the B images of a batch go through one forward pass. The loss is the mean cross-entropy
    over the B*K views.

    Args:
        module: network with K outputs, on the device of the images.
        schedule: learning rate of all parameters that ``muon`` does not cover.
        test_loader: yields all test images once, on the device.
        rotations: K whole degrees, counter-clockwise; output k stands for ``rotations[k]``.
        seed: seed of the augmentation.
        pad, flip_prob: augmentation of training images, see :func:`rotnet_fast.rotate_batch`.
        mean, std: normalisation per channel.
        dtype: dtype of the views.
        compile: ``none``, ``default`` or ``max``, see `PretrainConfig`; only training steps are compiled.
        is_compile_optional: whether training continues where compiling fails.
        processes: the processes that share the batches of training and testing.
        group: process group of their devices; every training step averages the gradients over it.
        muon: learning rate of the filters of convolutions, which then follow Muon; None trains everything
            with SGD.

    Source: Gidaris et al., ICLR 2018, section 3.
    """

    shows_views_apart: ClassVar[bool] = False
    """Whether a visit to an image shows one of its views, so that an epoch visits it K times."""

    def __init__(
        self,
        module: nn.Module,
        schedule: Schedule,
        test_loader: Loader,
        *,
        rotations: Sequence[int],
        seed: int,
        pad: int,
        flip_prob: float,
        mean: Sequence[float],
        std: Sequence[float],
        dtype: torch.dtype,
        compile: str = "none",
        is_compile_optional: bool = False,
        processes: Processes = ALONE,
        group: ProcessGroup | None = None,
        muon: Schedule | None = None,
    ) -> None:
        self.module = module
        self.schedule = schedule
        self.muon = muon
        self.test_loader = test_loader
        self.rotations = tuple(rotations)
        self.key = torch.tensor([seed, 0], device=test_loader.device)  # (seed, epoch), where steps read it
        self.pad = pad
        self.flip_prob = flip_prob
        self.view_settings: dict[str, Any] = {
            "rotations": self.rotations,
            "mean": mean,
            "std": std,
            "dtype": dtype,
        }
        self._train_forward: Any = module
        self.compile = compile
        if compile != "none":
            self._train_forward = compile_forward(module, compile, is_compile_optional)
        if group is not None:
            forward = module if compile == "none" else UnlessEmpty(module, self._train_forward)
            parallel = DistributedDataParallel(forward, process_group=group)
            # With local BatchNorm, rank 0's running averages are copied where they are used, not at every
            # step. Set here, because the argument has another name in later versions of torch.
            parallel.broadcast_buffers = False
            self._train_forward = parallel
        self.processes = processes
        self._buffers: dict[int, torch.Tensor] = {}
        self._examples: list[tuple[torch.Tensor, torch.Tensor]] = []

    def parameter_groups(self) -> list[ParameterGroup]:
        """All parameters in one group, or the filters in one of their own."""
        return parameter_groups("network", list(self.module.parameters()), self.schedule, self.muon)

    def begin_epoch(self, epoch: int) -> None:
        """Switch to train mode, where BatchNorm uses batch statistics, and to this epoch's draws."""
        self.module.train()
        self.key[1] = epoch

    def views(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Make all K augmented views of each image with the fused op.

        Returns:
            Views [B*K,C,H,W], channels_last, in a buffer that the next call overwrites; labels int64 [B*K],
            image-major: view n*K + k is image n under rotation k.
        """
        return self.make_views(batch, self.flip_prob)

    def make_views(self, batch: Batch, flip_prob: float) -> tuple[torch.Tensor, torch.Tensor]:
        """:meth:`views` with another probability of the flip before the rotations."""
        views, labels = rotate_batch(
            *batch.source,
            sample_ids=batch.sample_ids,
            seed=self.key,
            pad=self.pad,
            flip_prob=flip_prob,
            out=self._buffers.get(len(batch)),
            **self.view_settings,
        )
        self._buffers[len(batch)] = views
        return views, labels

    def plain_views(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """:meth:`views` of test images, which are neither cropped nor flipped."""
        views, labels = rotate_batch(
            *batch.source, pad=0, flip_prob=0.0, out=self._buffers.get(len(batch)), **self.view_settings
        )
        self._buffers[len(batch)] = views
        return views, labels

    def forward(self, views: torch.Tensor) -> dict[str, torch.Tensor]:
        """[V,C,H,W] -> ``{"rotation": logits}``, fp32 [V,K]."""
        return {"rotation": self._train_forward(views).float()}

    def loss(self, logits: dict[str, torch.Tensor], labels: torch.Tensor) -> StepOutput:
        """Mean cross-entropy over V views, and the sums of losses, of correct views and of views."""
        losses = functional.cross_entropy(logits["rotation"], labels, reduction="none")  # [V]
        sums = {
            "loss": losses.detach().sum(),
            "rotation_accuracy": (logits["rotation"].argmax(dim=1) == labels).sum(),
            "count": torch.full((), len(labels), device=labels.device),  # no copy from the host, no wait
        }
        return StepOutput(losses.mean(), sums)

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

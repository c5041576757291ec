"""What all pretext tasks share. The one to read first is RotNet's own, `RotationTask`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from rotnet_fast.config import PretrainConfig
from rotnet_fast.data.loader import Batch, Loader
from rotnet_fast.engine.compiled import compile_forward
from rotnet_fast.engine.distributed import ALONE, Processes
from rotnet_fast.engine.schedule import Schedule
from rotnet_fast.engine.task import ParameterGroup, StepOutput, parameter_groups
from rotnet_fast.models.build import make_network
from rotnet_fast.models.network import FeatureNetwork
from rotnet_fast.ops import rotate_batch
from rotnet_fast.pretext_tasks import PRETEXT_TASKS, PretextTaskName

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


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


class PretextTask(ABC):
    """Base of the pretext tasks: the network, its parameters, and plain views of unlabelled images.

    A subclass defines ``views``, ``forward``, ``loss`` and ``evaluate``, see `rotnet_fast.engine.task.Task`,
    and :meth:`results`.

    Args:
        module: network that :meth:`make_network` made, on the device of the images.
        schedule: learning rate of all parameters that ``muon`` does not cover.
        test_loader: yields all test images once, on the device.
        rotations: K whole degrees, counter-clockwise, of the views that :meth:`make_views` makes; 0 alone
            makes one upright view per image.
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

    @classmethod
    def make_network(
        cls, config: PretrainConfig, channels: int = 3, module: nn.Module | None = None
    ) -> FeatureNetwork:
        """Build the untrained network on the CPU, with weights drawn from torch's global generator.

        Args:
            config: settings of the pretraining.
            channels: channels of the images.
            module: the network that a program gave, see `rotnet_fast.models.build.make_network`.

        Raises:
            ArgumentError, CheckpointError: see `rotnet_fast.models.build.make_network`.
        """
        return make_network(
            config.outputs,
            channels,
            config.model,
            blocks=config.blocks,
            width=config.width,
            uniform_gamma=config.uniform_gamma,
            module=module,
            image_size=config.image_size,
        )

    def parameter_groups(self) -> list[ParameterGroup]:
        """All parameters in one group, or the filters in one of their own."""
        return parameter_groups("network", list(self.module.parameters()), self.schedule, self.muon)

    def begin_epoch(self, epoch: int) -> None:
        """Switch to train mode, where BatchNorm uses batch statistics, and to this epoch's draws."""
        self.module.train()
        self.key[1] = epoch

    def make_views(self, batch: Batch, flip_prob: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Make all K views of each image with the fused op: cropped, flipped, rotated and normalised.

        Args:
            batch: B images.
            flip_prob: probability of a left-right flip before the rotations.

        Returns:
            Views [B*K,C,H,W], channels_last, in a buffer that the next call overwrites; labels int64 [B*K],
            image-major: view n*K + k is image n under rotation k.
        """
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
        """:meth:`make_views` of test images, which are neither cropped nor flipped."""
        views, labels = rotate_batch(
            *batch.source, pad=0, flip_prob=0.0, out=self._buffers.get(len(batch)), **self.view_settings
        )
        self._buffers[len(batch)] = views
        return views, labels

    @abstractmethod
    def views(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """See `rotnet_fast.engine.task.Task`."""

    @abstractmethod
    def forward(self, views: torch.Tensor) -> dict[str, torch.Tensor]:
        """See `rotnet_fast.engine.task.Task`."""

    @abstractmethod
    def loss(self, logits: dict[str, torch.Tensor], labels: torch.Tensor) -> StepOutput:
        """See `rotnet_fast.engine.task.Task`."""

    @abstractmethod
    def evaluate(self) -> dict[str, float]:
        """See `rotnet_fast.engine.task.Task`; ``loss`` is among the metrics."""

    @abstractmethod
    def results(self, metrics: dict[str, float]) -> dict[str, Any]:
        """Return what ``results.json`` says of the task.

        Args:
            metrics: what the last :meth:`evaluate` returned.
        """

    def pictures(self) -> dict[str, NDArray[np.uint8]]:
        """See `rotnet_fast.engine.task.Task`."""
        return {}


def cross_entropy(logits: torch.Tensor, labels: torch.Tensor, measure: str) -> StepOutput:
    """Mean cross-entropy over V views, and the sums of losses, of correct views and of views.

    Args:
        logits: fp32 [V,classes].
        labels: int64 [V].
        measure: name of the share of correct views.
    """
    losses = functional.cross_entropy(logits, labels, reduction="none")  # [V]
    sums = {
        "loss": losses.detach().sum(),
        measure: (logits.argmax(dim=1) == labels).sum(),
        "count": torch.full((), len(labels), device=labels.device),  # no copy from the host, no wait
    }
    return StepOutput(losses.mean(), sums)


def task_class(name: PretextTaskName) -> type[PretextTask]:
    """Return the class of a pretext task."""
    module, _, class_name = PRETEXT_TASKS[name].implementation.partition(":")
    found: type[PretextTask] = getattr(import_module(f"rotnet_fast.engine.{module}"), class_name)
    return found

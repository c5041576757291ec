"""An autoencoder: RotNet's network as the encoder, and the pixels themselves as what it has to tell.

The plain baseline among the pretext tasks: it sees the same images, cropped and flipped alike, but has
nothing to recognise in them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional

from rotnet_fast.config import PretrainConfig
from rotnet_fast.data.loader import Batch
from rotnet_fast.engine.metrics import sum_type
from rotnet_fast.engine.pretext_task import PretextTask
from rotnet_fast.engine.task import StepOutput
from rotnet_fast.models.network import FeatureNetwork, check_input
from rotnet_fast.models.nin import ConvBnRelu, NetworkInNetwork, scaled_channels


class Autoencoder(NetworkInNetwork):
    """The conv blocks of the Network in Network, and a decoder in place of its classifier.

    State-dict keys are those of `NetworkInNetwork` without a classifier, and ``decoder.*``, see
    `rotnet_fast.pretext_tasks.backbone_state`.

    Args:
        blocks, width, in_channels, uniform_gamma: see `NetworkInNetwork`; the width multiplies the channels
            of the decoder, too.

    Shape:
        images [B,C,H,W] -> reconstructions [B,C,H,W]; H and W are multiples of 4.
    """

    def __init__(
        self, blocks: int = 4, width: float = 1.0, in_channels: int = 3, uniform_gamma: bool = False
    ) -> None:
        super().__init__(0, blocks, width, in_channels, uniform_gamma)
        deep, middle, shallow = (scaled_channels(channels, width) for channels in (192, 96, 48))
        self.decoder = nn.Sequential(
            nn.Upsample(scale_factor=2),
            ConvBnRelu(deep, middle, kernel_size=3),
            nn.Upsample(scale_factor=2),
            ConvBnRelu(middle, shallow, kernel_size=3),
            nn.Conv2d(shallow, in_channels, kernel_size=3, padding=1),
        )
        self.to(memory_format=torch.channels_last)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Encode and decode a batch: [B,C,H,W] -> [B,C,H,W]."""
        check_input(x, next(self.parameters()))
        last = self.layers[-1]
        reconstruction: torch.Tensor = self.decoder(self.features(x, [last])[last])
        return reconstruction


class AutoencoderTask(PretextTask):
    """Restores images from the last feature map of their network.

    An image gives one view, cropped and flipped as RotNet's. The loss is the mean squared error of the
    normalised pixels. The decoder is trained and kept in checkpoints with the network, but is no part of what
    other commands read.
    """

    @classmethod
    def make_network(
        cls, config: PretrainConfig, channels: int = 3, module: nn.Module | None = None
    ) -> FeatureNetwork:
        """See `PretextTask.make_network`."""
        return Autoencoder(config.blocks, config.width, channels, config.uniform_gamma)

    def views(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Make one augmented view of each image: [B,C,H,W], which is also what to restore."""
        views, _ = self.make_views(batch, self.flip_prob)
        return views, views

    def forward(self, views: torch.Tensor) -> dict[str, torch.Tensor]:
        """[B,C,H,W] -> ``{"reconstruction": ...}``, fp32 [B,C,H,W]."""
        return {"reconstruction": self._train_forward(views).float()}

    def loss(self, logits: dict[str, torch.Tensor], labels: torch.Tensor) -> StepOutput:
        """Mean squared error over all pixels of B views, and the sums of the views' errors and of views."""
        errors = squared_errors(logits["reconstruction"], labels)  # [B]
        count = torch.full((), len(labels), device=labels.device)  # no copy from the host, no wait
        return StepOutput(errors.mean(), {"loss": errors.detach().sum(), "count": count})

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """``loss``: mean squared error of the normalised pixels of the test images, without augmentation."""
        self.module.eval()
        device = self.test_loader.device
        total = torch.zeros((), dtype=sum_type(device), device=device)
        for batch in self.test_loader.epoch(0):
            views, _ = self.plain_views(batch)
            total += squared_errors(self.module(views).float(), views).sum()
        (summed,) = self.processes.sum(total.view(1)).tolist()
        return {"loss": summed / self.test_loader.epoch_size}

    def results(self, metrics: dict[str, float]) -> dict[str, Any]:
        """``reconstruction_error``: the loss on the test images."""
        return {"reconstruction_error": metrics["loss"]}


def squared_errors(reconstructions: torch.Tensor, views: torch.Tensor) -> torch.Tensor:
    """Mean squared error of each of B images: two [B,C,H,W] -> fp32 [B]."""
    errors = functional.mse_loss(reconstructions, views.float(), reduction="none")
    return errors.mean(dim=(1, 2, 3))

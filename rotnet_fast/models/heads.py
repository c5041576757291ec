"""Object classifiers on frozen feature maps, by which RotNet measures the quality of features.

State-dict keys (stable)::

    NonLinearClassifier: linear{1,2}.weight, bn{1,2}.*, classifier.{weight, bias}
    ConvClassifier:      block.{0,1,2}.conv.weight, block.{0,1,2}.bn.*, classifier.{weight, bias}

Source: Gidaris et al., ICLR 2018, Tables 1-3, and its released code.
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional

from rotnet_fast.models.nin import conv_block, scaled_channels

MOST_HIDDEN = 2048


def initialise_head(head: nn.Module, generator: torch.Generator | None = None) -> None:
    """The released code's initialisation, in place.

    Convolution N(0, sqrt(2 / (k * k * C_out))), linear N(0, sqrt(2 / fan_out)), biases 0,
    BatchNorm scale 1 and shift 0.

    Args:
        head: module to initialise.
        generator: source of the draws; None means torch's global one.
    """
    for module in head.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels
            nn.init.normal_(module.weight, 0.0, math.sqrt(2 / fan_out), generator=generator)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, 0.0, math.sqrt(2 / module.out_features), generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


class NonLinearClassifier(nn.Module):
    """Two hidden layers on the whole, flattened feature map, without pooling.

    They have 20 units per class, 200 for ten classes, but at most 2,048, unless ``hidden`` says otherwise.

    Args:
        in_channels, height, width: the feature map's size.
        num_classes: object classes.
        most_cells: longest side that is used unchanged; a longer one is averaged down to this many cells.
            None means any length.
        generator: source of the initial weights; None means torch's global one.
        hidden: units of each hidden layer; None means the paper's number.

    Shape:
        [B,in_channels,height,width] -> logits [B,num_classes].
    """

    def __init__(
        self,
        in_channels: int,
        height: int,
        width: int,
        num_classes: int,
        generator: torch.Generator | None = None,
        most_cells: int | None = None,
        hidden: int | None = None,
    ) -> None:
        super().__init__()
        self._size: tuple[int, int] | None = None
        if most_cells is not None and max(height, width) > most_cells:
            height, width = self._size = (min(height, most_cells), min(width, most_cells))
        hidden = hidden or min(20 * num_classes, MOST_HIDDEN)
        self.linear1 = nn.Linear(in_channels * height * width, hidden, bias=False)
        self.bn1 = nn.BatchNorm1d(hidden)
        self.linear2 = nn.Linear(hidden, hidden, bias=False)
        self.bn2 = nn.BatchNorm1d(hidden)
        self.classifier = nn.Linear(hidden, num_classes)
        initialise_head(self, generator)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits of a batch of feature maps."""
        if self._size is not None:
            x = functional.adaptive_avg_pool2d(x, self._size)
        x = functional.relu(self.bn1(self.linear1(x.flatten(1))))  # [B,hidden]
        x = functional.relu(self.bn2(self.linear2(x)))  # [B,hidden]
        logits: torch.Tensor = self.classifier(x)
        return logits


class ConvClassifier(nn.Module):
    """NIN's third block, global average pooling and a linear classifier.

    Args:
        in_channels: channels of the feature map.
        num_classes: object classes.
        width: multiplies the block's 192 channels, as in the backbone.
        generator: source of the initial weights; None means torch's global one.

    Shape:
        [B,in_channels,H,W] -> logits [B,num_classes]. Weights are channels_last.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        width: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        channels = scaled_channels(192, width)
        self.block = nn.Sequential(*conv_block(in_channels, [channels] * 3, kernel_size=3))
        self.classifier = nn.Linear(channels, num_classes)
        initialise_head(self, generator)
        self.to(memory_format=torch.channels_last)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits of a batch of feature maps."""
        logits: torch.Tensor = self.classifier(self.block(x).mean(dim=(2, 3)))
        return logits

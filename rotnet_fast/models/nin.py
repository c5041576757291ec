"""Network in Network, RotNet's backbone on 32x32 images.

State-dict keys (stable; checkpoints rely on them), for block b in 1..5 and its convolution i in 0..2::

    conv{b}.{i}.conv.weight         [C_out,C_in,k,k]
    conv{b}.{i}.bn.{weight, bias, running_mean, running_var, num_batches_tracked}
    classifier.{weight, bias}       [num_classes,C], [num_classes]

Source: Gidaris et al., ICLR 2018, section 4.1, and its released code; Lin et al., "Network in
Network", ICLR 2014.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional

from rotnet_fast.config import NIN
from rotnet_fast.errors import ArgumentError
from rotnet_fast.models.network import FeatureNetwork, check_input, check_names, checked_count
from rotnet_fast.ops.batch_norm import batch_norm_relu
from rotnet_fast.plain import as_real, as_whole, counted, shown

BLOCK_COUNTS = (3, 4, 5)


def scaled_channels(channels: int, width: float) -> int:
    """Channels of a layer at a width multiplier: the nearest multiple of 8, at least 8."""
    return max(8, round(channels * width / 8) * 8)


class ConvBnRelu(nn.Module):
    """Convolution (stride 1, same padding, no bias), then BatchNorm, then ReLU."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False)
        self.bn = nn.BatchNorm2d(out_channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B,C_in,H,W] -> [B,C_out,H,W]."""
        x = self.conv(x)
        bn = self.bn
        # torch.fx records layers rather than our op; the BatchNorm may have been replaced by another kind, or
        # be watched or wrapped.
        is_traced = isinstance(x, torch.fx.Proxy)
        if is_traced or type(bn) is not nn.BatchNorm2d or bn.momentum is None or _is_changed(bn):
            return functional.relu(bn(x), inplace=True)
        # The rest does what nn.BatchNorm2d does.
        moves = bn.training and bn.track_running_stats
        if moves and bn.num_batches_tracked is not None:
            bn.num_batches_tracked.add_(1)
        by_batch = bn.training or bn.running_mean is None
        running = (bn.running_mean, bn.running_var) if moves or not bn.training else (None, None)
        return batch_norm_relu(x, bn.weight, bn.bias, *running, by_batch, bn.momentum, bn.eps)


def _is_changed(module: nn.Module) -> bool:
    """Whether calling a module does more than its class says, because of hooks or a forward of its own."""
    hooks = (
        *(module._forward_pre_hooks, module._forward_hooks),
        *(module._backward_pre_hooks, module._backward_hooks),
    )
    return any(hooks) or "forward" in vars(module) or nn.modules.module._has_any_global_hook()


def conv_block(in_channels: int, channels: Sequence[int], kernel_size: int) -> list[nn.Module]:
    """A spatial convolution followed by two 1x1 convolutions, each with BatchNorm and ReLU."""
    sizes = (kernel_size, 1, 1)
    steps = pairwise((in_channels, *channels))
    return [ConvBnRelu(before, after, size) for (before, after), size in zip(steps, sizes, strict=True)]


class NetworkInNetwork(FeatureNetwork):
    """Three to five conv blocks, global average pooling and a linear classifier.

    Args:
        num_classes: number of outputs: of rotations, or of object classes. 0 leaves the classifier out: the
            output is the last feature map's means.
        blocks: 3, 4 or 5.
        width: multiplies the channels 192, 160 and 96 of every layer (rounded to a multiple of 8).
        in_channels: number of channels of the images.
        uniform_gamma: whether to draw BatchNorm's scales from U(0, 1), as the framework of the released code
            did in 2018, instead of starting at 1.

    Shape:
        images [B,C,H,W] -> logits [B,num_classes]. Feature maps of a 32x32 image at width 1, taken
        after the block's pool: conv1 [96,16,16]; conv2 ... conv5 [192,8,8].

    Weights are channels_last; pass images in the same memory format.

    Raises:
        ArgumentError: blocks, width or a count is out of range.
    """

    name = NIN
    default_layer = "conv2"  # Table 1 of the paper: object classifiers do best on it
    stride = 4
    is_capturable = True
    most_cells = None
    uses_rng = False

    def __init__(
        self,
        num_classes: int = 4,
        blocks: int = 4,
        width: float = 1.0,
        in_channels: int = 3,
        uniform_gamma: bool = False,
    ) -> None:
        super().__init__()
        if as_whole(blocks) not in BLOCK_COUNTS:
            raise ArgumentError(f"blocks is {shown(blocks)}; a NIN has 3, 4 or 5 conv blocks")
        if as_real(width) is None or not 0 < width <= 16:
            raise ArgumentError(
                f"width is {shown(width)}; it must lie in (0, 16], 1 being the published network"
            )
        self.num_classes = num_classes = checked_count("num_classes", num_classes, 0)
        self.in_channels = in_channels = checked_count("in_channels", in_channels, 1)
        self.layers = tuple(f"conv{block}" for block in range(1, blocks + 1))
        first = [scaled_channels(channels, width) for channels in (192, 160, 96)]
        later = [scaled_channels(192, width)] * 3
        # The average pool counts the padding zeros, as in the framework of the released code.
        pools = {
            "conv1": nn.MaxPool2d(3, stride=2, padding=1),
            "conv2": nn.AvgPool2d(3, stride=2, padding=1, count_include_pad=True),
        }
        channels = in_channels
        self._feature_channels: dict[str, int] = {}
        for layer in self.layers:
            widths = first if layer == "conv1" else later
            modules = conv_block(channels, widths, kernel_size=5 if layer in pools else 3)
            if layer in pools:
                modules.append(pools[layer])
            self.add_module(layer, nn.Sequential(*modules))
            channels = self._feature_channels[layer] = widths[-1]
        self.classifier = nn.Linear(channels, num_classes) if num_classes else nn.Identity()
        if uniform_gamma:
            for module in self.modules():
                if isinstance(module, nn.BatchNorm2d):
                    nn.init.uniform_(module.weight)
        self.to(memory_format=torch.channels_last)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits of a batch: [B,C,H,W] -> [B,num_classes]."""
        check_input(x, next(self.parameters()))
        for layer in self.layers:
            x = self.get_submodule(layer)(x)
        logits: torch.Tensor = self.classifier(x.mean(dim=(2, 3)))
        return logits

    def features(self, x: torch.Tensor, layers: Sequence[str]) -> dict[str, torch.Tensor]:
        """Compute the feature maps after the pool of the given blocks; blocks after the last one do not run.

        Args:
            x: [B,C,H,W].
            layers: names out of ``self.layers``, in any order.

        Returns:
            layer name -> [B,C_layer,H_layer,W_layer], channels_last.

        Raises:
            ArgumentError: a layer is unknown, or none is given.
        """
        self.check_layers(layers)
        check_input(x, next(self.parameters()))
        maps = {}
        for layer in self.layers[: max(map(self.layers.index, layers)) + 1]:
            x = self.get_submodule(layer)(x)
            if layer in layers:
                maps[layer] = x
        return maps

    def feature_channels(self, layer: str) -> int:
        """Number of channels of a layer's feature map."""
        self.check_layers([layer])
        return self._feature_channels[layer]

    def feature_parameters(self, layer: str) -> list[nn.Parameter]:
        """The parameters of the blocks up to a layer."""
        self.check_layers([layer])
        blocks = self.layers[: self.layers.index(layer) + 1]
        return [parameter for block in blocks for parameter in self.get_submodule(block).parameters()]

    def check_layers(self, layers: Sequence[str]) -> None:
        """Raise an ArgumentError unless every name is a layer of this network."""
        check_names(layers, self.layers)
        for layer in layers:
            if layer not in self.layers:
                raise ArgumentError(
                    f"layers holds {layer!r}, which this network with {counted(len(self.layers), 'block')} "
                    f"does not have; choose from {', '.join(self.layers)}"
                )

    def check_image_size(self, height: int, width: int) -> None:
        """No-op: images of any size are accepted."""

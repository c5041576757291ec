"""The scattering transform as a network without weights, under the heads that learned features get.

Source: Bruna and Mallat, "Invariant scattering convolution networks", TPAMI 2013; Oyallon, Belilovsky and
Zagoruyko, "Scaling the scattering transform: deep hybrid networks", ICCV 2017 (order 2, scale 4, 8 angles).
Paper: Table 3 quotes it with a perceptron that was trained on the labels. Ours: computed by kymatio.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from rotnet_fast.errors import ArgumentError
from rotnet_fast.models.network import FeatureNetwork, check_input

SCALES, ANGLES = 2, 8
STRIDE = 2**SCALES

COEFFICIENTS = 1 + SCALES * ANGLES + SCALES * (SCALES - 1) // 2 * ANGLES**2
"""Of each channel of the image: 1 of order 0, 16 of order 1 and 64 of order 2."""

MAPS, LOGARITHMS = "scattering", "log-scattering"

FLOOR = 1e-6
"""Added to coefficients before the logarithm. Source: the released code of Oyallon and Mallat, CVPR 2015."""


def scattering_shape(channels: int, side: int) -> tuple[int, int, int]:
    """Return (C,H,W) of the maps for images of so many channels and pixels along a side."""
    return channels * COEFFICIENTS, side // STRIDE, side // STRIDE


def scattering_multiply_adds(channels: int, side: int) -> int:
    """Count the multiply-adds of one image, as if every Fourier transform had the image's size.

    For each coefficient, there is one transform from frequencies and one back, at 2.5 n log2(n) for n pixels.
    """
    pixels = (side + 2 * STRIDE) ** 2  # with the border that the transform reflects
    return int(channels * 2 * COEFFICIENTS * 2.5 * pixels * math.log2(pixels))


class Scattering(FeatureNetwork):
    """Scattering coefficients of order 0, 1 and 2, which nothing has to learn.

    ``scattering`` has the coefficients; in ``log-scattering``, the logarithm of their absolute values
    replaces those of order 1 and 2, which makes their distributions more alike.

    It has no weights, and no logits.

    Args:
        in_channels: channels of the images.
        image_size: height and width of the images in pixels, a multiple of 4.

    Shape:
        either map: [B,C,S,S] -> fp32 [B,C*81,S/4,S/4], channel c*81 being order 0 of channel c.

    Raises:
        ArgumentError: the size is no multiple of 4.
        ImportError: kymatio is not installed.
    """

    name = "scattering"
    layers = (MAPS, LOGARITHMS)
    default_layer = MAPS
    stride = STRIDE
    num_classes = 0
    most_cells = None  # heads see whole maps, as those on RotNet's network do
    uses_rng = False
    is_standardised = False

    def __init__(self, in_channels: int = 3, image_size: int = 32) -> None:
        super().__init__()
        # Not kymatio.torch, which imports parts that fail with SciPy 1.17.
        from kymatio.scattering2d.frontend.torch_frontend import ScatteringTorch2D

        self.in_channels = in_channels
        self.image_size = image_size
        self.check_image_size(image_size, image_size)
        self.transform = ScatteringTorch2D(J=SCALES, shape=(image_size, image_size), L=ANGLES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the coefficients of order 0 to 2: there is no classifier."""
        return self.features(x, [MAPS])[MAPS]

    def features(self, x: torch.Tensor, layers: Sequence[str]) -> dict[str, torch.Tensor]:
        """See `FeatureNetwork`."""
        self.check_layers(layers)
        check_input(x, next(self.buffers()))
        with torch.autocast(x.device.type, enabled=False):  # there are no Fourier transforms in bf16
            maps: torch.Tensor = self.transform(x.float().contiguous())  # [B,C,81,H/4,W/4]
            found = {}
            if MAPS in layers:
                found[MAPS] = maps.flatten(1, 2)
            if LOGARITHMS in layers:
                logarithms = torch.log(maps[:, :, 1:].abs() + FLOOR)
                found[LOGARITHMS] = torch.cat((maps[:, :, :1], logarithms), dim=2).flatten(1, 2)
        return found

    def feature_channels(self, layer: str) -> int:
        """See `FeatureNetwork`."""
        return self.in_channels * COEFFICIENTS

    def feature_parameters(self, layer: str) -> list[nn.Parameter]:
        """Return none."""
        return []

    def check_layers(self, layers: Sequence[str]) -> None:
        """See `FeatureNetwork`."""
        if not layers or not set(layers) <= set(self.layers):
            raise ArgumentError(
                f"layers is {', '.join(layers) or 'empty'}; choose from {', '.join(self.layers)}"
            )

    def check_image_size(self, height: int, width: int) -> None:
        """See `FeatureNetwork`."""
        if (height, width) != (self.image_size, self.image_size) or height % STRIDE:
            raise ArgumentError(
                f"images have {height} x {width} pixels; scattering takes squares whose side is a multiple "
                f"of {STRIDE}, here of {self.image_size}"
            )

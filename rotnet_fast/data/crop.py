"""Crops of large images: random crops for training, the centre crop for testing."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from rotnet_fast import philox

CENTRE_SHARE = 224 / 256
"""Side of the centre crop used for testing, as a fraction of the shorter side. It corresponds to the usual
resizing of the shorter side to 256 and cropping to 224."""

_ATTEMPTS = 10

Decoder = Literal["auto", "cpu", "gpu"]
"""Device that decodes encoded images, see `rotnet_fast.data.dali.DaliLoader`."""

Boxes = tuple[NDArray[np.int32], NDArray[np.int32]]
"""Corners (top, left) and sizes (height, width) in pixels, int32 [B,2] each."""


@dataclass(frozen=True)
class RandomResizedCrop:
    """Draw rectangles of random area, shape and position, which are then resized to a square.

    The algorithm is that of torchvision's ``RandomResizedCrop``: ten attempts to draw an area and a ratio
    whose rectangle fits into the image, then the largest centre crop. Draws are a pure function of
    (seed, epoch, sample id), like those of `rotnet_fast.rotate_batch`, so that the crops do not depend on
    batch size, number of processes or interruptions.

    Attributes:
        scale: minimum and maximum area, as a fraction of the image's area.
        ratio: minimum and maximum width / height.

    Source: Szegedy et al., "Going deeper with convolutions", CVPR 2015.
    """

    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)

    def boxes(self, sizes: NDArray[np.int32], sample_ids: torch.Tensor, seed: int, epoch: int) -> Boxes:
        """Draw the crop of each image.

        Args:
            sizes: int32 [B,2], height and width of the images.
            sample_ids: int64 [B] on the CPU.
            seed, epoch: see `rotnet_fast.philox.draw`.
        """
        heights, widths = sizes[:, 0].astype(np.int64), sizes[:, 1].astype(np.int64)
        corners, shapes = _largest(heights, widths, self.ratio)
        is_open = np.ones(len(sizes), dtype=bool)
        low, high = math.log(self.ratio[0]), math.log(self.ratio[1])
        for attempt in range(_ATTEMPTS):
            draws = philox.draw(sample_ids, seed, epoch, philox.PURPOSE_RESIZED_CROP + attempt)
            for_area, for_ratio, for_top, for_left = (word.numpy() for word in draws)
            share = self.scale[0] + (self.scale[1] - self.scale[0]) * (for_area / 2.0**32)
            ratio = np.exp(low + (high - low) * (for_ratio / 2.0**32))
            area = share * heights * widths
            width = np.rint(np.sqrt(area * ratio)).astype(np.int64)
            height = np.rint(np.sqrt(area / ratio)).astype(np.int64)
            fits = is_open & (width > 0) & (width <= widths) & (height > 0) & (height <= heights)
            top = for_top * np.maximum(heights - height + 1, 1) >> 32
            left = for_left * np.maximum(widths - width + 1, 1) >> 32
            corners[fits] = np.stack([top, left], axis=1)[fits]
            shapes[fits] = np.stack([height, width], axis=1)[fits]
            is_open &= ~fits
            if not is_open.any():
                break
        return corners, shapes


def centre_boxes(sizes: NDArray[np.int32]) -> Boxes:
    """Return the centre crop of each image, a square with ``CENTRE_SHARE`` of its shorter side.

    Args:
        sizes: int32 [B,2], height and width of the images.
    """
    sides = np.maximum(np.rint(sizes.min(axis=1) * CENTRE_SHARE), 1).astype(np.int32)
    shapes = np.stack([sides, sides], axis=1)
    return (sizes - shapes) // 2, shapes


def centre_crop(rgb: NDArray[np.uint8], image_size: int) -> NDArray[np.uint8]:
    """Return the centre crop used for testing, resized: uint8 [H,W,3] -> uint8 [image_size,image_size,3].

    The pixels are those of `rotnet_fast.data.dali.DaliLoader` on the CPU.
    """
    corners, shapes = centre_boxes(np.array([rgb.shape[:2]], dtype=np.int32))
    (top, left), (height, width) = corners[0], shapes[0]
    crop = torch.from_numpy(np.ascontiguousarray(rgb[top : top + height, left : left + width]))
    resized = torch.empty((image_size, image_size, 3), dtype=torch.uint8)
    resize_into(resized, crop)
    return resized.numpy()


def resize_into(place: torch.Tensor, crop: torch.Tensor) -> None:
    """Resize a crop uint8 [h,w,3] to the square uint8 [S,S,3] that it is written into, both on the CPU."""
    side = place.shape[0]
    source, view = crop.permute(2, 0, 1)[None], place.permute(2, 0, 1)[None]  # [1,3,...], channels_last
    # This is what interpolate(crop, mode="bilinear", antialias=True) calls, but it writes into a batch:
    # allocating and copying a result per image takes longer than resizing it.
    torch.ops.aten._upsample_bilinear2d_aa.out(source, [side, side], False, None, None, out=view)


def _largest(heights: NDArray[np.int64], widths: NDArray[np.int64], ratio: tuple[float, float]) -> Boxes:
    """Return the largest centre crop with an allowed ratio."""
    height = np.minimum(heights, np.maximum(np.rint(widths / ratio[0]).astype(np.int64), 1))
    width = np.minimum(widths, np.maximum(np.rint(heights * ratio[1]).astype(np.int64), 1))
    corners = np.stack([(heights - height) // 2, (widths - width) // 2], axis=1).astype(np.int32)
    return corners, np.stack([height, width], axis=1).astype(np.int32)

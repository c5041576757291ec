"""Reader of scikit-learn's handwritten digits, a small real data set that needs no network.

1,797 grey images of 8x8 pixels with values 0..16, from Alpaydin and Kaynak, "Optical Recognition of
Handwritten Digits", UCI Machine Learning Repository, 1998; the scikit-learn package contains them.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from rotnet_fast.data.split import RawDataset, Split

TEST_IMAGES_PER_CLASS = 36
"""Number of test images per digit: of its 174 to 183 images, 36 evenly spaced in file order, starting with
the first. That makes 360 test and 1,437 training images. Neighbours in the file tend to come from the same
writer, so both splits contain the same writers, as in the random splits that are common for this set."""

_LARGEST_VALUE = 16.0


def load(data_dir: Path | None, image_size: int, progress: bool, bad_images: str = "fail") -> RawDataset:
    """Read the digits as RGB images: uint8 [1437,H,W,3] for training, [360,H,W,3] for testing.

    Grey values are scaled to 0..255, upsampled bilinearly and copied to the three channels.

    Args:
        data_dir: None, as the images come with scikit-learn.
        image_size: H = W in pixels.
        progress: ignored; reading takes a fraction of a second.
        bad_images: ignored; there are none.
    """
    from sklearn.datasets import load_digits  # imported here because it takes a second

    source = load_digits()
    grey = np.rint(source.images * (255.0 / _LARGEST_VALUE)).astype(np.uint8)  # [1797,8,8]
    size = (image_size, image_size)
    enlarged = np.stack(
        [np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR)) for image in grey]
    )
    images = torch.from_numpy(enlarged).unsqueeze(3).repeat(1, 1, 1, 3)  # [1797,H,W,3]
    labels = torch.from_numpy(source.target.astype(np.int64))
    is_test = torch.zeros(len(labels), dtype=torch.bool)
    for digit in range(10):
        of_digit = torch.nonzero(labels == digit).squeeze(1)
        is_test[of_digit[torch.arange(TEST_IMAGES_PER_CLASS) * len(of_digit) // TEST_IMAGES_PER_CLASS]] = True
    return RawDataset(
        display_name="handwritten digits (scikit-learn)",
        classes=tuple(str(digit) for digit in range(10)),
        train=Split(images[~is_test], labels[~is_test]),
        test=Split(images[is_test], labels[is_test]),
    )

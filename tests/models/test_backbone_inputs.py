"""Images that are not normalised are noticed, and normalised ones are left in peace."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from rotnet_fast import load_backbone, rotate_batch
from rotnet_fast.backbone import Backbone
from rotnet_fast.data.digits import load as load_digits
from rotnet_fast.errors import ArgumentError


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return load_backbone("nin4-cifar10-jpeg", "cpu")


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    """Handwritten digits: uint8 [N,H,W,C]."""
    return load_digits(None, 16, False, "fail").test.images[:64]


def floats(images: torch.Tensor) -> torch.Tensor:
    return images.permute(0, 3, 1, 2).float()


CALLS: list[Callable[[Backbone, torch.Tensor], object]] = [
    lambda backbone, x: backbone(x),
    lambda backbone, x: backbone.features(x, ["conv1", "conv3"], batch_size=16),
]


@pytest.mark.parametrize("call", CALLS, ids=["vectors", "maps"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_values_of_0_to_255_are_refused_with_the_remedy(
    backbone: Backbone,
    images: torch.Tensor,
    call: Callable[[Backbone, torch.Tensor], object],
    dtype: torch.dtype,
) -> None:
    sentence = r"images hold values from 0 to 255, but floating.*between -1.99 and 2.13: pass uint8 images"
    with pytest.raises(ArgumentError, match=sentence):
        call(backbone, floats(images).to(dtype))
    with pytest.raises(ArgumentError, match="images hold values from -12"):
        call(backbone, (floats(images) - 127).to(dtype))  # less their mean alone


@pytest.mark.parametrize("call", CALLS, ids=["vectors", "maps"])
def test_values_of_0_to_1_and_of_minus_1_to_1_cause_a_warning(
    backbone: Backbone, images: torch.Tensor, call: Callable[[Backbone, torch.Tensor], object]
) -> None:
    for x in (floats(images) / 255, floats(images) / 127.5 - 1):
        with pytest.warns(UserWarning, match=r"do not look normalised.*\(pixels / 255 - mean\) / std"):
            call(backbone, x)


@pytest.mark.filterwarnings("error")
def test_normalised_images_are_taken_without_a_word(backbone: Backbone, images: torch.Tensor) -> None:
    whole = rotate_batch(images, rotations=(0,), pad=0, flip_prob=0.0)[0]
    noise = torch.randint(0, 256, (8, 16, 16, 3), dtype=torch.uint8)
    for x in (whole, *whole.split(1), rotate_batch(noise)[0], whole + 0.1 * torch.randn_like(whole)):
        backbone(x)
    for plain in (0.0, 0.7, float("nan")):
        backbone(torch.full((1, 3, 16, 16), plain))
    backbone(torch.zeros(0, 3, 16, 16))
    backbone(images)


@pytest.mark.filterwarnings("error")
def test_shades_without_contrast_are_taken_without_a_word(backbone: Backbone) -> None:
    for level in range(256):
        pixels = torch.full((1, 16, 16, 3), level, dtype=torch.uint8)
        pixels[:, ::2] += 20
        backbone(rotate_batch(pixels, rotations=(0,), pad=0, flip_prob=0.0)[0])


def test_graphs_that_are_made_look_at_no_values(backbone: Backbone, images: torch.Tensor) -> None:
    x = rotate_batch(images, rotations=(0,), pad=0, flip_prob=0.0)[0]
    compiled = torch.compile(lambda y: backbone(y), backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), backbone(x))
    slope = torch.func.grad(lambda y: backbone(y).sum())(x)
    assert slope.shape == x.shape

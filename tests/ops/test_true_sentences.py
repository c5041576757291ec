"""No error asks for what the caller has done already."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from rotnet_fast import load_backbone, rotate_batch
from rotnet_fast.errors import ArgumentError
from rotnet_fast.models.build import make_network

IMAGES = torch.zeros(4, 8, 8, 3, dtype=torch.uint8)

UINT8 = {
    "sparse": lambda: IMAGES.to_sparse(),
    "nested": lambda: torch.nested.nested_tensor(list(IMAGES), layout=torch.jagged),
    "of three dimensions": lambda: IMAGES[0],
    "channels first": lambda: torch.zeros(4, 3, 8, 8, dtype=torch.uint8),
    "strided": lambda: IMAGES[::2],
    "without pixels": lambda: IMAGES[:, :0],
    "on meta": lambda: IMAGES.to("meta"),
    "grey": lambda: IMAGES[..., :1].contiguous(),
}


@pytest.mark.parametrize("make", UINT8.values(), ids=UINT8.keys())
def test_images_of_the_right_type_are_not_told_to_have_it(make: Callable[[], torch.Tensor]) -> None:
    with pytest.raises(ValueError, match=r"mean|images") as caught:
        rotate_batch(make())
    assert "uint8" not in str(caught.value)


FOR_A_BACKBONE = {
    "sparse": (lambda: IMAGES.to_sparse(), "must be a dense tensor, got a torch.sparse_coo one"),
    "nested": (UINT8["nested"], "must be a dense tensor, got a nested one"),
    "sparse floats": (
        lambda: IMAGES.float().to_sparse(),
        "must be a dense tensor, got a torch.sparse_coo one",
    ),
    "on meta": (UINT8["on meta"], "images is on meta, where tensors have no values"),
    "grey": (UINT8["grey"], r"which has 1: repeat grey images, images.expand\(-1, -1, -1, 3\)"),
    "grey floats": (lambda: torch.zeros(2, 1, 8, 8), r"repeat grey images, images.expand\(-1, 3, -1, -1\)"),
    "channels first": (UINT8["channels first"], r"move the channels, images.permute\(0, 2, 3, 1\)"),
    "floats with channels last": (lambda: torch.zeros(2, 8, 8, 3), r"images.permute\(0, 3, 1, 2\)"),
    "of five channels": (lambda: torch.zeros(2, 8, 8, 5).byte(), "which has 5: pass images with 3$"),
    "without pixels": (UINT8["without pixels"], "at least one row and column"),
}


@pytest.mark.parametrize(("make", "sentence"), FOR_A_BACKBONE.values(), ids=FOR_A_BACKBONE.keys())
def test_a_backbone_says_what_is_wrong_and_how_to_put_it_right(
    make: Callable[[], torch.Tensor], sentence: str
) -> None:
    backbone = load_backbone("nin4-cifar10-jpeg", "cpu")
    with pytest.raises(ArgumentError, match=sentence) as caught:
        backbone(make())
    assert "must be uint8" not in str(caught.value)
    assert "of type" not in str(caught.value)


def test_the_remedies_of_a_backbone_work() -> None:
    backbone = load_backbone("nin4-cifar10-jpeg", "cpu")
    whole = torch.randint(0, 256, (2, 8, 8, 3), dtype=torch.uint8)
    assert torch.equal(backbone(whole.permute(0, 3, 1, 2).permute(0, 2, 3, 1)), backbone(whole))
    grey = whole[..., :1]
    assert torch.equal(backbone(grey.expand(-1, -1, -1, 3)), backbone(grey.repeat(1, 1, 1, 3)))
    assert torch.equal(backbone(whole.long().to(torch.uint8)), backbone(whole))


@pytest.mark.parametrize("model", ["nin", "resnet18"])
def test_a_network_says_which_images_it_takes(model: str) -> None:
    network = make_network(4, model=model).eval()
    x = torch.zeros(2, 3, 32, 32)
    for call in (network, lambda images: network.features(images, [network.default_layer])):
        with pytest.raises(
            TypeError, match=r"x is torch.uint8; a network takes normalised floating-point images"
        ):
            call(x.to(torch.uint8))
        with pytest.raises(TypeError, match=r"x is torch.float64, and the network's weights are.*pass x.to"):
            call(x.double())
    assert network(x.double().to(torch.float32)).dtype == torch.float32
    assert network.double()(x.double()).dtype == torch.float64

"""Networks that cannot be used are refused in one sentence that says why and what to take instead."""

from __future__ import annotations

import sys
from importlib import import_module

import pytest
import torch
from torch import nn

from rotnet_fast.errors import ArgumentError
from rotnet_fast.models import library
from rotnet_fast.models.build import make_network
from rotnet_fast.models.library import LibraryNetwork
from rotnet_fast.models.own import OwnNetwork


def test_channels_of_images_are_those_that_the_library_allows() -> None:
    grey = make_network(2, in_channels=1, model="timm/test_resnet")
    assert grey(torch.zeros(2, 1, 32, 32)).shape == (2, 2)
    with pytest.raises(
        ArgumentError, match="resnet18 accepts images of 3 channels, and these have 1; choose nin"
    ):
        make_network(2, in_channels=1, model="resnet18")


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("resnet81", "unknown model 'resnet81'; did you mean .*resnet18"),
        ("timm/test_resnett", "did you mean timm/test_resnet"),
        (
            "xyzzy",
            "; choose nin, a classification network of torchvision, such as resnet18",
        ),
        ("fasterrcnn_resnet50_fpn", "unknown model"),
        ("timm/hf-hub:timm/resnet18", "unknown model"),
        ("", "unknown model ''"),
        (
            "timm/vit_tiny_patch16_224",
            r"does not accept images of 32 x 32 pixels \(Input height.*choose another",
        ),
        ("timm/test_vit", r"timm/test_vit has no feature maps \[B,C,H,W\]; choose a convolutional network"),
    ],
)
def test_a_model_that_cannot_be_used_is_named(name: str, sentence: str) -> None:
    with pytest.raises(ArgumentError, match=sentence):
        make_network(4, model=name)


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.conv(x).mean(dim=(2, 3))
        return logits


class Branching(Plain):
    """A network whose path depends on the values of an image."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x if x.sum() >= 0 else -x)


class TwoOutputs(Plain):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x), x  # type: ignore[return-value]


class WithoutMaps(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.mean(dim=(2, 3)))


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        (Branching(), "made cannot be traced for its feature maps conv"),
        (TwoOutputs(), "made returns tuple for one image"),
        (WithoutMaps(3, 4), "made has no feature maps"),
        (WithoutMaps(3, 5), r"made returns \[1, 5\] for one image, not logits \[1, 4\]"),
    ],
)
def test_a_network_without_usable_maps_is_refused(
    monkeypatch: pytest.MonkeyPatch, model: nn.Module, sentence: str
) -> None:
    monkeypatch.setattr(library, "_create", lambda *_: model)
    with pytest.raises(ArgumentError, match=sentence):
        LibraryNetwork("made", 4)


def test_a_network_for_images_of_one_size_is_probed_with_that_size() -> None:
    network = make_network(4, model="swin_t", image_size=64)
    assert network.layers  # of any size
    network = make_network(4, model="vit_b_16", image_size=224)
    assert network.layers == ("conv_proj",)
    with pytest.raises(ArgumentError, match=r"vit_b_16 does not accept images of 64 x 64 pixels \("):
        make_network(4, model="vit_b_16", image_size=64)


class Viewing(nn.Module):
    """Flattens its map, which is channels_last, by view."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=2)
        self.fc = nn.Linear(8 * 15 * 15, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.conv(x).view(len(x), -1))


def test_a_view_of_a_channels_last_map_is_named_with_its_remedy() -> None:
    with pytest.raises(ArgumentError, match="in its forward, use reshape instead of view"):
        make_network(4, module=Viewing(), image_size=32)


def test_images_that_are_too_small_are_named() -> None:
    network = LibraryNetwork("squeezenet1_1", 4)
    network.check_image_size(32, 32)
    with pytest.raises(ArgumentError, match=r"squeezenet1_1 does not accept images of 4 x 4 pixels \("):
        network.check_image_size(4, 4)


def test_unknown_layers_are_named_with_the_choices() -> None:
    resnet, images = LibraryNetwork("resnet18", 4), torch.zeros(1, 3, 32, 32)
    for call in (resnet.check_layers, lambda layers: resnet.features(images, layers)):
        with pytest.raises(ArgumentError, match=r"'layer5', which is no feature map of resnet18; .*layer4"):
            call(["layer1", "layer5"])
        with pytest.raises(ArgumentError, match="layers is empty; choose from conv1"):
            call([])
    with pytest.raises(ArgumentError, match="'fc', which is no feature map"):
        resnet.feature_channels("fc")


def test_a_missing_library_is_named_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ArgumentError, match=r"timm/resnet18 needs timm, which .*pip install timm"):
        make_network(4, model="timm/resnet18")


def test_a_torchvision_for_another_torch_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def mismatched(name: str) -> object:
        if name == "torchvision.models":
            raise RuntimeError("operator torchvision::nms does not exist")
        return import_module(name)

    monkeypatch.setattr(library, "import_module", mismatched)
    with pytest.raises(ArgumentError, match=rf"with torch {torch.__version__.split('+')[0]}.*nms does not"):
        make_network(4, model="resnet18")


def test_sizes_are_checked_in_the_type_of_the_weights() -> None:
    network = LibraryNetwork("resnet18", 4).bfloat16()
    network.check_image_size(64, 64)
    with pytest.raises(ArgumentError, match=r"num_classes is 4\.0; it must be a whole number"):
        LibraryNetwork("resnet18", 4.0)


def test_a_module_without_weights_is_a_network_with_a_head() -> None:
    pools = torch.nn.Sequential(torch.nn.AvgPool2d(2), torch.nn.AvgPool2d(2))
    network = OwnNetwork(pools, 4, 3, 32)
    assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 4)

"""The classifier heads have the published layers and initialisation."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from rotnet_fast.models.heads import ConvClassifier, NonLinearClassifier, initialise_head
from rotnet_fast.models.nin import NetworkInNetwork


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def feature_maps(channels: int = 192, side: int = 8) -> torch.Tensor:
    made = torch.randn(4, channels, side, side, generator=generator())
    return made.contiguous(memory_format=torch.channels_last)


def test_nonlinear_head_sees_the_whole_map_without_pooling() -> None:
    head = NonLinearClassifier(192, 8, 8, 10)
    shapes = [(type(m), tuple(m.weight.shape)) for m in head.modules() if isinstance(m, nn.Linear)]
    assert shapes == [(nn.Linear, (200, 12288)), (nn.Linear, (200, 200)), (nn.Linear, (10, 200))]
    assert head.linear1.bias is None
    assert head.linear2.bias is None
    assert head(feature_maps()).shape == (4, 10)


@pytest.mark.parametrize(("classes", "hidden"), [(2, 40), (10, 200), (100, 2000), (1000, 2048)])
def test_nonlinear_head_has_the_released_codes_number_of_hidden_units(classes: int, hidden: int) -> None:
    head = NonLinearClassifier(6, 2, 2, classes)
    assert head.linear1.weight.shape == (hidden, 24)
    assert head.linear2.weight.shape == (hidden, hidden)
    assert head.classifier.weight.shape == (classes, hidden)


def test_nonlinear_head_flattens_in_channel_row_column_order() -> None:
    head = NonLinearClassifier(192, 8, 8, 10).eval()
    maps = feature_maps()
    assert torch.equal(head(maps), head(maps.contiguous()))


def test_nonlinear_head_averages_larger_maps_down_where_it_is_told_to() -> None:
    head = NonLinearClassifier(4, 16, 6, 10, generator(), most_cells=8).eval()
    assert head.linear1.in_features == 4 * 8 * 6
    maps = feature_maps(4, 16)[..., :6]
    halved = torch.nn.functional.avg_pool2d(maps, (2, 1))
    smaller = NonLinearClassifier(4, 8, 6, 10, generator(), most_cells=8).eval()
    torch.testing.assert_close(head(maps), smaller(halved))
    assert list(head.state_dict()) == list(NonLinearClassifier(4, 8, 8, 10).state_dict())


def test_conv_head_is_the_third_block_and_classifier_of_the_backbone() -> None:
    head, network = ConvClassifier(192, 10).eval(), NetworkInNetwork(num_classes=10, blocks=3).eval()
    head.block.load_state_dict(network.conv3.state_dict())
    head.classifier.load_state_dict(network.classifier.state_dict())
    maps = feature_maps()
    expected = network.classifier(network.conv3(maps).mean(dim=(2, 3)))
    assert torch.equal(head(maps), expected)


def test_conv_head_scales_with_width() -> None:
    head = ConvClassifier(48, 10, width=0.25)
    assert [m.out_channels for m in head.modules() if isinstance(m, nn.Conv2d)] == [48, 48, 48]


@pytest.mark.parametrize("kind", ["nonlinear", "conv"])
def test_heads_are_initialised_by_fan_out(kind: str) -> None:
    head = (
        NonLinearClassifier(192, 8, 8, 10, generator())
        if kind == "nonlinear"
        else ConvClassifier(192, 10, generator=generator())
    )
    for module in head.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            outputs, area = module.weight.shape[0], math.prod(module.weight.shape[2:])
            expected = math.sqrt(2 / (outputs * area))
            draws = module.weight.numel()
            # Five standard errors of a normal sample's mean and standard deviation.
            assert abs(module.weight.mean().item()) < 5 * expected / math.sqrt(draws)
            assert module.weight.std().item() == pytest.approx(expected, rel=5 / math.sqrt(2 * draws))
        if isinstance(module, nn.Linear) and module.bias is not None:
            assert (module.bias == 0).all()
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            assert (module.weight == 1).all()
            assert (module.bias == 0).all()


def test_one_generator_seed_gives_one_set_of_weights() -> None:
    first = ConvClassifier(48, 10, width=0.25, generator=generator(1))
    torch.manual_seed(99)  # the global generator has no say
    second = ConvClassifier(48, 10, width=0.25, generator=generator(1))
    other = ConvClassifier(48, 10, width=0.25, generator=generator(2))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not torch.equal(first.classifier.weight, other.classifier.weight)


def test_initialise_head_restores_zero_biases() -> None:
    head = NonLinearClassifier(8, 4, 4, 10)
    nn.init.ones_(head.classifier.bias)
    initialise_head(head)
    assert (head.classifier.bias == 0).all()

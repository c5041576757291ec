"""Attention maps and the equivariance number, against plain computations."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from analysis_inputs import fp32_views, normalised, random_images, small_network

from rotnet_fast.analysis.attention import (
    attention,
    correlation,
    early_middle_late,
    equivariance,
    on_turning_grid,
    resemblance,
)
from rotnet_fast.arrays import decode_array
from rotnet_fast.errors import ArgumentError
from rotnet_fast.models.nin import NetworkInNetwork


def symmetric_network() -> NetworkInNetwork:
    """Kernels that look the same in all four turns."""
    network = small_network()
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, torch.nn.Conv2d):
                turned = [torch.rot90(module.weight, k, (2, 3)) for k in range(4)]
                module.weight.copy_(torch.stack(turned).mean(dim=0))
    return network


@pytest.mark.parametrize("side", [12, 13, 14, 15])
def test_a_rotation_equivariant_network_has_the_number_one(side: int) -> None:
    result = attention(symmetric_network(), random_images(10, side), [], fp32_views())
    for values in result["equivariance"].values():
        assert list(values.values()) == pytest.approx([1.0] * 3, abs=1e-6)


def test_another_network_has_a_lower_number() -> None:
    result = attention(small_network(), random_images(10), [], fp32_views())
    for values in result["equivariance"].values():
        assert all(-1 <= value < 0.95 for value in values.values())


def test_images_are_enlarged_by_their_edges_to_a_side_that_turns_onto_itself() -> None:
    for side, larger in ((5, 5), (6, 9), (7, 9), (8, 9), (32, 33)):
        images = random_images(2, side)
        before = (larger - side) // 2
        after = larger - side - before
        expected = np.pad(images.numpy(), ((0, 0), (before, after), (before, after), (0, 0)), "edge")
        np.testing.assert_array_equal(on_turning_grid(images).numpy(), expected)
    with pytest.raises(ArgumentError, match="images are 4 x 6"):
        on_turning_grid(torch.zeros(1, 4, 6, 3, dtype=torch.uint8))


def test_numbers_and_maps_equal_a_plain_computation() -> None:
    network, images = small_network().eval(), random_images(9, side=13)
    result = attention(network, images, [8, 2], fp32_views(), layers=["conv1", "conv3"], powers=[1, 4])
    assert (result["layers"], result["powers"], result["images"]) == (["conv1", "conv3"], [1, 4], 9)
    assert result["turns"] == [0, 90, 180, 270]
    for layer in ("conv1", "conv3"):
        for position, power in enumerate((1, 4)):
            correlations, shown = [], {}
            for index, image in enumerate(normalised(images)):
                views = torch.stack([torch.rot90(image, k, (1, 2)) for k in range(4)])
                with torch.no_grad():
                    features = network.features(views, [layer])[layer]
                maps = (features.abs() ** power).sum(dim=1).numpy()
                shown[index] = maps
                for k in (1, 2, 3):
                    back = np.rot90(maps[k], -k)
                    correlations.append(np.corrcoef(maps[0].ravel(), back.ravel())[0, 1])
            expected = pytest.approx(np.mean(correlations), abs=1e-5)
            assert result["equivariance"][layer][str(power)] == expected
            assert result["left_out"][layer][str(power)] == 0
            kept = decode_array(result["shown"]["maps"][layer])
            for row, index in enumerate([8, 2]):
                for k, plain in enumerate(shown[index]):
                    stretched = (plain - plain.min()) / (plain.max() - plain.min())
                    np.testing.assert_allclose(kept[row, k, position], stretched, atol=2e-3)
    assert result["shown"]["indices"] == [8, 2]
    np.testing.assert_array_equal(decode_array(result["shown"]["images"]), images[[8, 2]].numpy())
    json.dumps(result, allow_nan=False)


def test_constant_maps_are_left_out_and_counted() -> None:
    maps = torch.rand(2, 3, 4, 5, 5)
    maps[0, 1, 2] = 0.5  # one turned image
    maps[1, 2, 0] = 0.0  # one upright image: all its three pairs
    values, defined = equivariance(maps)
    assert defined.sum(dim=(1, 2)).tolist() == [8, 6]
    assert (values[~defined] == 0).all()


def test_a_dead_layer_has_no_number() -> None:
    network = small_network()
    with torch.no_grad():
        for module in network.get_submodule("conv2").modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.weight.zero_()
                module.bias.fill_(-1.0)
    result = attention(network, random_images(4), [0], fp32_views())
    assert result["equivariance"]["conv2"] == {"1": None, "2": None, "4": None}
    assert result["left_out"]["conv2"] == {"1": 12, "2": 12, "4": 12}
    assert (decode_array(result["shown"]["maps"]["conv2"]) == 0).all()
    json.dumps(result, allow_nan=False)


def test_tiny_activations_do_not_underflow() -> None:
    maps = torch.rand(1, 2, 4, 4, 4)
    values, defined = equivariance(maps)
    tiny, defined_tiny = equivariance(maps.double() * 1e-200)
    assert torch.equal(defined, defined_tiny)
    torch.testing.assert_close(tiny, values, atol=1e-6, rtol=0)


def test_layers_are_the_first_two_and_the_last() -> None:
    assert early_middle_late(small_network(blocks=5)) == ("conv1", "conv2", "conv5")
    assert early_middle_late(small_network(blocks=3)) == ("conv1", "conv2", "conv3")


def test_batch_size_has_no_say() -> None:
    network, images = small_network(), random_images(9)
    one = attention(network, images, [3], fp32_views(batch_size=2))
    other = attention(network, images, [3], fp32_views(batch_size=9))
    for layer, values in one["equivariance"].items():
        assert values == pytest.approx(other["equivariance"][layer], abs=1e-6)


def test_a_layer_that_there_is_not_is_named() -> None:
    with pytest.raises(ArgumentError, match="conv4"):
        attention(small_network(), random_images(2), [], fp32_views(), layers=["conv4"])


def test_correlation_is_pearsons_and_undefined_for_constant_maps() -> None:
    first, second = torch.rand(2, 3, 4, 5)
    values, defined = correlation(first, second)
    expected = [np.corrcoef(a.flatten(), b.flatten())[0, 1] for a, b in zip(first, second, strict=True)]
    assert values.tolist() == pytest.approx(expected)
    assert defined.all()
    values, defined = correlation(first, torch.ones(4, 5))
    assert values.tolist() == [0.0] * 3
    assert not defined.any()


def test_a_network_resembles_itself_and_not_by_chance() -> None:
    network, images = small_network(), random_images(40)
    found = resemblance(network, network, images, fp32_views())
    layers = early_middle_late(network)
    assert found["layers"] == [[layer, layer] for layer in layers]
    assert found["powers"] == [1, 2, 4]
    assert found["same_image"] == pytest.approx([1.0] * 3)
    assert found["left_out"] == [0] * 3
    gains = np.subtract(found["same_image"], found["chance"])
    assert all(gains > 5 * np.array(found["standard_error"]))
    json.dumps(found, allow_nan=False)


def test_networks_of_other_depths_are_compared_layer_by_layer_on_the_same_images() -> None:
    first, second, images = small_network(blocks=4), small_network(blocks=3, seed=9), random_images(30)
    found = resemblance(first, second, images, fp32_views())
    assert found["layers"] == [["conv1", "conv1"], ["conv2", "conv2"], ["conv4", "conv3"]]
    plain = normalised(on_turning_grid(images))
    for place, (mine, theirs) in enumerate(found["layers"]):
        with torch.no_grad():
            maps = [
                network.features(plain, [layer])[layer].pow((1, 2, 4)[place]).sum(dim=1)
                for network, layer in ((first, mine), (second, theirs))
            ]
        same = [
            np.corrcoef(a.flatten().double(), b.flatten().double())[0, 1]
            for a, b in zip(*maps, strict=True)
            if a.std() > 0 and b.std() > 0
        ]
        assert found["same_image"][place] == pytest.approx(np.mean(same), abs=1e-4)


def test_constant_maps_are_left_out_of_the_resemblance() -> None:
    network = small_network()
    images = torch.zeros(6, 13, 13, 3, dtype=torch.uint8)
    images[:2] = random_images(2, 13)
    dead = small_network()
    with torch.no_grad():
        for parameter in dead.parameters():
            parameter.zero_()
    found = resemblance(network, dead, images, fp32_views())
    assert found["left_out"] == [6] * 3
    assert found["same_image"] == found["chance"] == found["standard_error"] == [None] * 3

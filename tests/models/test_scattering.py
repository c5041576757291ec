"""Scattering has the properties that define the transform, and takes the place of a trained network."""

from __future__ import annotations

import pytest
import torch

from rotnet_fast.errors import ArgumentError
from rotnet_fast.models.scattering import (
    ANGLES,
    COEFFICIENTS,
    LOGARITHMS,
    MAPS,
    SCALES,
    Scattering,
    scattering_shape,
)
from rotnet_fast.protocols.heads import HeadsOnBackbone


def images(count: int, side: int = 32, channels: int = 3) -> torch.Tensor:
    return torch.randn(count, channels, side, side, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def network() -> Scattering:
    return Scattering()


def orders(maps: torch.Tensor) -> torch.Tensor:
    """[B,3*81,H,W] -> [B,3,81,H,W]."""
    return maps.unflatten(1, (-1, COEFFICIENTS))


def test_maps_have_the_announced_shape_and_the_coefficients_of_each_channel_alone(
    network: Scattering,
) -> None:
    batch = images(2)
    maps = network(batch)
    assert maps.shape == (2, *scattering_shape(3, 32)) == (2, 243, 8, 8)
    assert maps.shape[1] == network.feature_channels(MAPS)
    alone = Scattering(in_channels=1)(batch[:, 1:2])
    torch.testing.assert_close(orders(maps)[:, 1:2], orders(alone))


def test_order_0_is_a_local_mean_and_the_others_ignore_brightness(network: Scattering) -> None:
    batch = images(2)
    dark, bright = orders(network(batch)), orders(network(batch + 3.0))
    torch.testing.assert_close(
        bright[:, :, 0] - dark[:, :, 0], torch.full((2, 3, 8, 8), 3.0), rtol=0, atol=1e-3
    )
    torch.testing.assert_close(bright[:, :, 1:], dark[:, :, 1:], rtol=0, atol=1e-3)


def test_the_transform_is_positively_homogeneous_and_contracts(network: Scattering) -> None:
    one, other = images(2)[:1], images(2)[1:]
    torch.testing.assert_close(network(2.5 * one), 2.5 * network(one), rtol=1e-3, atol=1e-4)
    # Averages are taken at every fourth pixel, so each map's energy counts 16 times.
    distance = 4 * (network(one) - network(other)).norm()
    assert distance < 1.05 * (one - other).norm()


def test_small_shifts_matter_less_than_to_pixels(network: Scattering) -> None:
    batch = torch.nn.functional.avg_pool2d(images(4, side=34), 3, stride=1)  # smooth
    moved = batch.roll(1, dims=3)

    def change(values: torch.Tensor, others: torch.Tensor) -> float:
        return float((values - others).norm() / values.norm())

    inner = slice(2, 6)  # away from the seam
    of_maps = change(network(batch)[..., inner], network(moved)[..., inner])
    assert of_maps < 0.6 * change(batch[..., 8:24], moved[..., 8:24])


def test_a_quarter_turn_turns_the_maps_and_shifts_the_angles(network: Scattering) -> None:
    batch = images(1)
    # Maps are sampled at every fourth pixel from the first, which a turn puts last, hence the shift by one.
    moved = torch.rot90(batch, 1, (2, 3)).roll(1, dims=2)
    upright, turned = orders(network(batch)), orders(network(moved))
    first = slice(1, 1 + SCALES * ANGLES)

    def of_angles(maps: torch.Tensor) -> torch.Tensor:
        return maps[:, :, first].unflatten(2, (SCALES, ANGLES))

    same_angles = torch.rot90(of_angles(upright), 1, (4, 5)).roll(1, dims=4)
    expected = same_angles.roll(ANGLES // 2, dims=3)
    inner = (..., slice(3, 6), slice(3, 6))  # the border is reflected about other pixels
    found, norm = of_angles(turned)[inner], expected[inner].norm()
    assert (found - expected[inner]).norm() < 0.01 * norm < 0.1 * (found - same_angles[inner]).norm()

    def of_pairs(maps: torch.Tensor) -> torch.Tensor:
        return maps[:, :, first.stop :].unflatten(2, (ANGLES, ANGLES))

    same_angles = torch.rot90(of_pairs(upright), 1, (4, 5)).roll(1, dims=4)
    expected = same_angles.roll((ANGLES // 2, ANGLES // 2), dims=(2, 3))
    found, norm = of_pairs(turned)[inner], expected[inner].norm()
    assert (found - expected[inner]).norm() < 0.03 * norm
    for shifts in ((0, 0), (ANGLES // 2, 0), (0, ANGLES // 2)):  # the angles of both orders shift, or neither
        other = same_angles.roll(shifts, dims=(2, 3))[inner]
        assert (found - other).norm() > 0.1 * norm


def test_logarithms_are_those_of_order_1_and_2(network: Scattering) -> None:
    found = network.features(images(2), [LOGARITHMS, MAPS])
    plain, logarithms = orders(found[MAPS]), orders(found[LOGARITHMS])
    assert torch.equal(plain[:, :, 0], logarithms[:, :, 0])
    torch.testing.assert_close(logarithms[:, :, 1:], torch.log(plain[:, :, 1:].abs() + 1e-6))


def test_reduced_precision_and_memory_format_change_nothing(network: Scattering) -> None:
    batch = images(2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = network(batch.to(memory_format=torch.channels_last))
    assert found.dtype == torch.float32
    assert torch.equal(found, network(batch))


def test_what_it_cannot_take_is_refused_by_name(network: Scattering) -> None:
    with pytest.raises(ArgumentError, match=r"images have 30 x 30 pixels; .* multiple of 4"):
        Scattering(image_size=30)
    with pytest.raises(ArgumentError, match="layers is conv2; choose from scattering, log-scattering"):
        network.features(images(1), ["conv2"])


@pytest.mark.parametrize("kind", ["nonlinear", "conv", "perceptron"])
def test_heads_on_it_begin_with_a_normalisation(network: Scattering, kind: str) -> None:
    heads = HeadsOnBackbone(
        network,
        [(MAPS, kind)],
        image_shape=(3, 32, 32),
        num_classes=10,
        width=0.1,
        seed=0,
        frozen=True,
    )
    heads.train()
    logits = heads(images(8))[f"{MAPS}_{kind}"]
    assert logits.shape == (8, 10)
    logits.sum().backward()
    parts = heads.heads[f"{MAPS}_{kind}"]
    assert isinstance(parts, torch.nn.Sequential)
    assert isinstance(parts[0], torch.nn.BatchNorm2d)
    assert all(parameter.grad is not None for parameter in parts.parameters())

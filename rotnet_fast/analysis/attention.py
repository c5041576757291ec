"""Attention maps, and how faithfully they turn when the image is turned.

The attention map of a layer has, per location, the sum over channels of |activation|^p (after ReLU and
the block's pool). Source: Gidaris et al., ICLR 2018, Figure 3, after Zagoruyko and Komodakis, "Paying
More Attention to Attention", ICLR 2017. The equivariance number is ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from rotnet_fast.analysis.images import Images, batches_of
from rotnet_fast.analysis.views import PlainViews, thumbnails
from rotnet_fast.arrays import encode_array
from rotnet_fast.errors import ArgumentError
from rotnet_fast.models.network import FeatureNetwork
from rotnet_fast.rotations import FOUR_ROTATIONS

POWERS = (1, 2, 4)

_CONSTANT = 1e-6
"""A map whose values differ by less than this share of the largest says nothing about where."""


def early_middle_late(network: FeatureNetwork) -> tuple[str, ...]:
    """The layers of the method's figure, the first two blocks and the last; of another network, the first
    layer, the default one and the last."""
    return tuple(dict.fromkeys((network.layers[0], network.default_layer, network.layers[-1])))


@torch.no_grad()
def attention(
    network: FeatureNetwork,
    images: Images,
    shown: Sequence[int],
    views: PlainViews,
    *,
    layers: Sequence[str] | None = None,
    powers: Sequence[int] = POWERS,
) -> dict[str, Any]:
    """Compute attention maps of a few images in four turns, and the equivariance number over all images.

    The equivariance number of a layer and a power is the mean, over images and the turns by 90, 180
    and 270 degrees, of Pearson's correlation between the map of the upright image and that of the
    turned image, turned back. 1 means that the map turns exactly with the image. Pairs with a constant
    map are left out and counted. Images are enlarged first, see :func:`on_turning_grid`, if the network
    takes other sizes than theirs.

    Args:
        network: put in eval mode.
        images: uint8 [N,H,W,C], H == W, on the network's device.
        shown: positions of the images whose maps are kept.
        views: how views are made.
        layers: None takes :func:`early_middle_late`.
        powers: exponents p.

    Returns:
        ``layers``, ``powers`` (lists), ``turns`` (degrees counter-clockwise, the first one 0),
        ``images`` (N), ``shown``: {``indices``, ``images``: uint8 [S,H,W,C] upright, ``maps``: layer
        -> float16 [S,turns,powers,h,w], each map stretched to [0, 1]}, and layer -> power (as text)
        -> value in ``equivariance`` (None where every pair was left out) and ``left_out``.

    Raises:
        ArgumentError: an unknown layer, a position outside the images, or images that are not square.
    """
    chosen = early_middle_late(network) if layers is None else tuple(layers)
    network.check_layers(chosen)
    network.eval()
    upright = thumbnails(images, shown)
    totals = {layer: torch.zeros(len(powers), dtype=torch.float64) for layer in chosen}
    pairs = {layer: torch.zeros(len(powers), dtype=torch.int64) for layer in chosen}
    stride = grid_stride(network, images.shape[1])
    for _, plain in batches_of(images, views.batch_size):
        for _, batch in views.rotated(on_turning_grid(plain, stride), FOUR_ROTATIONS):
            for layer, maps in attention_maps(network, batch, chosen, powers, views).items():
                values, defined = equivariance(maps)
                totals[layer] += values.sum(dim=(1, 2)).cpu()
                pairs[layer] += defined.sum(dim=(1, 2)).cpu()
    every_pair = len(images) * (len(FOUR_ROTATIONS) - 1)
    names = [str(power) for power in powers]

    def named(values: list[Any]) -> dict[str, Any]:
        return dict(zip(names, values, strict=True))

    return {
        "layers": list(chosen),
        "powers": list(powers),
        "turns": list(FOUR_ROTATIONS),
        "images": len(images),
        "shown": {
            "indices": list(shown),
            "images": encode_array(upright),
            "maps": _shown_maps(network, images, shown, chosen, powers, views),
        },
        "equivariance": {
            layer: named(
                [
                    total / count if count else None
                    for total, count in zip(totals[layer].tolist(), pairs[layer].tolist(), strict=True)
                ]
            )
            for layer in chosen
        },
        "left_out": {layer: named((every_pair - pairs[layer]).tolist()) for layer in chosen},
    }


def grid_stride(network: FeatureNetwork, side: int) -> int:
    """Return the stride for :func:`on_turning_grid`.

    It is the network's; or 1, which enlarges nothing, for a network that takes images of this side alone.
    """
    enlarged = side + (1 - side) % network.stride
    try:
        network.check_image_size(enlarged, enlarged)
    except ArgumentError:
        return 1
    return network.stride


def on_turning_grid(images: torch.Tensor, stride: int = 4) -> torch.Tensor:
    """Enlarge images, by repeating their edges, until the network's grids turn onto themselves.

    A pool of stride 2 on an even side samples positions 0, 2, 4, ..., which a turn moves to odd ones; after
    two pools, maps of a 32x32 image would be displaced by three quarters of a cell. Even a network
    that treats all directions alike would then not reach the number 1. With 4m + 1 pixels it does, and with
    m times the stride + 1 where maps are reduced further.

    Args:
        images: uint8 [N,H,H,C].
        stride: of the network, see `FeatureNetwork`.

    Returns:
        uint8 [N,S,S,C], S the first m * stride + 1 that is not below H: 33 for 32.

    Raises:
        ArgumentError: images that are not square.
    """
    side, breadth = images.shape[1:3]
    if side != breadth:
        raise ArgumentError(f"images are {side} x {breadth}; attention is compared on square images only")
    missing = (1 - side) % stride
    if not missing:
        return images
    before = missing // 2
    rows = (torch.arange(side + missing, device=images.device) - before).clamp(0, side - 1)
    return images[:, rows][:, :, rows].contiguous()


def attention_maps(
    network: FeatureNetwork,
    batch: torch.Tensor,
    layers: Sequence[str],
    powers: Sequence[int],
    views: PlainViews,
) -> dict[str, torch.Tensor]:
    """Compute attention maps of views [B*4,C,H,W]: layer -> fp32 [P,B,4,h,w]."""
    with views.precision.autocast():
        features = network.features(batch, layers)
    maps = {}
    for layer, activations in features.items():
        magnitude = activations.float().abs()
        summed = torch.stack([magnitude.pow(power).sum(dim=1) for power in powers])  # [P,B*4,h,w]
        maps[layer] = summed.unflatten(1, (-1, len(FOUR_ROTATIONS)))
    return maps


def equivariance(maps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Correlate the map of each turned image, turned back, with that of the upright one.

    Args:
        maps: [P,B,4,h,w], the maps of the image turned by 0, 90, 180 and 270 degrees.

    Returns:
        ``(values, defined)``: float64 and bool [P,B,3]; where one of the two maps is constant, the
        value is 0 and not defined.
    """
    back = torch.stack([torch.rot90(maps[:, :, turn], -turn, (2, 3)) for turn in range(4)], dim=2)
    return correlation(back[:, :, 1:], back[:, :, :1])


def correlation(first: torch.Tensor, second: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Correlate pairs of maps, by Pearson.

    Args:
        first, second: [...,h,w], broadcast against each other.

    Returns:
        ``(values, defined)``: float64 and bool [...]; where one of the two maps is constant, the value is 0
        and not defined.
    """
    centred, varies = zip(*(_centred(maps.double().flatten(-2)) for maps in (first, second)), strict=True)
    products = (centred[0] * centred[1]).sum(dim=-1)
    lengths = [values.square().sum(dim=-1).sqrt() for values in centred]
    defined = varies[0] & varies[1]
    return torch.where(defined, products / (lengths[0] * lengths[1]).clamp_min(1e-300), 0.0), defined


def _centred(flat: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Subtract the mean of maps [...,h*w] and scale them; return also which are not constant."""
    spread = flat.amax(dim=-1) - flat.amin(dim=-1)
    varies = spread > _CONSTANT * flat.abs().amax(dim=-1)
    centred = flat - flat.mean(dim=-1, keepdim=True)
    # By the largest value first: squares of maps of power 4 would underflow where activations are small.
    return centred / centred.abs().amax(dim=-1, keepdim=True).clamp_min(1e-300), varies


@torch.no_grad()
def resemblance(
    first: FeatureNetwork, second: FeatureNetwork, images: Images, views: PlainViews
) -> dict[str, Any]:
    """Measure how much the attention maps of two networks resemble each other on upright images.

    The number of a layer is the mean over images of Pearson's correlation between the map of the first
    network and that of the second; chance is the same with the second network's map of another image, the
    next one of a random order. Early, middle and late layers are compared with each other, with the powers 1,
    2 and 4, as in the method's figure; larger maps are averaged down to the size of the smaller.

    Args:
        first, second: put in eval mode.
        images: uint8 [N,H,W,C], H == W, N at least 2, on the networks' device.
        views: how views are made.

    Returns:
        ``layers`` (pairs), ``powers``, and for each of these pairs, as lists, ``same_image``, ``chance``,
        their difference's ``standard_error`` over images, and ``left_out``: images with a constant map.
    """
    networks = (first.eval(), second.eval())
    chosen = [early_middle_late(network) for network in networks]
    found: list[list[list[torch.Tensor]]] = [[[] for _ in chosen[0]] for _ in networks]
    strides = [grid_stride(network, images.shape[1]) for network in networks]
    for _, plain in batches_of(images, views.batch_size):
        for number, (network, layers, stride) in enumerate(zip(networks, chosen, strides, strict=True)):
            for _, batch in views.rotated(on_turning_grid(plain, stride), (0,)):
                with views.precision.autocast():
                    features = network.features(batch, layers)
                for place, (layer, power) in enumerate(zip(layers, POWERS, strict=False)):
                    summed = features[layer].float().abs().pow(power).sum(dim=1)  # [B,h,w]
                    found[number][place].append(summed.cpu())
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    others = torch.empty_like(order)
    others[order] = order.roll(1)
    results: dict[str, list[Any]] = {
        "layers": [list(pair) for pair in zip(*chosen, strict=True)],
        "powers": list(POWERS[: len(chosen[0])]),
        "same_image": [],
        "chance": [],
        "standard_error": [],
        "left_out": [],
    }
    for parts in zip(*found, strict=True):
        maps = [torch.cat(part) for part in parts]
        side = min(its.shape[-1] for its in maps)
        mine, theirs = (functional.adaptive_avg_pool2d(its, side) for its in maps)
        same, is_same_defined = correlation(mine, theirs)
        other, is_other_defined = correlation(mine, theirs[others])
        kept = is_same_defined & is_other_defined
        gain = (same - other)[kept]
        count = len(gain)
        results["left_out"].append(len(images) - count)
        results["same_image"].append(same[kept].mean().item() if count else None)
        results["chance"].append(other[kept].mean().item() if count else None)
        results["standard_error"].append((gain.std() / count**0.5).item() if count > 1 else None)
    return results


def _shown_maps(
    network: FeatureNetwork,
    images: Images,
    shown: Sequence[int],
    layers: Sequence[str],
    powers: Sequence[int],
    views: PlainViews,
) -> dict[str, dict[str, Any]]:
    """Maps of the images shown, each stretched to [0, 1]: layer -> encoded float16 [S,4,P,h,w]."""
    if not shown:
        return {layer: encode_array(np.zeros((0, 4, len(powers), 1, 1), np.float16)) for layer in layers}
    upright = images[torch.tensor(list(shown), device=images.device)]
    chosen = on_turning_grid(upright, grid_stride(network, upright.shape[1]))
    parts: dict[str, list[NDArray[np.float16]]] = {layer: [] for layer in layers}
    for _, batch in views.rotated(chosen, FOUR_ROTATIONS):
        for layer, maps in attention_maps(network, batch, layers, powers, views).items():
            low, high = maps.amin(dim=(3, 4), keepdim=True), maps.amax(dim=(3, 4), keepdim=True)
            varies = high - low > _CONSTANT * high
            stretched = torch.where(varies, (maps - low) / (high - low).clamp_min(1e-30), 0.0)
            parts[layer].append(stretched.permute(1, 2, 0, 3, 4).half().cpu().numpy())
    return {layer: encode_array(np.concatenate(arrays)) for layer, arrays in parts.items()}

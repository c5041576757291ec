"""Small networks and images, shared by the tests of the analyses."""

from __future__ import annotations

import torch

from rotnet_fast.analysis.views import PlainViews
from rotnet_fast.engine.precision import resolve_precision
from rotnet_fast.models.nin import NetworkInNetwork

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


def fp32_views(device: torch.device | str = "cpu", batch_size: int = 7) -> PlainViews:
    """Batches that do not divide the images evenly."""
    return PlainViews(MEAN, STD, resolve_precision("fp32", torch.device(device)), batch_size)


def small_network(outputs: int = 4, blocks: int = 3, seed: int = 0) -> NetworkInNetwork:
    """8 channels, with running statistics and scales that are not those of a fresh BatchNorm."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = NetworkInNetwork(outputs, blocks=blocks, width=0.04)
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                torch.nn.init.uniform_(module.weight, 0.5, 1.5)
                torch.nn.init.uniform_(module.bias, -0.1, 0.1)
                torch.nn.init.uniform_(module.running_mean, -0.1, 0.1)  # type: ignore[arg-type]
                torch.nn.init.uniform_(module.running_var, 0.05, 0.5)  # type: ignore[arg-type]
    return network


def random_images(count: int, side: int = 12, seed: int = 0) -> torch.Tensor:
    """uint8 [count,side,side,3], smooth enough that neighbouring pixels are alike."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 4, 4, generator=generator)
    fine = torch.nn.functional.interpolate(coarse, (side, side), mode="bilinear")
    return (255 * fine).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def normalised(images: torch.Tensor) -> torch.Tensor:
    """[N,C,H,W] in plain torch."""
    return ((images.double() / 255 - torch.tensor(MEAN)) / torch.tensor(STD)).float().permute(0, 3, 1, 2)

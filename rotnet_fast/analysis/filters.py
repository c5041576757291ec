"""First-layer filters as the network applies them, and how different they are from each other.

Source: Gidaris et al., ICLR 2018, Figure 4, shows the filters; Roy and Vetterli, "The effective rank: a
measure of effective dimensionality", EUSIPCO 2007.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from rotnet_fast.arrays import encode_array
from rotnet_fast.errors import ArgumentError, diverged
from rotnet_fast.models.network import FeatureNetwork


def filters(network: FeatureNetwork, is_grey: bool = False) -> dict[str, Any]:
    """Fold BatchNorm's scale into the first convolution, and measure how diverse its filters are.

    Args:
        network: in any mode.
        is_grey: whether the channels of its images are alike. The network then sees nothing but the sum of a
            filter over them, which stands for the filter: C_in is 1.

    Returns:
        ``filters``: float32 [C_out,C_in,k,k]; ``count`` (C_out); ``effective_rank`` of the matrix
        [C_out,C_in*k*k], and ``full_rank``, the largest that it could be; ``mean_abs_cosine`` over all
        pairs of filters that are not zero (None for fewer than two); ``zero_filters``, their number.

    Raises:
        ArgumentError: BatchNorm has no running statistics to fold in.
    """
    folded = folded_filters(network)
    if is_grey:
        folded = folded.sum(dim=1, keepdim=True)
    matrix = folded.flatten(1).double()  # [C_out,C_in*k*k]
    lengths = matrix.norm(dim=1)
    directions = matrix[lengths > 0] / lengths[lengths > 0, None]
    count = len(directions)
    cosines = (directions @ directions.T).abs()
    pairs = count * (count - 1)
    return {
        "filters": encode_array(folded.numpy()),
        "count": len(matrix),
        "effective_rank": effective_rank(matrix),
        "full_rank": min(matrix.shape),
        "mean_abs_cosine": (cosines.sum() - cosines.trace()).item() / pairs if pairs else None,
        "zero_filters": len(matrix) - count,
    }


@torch.no_grad()
def folded_filters(network: FeatureNetwork) -> torch.Tensor:
    """weight * gamma / sqrt(running variance + eps) of the first convolution: fp32 [C_out,C_in,k,k], CPU.

    Where no BatchNorm follows it, the weights themselves.

    Raises:
        ArgumentError: there is no convolution, or BatchNorm has no running statistics.
        NonFiniteError: their weights overflow.
    """
    modules = iter(network.modules())
    first = next((module for module in modules if isinstance(module, nn.Conv2d)), None)
    if first is None:
        raise ArgumentError(f"model {network.name} has no convolution, so that it has no filters to show")
    bn = next(modules, None)
    if not isinstance(bn, nn.BatchNorm2d):
        return first.weight.float().cpu().contiguous()
    if bn.running_var is None:
        raise ArgumentError(
            "the network's BatchNorm keeps no running statistics, so that no scale can be folded into its "
            "filters; give a network that normalises with running statistics"
        )
    scale = bn.weight * torch.rsqrt(bn.running_var + bn.eps)  # [C_out]
    folded = (first.weight * scale[:, None, None, None]).float().cpu().contiguous()
    if not folded.isfinite().all():
        raise diverged(f"the filters of model {network.name}")
    return folded


def effective_rank(matrix: torch.Tensor) -> float:
    """exp of the entropy of the singular values, divided by their sum: 1 .. min(shape), 0 for zeros.

    Args:
        matrix: float [R,C].
    """
    values = torch.linalg.svdvals(matrix)
    if values.sum() == 0:
        return 0.0
    shares = values / values.sum()
    shares = shares[shares > 0]
    return float(torch.exp(-(shares * shares.log()).sum()).item())

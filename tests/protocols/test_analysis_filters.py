"""First-layer filters with BatchNorm's scale, and how diverse they are."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from analysis_inputs import small_network

from rotnet_fast.analysis.filters import effective_rank, filters, folded_filters
from rotnet_fast.analysis.images import is_grey
from rotnet_fast.arrays import decode_array
from rotnet_fast.errors import ArgumentError
from rotnet_fast.protocols.heads import use_batch_statistics


def test_folded_filters_give_what_convolution_and_batchnorm_give() -> None:
    network = small_network().eval()
    first = network.get_submodule("conv1.0")
    x = torch.randn(2, 3, 9, 9)
    with torch.no_grad():
        expected = first.bn(first.conv(x))  # type: ignore[operator]
        shift = expected - torch.nn.functional.conv2d(x, folded_filters(network), padding=2)
        per_channel = first.bn(torch.zeros(1, 8, 1, 1))  # type: ignore[operator]
    torch.testing.assert_close(shift, per_channel.expand_as(shift), atol=1e-5, rtol=0)


def test_effective_rank_of_an_identity_is_its_size() -> None:
    assert effective_rank(torch.eye(7)) == pytest.approx(7)
    assert effective_rank(5 * torch.eye(7)[:, :3]) == pytest.approx(3)
    assert effective_rank(torch.ones(4, 9).double()) == pytest.approx(1)
    assert effective_rank(torch.zeros(4, 9)) == 0
    shares = (0.75, 0.25)
    entropy = -sum(share * math.log(share) for share in shares)
    assert effective_rank(torch.diag(torch.tensor([3.0, 1.0]))) == pytest.approx(math.exp(entropy))


def test_numbers_equal_a_plain_computation() -> None:
    network = small_network()
    result = filters(network)
    kept = decode_array(result["filters"])
    assert kept.shape == (8, 3, 5, 5)
    rows = kept.reshape(8, -1).astype(float)
    cosines = [
        abs(np.dot(rows[i], rows[j])) / (np.linalg.norm(rows[i]) * np.linalg.norm(rows[j]))
        for i in range(8)
        for j in range(i)
    ]
    assert result["mean_abs_cosine"] == pytest.approx(np.mean(cosines))
    values = np.linalg.svd(rows, compute_uv=False)
    shares = values / values.sum()
    assert result["effective_rank"] == pytest.approx(np.exp(-(shares * np.log(shares)).sum()))
    assert (result["count"], result["full_rank"], result["zero_filters"]) == (8, 8, 0)
    json.dumps(result, allow_nan=False)


def test_filters_that_are_zero_are_counted_and_have_no_direction() -> None:
    network = small_network()
    with torch.no_grad():
        network.get_submodule("conv1.0").bn.weight[1:] = 0  # type: ignore[union-attr, operator]
    result = filters(network)
    assert (result["zero_filters"], result["mean_abs_cosine"]) == (7, None)


def test_filters_of_grey_images_are_their_sums_over_the_channels() -> None:
    network = small_network()
    result = filters(network, is_grey=True)
    sums = folded_filters(network).sum(dim=1, keepdim=True).numpy()
    np.testing.assert_allclose(decode_array(result["filters"]), sums)
    assert result["full_rank"] == min(8, 25)
    assert result["effective_rank"] <= 8


def test_images_are_grey_if_their_channels_are_alike() -> None:
    images = torch.randint(0, 256, (100, 4, 4, 1), dtype=torch.uint8)
    assert is_grey(images)
    assert is_grey(images.expand(-1, -1, -1, 3))
    coloured = images.repeat(1, 1, 1, 3)
    coloured[3, 0, 0, 1] ^= 1
    assert not is_grey(coloured)


def test_a_network_without_running_statistics_is_refused() -> None:
    network = small_network()
    use_batch_statistics(network)
    with pytest.raises(ArgumentError, match="no running statistics"):
        filters(network)

"""Random draws: known answers, agreement of both implementations, uniformity."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rotnet_fast.philox import PURPOSE_AUGMENTATION, PURPOSE_SHUFFLE, crop_and_flip_draws, draw, philox4x32

core = pytest.importorskip("rotnet_fast._core", reason="the compiled header core was not built")

# kat_vectors of the Random123 distribution (Salmon et al., SC 2011), philox4x32 with 10 rounds.
KNOWN_ANSWERS = [
    ([0, 0, 0, 0], [0, 0], [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        [0xA4093822, 0x299F31D0],
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
]

int64s = st.integers(-(2**63), 2**63 - 1)


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_philox_gives_the_published_known_answers(
    counter: list[int], key: list[int], expected: list[int]
) -> None:
    words = philox4x32(
        tuple(torch.tensor(word) for word in counter),  # type: ignore[arg-type]
        tuple(torch.tensor(word) for word in key),  # type: ignore[arg-type]
    )
    assert [int(word) for word in words] == expected
    assert core.philox4x32(counter, key) == expected


@given(int64s, int64s, st.integers(0, 2**32 - 1), st.integers(0, 32767), st.floats(0, 1))
def test_compiled_draws_equal_the_torch_draws(
    sample_id: int, seed: int, epoch: int, pad: int, flip_prob: float
) -> None:
    top, left, flip = crop_and_flip_draws(torch.tensor([sample_id]), seed, epoch, pad, flip_prob)
    expected = core.augmentation(sample_id, seed, epoch, pad, flip_prob)
    assert (int(top), int(left), bool(flip)) == expected


def test_seed_epoch_and_purpose_each_give_another_stream() -> None:
    ids = torch.arange(1000)
    streams = [
        torch.stack(draw(ids, seed, epoch, purpose))
        for seed, epoch, purpose in [
            (0, 0, PURPOSE_AUGMENTATION),
            (1, 0, PURPOSE_AUGMENTATION),
            (2**32, 0, PURPOSE_AUGMENTATION),
            (0, 1, PURPOSE_AUGMENTATION),
            (0, 0, PURPOSE_SHUFFLE),
        ]
    ]
    for i, one in enumerate(streams):
        for other in streams[:i]:
            assert (one == other).float().mean() < 0.01


def chi_square_p(counts: torch.Tensor) -> float:
    """Upper-tail p of Pearson's statistic against equal cells (Wilson-Hilferty approximation)."""
    expected = counts.sum().item() / counts.numel()
    statistic = ((counts.double() - expected) ** 2 / expected).sum().item()
    degrees = counts.numel() - 1
    z = ((statistic / degrees) ** (1 / 3) - (1 - 2 / (9 * degrees))) / math.sqrt(2 / (9 * degrees))
    return 0.5 * math.erfc(z / math.sqrt(2))


@pytest.mark.parametrize("seed", [0, 20180430])
def test_a_million_draws_are_uniform(seed: int) -> None:
    number = 1_000_000
    ids = torch.arange(number)
    top, left, flip = crop_and_flip_draws(ids, seed, 7, 4, 0.5)
    cell = top * 9 + left
    next_top, next_left, _ = crop_and_flip_draws(ids, seed, 8, 4, 0.5)
    next_epoch_cell = next_top * 9 + next_left

    z = (flip.sum().item() - number / 2) / math.sqrt(number / 4)
    assert abs(z) < 5
    for name, cells, size in [
        ("crop", cell, 81),
        ("crop and flip", cell * 2 + flip, 162),
        ("neighbouring samples", cell[:-1:2] * 81 + cell[1::2], 6561),
        ("neighbouring epochs", cell * 81 + next_epoch_cell, 6561),
    ]:
        p = chi_square_p(torch.bincount(cells, minlength=size))
        assert p > 1e-6, f"{name}: p = {p}"


def test_the_uniformity_test_notices_a_flip_bias_of_half_a_percent() -> None:
    number = 1_000_000
    _, _, flip = crop_and_flip_draws(torch.arange(number), 0, 7, 4, 0.505)
    z = (flip.sum().item() - number / 2) / math.sqrt(number / 4)
    assert z > 5


@pytest.mark.parametrize(("probability", "expected"), [(0.0, 0), (1.0, 4096)])
def test_flip_probabilities_zero_and_one_are_certain(probability: float, expected: int) -> None:
    _, _, flip = crop_and_flip_draws(torch.arange(4096), 0, 0, 4, probability)
    assert int(flip.sum()) == expected

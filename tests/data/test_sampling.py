"""The order of an epoch and the resident loader that follows it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from rotnet_fast.data.resident import ResidentLoader
from rotnet_fast.data.sampling import BatchShare, epoch_order
from rotnet_fast.data.split import Split

SEEDS = st.integers(-(2**63), 2**63 - 1)
EPOCHS = st.integers(0, 2**32 - 1)


@given(n=st.integers(1, 300), seed=SEEDS, epoch=EPOCHS)
def test_each_epoch_visits_every_image_once(n: int, seed: int, epoch: int) -> None:
    indices, sample_ids = epoch_order(n, n, seed, epoch)
    assert indices.dtype == sample_ids.dtype == torch.int64
    assert torch.equal(indices.sort().values, torch.arange(n))
    assert torch.equal(indices, sample_ids)


@given(n=st.integers(1, 60), extra=st.integers(0, 400), seed=SEEDS, epoch=EPOCHS)
def test_a_small_set_is_revisited_evenly_with_a_new_sample_id_each_time(
    n: int, extra: int, seed: int, epoch: int
) -> None:
    size = n + extra
    indices, sample_ids = epoch_order(n, size, seed, epoch)
    assert torch.equal(sample_ids.sort().values, torch.arange(size))
    assert torch.equal(indices, sample_ids % n)
    visits = torch.bincount(indices, minlength=n)
    assert set(visits.tolist()) <= {size // n, -(-size // n)}


def test_label_scarce_epochs_visit_each_image_as_often_as_the_protocol_says() -> None:
    indices, _ = epoch_order(n=200, epoch_size=50_000, seed=0, epoch=3)
    assert torch.bincount(indices).tolist() == [250] * 200


def test_the_order_depends_on_nothing_but_seed_and_epoch() -> None:
    torch.manual_seed(1)
    first = epoch_order(1000, 1000, seed=5, epoch=7)[0]
    torch.manual_seed(2)
    epoch_order(1000, 1000, seed=5, epoch=8)
    assert torch.equal(epoch_order(1000, 1000, seed=5, epoch=7)[0], first)


def test_the_order_is_the_same_in_every_version() -> None:
    # A change here means that no older run can be resumed exactly.
    assert epoch_order(8, 8, seed=0, epoch=0)[0].tolist() == [5, 6, 3, 1, 2, 4, 0, 7]
    assert epoch_order(8, 8, seed=2**40 + 1, epoch=3)[0].tolist() == [0, 5, 3, 1, 2, 6, 7, 4]


@pytest.mark.parametrize("other", [(1, 0), (2**32, 0), (-1, 0), (0, 1), (0, 2**31)])
def test_another_seed_or_epoch_gives_another_order(other: tuple[int, int]) -> None:
    order, _ = epoch_order(1000, 1000, seed=0, epoch=0)
    other_order, _ = epoch_order(1000, 1000, *other)
    assert int((order == other_order).sum()) < 20  # one on average


def test_without_shuffling_the_order_is_that_of_the_set() -> None:
    indices, sample_ids = epoch_order(4, 10, seed=0, epoch=0, shuffle=False)
    assert indices.tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 0, 1]
    assert sample_ids.tolist() == list(range(10))


@pytest.mark.parametrize(("n", "epoch_size", "message"), [(0, 0, "n is 0"), (10, 9, "epoch_size is 9")])
def test_an_epoch_that_would_skip_images_is_refused(n: int, epoch_size: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        epoch_order(n, epoch_size, seed=0, epoch=0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_order_on_cuda_is_that_of_the_cpu() -> None:
    cpu = epoch_order(1000, 2500, seed=11, epoch=4)
    cuda = epoch_order(1000, 2500, seed=11, epoch=4, device="cuda")
    assert torch.equal(cuda[0].cpu(), cpu[0])
    assert torch.equal(cuda[1].cpu(), cpu[1])


def p_value(first: torch.Tensor, second: torch.Tensor, cells: int) -> float:
    """Chi-square test that pairs of values, cut into cells x cells boxes, are independent.

    Both margins of a permutation are fixed, which leaves (cells - 1) ** 2 degrees of freedom.
    """
    counts = torch.bincount(first * cells + second, minlength=cells * cells).double()
    expected = len(first) / cells**2
    statistic = float(((counts - expected) ** 2 / expected).sum())
    return float(stats.chi2.sf(statistic, (cells - 1) ** 2))


@pytest.fixture(scope="module")
def orders() -> torch.Tensor:
    """Twenty epochs of 49,977 visits (a multiple of 81): int64 [20,N], about a million draws."""
    return torch.stack([epoch_order(49_977, 49_977, seed=2018, epoch=epoch)[0] for epoch in range(20)])


def box(values: torch.Tensor, n: int, cells: int) -> torch.Tensor:
    return (values * cells // n).flatten()


@pytest.mark.parametrize("cells", [9, 81])
def test_images_land_everywhere_equally_often(orders: torch.Tensor, cells: int) -> None:
    n = orders.shape[1]
    positions = torch.arange(n).expand_as(orders)
    assert p_value(box(positions, n, cells), box(orders, n, cells), cells) > 1e-6


def test_neighbours_in_the_order_are_independent(orders: torch.Tensor) -> None:
    n = orders.shape[1]
    assert p_value(box(orders[:, :-1], n, 81), box(orders[:, 1:], n, 81), 81) > 1e-6


def test_consecutive_epochs_are_independent(orders: torch.Tensor) -> None:
    n = orders.shape[1]
    positions = torch.argsort(orders, dim=1)
    assert p_value(box(positions[:-1], n, 81), box(positions[1:], n, 81), 81) > 1e-6
    repeated = positions[:1].expand_as(positions)  # what a forgotten epoch number would look like
    assert p_value(box(repeated[:-1], n, 81), box(repeated[1:], n, 81), 81) < 1e-6


def make_split(n: int) -> Split:
    images = torch.arange(n * 12, dtype=torch.int64).remainder(256).to(torch.uint8).reshape(n, 2, 2, 3)
    return Split(images, torch.arange(n) * 7 % 10)


def test_the_last_incomplete_batch_is_kept() -> None:
    loader = ResidentLoader(make_split(10), "cpu", batch_size=4, seed=0)
    batches = list(loader.epoch(0))
    assert len(loader) == len(batches) == 3
    assert [len(batch.indices) for batch in batches] == [4, 4, 2]


def test_batches_carry_the_labels_of_their_images() -> None:
    split = make_split(50)
    loader = ResidentLoader(split, "cpu", batch_size=8, seed=3, epoch_size=120)
    for batch in loader.epoch(1):
        assert torch.equal(batch.labels, split.labels[batch.indices])
        assert torch.equal(batch.indices, batch.sample_ids % 50)


@settings(max_examples=30)
@given(batch_size=st.integers(1, 40), epoch=EPOCHS)
def test_the_batch_size_does_not_change_the_order(batch_size: int, epoch: int) -> None:
    loader = ResidentLoader(make_split(30), "cpu", batch_size, seed=9, epoch_size=70)
    visited = torch.cat([batch.sample_ids for batch in loader.epoch(epoch)])
    assert torch.equal(visited, epoch_order(30, 70, seed=9, epoch=epoch)[1])


def test_starting_in_mid_epoch_gives_exactly_the_remaining_batches() -> None:
    loader = ResidentLoader(make_split(23), "cpu", batch_size=5, seed=1, epoch_size=52)
    whole = list(loader.epoch(6))
    for start in range(len(loader) + 1):
        rest = list(loader.epoch(6, start_batch=start))
        assert len(rest) == len(loader) - start
        for resumed, uninterrupted in zip(rest, whole[start:], strict=True):
            assert torch.equal(resumed.sample_ids, uninterrupted.sample_ids)
            assert torch.equal(resumed.indices, uninterrupted.indices)
            assert torch.equal(resumed.labels, uninterrupted.labels)


def test_a_loader_without_shuffling_keeps_the_order_of_the_set() -> None:
    loader = ResidentLoader(make_split(7), "cpu", batch_size=3, seed=0, shuffle=False)
    assert [batch.indices.tolist() for batch in loader.epoch(4)] == [[0, 1, 2], [3, 4, 5], [6]]


@settings(max_examples=50)
@given(world=st.integers(1, 9), batch_size=st.integers(1, 20), epoch=EPOCHS)
def test_the_shares_of_all_processes_are_the_batches_of_one(world: int, batch_size: int, epoch: int) -> None:
    split = make_split(23)
    whole = ResidentLoader(split, "cpu", batch_size, seed=4, epoch_size=31)
    ranks = [
        ResidentLoader(split, "cpu", batch_size, seed=4, epoch_size=31, share=BatchShare(rank, world))
        for rank in range(world)
    ]
    for batch, *shares in zip(whole.epoch(epoch), *(loader.epoch(epoch) for loader in ranks), strict=True):
        for name in ("indices", "labels", "sample_ids"):
            joined = torch.cat([getattr(share, name) for share in shares])
            assert torch.equal(joined, getattr(batch, name))
        sizes = [len(share) for share in shares]
        assert max(sizes) - min(sizes) <= 1
        assert {share.global_size for share in shares} == {len(batch)}


def test_on_the_cpu_the_images_are_not_copied() -> None:
    split = make_split(5)
    assert ResidentLoader(split, "cpu", batch_size=2, seed=0).images.data_ptr() == split.images.data_ptr()


def test_a_loader_refuses_what_it_cannot_do() -> None:
    with pytest.raises(ValueError, match="batch_size is 0"):
        ResidentLoader(make_split(5), "cpu", batch_size=0, seed=0)
    with pytest.raises(ValueError, match="no images"):
        ResidentLoader(make_split(0), "cpu", batch_size=1, seed=0)
    with pytest.raises(ValueError, match="epoch_size is 4"):
        ResidentLoader(make_split(5), "cpu", batch_size=1, seed=0, epoch_size=4)
    loader = ResidentLoader(make_split(5), "cpu", batch_size=2, seed=0)
    for start in (-1, 4):
        with pytest.raises(ValueError, match=f"start_batch is {start}"):
            next(loader.epoch(0, start_batch=start))


def test_loaders_of_a_device_share_one_copy_of_the_images() -> None:
    split = Split(torch.zeros(6, 4, 4, 3, dtype=torch.uint8), torch.zeros(6, dtype=torch.int64))
    assert split.on(torch.device("cpu")) is split
    there = torch.device("meta")  # stands for a GPU
    first, second = (ResidentLoader(split, there, 2, seed=0, shuffle=False) for _ in range(2))
    assert first.images is second.images
    assert first.labels is second.labels
    assert first.images.device == there

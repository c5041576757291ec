"""What only a CUDA device can show: capture, streams, indices that nobody checked."""

from __future__ import annotations

import pytest
import torch

from rotnet_fast.ops import rotate_batch
from rotnet_fast.ops.library import LIBRARIES
from rotnet_fast.rotations import EIGHT_ROTATIONS, FOUR_ROTATIONS

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
    pytest.mark.skipif(not LIBRARIES["cuda"].loaded, reason=f"CUDA kernels: {LIBRARIES['cuda'].detail}"),
]


def random_images(number: int, side: int = 32) -> torch.Tensor:
    return torch.randint(0, 256, (number, side, side, 3), dtype=torch.uint8, device="cuda")


@pytest.mark.parametrize("rotations", [FOUR_ROTATIONS, EIGHT_ROTATIONS])
def test_a_captured_graph_draws_anew_at_each_replay(rotations: tuple[int, ...]) -> None:
    images, key = random_images(128), torch.tensor([5, 0], device="cuda")
    out, _ = rotate_batch(images, rotations=rotations, seed=key)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        rotate_batch(images, rotations=rotations, seed=key, out=out)
    for epoch in (1, 2, 3):
        key[1] = epoch
        graph.replay()
        expected, _ = rotate_batch(images.cpu(), rotations=rotations, seed=5, epoch=epoch)
        assert torch.equal(out.cpu(), expected)


def test_it_runs_on_the_current_stream() -> None:
    images = random_images(1024)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(20_000_000)
        images.fill_(255)
        views, _ = rotate_batch(images, pad=0)
    stream.synchronize()
    assert torch.equal(views, views[:1].expand_as(views))


@pytest.mark.parametrize("rotations", [FOUR_ROTATIONS, EIGHT_ROTATIONS])
def test_views_of_an_index_out_of_range_are_nan_and_the_others_whole(rotations: tuple[int, ...]) -> None:
    images, turned = random_images(4), len(rotations)
    indices = torch.tensor([0, 4, 1, -1, 2**62, 3], device="cuda")
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        views, labels = rotate_batch(images, indices, rotations=rotations, dtype=dtype)
        bad = views.isnan().flatten(1).all(1).view(6, turned).all(1).tolist()
        assert bad == [False, True, False, True, True, False]
        good = rotate_batch(images, indices[[0, 2, 5]], rotations=rotations, dtype=dtype)[0]
        assert torch.equal(views.view(6, turned, 3, 32, 32)[[0, 2, 5]].flatten(0, 1), good)
        assert labels.tolist() == list(range(turned)) * 6


def test_indices_into_no_images_at_all_give_nan() -> None:
    views, labels = rotate_batch(random_images(0), torch.tensor([0, 3], device="cuda"))
    assert views.isnan().all()
    assert labels.tolist() == [0, 1, 2, 3] * 2


def test_images_of_more_than_2_to_the_31_bytes_are_gathered_correctly() -> None:
    images = torch.empty(720_000, 32, 32, 3, dtype=torch.uint8, device="cuda")
    last = random_images(2)
    images[-2:] = last
    indices = torch.tensor([719_998, 719_999], device="cuda")
    ids = torch.arange(2, device="cuda")
    for rotations in (FOUR_ROTATIONS, EIGHT_ROTATIONS):
        views, _ = rotate_batch(images, indices, rotations=rotations, sample_ids=ids)
        assert torch.equal(views, rotate_batch(last, rotations=rotations)[0])


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_it_runs_on_the_device_of_the_images() -> None:
    images = random_images(8).to("cuda:1")
    assert rotate_batch(images)[0].device == torch.device("cuda:1")

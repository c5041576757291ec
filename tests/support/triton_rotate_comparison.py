"""The benchmarks' Triton peer does the fused op's work; for a process of its own.

Started by test_triton_peer.py: with TRITON_INTERPRET=1, which Triton reads when it is imported, or on a GPU.
"""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch

from benchmarks.triton_rotate import triton_kernel
from rotnet_fast import rotate_batch

DEVICE = torch.device("cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda")


def _repair_sizes() -> None:
    """Triton 3.6 takes numbers from arrays of one element in a way that numpy refuses from 2.4 on."""
    from triton.runtime import interpreter

    patch = interpreter._patch_lang_tensor

    def patch_again(tensor: Any, *rest: Any) -> None:
        patch(tensor, *rest)
        tensor.__index__ = lambda self: int(self.handle.data.squeeze())

    interpreter._patch_lang_tensor = patch_again


if DEVICE.type == "cpu":
    _repair_sizes()


def images(number: int, side: int = 32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(number)
    return torch.randint(0, 256, (number, side, side, 3), dtype=torch.uint8, generator=generator).to(DEVICE)


# One rounding more than the fused op's in fp32; and with it the next of bf16's numbers, 2^-6 apart at most.
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-6), (torch.bfloat16, 2**-6)])
def test_views_without_crop_and_flip_are_those_of_the_fused_op(dtype: torch.dtype, bound: float) -> None:
    stored, indices = images(5), torch.tensor([4, 0, 3], device=DEVICE)
    views, labels = triton_kernel(False, dtype, DEVICE)(stored, indices)
    expected, expected_labels = rotate_batch(stored, indices, pad=0, flip_prob=0.0, dtype=dtype)
    assert views.dtype == dtype
    assert views.is_contiguous(memory_format=torch.channels_last)
    assert (views.float() - expected.float()).abs().max() <= bound
    assert torch.equal(labels, expected_labels)


def test_views_of_an_image_share_its_crop_and_its_flip() -> None:
    stored, indices = images(6, 8), torch.arange(6, device=DEVICE)
    views = triton_kernel(True, torch.float32, DEVICE)(stored, indices)[0].view(6, 4, 3, 8, 8)
    for turn in range(1, 4):
        assert torch.equal(views[:, turn], torch.rot90(views[:, 0], turn, (2, 3)))


def test_crops_lie_anywhere_within_the_border_and_half_of_them_are_flipped() -> None:
    """An image whose pixels tell where they come from: every crop is one of those that there can be."""
    side = 8
    grid = torch.arange(1, side * side + 1, dtype=torch.uint8).view(1, side, side, 1).expand(1, side, side, 3)
    stored, indices = grid.contiguous().to(DEVICE), torch.zeros(64, dtype=torch.int64, device=DEVICE)
    upright = triton_kernel(True, torch.float32, DEVICE)(stored, indices)[0][::4, 0]  # [64,8,8]
    plain, _ = rotate_batch(stored, pad=0, flip_prob=0.0)
    black, _ = rotate_batch(torch.zeros_like(stored), pad=0, flip_prob=0.0)
    padded = torch.nn.functional.pad(plain[0, 0] - black[0, 0, 0, 0], (4, 4, 4, 4)) + black[0, 0, 0, 0]
    places = [(top, left, flip) for top in range(9) for left in range(9) for flip in (False, True)]
    crops = torch.stack(
        [
            (torch.fliplr if flip else torch.clone)(padded[top : top + side, left : left + side])
            for top, left, flip in places
        ]
    )
    differences = (upright[:, None] - crops[None]).abs().flatten(2).amax(2)  # [64,162]
    found = [places[position] for position in differences.argmin(1).tolist()]
    assert differences.amin(1).max() <= 1e-5
    assert {top for top, _, _ in found} == {left for _, left, _ in found} == set(range(9))
    assert 16 <= sum(flip for _, _, flip in found) <= 48

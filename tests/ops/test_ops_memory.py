"""Where tensors are not in memory what they say they are, calls are refused before anything is touched."""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import odd_tensors
import pytest
import torch
from raw_op_calls import plain_torch

from rotnet_fast.ops import rotate_batch
from rotnet_fast.ops.library import BATCH_NORM_OPS, LIBRARIES

IDS = torch.tensor([2, 0, 1])
needs_kernels = pytest.mark.skipif(
    not LIBRARIES["cpu"].loaded, reason="the compiled CPU library is not in use"
)


@pytest.fixture(params=["compiled", "plain torch"], autouse=True)
def implementation(request: pytest.FixtureRequest):
    """Both implementations of the op on the CPU."""
    with plain_torch() if request.param == "plain torch" else nullcontext():
        yield request.param


def some_images() -> torch.Tensor:
    return torch.arange(3 * 8 * 8 * 3).remainder(251).byte().view(3, 8, 8, 3)


def buffer() -> torch.Tensor:
    """Views [B*K,H,W,C] of three images under two rotations."""
    return torch.full((6, 8, 8, 3), 7.0)


def call(**changes: object) -> tuple[torch.Tensor, torch.Tensor]:
    arguments = {"images": some_images(), "indices": IDS.clone(), "sample_ids": IDS.clone(), **changes}
    return rotate_batch(**arguments, rotations=(0, 90))


@pytest.mark.parametrize("name", ["images", "indices", "sample_ids", "seed"])
@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (odd_tensors.resized, "storage, which has 0: pass a tensor whose storage was not resized"),
        (lambda tensor: odd_tensors.resized(tensor, 1), "bytes of its storage"),
        (odd_tensors.misaligned, "no multiple of its 8-byte elements"),
        (torch.Tensor.to_sparse, "must be a dense tensor in memory, got a torch.sparse_coo one"),
        (odd_tensors.negated, "must be a dense tensor in memory, got a negated one"),
    ],
    ids=["no storage", "short storage", "misaligned", "sparse", "negated"],
)
def test_an_input_that_is_not_there_as_it_seems_is_refused(
    name: str, damage: Callable[[torch.Tensor], torch.Tensor], sentence: str
) -> None:
    if name == "images" and damage is odd_tensors.misaligned:
        call(images=odd_tensors.misaligned(some_images()))  # bytes lie anywhere
        return
    sound = {"images": some_images(), "seed": torch.tensor([1, 2])}.get(name, IDS)
    with pytest.raises(ValueError, match=f"^{name} .*{sentence}"):
        call(**{name: damage(sound)})


@pytest.mark.parametrize("row", [3, -1, 2**62, -(2**63)])
def test_a_row_that_is_not_there_is_refused_before_anything_is_written(row: int) -> None:
    out = buffer()
    with pytest.raises(IndexError, match=rf"^indices\[1\] is {row}, outside \[0, 3\): pass rows"):
        call(indices=torch.tensor([0, row, 1]), out=out.permute(0, 3, 1, 2))
    assert torch.equal(out, buffer())


def test_nested_images_are_refused() -> None:
    for layout in (torch.strided, torch.jagged):
        images = torch.nested.nested_tensor(list(some_images()), layout=layout)
        with pytest.raises(ValueError, match=r"^images must be a dense tensor in memory, got a nested one"):
            call(images=images)


def test_a_buffer_without_enough_memory_is_refused() -> None:
    for bytes_left in (0, buffer().nbytes - 1):
        memory = buffer()
        out = memory.permute(0, 3, 1, 2)
        memory.untyped_storage().resize_(bytes_left)
        with pytest.raises(ValueError, match=r"^out has less memory than it needs"):
            call(out=out)


def test_a_misaligned_buffer_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"^out lies at an address that is no multiple of its 4-byte elements"
    ):
        call(out=odd_tensors.misaligned(buffer()).permute(0, 3, 1, 2))


@pytest.mark.parametrize("name", ["images", "indices", "sample_ids", "seed"])
def test_a_buffer_that_shares_a_single_byte_with_an_input_is_refused(name: str) -> None:
    sound = {"images": some_images(), "seed": torch.tensor([1, 2])}.get(name, IDS)
    step = sound.element_size()
    inside, outside = (-sound.nbytes + step, buffer().nbytes - step), (-sound.nbytes, buffer().nbytes)
    for shift in inside:
        out, tensor = odd_tensors.side_by_side(buffer(), sound, shift)
        with pytest.raises(ValueError, match=f"^out shares memory with {name}"):
            call(**{name: tensor}, out=out.permute(0, 3, 1, 2))
        assert (out.view(torch.uint8) == buffer().view(torch.uint8)).sum() >= buffer().nbytes - step
    for shift in outside:
        out, tensor = odd_tensors.side_by_side(buffer(), sound, shift)
        views, _ = call(**{name: tensor}, out=out.permute(0, 3, 1, 2))
        assert torch.equal(views, call(**{name: sound})[0])


@contextmanager
def at_most(more: int) -> Iterator[None]:
    """Limit what this process may allocate beyond what it has, in bytes, so that a fault harms nobody."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + more, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.skipif(sys.platform != "linux", reason="memory is limited by what Linux offers")
def test_an_empty_batch_of_the_largest_images_needs_no_memory() -> None:
    images = torch.empty(0, 32767, 32767, 1, dtype=torch.uint8)
    for rotations in ((0, 90), (10, 20, 30, 40)):
        with at_most(2**30):
            views, _ = rotate_batch(images, rotations=rotations, mean=(0.5,), std=(0.5,))
        assert views.shape == (0, 1, 32767, 32767)


def test_autograd_notices_that_a_buffer_was_overwritten() -> None:
    views, _ = call()
    weight = torch.ones_like(views, requires_grad=True)
    loss = (views * weight).sum()
    call(out=views, seed=1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_buffer_of_inference_mode_can_be_overwritten() -> None:
    with torch.inference_mode():
        out = buffer().permute(0, 3, 1, 2)
    assert torch.equal(call(out=out)[0], call()[0])


@needs_kernels
def test_an_op_leaves_nothing_undone_where_one_tensor_has_no_memory() -> None:
    views, labels, images = buffer(), torch.zeros(6, dtype=torch.int64), some_images()
    settings = (0, 0, [0, 1], 4, 0.5, [0.5] * 3, [0.5] * 3)
    with pytest.raises(RuntimeError, match="all tensors must be on one device, got cpu, meta"):
        torch.ops.rotnet_fast.rotate_batch_out(views, labels, images, IDS.to("meta"), None, None, *settings)
    x, c = torch.ones(2, 3, 4, 6), torch.ones(6)
    with pytest.raises(RuntimeError, match="all tensors must be on one device"):
        torch.ops.rotnet_fast.batch_norm_relu_eval_out(x, c, c, c, c, x.to("meta"), c, c, 0.1)


@needs_kernels
@pytest.mark.parametrize("op", BATCH_NORM_OPS)
def test_batch_norm_writes_over_nothing_that_it_reads_or_writes(op: str) -> None:
    rows = {"y": 0, "grad_x": 0, "x": 1, "grad_y": 2}
    names = {
        "batch_norm_relu_train_out": "y mean inverse_std running_mean running_var x weight bias",
        "batch_norm_relu_eval_out": "y mean inverse_std running_mean running_var x weight bias",
        "batch_norm_relu_backward_out": "grad_x grad_weight grad_bias grad_y x weight bias mean inverse_std",
    }[op].split()
    numbers = {"batch_norm_relu_train_out": (0.1, 0.1), "batch_norm_relu_eval_out": (0.1,)}.get(op, (True,))
    written = {"batch_norm_relu_train_out": 5}.get(op, 3)

    def run(**changes: torch.Tensor) -> None:
        sound = {name: torch.ones(2, 3, 4, 6) if name in rows else torch.ones(6) for name in names}
        getattr(torch.ops.rotnet_fast, op)(*{**sound, **changes}.values(), *numbers)

    run()
    for i, one in enumerate(names[:written]):
        for other in names[i + 1 :]:
            if (one in rows) == (other in rows):
                shared = torch.ones(2, 3, 4, 6) if one in rows else torch.ones(6)
                with pytest.raises(RuntimeError, match=f"{one} shares memory with {other}"):
                    run(**{one: shared, other: shared})
    with pytest.raises(RuntimeError, match="x needs 576 bytes of its storage, which has 0"):
        run(x=odd_tensors.resized(torch.ones(2, 3, 4, 6)))
    with pytest.raises(RuntimeError, match="weight lies at an address that is no multiple of its 4-byte"):
        run(weight=odd_tensors.misaligned(torch.ones(6)))


@pytest.mark.parametrize("kind", [RuntimeError, MemoryError])
def test_a_kernel_without_memory_says_so(kind: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise kind("std::bad_alloc (originally from torch_parallel_for) API call failed at ops.h")

    monkeypatch.setattr(torch.ops.rotnet_fast, "rotate_batch_out", fail)
    with pytest.raises(MemoryError, match="no memory left for one image in each thread"):
        call()

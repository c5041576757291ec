"""Every wrong call has a defined answer: a clear sentence, and nothing written."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from odd_tensors import resized

from rotnet_fast.ops import rotate_batch

IMAGES = torch.zeros(4, 8, 8, 3, dtype=torch.uint8)
INDICES = torch.tensor([0, 1])


def buffer(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(*shape, dtype=dtype).contiguous(memory_format=torch.channels_last)


def out_over_images() -> object:
    memory = torch.zeros(4 * 3 * 8 * 8 * 4 * 4, dtype=torch.uint8)
    images = memory[: 4 * 8 * 8 * 3].view(4, 8, 8, 3)
    out = memory.view(torch.float32).view(16, 8, 8, 3).permute(0, 3, 1, 2)
    return rotate_batch(images, out=out)


WRONG_CALLS: dict[str, tuple[type[Exception], str, Callable[[], object]]] = {
    "images not a tensor": (TypeError, "images must be a uint8 tensor", lambda: rotate_batch([[1]])),
    "images float": (TypeError, "images must be uint8.*float32", lambda: rotate_batch(IMAGES.float())),
    "images of three dimensions": (ValueError, r"\[N,H,W,C\]", lambda: rotate_batch(IMAGES[0])),
    "channels first": (
        ValueError,
        "channels come last",
        lambda: rotate_batch(torch.zeros(4, 3, 8, 8, dtype=torch.uint8)),
    ),
    "five channels": (ValueError, "5 channels", lambda: rotate_batch(torch.zeros(1, 8, 8, 5).byte())),
    "no rows": (ValueError, "at least one row", lambda: rotate_batch(IMAGES[:, :0])),
    "strided images": (ValueError, "must be contiguous", lambda: rotate_batch(IMAGES[::2])),
    "expanded images": (
        ValueError,
        "must be contiguous",
        lambda: rotate_batch(IMAGES[:1].expand(4, 8, 8, 3)),
    ),
    "oblong quarter turn": (
        ValueError,
        "not square",
        lambda: rotate_batch(torch.zeros(1, 8, 9, 3, dtype=torch.uint8)),
    ),
    "meta images": (ValueError, "CPU, a CUDA device or mps", lambda: rotate_batch(IMAGES.to("meta"))),
    "images an array": (
        TypeError,
        "got ndarray: use torch.from_numpy",
        lambda: rotate_batch(np.zeros((4, 8, 8, 3), np.uint8)),
    ),
    "images of whole numbers": (
        TypeError,
        r"got torch.int64: convert them by images.to\(torch.uint8\)",
        lambda: rotate_batch(IMAGES.long()),
    ),
    "grey images": (
        ValueError,
        r"images has 1 channel, mean has more values \(CIFAR-10's, the default\): pass mean with 1, such as "
        r"mean=\(0.5,\), or repeat grey images",
        lambda: rotate_batch(IMAGES[..., :1].contiguous()),
    ),
    "grey images, std forgotten": (
        ValueError,
        r"std has more values \(CIFAR-10's, the default\): pass std with 1, such as std=\(0.5,\)",
        lambda: rotate_batch(IMAGES[..., :1].contiguous(), mean=(0.5,)),
    ),
    "dtype of NumPy": (
        TypeError,
        "dtype must be torch.float32, .*, got <class .numpy.float32.>",
        lambda: rotate_batch(IMAGES, dtype=np.float32),
    ),
    "indices a set": (
        TypeError,
        "indices must be a tensor, an array or a",
        lambda: rotate_batch(IMAGES, {0}),
    ),
    "indices of floats": (
        TypeError,
        r"integers, got float64: use torch.tensor",
        lambda: rotate_batch(IMAGES, [0.0, 1.0]),
    ),
    "indices in rows": (
        ValueError,
        r"must have shape \[B\], got \[1, 2\]",
        lambda: rotate_batch(IMAGES, [[0, 1]]),
    ),
    "indices in uneven rows": (
        TypeError,
        "got a list of something else",
        lambda: rotate_batch(IMAGES, [[0], [0, 1]]),
    ),
    "indices beyond int64": (
        TypeError,
        "got a list of other things, or of numbers beyond int64",
        lambda: rotate_batch(IMAGES, [2**70]),
    ),
    "indices of which one is beyond int64": (
        TypeError,
        "got numbers beyond int64",
        lambda: rotate_batch(IMAGES, [0, 2**63 + 3]),
    ),
    "indices of NumPy's beyond int64": (
        TypeError,
        "got numbers beyond int64",
        lambda: rotate_batch(IMAGES, np.array([2**63 + 1], np.uint64)),
    ),
    "indices a mask": (
        TypeError,
        r"got torch.bool: convert a mask by mask.nonzero\(\).flatten\(\)",
        lambda: rotate_batch(IMAGES, torch.ones(4, dtype=torch.bool)),
    ),
    "indices beyond their storage": (
        ValueError,
        "indices needs 8 bytes of its storage, which has 0",
        lambda: rotate_batch(IMAGES, resized(INDICES.int())),
    ),
    "mean of rows and columns": (
        TypeError,
        r"mean must be a sequence of one number.*got Tensor of torch.float32 with shape \[3, 1, 1\]",
        lambda: rotate_batch(IMAGES, mean=torch.ones(3, 1, 1)),
    ),
    "rotations of an array of floats": (
        TypeError,
        "integer degrees, found 90.0",
        lambda: rotate_batch(IMAGES, rotations=np.array([90.0])),
    ),
    "a seed without a value": (
        TypeError,
        "seed as a tensor must be int64|shape",
        lambda: rotate_batch(IMAGES, seed=torch.tensor(0.5)),
    ),
    "a long pad": (
        TypeError,
        r"got \[0, 0.*\.\.\.: pass an int, such as 4$",
        lambda: rotate_batch(IMAGES, pad=[0] * 9999),
    ),
    "mean a number": (TypeError, "mean must be a sequence", lambda: rotate_batch(IMAGES, mean=0.5)),
    "images a list, seed a tensor": (
        TypeError,
        "images must be a uint8 tensor",
        lambda: rotate_batch([[1]], seed=torch.tensor([1, 2])),
    ),
    "no images of 2**32 rows": (
        ValueError,
        "at most 32767 rows",
        lambda: rotate_batch(
            torch.empty(0, 2**32, 1, 1, dtype=torch.uint8), rotations=(0, 180), mean=(0.5,), std=(0.5,)
        ),
    ),
    "index too large": (
        IndexError,
        r"^indices\[1\] is 4, outside \[0, 4\)",
        lambda: rotate_batch(IMAGES, torch.tensor([0, 4])),
    ),
    "index negative": (IndexError, r"^indices\[0\] is -1", lambda: rotate_batch(IMAGES, torch.tensor([-1]))),
    "index huge": (IndexError, "outside", lambda: rotate_batch(IMAGES, torch.tensor([2**62]))),
    "index into nothing": (
        IndexError,
        r"outside \[0, 0\)",
        lambda: rotate_batch(IMAGES[:0], torch.tensor([0])),
    ),
    "indices of two dimensions": (
        ValueError,
        "indices must have shape",
        lambda: rotate_batch(IMAGES, INDICES[None]),
    ),
    "scalar indices": (ValueError, "indices must have shape", lambda: rotate_batch(IMAGES, INDICES[0])),
    "indices elsewhere": (ValueError, "indices is on meta", lambda: rotate_batch(IMAGES, INDICES.to("meta"))),
    "too few ids": (
        ValueError,
        r"sample_ids must have shape \[2\]",
        lambda: rotate_batch(IMAGES, INDICES, sample_ids=INDICES[:1]),
    ),
    "ids float": (
        TypeError,
        "sample_ids must hold integers, got torch.float32: convert them by sample_ids.long",
        lambda: rotate_batch(IMAGES, INDICES, sample_ids=INDICES.float()),
    ),
    "no rotation": (ValueError, "rotations is empty", lambda: rotate_batch(IMAGES, rotations=())),
    "half degrees": (
        TypeError,
        "integer degrees, found 22.5",
        lambda: rotate_batch(IMAGES, rotations=(0, 22.5)),
    ),
    "oblong 45 degrees": (
        ValueError,
        "8 x 9, not square",
        lambda: rotate_batch(torch.zeros(1, 8, 9, 3, dtype=torch.uint8), rotations=(0, 45)),
    ),
    "warped and far from zero": (
        ValueError,
        r"mean holds 1001.*\[1e-8, 1000\] for rotations that are not all multiples of 90",
        lambda: rotate_batch(IMAGES, rotations=(0, 45), mean=(1001.0, 0, 0)),
    ),
    "warped index too large": (
        IndexError,
        r"^indices\[1\] is 4, outside \[0, 4\)",
        lambda: rotate_batch(IMAGES, torch.tensor([0, 4]), rotations=(0, 45)),
    ),
    "rotation as text": (TypeError, "integer degrees", lambda: rotate_batch(IMAGES, rotations=("0",))),
    "rotation not listed": (TypeError, "rotations must be", lambda: rotate_batch(IMAGES, rotations=90)),
    "too many rotations": (ValueError, "more than 64", lambda: rotate_batch(IMAGES, rotations=(0,) * 65)),
    "seed not whole": (TypeError, "seed must be an integer", lambda: rotate_batch(IMAGES, seed=0.5)),
    "seed tensor of halves": (
        TypeError,
        r"seed as a tensor must be int64.*convert it by seed.long\(\)",
        lambda: rotate_batch(IMAGES, seed=torch.tensor([1, 2]).int()),
    ),
    "seed tensor strided": (
        ValueError,
        r"seed must be contiguous, got strides \[2\]",
        lambda: rotate_batch(IMAGES, seed=torch.arange(4)[::2]),
    ),
    "seed tensor of one": (
        ValueError,
        r"seed as a tensor must have shape \[2\]",
        lambda: rotate_batch(IMAGES, seed=torch.tensor([1])),
    ),
    "seed tensor elsewhere": (
        ValueError,
        "seed is on meta; as a tensor it must be on the device of images, cpu",
        lambda: rotate_batch(IMAGES, seed=torch.tensor([1, 2], device="meta")),
    ),
    "epoch given twice": (
        ValueError,
        "holds it: omit epoch",
        lambda: rotate_batch(IMAGES, seed=torch.tensor([1, 2]), epoch=3),
    ),
    "epoch negative": (ValueError, "epoch is -1", lambda: rotate_batch(IMAGES, epoch=-1)),
    "pad negative": (ValueError, "pad is -1", lambda: rotate_batch(IMAGES, pad=-1)),
    "pad not whole": (TypeError, "pad must be an integer", lambda: rotate_batch(IMAGES, pad=1.5)),
    "flip above one": (ValueError, "flip_prob is 1.5", lambda: rotate_batch(IMAGES, flip_prob=1.5)),
    "flip nan": (ValueError, "flip_prob is nan", lambda: rotate_batch(IMAGES, flip_prob=float("nan"))),
    "flip a text": (TypeError, "flip_prob must be a number", lambda: rotate_batch(IMAGES, flip_prob="0.5")),
    "flip a flag": (TypeError, "flip_prob must be a number", lambda: rotate_batch(IMAGES, flip_prob=True)),
    "mean a text": (TypeError, "mean must be a sequence", lambda: rotate_batch(IMAGES, mean="123")),
    "mean of texts": (
        TypeError,
        "mean must hold plain numbers",
        lambda: rotate_batch(IMAGES, mean=["1"] * 3),
    ),
    "std of nothing": (
        TypeError,
        "std must hold plain numbers",
        lambda: rotate_batch(IMAGES, std=[None] * 3),
    ),
    "mean beyond floats": (ValueError, "mean holds 1000", lambda: rotate_batch(IMAGES, mean=[10**400] * 3)),
    "mean without end": (
        ValueError,
        "images has 3 channels, mean has more values",
        lambda: rotate_batch(IMAGES, mean=range(2**64)),
    ),
    "rotations without end": (
        ValueError,
        "rotations has more than 64",
        lambda: rotate_batch(IMAGES, rotations=range(2**64)),
    ),
    "epoch a float beside a seed tensor": (
        TypeError,
        "epoch must be an integer",
        lambda: rotate_batch(IMAGES, seed=torch.tensor([1, 2]), epoch=0.0),
    ),
    "mean of one channel": (ValueError, "one value per channel", lambda: rotate_batch(IMAGES, mean=(0.5,))),
    "std zero": (ValueError, "std holds 0.0", lambda: rotate_batch(IMAGES, std=(0.0, 1.0, 1.0))),
    "mean infinite": (ValueError, "mean holds inf", lambda: rotate_batch(IMAGES, mean=(float("inf"), 0, 0))),
    "double views": (
        TypeError,
        r"dtype must be.*use float32 and convert the views by .double\(\)",
        lambda: rotate_batch(IMAGES, dtype=torch.float64),
    ),
    "out of other dtype": (
        TypeError,
        "out must be a tensor of dtype",
        lambda: rotate_batch(IMAGES, out=buffer(16, 3, 8, 8, dtype=torch.bfloat16)),
    ),
    "out of other shape": (
        ValueError,
        "out must have shape",
        lambda: rotate_batch(IMAGES, out=buffer(15, 3, 8, 8)),
    ),
    "out channels first": (
        ValueError,
        "channels_last",
        lambda: rotate_batch(IMAGES, out=torch.empty(16, 3, 8, 8)),
    ),
    "out elsewhere": (
        ValueError,
        "out is on meta",
        lambda: rotate_batch(IMAGES, out=buffer(16, 3, 8, 8).to("meta")),
    ),
    "out with gradient": (
        ValueError,
        "requires grad",
        lambda: rotate_batch(IMAGES, out=buffer(16, 3, 8, 8).requires_grad_()),
    ),
    "out expanded": (
        ValueError,
        "channels_last",
        lambda: rotate_batch(IMAGES, out=torch.empty(1, 3, 8, 8).expand(16, 3, 8, 8)),
    ),
    "out over images": (ValueError, "^out shares memory with images", out_over_images),
    "more than 2**31 elements": (
        ValueError,
        r"2\*\*31 - 1",
        lambda: rotate_batch(IMAGES, torch.zeros(2_796_203, dtype=torch.int64)),
    ),
}


@pytest.mark.parametrize(("error", "sentence", "call"), WRONG_CALLS.values(), ids=WRONG_CALLS.keys())
def test_a_wrong_call_is_answered_with_a_sentence(
    error: type[Exception], sentence: str, call: Callable[[], object]
) -> None:
    with pytest.raises(error, match=sentence):
        call()


def test_nothing_is_written_when_an_index_is_out_of_range() -> None:
    out = torch.full((8, 3, 8, 8), 7.0).contiguous(memory_format=torch.channels_last)
    with pytest.raises(IndexError):
        rotate_batch(IMAGES, torch.tensor([0, 9]), out=out)
    assert (out == 7.0).all()


def raw_arguments(**changes: object) -> list[object]:
    arguments: dict[str, object] = {
        "views": torch.empty(8, 8, 8, 3),
        "labels": torch.empty(8, dtype=torch.int64),
        "images": IMAGES,
        "indices": INDICES,
        "sample_ids": None,
        "key": None,
        "seed": 0,
        "epoch": 0,
        "turns": [0, 1, 2, 3],
        "pad": 4,
        "flip_prob": 0.5,
        "mean": [0.5] * 3,
        "std": [0.25] * 3,
    }
    return list({**arguments, **changes}.values())


@pytest.mark.parametrize(
    "changes",
    [
        {"views": torch.empty(7, 8, 8, 3)},
        {"views": torch.empty(8, 8, 8, 3, dtype=torch.float64)},
        {"views": torch.empty(8, 8, 3, 8).transpose(2, 3)},
        {"labels": torch.empty(8)},
        {"labels": torch.empty(7, dtype=torch.int64)},
        {"images": IMAGES.float()},
        {"images": IMAGES[::2]},
        {"indices": INDICES.int()},
        {"indices": torch.tensor([0, 4])},
        {"sample_ids": INDICES[:1]},
        {"key": INDICES[:1]},
        {"images": torch.empty(0, 2**32, 1, 3, dtype=torch.uint8), "indices": None},
        {"turns": [0, 1, 2, 4]},
        {"turns": []},
        {"turns": [0] * 65},
        {"pad": -1},
        {"pad": 2**40},
        {"flip_prob": 2.0},
        {"mean": [0.5]},
        {"std": []},
    ],
    ids=lambda changes: " ".join(changes),  # not values that nobody wrote
)
def test_the_compiled_op_itself_refuses_what_would_be_unsafe(changes: dict[str, object]) -> None:
    from rotnet_fast.ops.library import LIBRARIES

    if not LIBRARIES["cpu"].loaded:
        pytest.skip("the compiled CPU library is not in use")
    torch.ops.rotnet_fast.rotate_batch_out(*raw_arguments())
    with pytest.raises(RuntimeError):
        torch.ops.rotnet_fast.rotate_batch_out(*raw_arguments(**changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"turns": [0, 45, 90, 360]},
        {"turns": [0, 45, 90, -1]},
        {"turns": []},
        {"turns": [45] * 65},
        {"images": torch.zeros(4, 8, 9, 3, dtype=torch.uint8), "views": torch.empty(8, 8, 9, 3)},
        {"views": torch.empty(7, 8, 8, 3)},
        {"indices": torch.tensor([0, 4])},
    ],
    ids=lambda changes: " ".join(changes),
)
def test_the_compiled_warp_itself_refuses_what_would_be_unsafe(changes: dict[str, object]) -> None:
    from rotnet_fast.ops.library import LIBRARIES

    if not LIBRARIES["cpu"].loaded:
        pytest.skip("the compiled CPU library is not in use")
    good = {"turns": [0, 45, 90, 359]}  # this op's argument in that place is called degrees
    torch.ops.rotnet_fast.warp_batch_out(*raw_arguments(**good))
    with pytest.raises(RuntimeError):
        torch.ops.rotnet_fast.warp_batch_out(*raw_arguments(**{**good, **changes}))


def test_quarter_turns_alone_allow_means_that_a_warp_does_not() -> None:
    rotate_batch(IMAGES, mean=(1001.0, 0, 0))


def test_ids_beyond_int64_are_refused_whatever_holds_them() -> None:
    numbers = [0, 2**63]
    for ids in (numbers, np.array(numbers, dtype=np.uint64), torch.tensor(numbers, dtype=torch.uint64)):
        with pytest.raises(TypeError, match=r"sample_ids must .*int64"):
            rotate_batch(IMAGES[:2], sample_ids=ids)

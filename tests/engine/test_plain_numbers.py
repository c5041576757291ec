"""Numbers as numpy and torch have them mean what Python's own do."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

import rotnet_fast
from rotnet_fast import load_backbone, rotate_batch
from rotnet_fast.backbone import Backbone
from rotnet_fast.errors import ArgumentError
from rotnet_fast.models.nin import NetworkInNetwork
from rotnet_fast.paper import CIFAR10_MEAN, CIFAR10_STD
from rotnet_fast.plain import counted, wrapped_seed

IMAGES = torch.randint(0, 256, (8, 12, 12, 3), dtype=torch.uint8)

EQUAL: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "degrees of numpy": ({"rotations": (np.int64(90), np.uint8(0))}, {"rotations": (90, 0)}),
    "an array of degrees": ({"rotations": np.array([0, -90, 45], np.int16)}, {"rotations": (0, 270, 45)}),
    "a tensor of degrees": ({"rotations": torch.tensor([0, 180])}, {"rotations": (0, 180)}),
    "tensors of one degree each": ({"rotations": list(torch.tensor([0, 180]))}, {"rotations": (0, 180)}),
    "numbers of numpy": (
        {"seed": np.int32(7), "epoch": np.uint32(3), "pad": np.int8(2), "flip_prob": np.float32(0.25)},
        {"seed": 7, "epoch": 3, "pad": 2, "flip_prob": 0.25},
    ),
    "tensors without dimensions": (
        {"seed": torch.tensor(7), "epoch": torch.tensor(3), "pad": torch.tensor(2), "flip_prob": np.array(1)},
        {"seed": 7, "epoch": 3, "pad": 2, "flip_prob": 1.0},
    ),
    "a fraction": ({"flip_prob": Fraction(1, 4)}, {"flip_prob": 0.25}),
    "arrays per channel": (
        {"mean": np.array(CIFAR10_MEAN), "std": np.array(CIFAR10_STD)},
        {},
    ),
    "tensors per channel": (
        {"mean": torch.tensor(CIFAR10_MEAN, dtype=torch.float64), "std": list(np.array(CIFAR10_STD))},
        {},
    ),
    "whole numbers per channel": (
        {"mean": np.array([0, 1, 2]), "std": (1, 1, 1)},
        {"mean": (0.0, 1.0, 2.0), "std": (1.0,) * 3},
    ),
    "a seed beyond 64 bits": ({"seed": 2**64 + 5}, {"seed": 5}),
    "a seed beyond the signed ones": ({"seed": np.uint64(2**64 - 1)}, {"seed": -1}),
    "a seed far below zero": ({"seed": -(2**200) - 3}, {"seed": -3}),
}  # fmt: skip


@pytest.mark.parametrize(("given", "plain"), EQUAL.values(), ids=EQUAL.keys())
def test_numbers_of_others_are_those_of_python(given: dict[str, Any], plain: dict[str, Any]) -> None:
    assert torch.equal(rotate_batch(IMAGES, **given)[0], rotate_batch(IMAGES, **plain)[0])


ROWS = [3, 0, 7, 3]
IDS = {
    **{str(dtype): torch.tensor(ROWS, dtype=dtype) for dtype in (torch.int32, torch.uint8, torch.int16)},
    "torch.uint32": torch.tensor(ROWS).to(torch.uint32),
    "strided": torch.tensor([3, 9, 0, 9, 7, 9, 3])[::2],
    "array": np.array(ROWS, np.int32),
    "array that is read-only, turned around and of other bytes": np.array(ROWS[::-1], ">i8")[::-1],
    "list": ROWS,
    "tuple of numpy's": tuple(map(np.uint16, ROWS)),
}
IDS["array that is read-only, turned around and of other bytes"].flags.writeable = False  # type: ignore[union-attr]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("ids", IDS.values(), ids=IDS.keys())
def test_rows_and_sample_ids_may_be_any_whole_numbers(ids: Any) -> None:
    rows = torch.tensor(ROWS)
    assert torch.equal(rotate_batch(IMAGES, ids, seed=1)[0], rotate_batch(IMAGES, rows, seed=1)[0])
    found = rotate_batch(IMAGES, rows, sample_ids=ids, seed=1)[0]
    assert torch.equal(found, rotate_batch(IMAGES, rows, sample_ids=rows, seed=1)[0])
    draws = rotnet_fast.augmentation_draws(ids, seed=1)
    for one, other in zip(draws, rotnet_fast.augmentation_draws(rows, seed=1), strict=True):
        assert torch.equal(one, other)


def test_no_rows_may_be_an_empty_list() -> None:
    assert rotate_batch(IMAGES, [])[0].shape == (0, 3, 12, 12)


def test_a_list_may_hold_a_row_that_there_is_not() -> None:
    with pytest.raises(IndexError, match=r"indices\[1\] is 8, outside \[0, 8\)"):
        rotate_batch(IMAGES, [0, 8])


@pytest.mark.parametrize("seed", [0, -1, 2**63 - 1, -(2**63), 2**63, 2**64, -(2**63) - 1, 10**30, -(10**30)])
def test_a_seed_is_taken_modulo_2_to_the_64(seed: int) -> None:
    assert (wrapped_seed(seed) - seed) % 2**64 == 0
    assert -(2**63) <= wrapped_seed(seed) < 2**63
    by_tensor = rotate_batch(IMAGES, seed=torch.tensor([wrapped_seed(seed), 2]))[0]
    assert torch.equal(rotate_batch(IMAGES, seed=seed, epoch=2)[0], by_tensor)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_numbers_of_numpy_compile_to_one_graph(dtype: torch.dtype) -> None:
    from torch._dynamo.testing import CompileCounter

    torch._dynamo.reset()
    counter = CompileCounter()

    def step(images: torch.Tensor, indices: torch.Tensor, seed: Any) -> torch.Tensor:
        return rotate_batch(images, indices, seed=seed, dtype=dtype)[0]

    compiled = torch.compile(step, backend=counter, fullgraph=True)
    for indices in (torch.tensor([4, 5], dtype=torch.int32), torch.tensor([1, 0], dtype=torch.int32)):
        for seed in map(np.int64, range(4)):
            assert torch.equal(compiled(IMAGES, indices, seed), step(IMAGES, indices, seed))
    assert counter.frame_count <= 2
    torch._dynamo.reset()


def test_the_draws_say_what_is_wrong_with_them() -> None:
    with pytest.raises(TypeError, match=r"sample_ids must hold integers, got torch.float32"):
        rotnet_fast.augmentation_draws(torch.zeros(2))
    with pytest.raises(ValueError, match="pad is -1; it must lie in"):
        rotnet_fast.augmentation_draws(torch.arange(2), pad=-1)
    with pytest.raises(ValueError, match="on the device of sample_ids, cpu"):
        rotnet_fast.augmentation_draws(torch.arange(2), seed=torch.zeros(2, dtype=torch.int64, device="meta"))


def test_a_backbone_takes_numbers_of_others() -> None:
    plain = load_backbone("nin4-cifar10-jpeg", "cpu")
    backbone = Backbone(
        plain.network,
        rotations=torch.tensor(plain.rotations),  # type: ignore[arg-type]
        mean=np.array(plain.mean),  # type: ignore[arg-type]
        std=torch.tensor(plain.std, dtype=torch.float64),  # type: ignore[arg-type]
        image_size=np.int16(32),  # type: ignore[arg-type]
    )
    for name in ("rotations", "mean", "std", "image_size"):
        assert getattr(backbone, name) == getattr(plain, name)
        kept = getattr(backbone, name)
        for value in kept if isinstance(kept, tuple) else (kept,):
            assert type(value) in (int, float)
    assert torch.equal(backbone(IMAGES, batch_size=np.int64(3)), plain(IMAGES, batch_size=3))  # type: ignore[arg-type]
    assert torch.equal(backbone.rotation_logits(IMAGES), plain.rotation_logits(IMAGES))
    for changes, sentence in (
        ({"mean": 0.5}, "mean is 0.5; it must be a sequence of 3 numbers"),
        ({"rotations": (0, 90.5, 180, 270)}, "rotations holds 90.5; it must hold integer degrees"),
        ({"std": ("1", 1, 1)}, "std holds '1'; it must hold numbers"),
        ({"image_size": 0}, "image_size is 0; it must be at least 1"),
    ):
        with pytest.raises(ArgumentError, match=sentence):
            Backbone(plain.network, **{"rotations": (0, 90, 180, 270), **changes})
    with pytest.raises(ArgumentError, match=r"batch_size is 2.5; it must be an integer"):
        plain(IMAGES, batch_size=2.5)  # type: ignore[arg-type]


def test_a_network_takes_numbers_of_numpy() -> None:
    network = NetworkInNetwork(np.int64(4), np.int32(3), np.float32(0.25), np.uint8(3))  # type: ignore[arg-type]
    assert network(torch.zeros(2, 3, 16, 16)).shape == (2, 4)
    assert type(network.num_classes) is type(network.in_channels) is int


def test_a_backbone_compiles_once_for_batches_of_one_size() -> None:
    from torch._dynamo.testing import CompileCounter

    torch._dynamo.reset()
    counter = CompileCounter()
    backbone = load_backbone("nin4-cifar10-jpeg", "cpu")
    compiled = torch.compile(backbone, backend=counter, fullgraph=True)
    for _ in range(3):
        images = torch.randint(0, 256, (4, 8, 8, 3), dtype=torch.uint8)
        torch.testing.assert_close(compiled(images), backbone(images), rtol=1e-4, atol=1e-5)
    assert counter.frame_count == 1
    torch._dynamo.reset()


@pytest.mark.parametrize(
    ("number", "noun", "expected"),
    [
        (1, "image", "1 image"),
        (0, "image", "0 images"),
        (12345, "test image", "12,345 test images"),
        (1, "class", "1 class"),
        (2, "class", "2 classes"),
        (2, "batch", "2 batches"),
        (3, "epoch", "3 epochs"),
        (2, "other process", "2 other processes"),
        (2, "copy", "2 copies"),
        (2, "day", "2 days"),
    ],
)
def test_things_are_counted_in_their_number(number: int, noun: str, expected: str) -> None:
    assert counted(number, noun) == expected


def test_a_plural_in_the_middle_is_given() -> None:
    assert counted(1, "label per class", "labels per class") == "1 label per class"
    assert counted(20, "label per class", "labels per class") == "20 labels per class"

"""The fused op gives what its plain-torch definition gives, bit for bit, on every device."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import rotnet_fast
from rotnet_fast.ops import rotate_batch
from rotnet_fast.ops.fallback import ON_CPU
from rotnet_fast.ops.library import LIBRARIES, SCHEMAS
from rotnet_fast.ops.reference import rotate_batch_reference
from rotnet_fast.paper import CIFAR10_MEAN, CIFAR10_STD
from rotnet_fast.philox import crop_and_flip_draws
from rotnet_fast.rotations import check_rotations

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
MEAN = (0.4914, 0.4822, 0.4465, 0.31)
STD = (0.247, 0.2435, 0.2616, 0.29)
PACKAGE = Path(rotnet_fast.__file__).parent


def random_images(number: int, height: int, width: int, channels: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (number, height, width, channels), dtype=torch.uint8, generator=generator)


def expected_views(images: torch.Tensor, indices: torch.Tensor | None, **arguments) -> torch.Tensor:
    """The definition, as [B*K,C,H,W]."""
    channels = images.shape[3]
    views, _ = rotate_batch_reference(
        images,
        indices,
        arguments.get("sample_ids"),
        arguments.get("seed", 0),
        arguments.get("epoch", 0),
        [angle // 90 for angle in check_rotations(arguments.get("rotations", (0, 90, 180, 270)))],
        arguments.get("pad", 4),
        arguments.get("flip_prob", 0.5),
        arguments.get("mean", CIFAR10_MEAN[:channels]),
        arguments.get("std", CIFAR10_STD[:channels]),
        arguments.get("dtype", torch.float32),
    )
    return views.permute(0, 3, 1, 2)


@st.composite
def calls(draw) -> tuple[torch.Tensor, torch.Tensor, dict]:
    height = draw(st.one_of(st.integers(1, 70), st.sampled_from([96, 127, 128, 224])))
    rotations = draw(st.lists(st.sampled_from([0, 90, 180, 270, -90, 450]), min_size=1, max_size=6))
    square = any(angle % 180 for angle in rotations)
    width = height if square else draw(st.integers(1, 70))
    channels = draw(st.integers(1, 4))
    number = draw(st.integers(1, 4))
    images = random_images(number, height, width, channels, draw(st.integers(0, 2**31)))
    indices = torch.tensor(draw(st.lists(st.integers(0, number - 1), max_size=5)), dtype=torch.int64)
    ids = st.lists(st.integers(-(2**63), 2**63 - 1), min_size=len(indices), max_size=len(indices))
    arguments = {
        "rotations": tuple(rotations),
        "sample_ids": draw(st.one_of(st.none(), ids.map(lambda v: torch.tensor(v, dtype=torch.int64)))),
        "seed": draw(st.integers(-(2**63), 2**63 - 1)),
        "epoch": draw(st.integers(0, 2**32 - 1)),
        "pad": draw(st.one_of(st.sampled_from([0, 4]), st.integers(0, 100))),
        "flip_prob": draw(st.sampled_from([0.0, 0.5, 1.0])),
        "mean": MEAN[:channels],
        "std": STD[:channels],
        "dtype": draw(st.sampled_from(DTYPES)),
    }
    return images, indices, arguments


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(call=calls())
def test_views_equal_the_definition_for_any_call(device: torch.device, call) -> None:
    images, indices, arguments = call
    expected = expected_views(images, indices, **arguments)
    if arguments["sample_ids"] is not None:
        arguments["sample_ids"] = arguments["sample_ids"].to(device)
    views, labels = rotate_batch(images.to(device), indices.to(device), **arguments)
    assert torch.equal(views.cpu(), expected)
    assert labels.tolist() == list(range(len(arguments["rotations"]))) * len(indices)


def check_side(device: torch.device, side: int, channels: int, dtype: torch.dtype) -> None:
    images = random_images(1, side, side, channels, side)
    arguments = {"mean": MEAN[:channels], "std": STD[:channels], "dtype": dtype, "seed": side}
    views, _ = rotate_batch(images.to(device), **arguments)
    assert torch.equal(views.cpu(), expected_views(images, None, **arguments)), f"side {side}"


@pytest.mark.parametrize("dtype", DTYPES)
def test_views_equal_the_definition_for_every_side_from_1_to_224(
    device: torch.device, dtype: torch.dtype
) -> None:
    for side in range(1, 225):
        check_side(device, side, 3, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", [1, 2, 4])
def test_views_equal_the_definition_for_every_number_of_channels(
    device: torch.device, channels: int, dtype: torch.dtype
) -> None:
    for side in range(1, 225):
        check_side(device, side, channels, dtype)


def test_definition_equals_numpy_pad_crop_fliplr_rot90_per_image() -> None:
    images = random_images(6, 9, 9, 3)
    top, left, flip = (draw.tolist() for draw in crop_and_flip_draws(torch.arange(6), 5, 3, 4, 0.5))
    assert any(flip)
    assert not all(flip)
    views, labels = rotate_batch(images, seed=5, epoch=3)
    for n in range(6):
        image = np.pad(images[n].numpy(), ((4, 4), (4, 4), (0, 0)))[
            top[n] : top[n] + 9, left[n] : left[n] + 9
        ]
        image = np.fliplr(image) if flip[n] else image
        for k in range(4):
            pixels = np.rot90(image, k).astype(np.float64) / 255
            normalised = (pixels - np.array(CIFAR10_MEAN)) / np.array(CIFAR10_STD)
            view = views[4 * n + k].permute(1, 2, 0).double().numpy()
            np.testing.assert_allclose(view, normalised, rtol=0, atol=5e-7)
            assert labels[4 * n + k] == k


def test_views_are_image_major_and_channels_last(device: torch.device) -> None:
    images = torch.arange(3, dtype=torch.uint8, device=device).reshape(3, 1, 1, 1).expand(3, 8, 8, 3)
    views, labels = rotate_batch(images.contiguous(), pad=0, flip_prob=0.0, mean=(0, 0, 0), std=(1, 1, 1))
    assert (views[:, 0, 0, 0] * 255).round().int().tolist() == [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2]
    assert labels.tolist() == [0, 1, 2, 3] * 3
    assert views.is_contiguous(memory_format=torch.channels_last)


def test_all_views_of_an_image_share_its_crop_and_flip(device: torch.device) -> None:
    images = random_images(8, 32, 32, 3).to(device)
    views, _ = rotate_batch(images, seed=3)
    for k in range(4):
        turned_back = torch.rot90(views[k::4], -k, (2, 3))
        assert torch.equal(turned_back, views[0::4])


def test_without_augmentation_the_first_view_is_the_normalised_image(device: torch.device) -> None:
    images = random_images(4, 32, 32, 3).to(device)
    views, _ = rotate_batch(images, pad=0, flip_prob=0.0, mean=(0, 0, 0), std=(1, 1, 1))
    assert torch.equal((views[0::4] * 255).round().to(torch.uint8), images.permute(0, 3, 1, 2))


def test_results_do_not_depend_on_how_the_batch_is_split_or_ordered(device: torch.device) -> None:
    images = random_images(64, 32, 32, 3).to(device)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(1)).to(device)
    whole, _ = rotate_batch(images, order, seed=9, epoch=2)
    parts = [rotate_batch(images, part, seed=9, epoch=2)[0] for part in order.split([1, 30, 33])]
    assert torch.equal(torch.cat(parts), whole)


def test_results_do_not_depend_on_the_number_of_threads() -> None:
    images = random_images(256, 32, 32, 3)
    threads = torch.get_num_threads()
    try:
        results = []
        for number in (1, 2, 3, 7):
            torch.set_num_threads(number)
            results.append(rotate_batch(images, seed=4)[0])
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(result, results[0]) for result in results)


@pytest.mark.parametrize("dtype", DTYPES)
def test_outputs_beyond_the_cache_equal_the_definition(device: torch.device, dtype: torch.dtype) -> None:
    # 4,000 images make 98 or 197 MB: streaming stores on the CPU, one block per image on a GPU.
    images = random_images(50, 32, 32, 3)
    indices = torch.arange(4000) % 50
    views, _ = rotate_batch(
        images.to(device), indices.to(device), sample_ids=torch.arange(4000, device=device), dtype=dtype
    )
    for start in (0, 1999, 3950):
        part = slice(start, start + 50)
        expected = expected_views(images, indices[part], sample_ids=torch.arange(4000)[part], dtype=dtype)
        assert torch.equal(views[4 * start : 4 * (start + 50)].cpu(), expected)


def test_sample_ids_default_to_the_indices(device: torch.device) -> None:
    images = random_images(10, 16, 16, 3).to(device)
    indices = torch.tensor([7, 2, 2, 9], device=device)
    assert torch.equal(
        rotate_batch(images, indices, seed=1)[0],
        rotate_batch(images, indices, sample_ids=indices.clone(), seed=1)[0],
    )


def test_seed_and_epoch_from_a_tensor_equal_those_from_numbers(device: torch.device) -> None:
    images = random_images(16, 32, 32, 3).to(device)
    key = torch.tensor([-(2**40) - 3, 17], device=device)
    assert torch.equal(
        rotate_batch(images, seed=key)[0], rotate_batch(images, seed=-(2**40) - 3, epoch=17)[0]
    )


def test_every_epoch_draws_anew(device: torch.device) -> None:
    images = random_images(64, 32, 32, 3).to(device)
    one, other = (rotate_batch(images, epoch=epoch)[0] for epoch in (0, 1))
    different = (one != other).flatten(1).any(1).float().mean()
    assert different > 0.9


def test_out_is_overwritten_in_place(device: torch.device) -> None:
    images = random_images(8, 32, 32, 3).to(device)
    first, _ = rotate_batch(images, epoch=0)
    expected, _ = rotate_batch(images, epoch=1)
    second, _ = rotate_batch(images, epoch=1, out=first)
    assert second.data_ptr() == first.data_ptr()
    assert torch.equal(first, expected)


def test_every_element_of_out_is_written(device: torch.device) -> None:
    for side in (5, 16, 31, 32, 33, 48):
        out = torch.full((8, 3, side, side), float("nan"), device=device)
        out = out.contiguous(memory_format=torch.channels_last)
        rotate_batch(random_images(2, side, side, 3).to(device), out=out)
        assert not out.isnan().any(), f"side {side}"


def test_an_empty_batch_gives_empty_views(device: torch.device) -> None:
    images = random_images(3, 32, 32, 3).to(device)
    views, labels = rotate_batch(images, torch.empty(0, dtype=torch.int64, device=device))
    assert views.shape == (0, 3, 32, 32)
    assert labels.shape == (0,)
    views, _ = rotate_batch(images[:0])
    assert views.shape == (0, 3, 32, 32)


def test_oblong_images_turn_by_0_and_180(device: torch.device) -> None:
    images = random_images(3, 20, 33, 3)
    views, _ = rotate_batch(images.to(device), rotations=(0, 180))
    assert torch.equal(views.cpu(), expected_views(images, None, rotations=(0, 180)))


def test_works_under_torch_compile_without_a_graph_break(device: torch.device) -> None:
    images = random_images(8, 32, 32, 3).to(device)
    indices = torch.tensor([3, 1, 4], device=device)

    def step(images: torch.Tensor, indices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        views, labels = rotate_batch(images, indices, seed=2, dtype=torch.bfloat16)
        return views.float() * 2, labels + 1

    compiled = torch.compile(step, fullgraph=True)(images, indices)
    for ours, expected in zip(compiled, step(images, indices), strict=True):
        assert torch.equal(ours, expected)
    assert compiled[0].is_contiguous(memory_format=torch.channels_last)


def test_the_op_passes_torch_library_opcheck(device: torch.device) -> None:
    images = random_images(4, 16, 16, 3).to(device)
    views = torch.empty(12, 16, 16, 3, dtype=torch.float16, device=device)
    labels = torch.empty(12, dtype=torch.int64, device=device)
    indices = torch.tensor([2, 0, 1], device=device)
    key = torch.tensor([1, 2], device=device)
    settings = [[0, 1, 2, 3], 4, 0.5, list(CIFAR10_MEAN), list(CIFAR10_STD)]
    for optional in ((None, None, None, 1, 2), (indices, indices * 5, key, 0, 0)):
        made = (
            [views, labels]
            if optional[0] is not None
            else [views.new_empty(16, 16, 16, 3), labels.new_empty(16)]
        )
        torch.library.opcheck(
            torch.ops.rotnet_fast.rotate_batch_out.default, (*made, images, *optional, *settings)
        )


def test_the_compiled_schema_is_the_one_the_fallback_defines() -> None:
    found = str(torch.ops.rotnet_fast.rotate_batch_out.default._schema)
    assert found == f"rotnet_fast::{SCHEMAS['rotate_batch_out']}"


HASH_SCRIPT = """
import hashlib, torch, rotnet_fast
from rotnet_fast.ops.library import LIBRARIES
digest = hashlib.sha256()
generator = torch.Generator().manual_seed(0)
for side in (1, 7, 16, 20, 31, 32, 33, 64, 100):
    for channels in (1, 2, 3, 4):
        images = torch.randint(0, 256, (3, side, side, channels), dtype=torch.uint8, generator=generator)
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            for rotations in ((0, 90, 180, 270), (0, 45, 100, 315)):
                views, labels = rotnet_fast.rotate_batch(
                    images, rotations=rotations, seed=side, dtype=dtype, mean=(0.5,) * channels,
                    std=(0.21,) * channels)
                digest.update(views.permute(0, 2, 3, 1).contiguous().view(torch.uint8).numpy().tobytes())
                digest.update(labels.numpy().tobytes())
print(LIBRARIES["cpu"].detail if LIBRARIES["cpu"].loaded else "plain torch")
print(digest.hexdigest())
"""


def run_hash_script(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", HASH_SCRIPT],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, **environment},
        check=False,
    )


@pytest.fixture(scope="module")
def plain_torch_digest(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The script's answer from a copy of the package that has no compiled library."""
    folder = tmp_path_factory.mktemp("no_kernels")
    shutil.copytree(PACKAGE, folder / "rotnet_fast", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    result = run_hash_script(folder, PYTHONPATH=str(folder))
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("plain torch\n")
    warning = result.stderr.strip().splitlines()
    assert len(warning) == 1, "the fallback says in one line that it is slow"
    assert "slow" in warning[0]
    return result.stdout.splitlines()[1]


@pytest.mark.skipif(not LIBRARIES["cpu"].loaded, reason="the compiled CPU library is not in use")
@pytest.mark.parametrize("kernel", ["scalar", "avx2", "avx512"])
def test_every_cpu_kernel_gives_the_same_bits_as_plain_torch(
    kernel: str, plain_torch_digest: str, tmp_path: Path
) -> None:
    result = run_hash_script(tmp_path, ROTNET_CPU_KERNEL=kernel)
    if "this processor runs:" in result.stderr:
        pytest.skip(f"this processor does not run the {kernel} kernel")
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == [kernel, plain_torch_digest]


def test_an_unknown_cpu_kernel_is_refused_by_name(tmp_path: Path) -> None:
    if not LIBRARIES["cpu"].loaded:
        pytest.skip("the compiled CPU library is not in use")
    result = run_hash_script(tmp_path, ROTNET_CPU_KERNEL="turbo")
    assert result.returncode != 0
    assert "ROTNET_CPU_KERNEL is 'turbo'" in result.stderr


@pytest.mark.parametrize("rotations", [(0, 90, 180, 270), (0, 45)])
def test_views_made_on_the_cpu_for_another_device_equal_the_definition(
    rotations: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    images = torch.randint(0, 256, (5, 9, 9, 3), dtype=torch.uint8)
    indices = torch.tensor([3, 0, 0])
    expected = rotate_batch(images, indices, rotations=rotations, seed=7, epoch=2)
    views, labels = torch.empty_like(expected[0].permute(0, 2, 3, 1)), torch.empty_like(expected[1])
    is_warp = rotations != (0, 90, 180, 270)
    turns = list(rotations) if is_warp else [0, 1, 2, 3]
    name = "warp_batch_out" if is_warp else "rotate_batch_out"
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"rotnet_fast::{name}", "MPS")
    numbers = (7, 2, turns, 4, 0.5, list(CIFAR10_MEAN), list(CIFAR10_STD))
    sizes: list[int] = []
    cpu = torch.Tensor.cpu
    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "cpu", lambda self: sizes.append(len(self)) or cpu(self))
        ON_CPU[name](views, labels, images, indices, None, None, *numbers)
    assert torch.equal(views.permute(0, 3, 1, 2), expected[0])
    assert torch.equal(labels, expected[1])
    assert sizes == [3, 3]  # of the images that are used and their numbers, not of all
    with pytest.raises(RuntimeError, match=r"indices\[1\] is 5, outside \[0, 5\)"):
        ON_CPU[name](views, labels, images, torch.tensor([3, 5, 0]), None, None, *numbers)

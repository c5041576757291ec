"""Rotations by any angle: the definition's bits, near the ideal warp, and nothing that gives a class away."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.nn import functional

from rotnet_fast.ops import rotate_batch
from rotnet_fast.ops.library import SCHEMAS
from rotnet_fast.ops.reference import (
    crop_and_flip,
    mirror,
    normalisation_coefficients,
    warp_batch_reference,
    warp_coefficients,
)
from rotnet_fast.philox import crop_and_flip_draws
from rotnet_fast.rotations import EIGHT_ROTATIONS, check_rotations

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
MEAN = (0.4914, 0.4822, 0.4465, 0.31)
STD = (0.247, 0.2435, 0.2616, 0.29)
TOLERANCE = 0.13  # grey levels of 255, as documented


def random_images(number: int, side: int, channels: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (number, side, side, channels), dtype=torch.uint8, generator=generator)


def expected_views(images: torch.Tensor, indices: torch.Tensor | None, **arguments) -> torch.Tensor:
    """The definition, as [B*K,C,W,W]."""
    channels = images.shape[3]
    views, _ = warp_batch_reference(
        images,
        indices,
        arguments.get("sample_ids"),
        arguments.get("seed", 0),
        arguments.get("epoch", 0),
        check_rotations(arguments.get("rotations", EIGHT_ROTATIONS)),
        arguments.get("pad", 4),
        arguments.get("flip_prob", 0.5),
        arguments.get("mean", MEAN[:channels]),
        arguments.get("std", STD[:channels]),
        arguments.get("dtype", torch.float32),
    )
    return views.permute(0, 3, 1, 2)


def grey_levels(images: torch.Tensor, rotations: tuple[int, ...], **arguments) -> torch.Tensor:
    """Views in grey levels 0..255, float64 [B,K,C,W,W]."""
    channels = images.shape[3]
    views, _ = rotate_batch(
        images, rotations=rotations, mean=(0.0,) * channels, std=(1 / 255,) * channels, **arguments
    )
    return views.double().unflatten(0, (-1, len(rotations)))


def ideal_warp(upright: torch.Tensor, degrees: float) -> torch.Tensor:
    """Bilinear warp in float64 by torch's own sampler: [B,C,W,W] of images [B,W,W,C]."""
    angle = math.radians(degrees)
    rows = [[math.cos(angle), -math.sin(angle), 0.0], [math.sin(angle), math.cos(angle), 0.0]]
    theta = torch.tensor(rows, dtype=torch.float64, device=upright.device) / math.sqrt(2)
    images = upright.permute(0, 3, 1, 2).double()
    grid = functional.affine_grid(theta.expand(len(images), 2, 3), list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, padding_mode="border", align_corners=False)


@st.composite
def calls(draw) -> tuple[torch.Tensor, torch.Tensor, dict]:
    side = draw(st.one_of(st.integers(1, 40), st.sampled_from([64, 97, 224])))
    angles = st.one_of(st.sampled_from(EIGHT_ROTATIONS), st.integers(-1000, 1000))
    rotations = [*draw(st.lists(angles, min_size=1, max_size=5)), draw(st.integers(1, 89))]
    channels = draw(st.integers(1, 4))
    number = draw(st.integers(1, 3))
    images = random_images(number, side, channels, draw(st.integers(0, 2**31)))
    indices = torch.tensor(draw(st.lists(st.integers(0, number - 1), max_size=4)), dtype=torch.int64)
    ids = st.lists(st.integers(-(2**63), 2**63 - 1), min_size=len(indices), max_size=len(indices))
    means = st.one_of(st.floats(0, 1).filter(lambda v: v == 0 or v >= 1e-8), st.sampled_from([-1000.0, 1e3]))
    arguments = {
        "rotations": tuple(rotations),
        "sample_ids": draw(st.one_of(st.none(), ids.map(lambda v: torch.tensor(v, dtype=torch.int64)))),
        "seed": draw(st.integers(-(2**63), 2**63 - 1)),
        "epoch": draw(st.integers(0, 2**32 - 1)),
        "pad": draw(st.one_of(st.sampled_from([0, 4]), st.integers(0, 100))),
        "flip_prob": draw(st.sampled_from([0.0, 0.5, 1.0])),
        "mean": tuple(draw(st.lists(means, min_size=channels, max_size=channels))),
        "std": STD[:channels],
        "dtype": draw(st.sampled_from(DTYPES)),
    }
    return images, indices, arguments


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(call=calls())
def test_views_equal_the_definition_for_any_call(device: torch.device, call) -> None:
    images, indices, arguments = call
    expected = expected_views(images, indices, **arguments)
    if arguments["sample_ids"] is not None:
        arguments["sample_ids"] = arguments["sample_ids"].to(device)
    views, labels = rotate_batch(images.to(device), indices.to(device), **arguments)
    assert torch.equal(views.cpu(), expected)
    assert labels.tolist() == list(range(len(arguments["rotations"]))) * len(indices)
    assert views.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_views_equal_the_definition_for_every_side(
    device: torch.device, channels: int, dtype: torch.dtype
) -> None:
    for side in (*range(1, 41), 224):
        images = random_images(2, side, channels, side)
        arguments = {"rotations": (*EIGHT_ROTATIONS, 7), "mean": MEAN[:channels], "std": STD[:channels]}
        views, _ = rotate_batch(images.to(device), seed=side, dtype=dtype, **arguments)
        expected = expected_views(images, None, seed=side, dtype=dtype, **arguments)
        assert torch.equal(views.cpu(), expected), f"side {side}"


def test_views_equal_the_definition_at_every_angle(device: torch.device) -> None:
    images = random_images(1, 32, 3)
    for start in range(0, 360, 60):
        rotations = tuple(range(start, start + 60))
        views, _ = rotate_batch(images.to(device), rotations=rotations, mean=MEAN[:3], std=STD[:3])
        assert torch.equal(views.cpu(), expected_views(images, None, rotations=rotations))


@pytest.mark.parametrize("side", [1, 2, 3, 8, 31, 32, 224])
def test_views_lie_within_the_documented_distance_of_the_ideal_warp(device: torch.device, side: int) -> None:
    images = random_images(3, side, 3, side)
    rotations = (*EIGHT_ROTATIONS, 1, 30, 89, 100, 200, 359)
    views = grey_levels(images.to(device), rotations, seed=2).cpu()
    top, left, flip = crop_and_flip_draws(torch.arange(3), 2, 0, 4, 0.5)
    upright = crop_and_flip(images, top, left, flip, 4, mirrored=True)
    for k, degrees in enumerate(rotations):
        worst = (views[:, k] - ideal_warp(upright, degrees)).abs().max().item()
        assert worst <= TOLERANCE, f"{degrees} degrees"
    assert side < 31 or worst > 0.01, "noise of this size comes near the bound"


@pytest.mark.parametrize("first", [0, 30, 45])
def test_views_a_quarter_turn_apart_are_exact_quarter_turns(device: torch.device, first: int) -> None:
    for side in (1, 2, 31, 32):
        images = random_images(4, side, 3, side).to(device)
        rotations = (1, *(first + 90 * k for k in range(4)))
        views = rotate_batch(images, rotations=rotations)[0].unflatten(0, (4, 5))
        for k in range(4):
            assert torch.equal(views[:, 1 + k], torch.rot90(views[:, 1], k, (2, 3)))


def test_rotations_are_counter_clockwise(device: torch.device) -> None:
    image = torch.zeros(1, 32, 32, 1, dtype=torch.uint8, device=device)
    image[0, 10:22, 24:28] = 255  # a bar on the right
    views = grey_levels(image, (0, 45, 90), pad=0, flip_prob=0.0)[0, :, 0]
    rows, columns = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    angles = [
        math.degrees(
            math.atan2(15.5 - float((v * rows).sum() / v.sum()), float((v * columns).sum() / v.sum()) - 15.5)
        )
        for v in views.float().cpu()
    ]
    assert angles == pytest.approx([0, 45, 90], abs=3)


def test_a_constant_image_stays_constant_and_equals_the_exact_path(device: torch.device) -> None:
    for value in (0, 1, 128, 255):
        images = torch.full((1, 9, 9, 3), value, dtype=torch.uint8, device=device)
        warped, _ = rotate_batch(images, rotations=EIGHT_ROTATIONS, pad=0)
        exact, _ = rotate_batch(images, rotations=(0,), pad=0)
        assert torch.equal(warped, exact.expand_as(warped))


def test_a_warped_view_shows_the_exact_paths_crop_with_a_mirrored_border(device: torch.device) -> None:
    images = random_images(8, 32, 3).to(device)
    padded = functional.pad(images.permute(0, 3, 1, 2).float(), (5, 5, 5, 5), mode="replicate")
    padded[:, :, 5:-5, :5] = images.permute(0, 3, 1, 2)[..., :5].flip(3)
    padded[:, :, 5:-5, -5:] = images.permute(0, 3, 1, 2)[..., -5:].flip(3)
    padded[:, :, :5], padded[:, :, -5:] = padded[:, :, 5:10].flip(2), padded[:, :, -10:-5].flip(2)
    mirrored = padded.permute(0, 2, 3, 1).byte().contiguous()  # [8,42,42,3]
    # The exact path crops the larger images at the same places: its own border is never reached.
    top, left, flip = crop_and_flip_draws(torch.arange(8, device=device), 6, 0, 5, 0.5)
    crops = torch.stack(
        [image[t : t + 32, x : x + 32] for image, t, x in zip(mirrored, top, left, strict=True)]
    )
    crops = torch.where(flip[:, None, None, None], crops.flip(2), crops)
    expected = grey_levels(crops, EIGHT_ROTATIONS, pad=0, flip_prob=0.0)
    assert torch.equal(grey_levels(images, EIGHT_ROTATIONS, seed=6, pad=5), expected)


@pytest.mark.parametrize("size", [1, 2, 5])
def test_mirroring_goes_back_and_forth_at_any_distance(size: int) -> None:
    period = [*range(size), *reversed(range(size))]
    assert mirror(torch.arange(-4 * size, 4 * size), size).tolist() == period * 4


def test_multiples_of_90_alone_stay_exact_permutations(device: torch.device) -> None:
    images = random_images(4, 32, 3).to(device)
    views = grey_levels(images, (0, 450, -180), pad=0, flip_prob=0.0)
    assert torch.equal(views[:, 1], torch.rot90(images.permute(0, 3, 1, 2).double(), 1, (2, 3)))


def test_results_do_not_depend_on_the_number_of_threads_or_the_split() -> None:
    images = random_images(64, 32, 3)
    threads = torch.get_num_threads()
    try:
        results = []
        for number in (1, 2, 7):
            torch.set_num_threads(number)
            results.append(rotate_batch(images, rotations=EIGHT_ROTATIONS)[0])
    finally:
        torch.set_num_threads(threads)
    parts = [
        rotate_batch(images, p, rotations=EIGHT_ROTATIONS)[0] for p in torch.arange(64).split([1, 30, 33])
    ]
    assert all(torch.equal(result, results[0]) for result in (*results, torch.cat(parts)))


def test_seed_and_epoch_from_a_tensor_equal_those_from_numbers(device: torch.device) -> None:
    images = random_images(16, 32, 3).to(device)
    key = torch.tensor([-(2**40) - 3, 17], device=device)
    assert torch.equal(
        rotate_batch(images, rotations=(0, 45), seed=key)[0],
        rotate_batch(images, rotations=(0, 45), seed=-(2**40) - 3, epoch=17)[0],
    )


def test_out_is_overwritten_whole_and_in_place(device: torch.device) -> None:
    for side in (1, 5, 16, 17, 33):
        images = random_images(2, side, 3).to(device)
        out = torch.full((4, 3, side, side), float("nan"), device=device)
        out = out.contiguous(memory_format=torch.channels_last)
        views, _ = rotate_batch(images, rotations=(45, 10), out=out)
        assert views.data_ptr() == out.data_ptr()
        assert not out.isnan().any(), f"side {side}"
    assert rotate_batch(images[:0], rotations=(45, 10))[0].shape == (0, 3, 33, 33)


def test_works_under_torch_compile_without_a_graph_break(device: torch.device) -> None:
    images = random_images(8, 32, 3).to(device)
    indices = torch.tensor([3, 1, 4], device=device)

    def step(images: torch.Tensor, indices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        views, labels = rotate_batch(images, indices, rotations=EIGHT_ROTATIONS, dtype=torch.bfloat16)
        return views.float() * 2, labels + 1

    compiled = torch.compile(step, fullgraph=True)(images, indices)
    for ours, expected in zip(compiled, step(images, indices), strict=True):
        assert torch.equal(ours, expected)


def test_the_op_passes_torch_library_opcheck(device: torch.device) -> None:
    images = random_images(4, 16, 3).to(device)
    made = [torch.empty(6, 16, 16, 3, device=device), torch.empty(6, dtype=torch.int64, device=device)]
    indices, key = torch.tensor([2, 0, 1], device=device), torch.tensor([1, 2], device=device)
    arguments = [images, indices, indices * 5, key, 0, 0, [0, 45], 4, 0.5, [0.5] * 3, [0.25] * 3]
    torch.library.opcheck(torch.ops.rotnet_fast.warp_batch_out.default, (*made, *arguments))


def test_the_compiled_schema_is_the_one_the_fallback_defines() -> None:
    found = str(torch.ops.rotnet_fast.warp_batch_out.default._schema)
    assert found == f"rotnet_fast::{SCHEMAS['warp_batch_out']}"


def test_coefficients_do_not_depend_on_the_maths_library() -> None:
    for degrees in range(91):
        value = math.sin(math.radians(degrees)) / (2 * math.sqrt(2)) * 2**40
        # 1e-4 is an error of several units in the last place of a float64.
        assert abs(value - math.floor(value) - 0.5) > 1e-3, f"{degrees} degrees are close to a tie"
    assert warp_coefficients(45) == (2**38, 2**38)
    assert [warp_coefficients(d)[1] for d in (0, 180)] == [0, 0]
    assert [warp_coefficients(d)[0] for d in (90, 270)] == [0, 0]
    assert warp_coefficients(0)[0] == -warp_coefficients(180)[0] == -warp_coefficients(270)[1]


@settings(max_examples=2000, deadline=None)
@given(
    level=st.integers(0, 65280),
    mean=st.one_of(st.floats(1e-8, 1e3), st.floats(-1e3, -1e-8), st.just(0.0), st.sampled_from([1e-8, 1e3])),
    std=st.one_of(st.floats(1e-6, 1e6), st.sampled_from([1e-6, 1e6])),
)
def test_normalisation_is_exact_in_float64_for_every_admitted_mean(
    level: int, mean: float, std: float
) -> None:
    scale, shift = (float(t) for t in normalisation_coefficients((mean,), (std,)))
    assert Fraction(level * (scale / 256) + shift) == Fraction(level) * Fraction(scale / 256) + Fraction(
        shift
    )


def smooth_images(number: int, side: int, seed: int) -> np.ndarray:
    """Random fields without any preferred orientation or brightness, uint8 [N,W,W,1]."""
    frequency = np.fft.fftfreq(2 * side)
    squares = frequency[:, None] ** 2 + frequency[None, :] ** 2
    noise = np.random.default_rng(seed).standard_normal((number, 2 * side, 2 * side))
    blurred = np.fft.fft2(noise) * np.exp(-0.5 * squares * (2 * np.pi * 3) ** 2)  # by 3 pixels
    smooth = np.fft.ifft2(blurred).real[:, :side, :side]
    return np.clip(128 + 40 * smooth / smooth.std(), 0, 255).round().astype(np.uint8)[..., None]


def accuracy_from_corners(views: np.ndarray) -> tuple[float, float]:
    """How well a linear classifier tells the class of held-out views [B,8,W,W] from four 3 x 3 corners:
    accuracy and its standard error in percent (images, not views, are independent)."""
    from sklearn.linear_model import LogisticRegression

    ends = (slice(3), slice(-3, None))
    corners = [views[..., rows, columns].reshape(*views.shape[:2], 9) for rows in ends for columns in ends]
    features = np.concatenate(corners, axis=-1) / 255 - 0.5  # [B,8,36]
    labels = np.broadcast_to(np.arange(8), views.shape[:2])
    half = len(views) // 2
    model = LogisticRegression(max_iter=300).fit(features[:half].reshape(-1, 36), labels[:half].ravel())
    right = model.predict(features[half:].reshape(-1, 36)).reshape(-1, 8) == labels[half:]
    by_image = 100 * right.mean(axis=1)
    return float(by_image.mean()), float(by_image.std() / math.sqrt(len(by_image)))


def zero_filled(images: torch.Tensor, degrees: int) -> torch.Tensor:
    """The obvious way: the whole image turned, black where there is nothing; float64 [B,W,W]."""
    angle = math.radians(degrees)
    rows = [[math.cos(angle), -math.sin(angle), 0.0], [math.sin(angle), math.cos(angle), 0.0]]
    upright = images.permute(0, 3, 1, 2).double()
    theta = torch.tensor(rows, dtype=torch.float64).expand(len(images), 2, 3)
    grid = functional.affine_grid(theta, list(upright.shape), align_corners=False)
    return functional.grid_sample(upright, grid, align_corners=False)[:, 0]


@pytest.mark.parametrize(("pad", "flip_prob"), [(0, 0.0), (4, 0.5)])
def test_corners_give_no_rotation_away_where_black_ones_do(pad: int, flip_prob: float) -> None:
    images = torch.from_numpy(smooth_images(3000, 32, seed=1))
    chance = 100 / 8
    top, left, flip = crop_and_flip_draws(torch.arange(3000), 0, 0, pad, flip_prob)
    # With a black border around the crop, or without one but turned as a whole: both must be noticed.
    black = crop_and_flip(images, top, left, flip, pad)
    if pad:
        naive = grey_levels(black, EIGHT_ROTATIONS, pad=0, flip_prob=0.0)[:, :, 0]
    else:
        naive = torch.stack([zero_filled(black, degrees) for degrees in EIGHT_ROTATIONS], dim=1)
    accuracy, error = accuracy_from_corners(naive.numpy())
    assert accuracy > chance + 8 * error, "black corners tell odd multiples of 45 degrees from even ones"
    warped = grey_levels(images, EIGHT_ROTATIONS, pad=pad, flip_prob=flip_prob)[:, :, 0]
    accuracy, error = accuracy_from_corners(warped.numpy())
    assert abs(accuracy - chance) < 4 * error

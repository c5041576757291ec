"""The DALI loader gives the batches of the resident loader, from the files, on a real DALI."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from image_files import deep_png, exif, good_images, scan_images
from image_files import encoded as as_file
from PIL import Image

from rotnet_fast.data.crop import RandomResizedCrop, centre_boxes
from rotnet_fast.data.dali import DaliLoader, require_dali
from rotnet_fast.data.decode import decode_image, decode_rgb
from rotnet_fast.data.resident import ResidentLoader
from rotnet_fast.data.sampling import BatchShare
from rotnet_fast.data.scan import GOOD
from rotnet_fast.data.source import FileSource
from rotnet_fast.data.split import EncodedSplit, Split
from rotnet_fast.errors import ArgumentError, DataError
from rotnet_fast.memory import is_out_of_memory

pytestmark = pytest.mark.needs_dali

SIDE = 16


def picture(seed: int, height: int = SIDE, width: int = SIDE) -> Image.Image:
    """Coarse blocks and noise: edges and textures for a decoder to get wrong."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (-(-height // 5), -(-width // 5), 3)).repeat(5, 0).repeat(5, 1)
    noise = rng.integers(-20, 21, (height, width, 3))
    return Image.fromarray((blocks[:height, :width] + noise).clip(0, 255).astype(np.uint8))


def kinds(seed: int, height: int, width: int) -> dict[str, bytes]:
    """One picture as several kinds of JPEG and PNG."""
    image = picture(seed, height, width)
    grey = image.convert("L")
    alpha = Image.merge("RGBA", (*image.split(), grey.point(lambda level: level // 2)))
    return {
        **{f"subsampling{n}.jpg": as_file(image, "JPEG", quality=85, subsampling=n) for n in (0, 1, 2)},
        **{f"progressive{n}.jpg": as_file(image, "JPEG", subsampling=n, progressive=True) for n in (0, 1, 2)},
        **{f"turned{n}.jpg": as_file(image, "JPEG", exif=exif(n)) for n in range(1, 9)},
        **{f"turned{n}.png": as_file(image, exif=exif(n)) for n in range(1, 9)},
        "coarse.jpg": as_file(image, "JPEG", quality=5),
        "rgb.jpg": as_file(image, "JPEG", keep_rgb=True),
        "cmyk.jpg": as_file(image.convert("CMYK"), "JPEG"),
        "grey.jpg": as_file(grey, "JPEG"),
        "rgb.png": as_file(image),
        "grey.png": as_file(grey),
        "bits.png": as_file(image.convert("1")),
        "palette.png": as_file(image.convert("P")),
        "palette-transparent.png": as_file(image.convert("P"), transparency=3),
        "alpha.png": as_file(alpha),
        "grey-alpha.png": as_file(alpha.convert("LA")),
        "transparent-colour.png": as_file(image, transparency=image.getpixel((0, 0))),
        "deep.png": deep_png(np.asarray(image).astype(np.uint16) * 256 + 77, 2),
    }


def encoded(folder: Path, files: dict[str, bytes], image_size: int = SIDE) -> EncodedSplit:
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    paths = sorted(str(folder / name) for name in files)
    lengths = np.array([Path(path).stat().st_size for path in paths])
    source = FileSource(str(folder), paths, lengths)
    found = scan_images(source, [])
    assert (found.verdicts == GOOD).all()
    return EncodedSplit(source, torch.arange(len(paths)) % 3, found.sizes, found.convert, image_size)


def decoded(split: EncodedSplit) -> Split:
    """What a resident loader would hold."""
    images = [decode_image(split.source.read(index), split.image_size) for index in range(len(split))]
    return Split(torch.from_numpy(np.stack(images)), split.labels)


def jpegs(count: int, height: int = SIDE, width: int = SIDE) -> dict[str, bytes]:
    return {f"{n:03d}.jpg": as_file(picture(n, height, width), "JPEG", quality=90) for n in range(count)}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> EncodedSplit:
    return encoded(tmp_path_factory.mktemp("photos"), jpegs(23))


@pytest.mark.parametrize(("height", "width"), [(SIDE, SIDE), (29, 41), (50, 17), (9, 7)])
def test_every_kind_of_file_gives_the_pixels_of_pillow(tmp_path: Path, height: int, width: int) -> None:
    split = encoded(tmp_path, kinds(1, height, width))
    loader = DaliLoader(split, "cpu", batch_size=7, seed=0, shuffle=False)
    expected = decoded(split)
    for batch in loader.epoch(0):
        for position, image in zip(batch.indices.tolist(), batch.images, strict=True):
            assert torch.equal(image, expected.images[position]), split.source.names[position]


def test_every_file_that_a_folder_may_hold_gives_the_pixels_of_pillow(tmp_path: Path) -> None:
    split = encoded(
        tmp_path, {name: content for name, (content, _, _) in good_images().items()}, image_size=24
    )
    expected = decoded(split)
    for batch in DaliLoader(split, "cpu", batch_size=8, seed=0).epoch(0):
        for position, image in zip(batch.indices.tolist(), batch.images, strict=True):
            assert torch.equal(image, expected.images[position]), split.source.names[position]


@pytest.mark.parametrize("height", [SIDE, 45])
def test_crops_are_cut_from_the_pixels_of_pillow(tmp_path: Path, height: int) -> None:
    """Boxes of image_size x image_size need no resizing, so that they must come out exactly."""
    split = encoded(tmp_path, kinds(2, height, 30))

    class Fixed(RandomResizedCrop):
        def boxes(self, sizes: Any, sample_ids: Any, seed: int, epoch: int) -> Any:
            return (sizes - SIDE) // 2, np.full_like(sizes, SIDE)

    loader = DaliLoader(split, "cpu", batch_size=8, seed=0, crop=Fixed())
    for batch in loader.epoch(0):
        for position, image in zip(batch.indices.tolist(), batch.images, strict=True):
            whole = decode_rgb(split.source.read(position))
            top, left = ((side - SIDE) // 2 for side in whole.shape[:2])
            part = torch.tensor(whole[top : top + SIDE, left : left + SIDE])
            assert torch.equal(image, part), split.source.names[position]


def smooth(height: int, width: int) -> bytes:
    """A picture whose grey levels say where they are."""
    rows, columns = np.mgrid[:height, :width]
    levels = np.stack([255 * rows / height, 255 * columns / width, 0 * rows], axis=2)
    return as_file(levels.astype(np.uint8))


@pytest.mark.parametrize("is_test", [False, True])
def test_resized_crops_show_their_box(tmp_path: Path, is_test: bool) -> None:
    split = encoded(tmp_path, {f"{n:02d}.png": smooth(200, 120 + n) for n in range(20)}, image_size=64)
    crop = RandomResizedCrop()
    loader = DaliLoader(split, "cpu", batch_size=6, seed=3, crop=crop, is_test=is_test)
    for batch in loader.epoch(2):
        sizes = split.sizes[batch.indices.numpy()]
        random = crop.boxes(sizes, batch.sample_ids, 3, 2)
        corners, shapes = centre_boxes(sizes) if is_test else random
        middle = batch.images[:, 31:33, 31:33].double().mean((1, 2))  # [B,3]
        centre = (corners + shapes / 2) / sizes * 255
        torch.testing.assert_close(middle[:, :2], torch.from_numpy(centre), atol=2.0, rtol=0)
        span = (batch.images[:, -1, -1].double() - batch.images[:, 0, 0].double())[:, :2]
        torch.testing.assert_close(span, torch.from_numpy(shapes / sizes * 255), atol=6.0, rtol=0)


def test_resizing_is_that_of_pillow_but_for_rounding(tmp_path: Path) -> None:
    split = encoded(tmp_path, jpegs(8, 90, 120), image_size=32)
    loader = DaliLoader(split, "cpu", batch_size=8, seed=0, crop=RandomResizedCrop(), is_test=True)
    (batch,) = loader.epoch(0)
    for position, image in zip(batch.indices.tolist(), batch.images, strict=True):
        whole = Image.fromarray(decode_rgb(split.source.read(position)))
        (corner,), (shape,) = centre_boxes(split.sizes[position : position + 1])
        box = (corner[1], corner[0], corner[1] + shape[1], corner[0] + shape[0])
        expected = whole.crop(box).resize((32, 32), Image.Resampling.BILINEAR)
        difference = np.abs(image.numpy().astype(int) - np.asarray(expected).astype(int))
        assert difference.max() <= 1
        assert difference.mean() < 0.02


@settings(max_examples=25, deadline=None)
@given(
    batch_size=st.integers(1, 30),
    epoch=st.integers(0, 9),
    epoch_size=st.integers(23, 60),
    start=st.integers(0, 60),
    world=st.integers(1, 4),
)
def test_batches_are_those_of_the_resident_loader(
    photos: EncodedSplit, batch_size: int, epoch: int, epoch_size: int, start: int, world: int
) -> None:
    rank = epoch % world
    options: dict[str, Any] = {"epoch_size": epoch_size, "share": BatchShare(rank, world)}
    resident = ResidentLoader(decoded(photos), "cpu", batch_size, seed=5, **options)
    dali = DaliLoader(photos, "cpu", batch_size, seed=5, **options)
    start = min(start, len(resident))
    pairs = zip(resident.epoch(epoch, start), dali.epoch(epoch, start), strict=True)
    for expected, batch in pairs:
        for name in ("indices", "labels", "sample_ids", "global_size"):
            found, wanted = getattr(batch, name), getattr(expected, name)
            assert torch.equal(torch.as_tensor(found), torch.as_tensor(wanted))
        assert torch.equal(batch.images, expected.images[expected.indices])
        assert batch.source == (batch.images, None)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
@pytest.mark.parametrize("crop", [None, RandomResizedCrop()])
def test_a_gpu_gives_the_batches_of_the_cpu(photos: EncodedSplit, crop: RandomResizedCrop | None) -> None:
    loaders = [
        DaliLoader(photos, device, batch_size=5, seed=1, crop=crop, decoder=decoder)
        for device, decoder in (("cpu", "cpu"), ("cuda", "cpu"), ("cuda", "gpu"))
    ]
    for epoch in range(2):
        for expected, copied, decoded_there in zip(*(loader.epoch(epoch) for loader in loaders), strict=True):
            for batch in (copied, decoded_there):
                assert batch.images.device.type == batch.labels.device.type == "cuda"
                assert torch.equal(batch.indices.cpu(), expected.indices)
            if crop is None:  # resizing on a GPU rounds otherwise
                assert torch.equal(copied.images.cpu(), expected.images)
            difference = (decoded_there.images.cpu().int() - expected.images.int()).abs().double()
            assert difference.mean() < 2


def test_a_batch_stays_as_it_is_while_others_are_made(photos: EncodedSplit) -> None:
    """The memory is DALI's own, and must not be reused as long as anyone holds the batch."""
    loader = DaliLoader(photos, "cpu", batch_size=2, seed=0)
    held, copies = [], []
    for batch in loader.epoch(0):
        held.append(batch.images)
        copies.append(batch.images.clone())
    list(loader.epoch(1))
    for images, copy in zip(held, copies, strict=True):
        assert torch.equal(images, copy)


def test_an_epoch_may_be_left_unfinished(photos: EncodedSplit) -> None:
    loader = DaliLoader(photos, "cpu", batch_size=3, seed=0)
    unfinished = loader.epoch(0)
    first = next(unfinished)
    for _ in range(3):
        begun = [batch.images.clone() for batch in loader.epoch(1)]
    fresh = [batch.images for batch in DaliLoader(photos, "cpu", batch_size=3, seed=0).epoch(1)]
    assert all(torch.equal(one, other) for one, other in zip(begun, fresh, strict=True))
    with pytest.raises(RuntimeError, match="another epoch of this loader was started"):
        next(unfinished)
    for left_after in range(len(loader) + 1):  # DALI is some batches ahead of whoever leaves
        batches = loader.epoch(0)
        assert all(torch.equal(next(batches).images, first.images) for _ in range(min(left_after, 1)))
        for _ in range(left_after - 1):
            next(batches)
    assert torch.equal(next(loader.epoch(0)).images, first.images)


def test_a_damaged_image_ahead_of_an_unfinished_epoch_does_not_spoil_the_next(tmp_path: Path) -> None:
    split = encoded(tmp_path, jpegs(8))
    loader = DaliLoader(split, "cpu", batch_size=2, seed=0, shuffle=False)
    lost = tmp_path / "007.jpg"
    content = lost.read_bytes()
    lost.unlink()
    assert len(next(loader.epoch(0))) == 2  # the last batch's files are read already, too
    lost.write_bytes(content)
    assert [len(batch) for batch in loader.epoch(0)] == [2] * 4


@pytest.mark.faults("data altered during a run")
def test_a_damaged_image_is_named_and_no_batch_is_lost(tmp_path: Path) -> None:
    files = jpegs(12)
    split = encoded(tmp_path, files)
    whole = files["007.jpg"]
    half = whole[: len(whole) // 2]
    (tmp_path / "007.jpg").write_bytes(
        half.ljust(len(whole), b"\0")
    )  # after the scan, and of the same length
    loader = DaliLoader(split, "cpu", batch_size=2, seed=0, shuffle=False)
    for _ in range(2):
        batches = loader.epoch(0)
        for _ in range(3):
            next(batches)
        with pytest.raises(DataError, match=r"007\.jpg"):
            next(batches)


@pytest.mark.faults("data altered during a run")
@pytest.mark.parametrize("change", [Path.unlink, lambda path: path.write_bytes(b"short")])
def test_a_file_that_changed_under_the_loader_is_named(
    tmp_path: Path, change: Callable[[Path], object]
) -> None:
    split = encoded(tmp_path, jpegs(6))
    change(tmp_path / "004.jpg")
    with pytest.raises(DataError, match=r"004\.jpg"):
        list(DaliLoader(split, "cpu", batch_size=2, seed=0, shuffle=False).epoch(0))


@pytest.mark.parametrize("said", ["CUDA allocation failed", "std::bad_alloc"])
def test_a_lack_of_memory_is_no_damaged_image(
    said: str, photos: EncodedSplit, monkeypatch: pytest.MonkeyPatch
) -> None:
    loader = DaliLoader(photos, "cpu", batch_size=4, seed=0)

    def fail() -> torch.Tensor:
        raise RuntimeError(said)

    monkeypatch.setattr(loader, "_run", fail)
    with pytest.raises(RuntimeError, match=said) as caught:
        next(iter(loader.epoch(0)))
    assert is_out_of_memory(caught.value)


def test_an_amd_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "hip", "6.4")
    with pytest.raises(ArgumentError, match="use --loader resident --crop pad"):
        require_dali(torch.device("cuda"))
    require_dali(torch.device("cpu"))


def test_a_missing_dali_is_answered_with_the_package_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    for cuda, package in (
        ("12.8", "nvidia-dali-cuda120"),
        ("13.0", "nvidia-dali-cuda130"),
        (None, "nvidia-dali-cuda130"),
    ):
        monkeypatch.setattr(torch.version, "cuda", cuda)
        with pytest.raises(ArgumentError, match=rf"pip install {package}, or use --loader resident"):
            require_dali(torch.device("cpu"))


def test_a_dali_of_another_cuda_is_refused_on_a_gpu_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    require_dali(torch.device("cpu"))
    with pytest.raises(
        ArgumentError, match=r"CUDA 13 and torch for CUDA 12: .*, then pip install nvidia-dali-cuda120"
    ):
        require_dali(torch.device("cuda"))


def test_decoding_on_a_gpu_needs_one(photos: EncodedSplit) -> None:
    with pytest.raises(ArgumentError, match="decoder is gpu, but the device is cpu; use --decoder cpu"):
        DaliLoader(photos, "cpu", batch_size=2, seed=0, decoder="gpu")

"""One image file to RGB pixels of one size, and many of them in several processes."""

from __future__ import annotations

import functools
import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from image_files import Pixels, chunk, deep_png, encoded, exif, pixels, png_header, rare_images, save
from PIL import Image

from rotnet_fast.data import workers
from rotnet_fast.data.decode import (
    decode_image,
    decode_images,
    decode_rgb,
    decode_turned,
    encode_ppm,
    upright_rgb,
)
from rotnet_fast.data.kinds import IMAGE_SUFFIXES, IMAGES, image_kind
from rotnet_fast.data.source import FileSource
from rotnet_fast.errors import DataError


def source_of(folder: Path) -> FileSource:
    """The files of a folder in sorted order."""
    paths = sorted(folder.iterdir())
    sizes = np.array([path.stat().st_size for path in paths])
    return FileSource(str(folder), [str(path) for path in paths], sizes)


@pytest.mark.parametrize(
    "content", [b"", b"GIF89a", b"%PDF-1.7", b"\xff\xd8\xff\xe0 no", b"\x89PNG\r\n\x1a\n"]
)
def test_a_file_that_is_no_image_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.jpg").write_bytes(content)
    with pytest.raises(DataError, match=r"x\.jpg cannot be read as an image"):
        decode_image(str(tmp_path / "x.jpg"), 8)


def test_a_truncated_jpeg_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.jpg"
    save(path, pixels(0, 64, 64))
    path.write_bytes(path.read_bytes()[:-400])
    with pytest.raises(DataError, match=r"x\.jpg cannot be read as an image: .*truncated"):
        decode_image(str(path), 64)


def test_a_huge_image_is_refused_rather_than_decoded(tmp_path: Path) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(png_header(60_000, 60_000) + chunk(b"IDAT", b""))
    with pytest.raises(DataError, match=r"bomb\.png cannot be read as an image: Image size"):
        decode_image(str(path), 8)


def test_jpeg_files_are_decoded_as_pillow_does(tmp_path: Path) -> None:
    path = tmp_path / "x.jpeg"
    save(path, pixels(0))
    with Image.open(path) as image:
        assert np.array_equal(decode_image(str(path), 8), np.asarray(image))


def test_grey_and_palette_images_become_rgb(tmp_path: Path) -> None:
    grey = pixels(0)[:, :, 0]
    expected = np.repeat(grey[:, :, None], 3, axis=2)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    assert np.array_equal(decode_image(str(tmp_path / "grey.png"), 8), expected)
    palette = Image.fromarray(grey).convert("P")
    palette.save(tmp_path / "palette.png")
    assert np.array_equal(decode_image(str(tmp_path / "palette.png"), 8), expected)


def test_transparent_parts_become_black(tmp_path: Path) -> None:
    colour = pixels(0)
    alpha = np.full((8, 8, 1), 255, dtype=np.uint8)
    alpha[:4] = 0
    Image.fromarray(np.concatenate([colour, alpha], axis=2)).save(tmp_path / "alpha.png")
    expected = colour.copy()
    expected[:4] = 0
    assert np.array_equal(decode_image(str(tmp_path / "alpha.png"), 8), expected)


def test_a_transparent_palette_entry_becomes_black(tmp_path: Path) -> None:
    palette = Image.fromarray(np.array([[0, 1], [1, 0]], dtype=np.uint8)).convert("P")
    palette.putpalette([200, 100, 50, 10, 20, 30])
    palette.save(tmp_path / "palette.png", transparency=0)
    expected = [[[0, 0, 0], [10, 20, 30]], [[10, 20, 30], [0, 0, 0]]]
    assert decode_image(str(tmp_path / "palette.png"), 2).tolist() == expected


def test_a_grey_image_of_16_bits_is_refused(tmp_path: Path) -> None:
    Image.fromarray(np.full((8, 8), 4095, dtype=np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(DataError, match=r"deep\.png is a grey image of 16 bits or more; save it with 8"):
        decode_image(str(tmp_path / "deep.png"), 8)


def test_images_of_other_modes_and_of_no_pixels_are_refused_by_what_they_are() -> None:
    for mode in ("HSV", "LAB", "RGBX", "RGBa"):
        with pytest.raises(DataError, match=f"x has mode {mode}; convert it to RGB"):
            upright_rgb(Image.new(mode, (4, 4)), "x")
    with pytest.raises(DataError, match="x is a grey image of 16 bits or more"):
        upright_rgb(Image.new("I", (4, 4)), "x")
    with pytest.raises(DataError, match="x has 0 x 5 pixels"):
        upright_rgb(Image.new("RGB", (0, 5)), "x")


@pytest.mark.parametrize(("tag", "turns"), [(1, 0), (3, 2), (6, 3), (8, 1)])
def test_the_cameras_orientation_is_applied(tmp_path: Path, tag: int, turns: int) -> None:
    stored = pixels(0, 8, 16)
    Image.fromarray(stored).save(tmp_path / "x.png", exif=exif(tag))
    upright = np.rot90(stored, turns)  # counter-clockwise
    Image.fromarray(np.ascontiguousarray(upright)).save(tmp_path / "upright.png")
    assert np.array_equal(
        decode_image(str(tmp_path / "x.png"), 8), decode_image(str(tmp_path / "upright.png"), 8)
    )


def test_a_wide_image_is_cut_to_its_centre(tmp_path: Path) -> None:
    wide = pixels(0, 8, 20)
    Image.fromarray(wide).save(tmp_path / "wide.png")
    assert np.array_equal(decode_image(str(tmp_path / "wide.png"), 8), wide[:, 6:14])


def test_a_tall_image_is_cut_to_its_centre(tmp_path: Path) -> None:
    tall = pixels(0, 13, 8)
    Image.fromarray(tall).save(tmp_path / "tall.png")
    assert np.array_equal(decode_image(str(tmp_path / "tall.png"), 8), tall[2:10])


@pytest.mark.parametrize(("height", "width"), [(1, 1), (16, 16), (31, 100), (100, 31), (5, 8), (1, 300)])
def test_any_size_is_resized_to_the_size_asked_for(tmp_path: Path, height: int, width: int) -> None:
    colour = np.broadcast_to(np.array([7, 99, 255], dtype=np.uint8), (height, width, 3))
    Image.fromarray(np.ascontiguousarray(colour)).save(tmp_path / "x.png")
    image = decode_image(str(tmp_path / "x.png"), 8)
    assert image.shape == (8, 8, 3)
    assert (image == [7, 99, 255]).all()


def jpeg_as_pillow(image: Image.Image, **options: object) -> Pixels:
    """What Pillow makes of a JPEG without any help of ours, as RGB."""
    return np.asarray(Image.open(io.BytesIO(encoded(image, "JPEG", **options))).convert("RGB"))


@pytest.mark.parametrize("mode", ["L", "CMYK", "RGB"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"quality": 95, "optimize": True}])
def test_jpeg_files_of_every_colour_mode_become_rgb(mode: str, options: dict[str, object]) -> None:
    image = Image.fromarray(np.kron(pixels(0, 2, 2), np.ones((16, 16, 1), np.uint8))).convert(mode)
    decoded = decode_rgb(encoded(image, "JPEG", **options))
    assert np.array_equal(decoded, jpeg_as_pillow(image, **options))
    # Adobe's CMYK files are stored inverted; unless that is undone, the difference is not small.
    assert np.abs(decoded.astype(int) - np.asarray(image.convert("RGB"))).mean() < 8


def test_grey_with_transparency_is_laid_on_black() -> None:
    grey_alpha = pixels(0)[:, :, :2]
    grey_alpha[:2, :, 1], grey_alpha[2:, :, 1] = 0, 255
    decoded = decode_rgb(encoded(Image.fromarray(grey_alpha, "LA")))
    assert (decoded[:2] == 0).all()
    assert np.array_equal(decoded[2:], np.repeat(grey_alpha[2:, :, :1], 3, axis=2))


@pytest.mark.parametrize(("colour", "channels"), [(2, 3), (6, 4)])
def test_of_16_bits_per_channel_the_upper_byte_is_taken(colour: int, channels: int) -> None:
    deep = np.random.default_rng(0).integers(0, 65536, (6, 7, 4), dtype=np.uint16)
    deep[:, :, 3] = 65535
    assert np.array_equal(decode_rgb(deep_png(deep[:, :, :channels], colour)), deep[:, :, :3] >> 8)


@pytest.mark.parametrize("size", [(3000, 1), (1, 3000), (3000, 2)])
def test_of_a_thin_image_no_more_than_its_middle_is_enlarged(
    size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    enlarged: list[tuple[int, int]] = []
    resize = Image.Image.resize

    def noted(image: Image.Image, size: tuple[int, int], *arguments: Any) -> Image.Image:
        enlarged.append(size)
        return resize(image, size, *arguments)

    monkeypatch.setattr(Image.Image, "resize", noted)
    strip = np.zeros((size[1], size[0], 3), np.uint8)
    strip[1400:1600] = 255
    strip[:, 1400:1600] = 255
    assert (decode_image(encoded(strip), 64) == 255).all()
    assert all(max(to) <= 16 * 64 for to in enlarged)


def test_bytes_give_the_same_as_the_file(tmp_path: Path) -> None:
    save(tmp_path / "x.png", pixels(0, 20, 30))
    content = (tmp_path / "x.png").read_bytes()
    assert np.array_equal(decode_image(content, 8), decode_image(str(tmp_path / "x.png"), 8))
    assert np.array_equal(decode_rgb(content), pixels(0, 20, 30))


def test_damaged_bytes_are_called_by_the_name_they_are_given() -> None:
    with pytest.raises(DataError, match=r"^shard\.tar/0\.png cannot be read as an image"):
        decode_image(b"damaged", 8, "shard.tar/0.png")
    with pytest.raises(DataError, match=r"^an image cannot be read as an image"):
        decode_rgb(b"damaged")


def test_ppm_keeps_every_pixel() -> None:
    image = pixels(0, 5, 9)
    with Image.open(io.BytesIO(encode_ppm(image))) as ppm:
        assert ppm.format == "PPM"
        assert np.array_equal(np.asarray(ppm), image)


@pytest.fixture
def two_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Worker processes even for few files and on a machine with one core."""
    monkeypatch.setattr(workers, "available_cores", lambda: 2)
    monkeypatch.setattr(workers, "_IMAGES_PER_WORKER", 4)
    monkeypatch.setattr(workers, "_IMAGES_PER_CHUNK", 3)


@pytest.mark.usefixtures("two_workers")
def test_several_processes_give_the_files_in_order(tmp_path: Path) -> None:
    for number in range(20):
        save(tmp_path / f"{number:02}.png", pixels(number))
    expected = np.stack([pixels(number) for number in range(20)])
    assert np.array_equal(decode_images(source_of(tmp_path), 8, progress=False), expected)


@pytest.mark.usefixtures("two_workers")
def test_a_corrupt_file_is_named_by_a_worker_process_too(tmp_path: Path) -> None:
    for number in range(20):
        save(tmp_path / f"{number:02}.png", pixels(number))
    (tmp_path / "13.png").write_bytes(b"damaged")
    with pytest.raises(DataError, match=r"13\.png cannot be read as an image"):
        decode_images(source_of(tmp_path), 8, progress=False)


@pytest.mark.usefixtures("two_workers")
def test_a_killed_worker_process_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "x.png", pixels(0))
    monkeypatch.setattr(workers, "_start_worker", functools.partial(os._exit, 1))
    with pytest.raises(DataError, match="a worker process died"):
        decode_images(source_of(tmp_path).take(np.zeros(20, np.int64)), 8, progress=False)


def test_worker_processes_do_not_import_torch() -> None:
    command = "import sys, rotnet_fast.data.decode; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", command], check=False).returncode == 0


def test_every_kind_that_is_read_has_its_suffixes_and_is_known_by_its_content() -> None:
    Image.init()
    colour = Image.fromarray(pixels(0))
    for kind in IMAGES:
        assert image_kind(encoded(colour, kind)) == kind
        suffixes = {suffix for suffix, of in Image.registered_extensions().items() if of == kind}
        assert suffixes & set(IMAGE_SUFFIXES) == suffixes - {".apng"}
    for kind in {*Image.SAVE} - {*IMAGES, "MPO"}:
        try:
            content = encoded(colour, kind)
        except (OSError, ValueError, KeyError):  # that hold no colour, or need more than the image
            continue
        assert image_kind(content) is None, kind


def upright_colour() -> Pixels:
    """What every image of ``rare_images`` in these colours shows."""
    return np.kron(pixels(0, 3, 5), np.ones((8, 8, 1), np.uint8))


@pytest.mark.parametrize(
    "name",
    [
        "lossless.webp",
        "animated.webp",
        "rgb.bmp",
        "rgb.tif",
        "big.tif",
        "pages.tif",
        "rgb.gif",
        "animated.gif",
    ],
)
def test_of_every_kind_that_loses_nothing_the_pixels_are_those_of_the_first_image(name: str) -> None:
    assert np.array_equal(decode_rgb(rare_images()[name][0]), upright_colour())


def test_a_turned_tiff_is_upright() -> None:
    decoded = decode_rgb(rare_images()["turned.tif"][0])
    assert np.array_equal(decoded, np.rot90(upright_colour(), -1))


@pytest.mark.parametrize("name", ["alpha.webp", "alpha.tif"])
def test_transparency_is_laid_on_black_in_every_kind(name: str) -> None:
    as_png = encoded(np.concatenate([pixels(2), pixels(3)[:, :, :1]], axis=2))
    assert np.array_equal(decode_rgb(rare_images()[name][0]), decode_rgb(as_png))


@pytest.mark.parametrize("kind", ["PNG", "BMP", "GIF"])
def test_turned_copies_of_lossless_files_are_exact(kind: str) -> None:
    content = encoded(pixels(1, 20, 30), kind)
    whole = decode_rgb(content)
    for turns, copy in enumerate(decode_turned(content, 20)):
        expected = encoded(np.ascontiguousarray(np.rot90(whole, turns)))
        assert np.array_equal(copy, decode_image(expected, 20))


@pytest.mark.parametrize(
    "options", [{}, {"quality": 30}, {"quality": 95, "subsampling": 0}, {"progressive": True}]
)
@pytest.mark.parametrize("orientation", [1, 6])
def test_turned_copies_of_a_jpeg_are_compressed_as_they_lie(
    options: dict[str, Any], orientation: int
) -> None:
    content = encoded(pixels(2, 24, 40), "JPEG", exif=exif(orientation), **options)
    upright = decode_rgb(content)
    copies = decode_turned(content, 16)
    assert np.array_equal(copies[0], decode_image(content, 16))
    for turns in (1, 2, 3):
        options.pop("progressive", None)  # which changes no pixel
        stored = encoded(np.ascontiguousarray(np.rot90(upright, turns)), "JPEG", **options)
        assert np.array_equal(copies[turns], decode_image(stored, 16))
        assert not np.array_equal(copies[turns], np.rot90(copies[0], turns))


def test_turned_copies_keep_quantisation_tables_whatever_their_numbers() -> None:
    content = bytearray(encoded(Image.fromarray(np.full((16, 16), 90, np.uint8)), "JPEG", quality=95))
    content[content.index(b"\xff\xdb") + 4] = 1  # the number of the only table
    content[content.index(b"\xff\xc0") + 12] = 1  # of which the only component is
    assert Image.open(io.BytesIO(content)).quantization.keys() == {1}
    copies = decode_turned(bytes(content), 16).astype(int)
    assert np.abs(copies - 90).max() <= 1


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_turned_copies_of_other_jpegs_look_like_them(mode: str) -> None:
    smooth = np.add.outer(np.arange(32), np.arange(32)).astype(np.uint8) * 3
    content = encoded(Image.fromarray(np.stack([smooth] * 3, axis=2)).convert(mode), "JPEG", quality=95)
    copies = decode_turned(content, 32).astype(int)
    for turns in (1, 2, 3):
        assert np.abs(copies[turns] - np.rot90(copies[0], turns)).max() < 12

"""Decode image files to uint8 RGB arrays.

The worker processes import this module, so it does not import torch, which takes seconds.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageOps, JpegImagePlugin

from rotnet_fast.data.kinds import IMAGES
from rotnet_fast.data.source import ImageSource
from rotnet_fast.data.workers import in_chunks
from rotnet_fast.errors import DataError

MODES = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"}  # Pillow's names, all of 8 bits or fewer
DEEP_MODES = ("I", "F")  # how Pillow's names of grey modes of 16 bits or more begin
_LONGEST = 16  # times the shorter side: the middle of a longer image is all that is enlarged
# 16-bit grey images often use only 10 or 12 bits, so no conversion to 8 bits is right for all of them.
DEEP_GREY = "is a grey image of 16 bits or more; save it with 8 bits per channel"


def decode_image(
    file: str | bytes, image_size: int, name: str | None = None, is_cropped: bool = False
) -> npt.NDArray[np.uint8]:
    """Decode one image to uint8 [image_size, image_size, 3]: :func:`fit_image` of :func:`decode_rgb`.

    Args:
        file: a path, or the contents of an image file.
        image_size, is_cropped: see :func:`fit_image`.
        name: name of the image in error messages; None means the path.

    Raises:
        DataError: the image cannot be decoded, see :func:`decode_rgb`.
    """
    with _rgb(file, name) as image:
        return fit_image(image, image_size, is_cropped)


def decode_turned(
    file: str | bytes, image_size: int, name: str | None = None, is_cropped: bool = False
) -> npt.NDArray[np.uint8]:
    """Decode one image as if it had been stored turned by 0, 90, 180 and 270 degrees counter-clockwise.

    A photo that lies in a JPEG file on its side was compressed as it lies. So turned copies of a JPEG are
    compressed once more, with the tables and subsampling of the file; others are turned without loss.

    Args:
        file, image_size, name, is_cropped: see :func:`decode_image`.

    Returns:
        uint8 [4, image_size, image_size, 3], of which the first is that of :func:`decode_image`.

    Raises:
        DataError: the image cannot be decoded, see :func:`decode_rgb`.
    """
    with _rgb(file, name) as image:
        copies = [image, *map(image.transpose, _QUARTER_TURNS)]
        with Image.open(file if isinstance(file, str) else BytesIO(file), formats=IMAGES) as stored:
            if isinstance(stored, JpegImagePlugin.JpegImageFile):
                copies[1:] = [_compressed_like(stored, copy) for copy in copies[1:]]
        return np.stack([fit_image(copy, image_size, is_cropped) for copy in copies])


_QUARTER_TURNS = (Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_180, Image.Transpose.ROTATE_270)


def _compressed_like(stored: JpegImagePlugin.JpegImageFile, image: Image.Image) -> Image.Image:
    stream, sampling = BytesIO(), JpegImagePlugin.get_sampling(stored)
    known = {"subsampling": sampling} if sampling >= 0 else {}  # which a grey file has none of
    tables = stored.quantization  # by number, which need not begin at 0
    image.save(stream, "JPEG", qtables=[tables[number] for number in sorted(tables)], **known)
    stream.seek(0)
    return Image.open(stream).convert("RGB")


def fit_image(image: Image.Image, image_size: int, is_cropped: bool = False) -> npt.NDArray[np.uint8]:
    """Make an RGB image uint8 [image_size, image_size, 3], as a network is tested on it.

    An image of image_size x image_size keeps its pixels; any other one is resized (bilinear, with
    antialiasing) until its shorter side is image_size, and cropped to its centre.

    Args:
        image: of any size, upright and in mode RGB.
        image_size: H = W of the result in pixels.
        is_cropped: for networks that were pretrained on random resized crops, take the centre crop that they
            are tested on instead, see `rotnet_fast.data.crop.centre_crop`.
    """
    if not is_cropped:
        return np.array(_resize_and_crop(image, image_size))
    from rotnet_fast.data.crop import centre_crop  # imported here because it needs torch

    return centre_crop(np.array(image), image_size)


def decode_rgb(file: str | bytes, name: str | None = None) -> npt.NDArray[np.uint8]:
    """Decode one image in its original size to uint8 [H,W,3]; of a file with several images, the first.

    The camera's orientation tag is applied, because this project's labels depend on which way is up. Grey,
    palette and CMYK images are converted to RGB; transparent parts are composited on black, the colour of the
    crop's padding; of 16 bits per channel, the upper eight are kept.

    Args:
        file: a path, or the contents of an image file.
        name: name of the image in error messages; None means the path.

    Raises:
        DataError: the file is missing or damaged, is not one of the formats in
            ``rotnet_fast.data.kinds.IMAGES``, or is a grey image with 16 or more bits.
    """
    with _rgb(file, name) as image:
        return np.array(image)


FIND_ALL = "Pass --check-images decode to find all such images in advance"
"""Remedy of commands for an image that turns out to be undecodable while they run."""


class UndecodableError(DataError):
    """Report that images of a set cannot be decoded.

    Args:
        message: the error of the first such image.
        positions: the positions of all such images.
    """

    def __init__(self, message: str, positions: list[int]) -> None:
        super().__init__(message)
        self.positions = positions


def encode_ppm(rgb: npt.NDArray[np.uint8]) -> bytes:
    """Encode pixels uint8 [H,W,3] as a PPM file, which is lossless and costs almost nothing to write."""
    height, width, _ = rgb.shape
    return b"P6 %d %d 255\n" % (width, height) + rgb.tobytes()


@contextmanager
def _rgb(file: str | bytes, name: str | None) -> Iterator[Image.Image]:
    """Open an image upright and in RGB, and turn errors into a DataError, even late ones inside the block."""
    if name is None:
        name = file if isinstance(file, str) else "an image"
    try:
        with Image.open(file if isinstance(file, str) else BytesIO(file), formats=IMAGES) as stored:
            yield upright_rgb(stored, name)
    except DataError:
        raise
    except Exception as error:  # Pillow's decoders raise a dozen types on damaged files
        raise DataError(f"{name} cannot be read as an image: {error}; repair or remove it") from error


def decode_images(source: ImageSource, image_size: int, progress: bool) -> npt.NDArray[np.uint8]:
    """Decode all images of a source to uint8 [len(source), image_size, image_size, 3], in several processes.

    Raises:
        UndecodableError: some images cannot be decoded; all of them are tried first.
        DataError: an image can no longer be read, or a worker process failed (see
            :func:`rotnet_fast.data.workers.in_chunks`).
    """
    images = np.empty((len(source), image_size, image_size, 3), dtype=np.uint8)
    work = functools.partial(decode_chunk, image_size=image_size)
    failures: list[tuple[int, str]] = []
    for place, (decoded, failed) in in_chunks(work, source, "decoding", progress):
        images[place] = decoded
        failures += [(place.start + number, said) for number, said in failed]
    if failures:
        raise UndecodableError(failures[0][1], [position for position, _ in failures])
    return images


def decode_chunk(
    source: ImageSource, image_size: int, is_cropped: bool = False, are_turned: bool = False
) -> tuple[npt.NDArray[np.uint8], list[tuple[int, str]]]:
    """Decode all images of a source in this process.

    Returns:
        uint8 [len(source), image_size, image_size, 3], or [len(source), 4, image_size, image_size, 3] for
        ``are_turned``, see :func:`decode_turned`; and the position and the error of each image that cannot be
        decoded, whose pixels are 0.

    Raises:
        DataError: an image can no longer be read.
    """
    copies = (4,) if are_turned else ()
    images = np.zeros((len(source), *copies, image_size, image_size, 3), dtype=np.uint8)
    decode = decode_turned if are_turned else decode_image
    failed = []
    for number in range(len(source)):
        content = source.read(number)
        try:
            images[number] = decode(content, image_size, source.names[number], is_cropped)
        except DataError as error:
            failed.append((number, str(error)))
    return images, failed


def upright_rgb(image: Image.Image, name: str = "an image") -> Image.Image:
    """Return an image in mode RGB, turned as its orientation tag says; see :func:`decode_rgb`.

    Args:
        image: an image of Pillow's.
        name: its name in error messages.

    Raises:
        DataError: it is a grey image with 16 or more bits, of a rare mode, or without pixels.
    """
    if image.mode not in MODES:
        other = f"has mode {image.mode}; convert it to RGB, such as by image.convert('RGB')"
        raise DataError(f"{name} {DEEP_GREY if image.mode.startswith(DEEP_MODES) else other}")
    if min(image.size) < 1:
        raise DataError(f"{name} has {image.width} x {image.height} pixels; give images with some")
    if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
        image = ImageOps.exif_transpose(image)
    if image.has_transparency_data:
        black = Image.new("RGBA", image.size, (0, 0, 0, 255))
        image = Image.alpha_composite(black, image.convert("RGBA"))
    return image.convert("RGB")


def _resize_and_crop(image: Image.Image, image_size: int) -> Image.Image:
    if image.size == (image_size, image_size):
        return image
    shorter = min(image.size)
    if max(image.size) > _LONGEST * shorter:  # enlarging a whole strip could take gigabytes
        width, height = (min(side, _LONGEST * shorter) for side in image.size)
        left, top = (image.width - width) // 2, (image.height - height) // 2
        image = image.crop((left, top, left + width, top + height))
    scale = image_size / shorter
    width, height = (max(image_size, round(side * scale)) for side in image.size)
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = (width - image_size) // 2, (height - image_size) // 2
    return image.crop((left, top, left + image_size, top + image_size))

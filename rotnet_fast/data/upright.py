"""Turn the file of an image upright without any loss.

======================  =============================================================================
JPEG, TIFF              by the orientation tag: the compressed pixels and everything else stay as they are
PNG                     by the pixels, with the same bits per pixel; all other chunks stay as they are
BMP, GIF, lossless      by the pixels; a WebP keeps its EXIF, XMP and colour profile
WebP
======================  =============================================================================

Images that are turned by their pixels keep an orientation tag that they may have, and are turned below it.

Orientations are those of EXIF: 1 is shown as stored, 8, 3 and 6 are shown 90, 180 and 270 degrees
counter-clockwise from how they are stored, and 2, 5, 4 and 7 the same after a left-right flip.

This module does not import torch, which takes seconds.
"""

from __future__ import annotations

import re
import struct
import zlib
from io import BytesIO

import numpy as np
from PIL import ExifTags, Image

from rotnet_fast.data import exif, png
from rotnet_fast.data.decode import decode_rgb
from rotnet_fast.data.kinds import IMAGES, PNG_START

_TURNED_ONCE = {1: 8, 8: 3, 3: 6, 6: 1, 2: 5, 5: 4, 4: 7, 7: 2}
"""Map an orientation to that of the same image turned by 90 degrees counter-clockwise."""
_MIRRORED = (2, 4, 5, 7)
_TRANSPOSES = (None, Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_180, Image.Transpose.ROTATE_270)

_START_OF_SCAN, _JFIF, _EXIF, _MULTI_PICTURE = 0xDA, 0xE0, 0xE1, 0xE2
_EXIF_START, _XMP_START = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0"
_LONGEST_SEGMENT = 0xFFFF
_NO_EXIF = b"MM\0*\0\0\0\x08\0\0\0\0\0\0"  # an empty directory
_XMP_ORIENTATION = re.compile(rb'(tiff:Orientation(?:="|>))[0-9]')

_GREY, _PALETTE = 0, 3  # colour types of PNG
_KEPT = ("exif", "xmp", "icc_profile", "dpi")


class KeptError(Exception):
    """Report that an image cannot be turned without loss; the message follows the name of the image."""


def turn_upright(content: bytes, turned: int) -> bytes:
    """Return the file of an image that is shown upright.

    ``decode_rgb`` of the result is ``np.rot90(decode_rgb(content), -turned // 90)``, to the bit.

    Args:
        content: the file, which `rotnet_fast.data.decode.decode_rgb` can decode.
        turned: by how much the image is shown turned from upright: 0, 90, 180 or 270 degrees
            counter-clockwise. For 0, the result is ``content``.

    Raises:
        KeptError: that is not possible without loss.
    """
    quarters = -turned // 90 % 4  # to turn it by, counter-clockwise
    if quarters == 0:
        return content
    with Image.open(BytesIO(content), formats=IMAGES) as image:
        orientation = _orientation(image)
        if image.format in ("JPEG", "MPO", "TIFF"):
            for _ in range(quarters):
                orientation = _TURNED_ONCE[orientation]
            is_tiff = image.format == "TIFF"
            if is_tiff and getattr(image, "n_frames", 1) > 1:
                raise KeptError("holds several images")
            return (_tagged_tiff if is_tiff else _tagged_jpeg)(content, orientation)
        if getattr(image, "is_animated", False):
            raise KeptError("is animated")
        # Below a tag that mirrors, the stored pixels turn the other way round.
        transpose = _TRANSPOSES[-quarters % 4 if orientation in _MIRRORED else quarters]
        assert transpose is not None, "quarters is 1, 2 or 3"
        try:
            new = (_turned_png if image.format == "PNG" else _turned_pixels)(content, image, transpose)
            is_same = np.array_equal(decode_rgb(new), np.rot90(decode_rgb(content), quarters))
        except KeptError:
            raise
        except Exception as error:  # Pillow raises a dozen types on what it cannot write
            raise KeptError(f"cannot be written ({error})") from error
    if not is_same:
        raise KeptError("is of a rare kind that is not written without loss")
    return new


def _orientation(image: Image.Image) -> int:
    """Return how an image is shown, as Pillow applies it; values that it ignores count as 1."""
    found = image.getexif().get(ExifTags.Base.Orientation, 1)
    return found if found in _TURNED_ONCE else 1


def _tagged_tiff(content: bytes, orientation: int) -> bytes:
    try:
        return _checked(exif.with_orientation(content, orientation), orientation)
    except ValueError as error:
        raise KeptError("is a TIFF of an unusual kind") from error


def _tagged_jpeg(content: bytes, orientation: int) -> bytes:
    """Set the orientation of a JPEG in its EXIF data, which it gets if it has none, and in its XMP data.

    Segments grow or are inserted only where the orientation is missing.
    """
    segments, end = _segments(content)
    old = next((data for marker, data in segments if _is_exif(marker, data)), None)
    if old is None:
        at = 1 if segments and segments[0][0] == _JFIF else 0  # a JFIF segment has to be the first
        segments.insert(at, (_EXIF, _EXIF_START + _NO_EXIF))
    parts = [content[:2]]
    for marker, data in segments:
        if _is_exif(marker, data):
            try:
                data = _EXIF_START + exif.with_orientation(data[len(_EXIF_START) :], orientation)
            except ValueError as error:
                raise KeptError(f"has damaged EXIF data ({error})") from error
        elif marker == _EXIF and data.startswith(_XMP_START):
            data = _XMP_ORIENTATION.sub(rb"\g<1>%d" % orientation, data)
        if len(data) + 2 > _LONGEST_SEGMENT:
            raise KeptError("has EXIF data without an orientation, and no room for one")
        parts.append(struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data)
    new = b"".join([*parts, content[end:]])
    is_album = any(marker == _MULTI_PICTURE and data.startswith(b"MPF\0") for marker, data in segments)
    if is_album and len(new) != len(content):  # the lengths of all pictures are recorded
        raise KeptError("holds several pictures, but no orientation that could be changed in place")
    return _checked(new, orientation)


def _is_exif(marker: int, data: bytes) -> bool:
    return marker == _EXIF and data.startswith(_EXIF_START)


def _segments(content: bytes) -> tuple[list[tuple[int, bytes]], int]:
    """Return marker and data of the segments before the pixels of a JPEG, and the position behind them.

    Raises:
        KeptError: the header does not follow the standard.
    """
    found: list[tuple[int, bytes]] = []
    position = 2
    while True:
        fill, marker, length = struct.unpack(">BBH", content[position : position + 4].ljust(4, b"\0"))
        if fill != 0xFF or not 0xC0 <= marker <= 0xFE or length < 2:
            raise KeptError("is a JPEG with an unusual header")
        if marker == _START_OF_SCAN:
            return found, position
        found.append((marker, content[position + 4 : position + 2 + length]))
        position += 2 + length


def _checked(new: bytes, orientation: int) -> bytes:
    """Return a file that was given an orientation, after looking whether decoders find that one."""
    with Image.open(BytesIO(new), formats=IMAGES) as image:
        if _orientation(image) != orientation:
            raise KeptError("has several orientations")
    return new


def _turned_png(content: bytes, image: Image.Image, transpose: Image.Transpose) -> bytes:
    """Replace size and pixels of a PNG, and keep all other chunks."""
    if not png.parse(content).is_plain:
        raise KeptError("is a PNG that does not follow the standard")
    chunks = [(kind, bytes(data)) for kind, data in png.read_chunks(content)]
    _, _, bits, colour, compression, filters, _ = struct.unpack(">IIBBBBB", chunks[0][1])
    if bits == 16:
        raise KeptError("is a PNG of 16 bits per channel, of which eight would be lost")
    if any(kind == b"acTL" for kind, _ in chunks):
        raise KeptError("is animated")
    turned = image.transpose(transpose)
    if colour == _GREY and bits in (2, 4):
        turned = Image.fromarray(np.asarray(turned) // (255 // (2**bits - 1)))
    if colour == _PALETTE or bits in (2, 4):
        turned.putpalette(bytes(3 << bits))  # by whose length Pillow chooses the bits
    stream = BytesIO()
    turned.save(stream, "PNG", bits=bits)
    written = [(kind, bytes(data)) for kind, data in png.read_chunks(stream.getvalue())]
    pixels = [chunk for chunk in written if chunk[0] == b"IDAT"]
    header = struct.pack(">IIBBBBB", *turned.size, bits, colour, compression, filters, 0)
    first = next(place for place, (kind, _) in enumerate(chunks) if kind == b"IDAT")
    kept = [[part for part in half if part[0] != b"IDAT"] for half in (chunks[1:first], chunks[first:])]
    parts = [(b"IHDR", header), *kept[0], *pixels, *kept[1]]
    return PNG_START + b"".join(_chunk(kind, data) for kind, data in parts)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _turned_pixels(content: bytes, image: Image.Image, transpose: Image.Transpose) -> bytes:
    """Write a BMP, GIF or lossless WebP again."""
    if image.format == "WEBP" and b"VP8L" not in _riff_kinds(content):
        raise KeptError("is a lossy WebP, whose pixels cannot be turned without loss")
    kept = {name: image.info[name] for name in _KEPT if name in image.info}
    stream = BytesIO()
    image.transpose(transpose).save(stream, image.format, lossless=True, exact=True, **kept)
    return stream.getvalue()


def _riff_kinds(content: bytes) -> list[bytes]:
    """Return the kinds of the chunks of a WebP."""
    kinds, position = [], 12
    while position + 8 <= len(content):
        kind, length = struct.unpack_from("<4sI", content, position)
        kinds.append(kind)
        position += 8 + length + length % 2
    return kinds

"""What the headers of encoded images say, and which images are damaged, found without decoding any.

A damaged image inside a training batch would stop the run, or worse: half-decoded, it would be trained on.
So every image is looked at beforehand, and every way to use a data set uses the same images. What is not
noticed is garbage between the header and the end of a JPEG: no decoder notices it either.

Worker processes import this module, so it stays free of torch, which takes seconds to import.
"""

from __future__ import annotations

import hashlib
import struct
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile

from rotnet_fast.data.cache import read_cache, write_cache
from rotnet_fast.data.decode import DEEP_GREY, MODES
from rotnet_fast.data.source import ImageSource
from rotnet_fast.data.workers import in_chunks
from rotnet_fast.errors import DataError, printable

_FORMAT = "3"  # raise it when the same images would get other values
_PNG_START = b"\x89PNG\r\n\x1a\n"
_JPEG_START = b"\xff\xd8\xff"
_LONGEST_SIDE = 2**15 - 1
_MOST_PIXELS = 2 * 89_478_485  # from here on Pillow refuses to decode, too
_SHOWN = 5
_COLUMNS = 8

GOOD = 0
_UNREADABLE = 1
REASONS = (
    "is good",
    "cannot be read",
    "is empty",
    "is neither JPEG nor PNG",
    "has a damaged header, one of no pixels, or one of a kind that is not supported",
    f"is a decompression bomb: it claims to have more than {_MOST_PIXELS} pixels",
    f"has more than {_LONGEST_SIDE} pixels a side",
    "ends early: the end-of-image marker is missing",
    "is damaged: a chunk is cut off or has a wrong checksum",
    DEEP_GREY,
)
"""What is said of an image: its name and the entry at its verdict."""
_EMPTY, _OTHER, _HEADER, _BOMB, _TOO_LONG, _CUT_OFF, _CHUNK, _DEEP_GREY = range(2, len(REASONS))


@dataclass(frozen=True)
class Scan:
    """Of N images, in the order of their source.

    Attributes:
        sizes: int32 [N,2], height and width in pixels, after the camera's orientation tag; 0 for a bad one.
        convert: bool [N], images that DALI would decode to other pixels than
            :func:`rotnet_fast.data.decode.decode_rgb`: any transparency, 16 bits per channel, CMYK,
            an orientation in a PNG, and one that stands only in XMP.
        verdicts: int32 [N], ``GOOD`` or a position in ``REASONS``.
        contents: int32 [N,4], first 128 bits of the SHA-256 of each encoded image; 0 for an unreadable one.
    """

    sizes: npt.NDArray[np.int32]
    convert: npt.NDArray[np.bool_]
    verdicts: npt.NDArray[np.int32]
    contents: npt.NDArray[np.int32]


def scan_images(source: ImageSource, digest: str, places: list[Path], progress: bool) -> Scan:
    """Look at all images, in several processes, or take what an earlier run found.

    Args:
        digest: of the folder's listing.
        places: for the result, see :mod:`rotnet_fast.data.cache`.
        progress: show a progress bar.

    Raises:
        DataError: see :func:`rotnet_fast.data.workers.in_chunks`.
    """
    key = f"{_FORMAT}-{digest}"
    shape = (len(source), _COLUMNS)
    found = read_cache(places, "scan", key, np.int32, shape)
    if found is None or not _is_scan(found):
        found = np.empty(shape, dtype=np.int32)
        for place, part in in_chunks(_examine_chunk, source, "checking", progress):
            found[place] = part
        # What cannot be read now (no permission, a network that is down) may be readable next time, and
        # nothing in the listing would tell.
        if not (found[:, 3] == _UNREADABLE).any():
            write_cache(places, "scan", key, found, "the results of checking the images")
    return Scan(sizes=found[:, :2], convert=found[:, 2] != 0, verdicts=found[:, 3], contents=found[:, 4:])


def check_images(source: ImageSource, scan: Scan, bad_images: str) -> npt.NDArray[np.int64]:
    """Positions of the images to use.

    Args:
        bad_images: ``fail`` to raise an error where an image is bad. ``skip`` to leave bad ones out and list
            them on stderr, as long as they are at most one in a thousand (one, in smaller sets): more point
            to a fault of the whole set, and leaving out many would change what is measured.

    Raises:
        DataError: bad images where none, or not so many, are allowed.
    """
    bad = np.flatnonzero(scan.verdicts != GOOD).tolist()
    if bad:
        lines = [f"{source.names[i]} {REASONS[scan.verdicts[i]]}" for i in bad]
        allowed = max(1, len(source) // 1000)
        count = f"{len(bad)} of {len(source)} images cannot be used"
        shown = "; ".join(lines[:_SHOWN]) + ("; and others" if len(bad) > _SHOWN else "")
        if bad_images != "skip":
            raise DataError(
                f"{count}: {shown}. Repair or remove them, or leave them out with --bad-images skip"
            )
        if len(bad) > allowed:
            raise DataError(
                f"{count}, and --bad-images skip leaves out {allowed} at most, one in a thousand: {shown}. "
                f"Repair or remove them"
            )
        print(f"WARNING: {count} and are left out:", *map(printable, lines), sep="\n  ", file=sys.stderr)
    return np.flatnonzero(scan.verdicts == GOOD)


def _examine_chunk(source: ImageSource) -> npt.NDArray[np.int32]:
    rows = []
    for index in range(len(source)):
        try:
            content = source.read(index)
        except DataError:
            rows.append((0, 0, 0, _UNREADABLE, 0, 0, 0, 0))
        else:
            rows.append((*examine(content), *struct.unpack("<4i", hashlib.sha256(content).digest()[:16])))
    return np.array(rows, dtype=np.int32).reshape(-1, _COLUMNS)


def _is_scan(table: npt.NDArray[np.int32]) -> bool:
    """Whether the rows of a table can be what :func:`_examine_chunk` gives."""
    return bool(((table[:, :4] >= 0) & (table[:, :4] <= (_LONGEST_SIDE, _LONGEST_SIDE, 1, _DEEP_GREY))).all())


def examine(content: bytes) -> tuple[int, int, int, int]:
    """Height, width, whether to convert (0 or 1) and verdict (see `Scan`) of one encoded image."""
    if not content:
        return 0, 0, 0, _EMPTY
    is_png = content.startswith(_PNG_START)
    if not is_png and not content.startswith(_JPEG_START):
        return 0, 0, 0, _OTHER
    stream = BytesIO(content)
    try:
        # Not Image.open: for a JPEG that holds several pictures it forgets where the first one's header ends.
        with PngImageFile(stream) if is_png else JpegImageFile(stream) as image:
            if image.width * image.height > _MOST_PIXELS:
                return 0, 0, 0, _BOMB
            if max(image.size) > _LONGEST_SIDE:
                return 0, 0, 0, _TOO_LONG
            if image.mode not in MODES:
                return 0, 0, 0, _DEEP_GREY
            may_be_turned = True
            is_deep = False
            if is_png:
                chunks = list(_png_chunks(content))
                # Pillow decodes a PNG to look for a tag behind the pixels: only where there is one.
                may_be_turned = any(_may_hold_orientation(kind, data) for kind, data in chunks)
                is_deep = chunks[0][1][8] == 16
            elif content.find(b"\xff\xd9", stream.tell()) < 0:
                # Searched behind the header, as a thumbnail in there has an end, too, but not at the very
                # end of the file alone: phones append videos. Compressed pixels never contain this marker.
                return 0, 0, 0, _CUT_OFF
            # Without Adobe's marker, decoders disagree about whether CMYK is stored inverted.
            convert = is_deep or image.has_transparency_data or image.mode == "CMYK"
            width, height = image.size
            if may_be_turned:
                orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
                # In a PNG, DALI finds the tag only where it stands once and as the standard has it.
                if orientation != 1 and (is_png or orientation != _exif_orientation(image)):
                    convert = True
                if orientation in (5, 6, 7, 8):
                    width, height = height, width
            return height, width, int(convert), GOOD
    except _ChunkError:
        return 0, 0, 0, _CHUNK
    except Exception:  # Pillow raises a dozen types on damaged headers
        return 0, 0, 0, _HEADER


class _ChunkError(Exception):
    """A chunk of a PNG file is cut off or has a wrong checksum."""


def _png_chunks(content: bytes) -> Iterator[tuple[bytes, memoryview]]:
    """Kind and data of every chunk of a PNG file up to its end, with its checksum checked."""
    view = memoryview(content)
    position = len(_PNG_START)
    kind = b""
    while kind != b"IEND":
        if position + 12 > len(content):
            raise _ChunkError
        length, kind = struct.unpack_from(">I4s", content, position)
        end = position + 12 + length
        if (
            end > len(content)
            or zlib.crc32(view[position + 4 : end - 4]).to_bytes(4, "big") != view[end - 4 : end]
        ):
            raise _ChunkError
        yield kind, view[position + 8 : end - 4]
        position = end


def _may_hold_orientation(kind: bytes, data: memoryview) -> bool:
    keywords = (b"XML:com.adobe.xmp\0", b"Raw profile type exif\0")
    return kind == b"eXIf" or (kind in (b"iTXt", b"tEXt", b"zTXt") and bytes(data[:32]).startswith(keywords))


def _exif_orientation(image: Image.Image) -> int:
    """The orientation of the EXIF block alone, which is where DALI looks for it."""
    exif = Image.Exif()
    if "exif" in image.info:
        exif.load(image.info["exif"])
    orientation: int = exif.get(ExifTags.Base.Orientation, 1)
    return orientation

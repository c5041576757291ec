"""Check the structure of PNG files and the completeness of their compressed pixels.

DALI's decoder refuses some files that Pillow reads, and reads others differently. So that both give the same
pixels, only files that follow the standard (W3C, Portable Network Graphics, third edition) count as plain,
and only plain files are left to DALI.

Worker processes import this module, so it does not import torch, which takes seconds.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from rotnet_fast.data import exif
from rotnet_fast.data.kinds import PNG_START
from rotnet_fast.data.verdicts import CHUNK, HEADER, PIXELS, DamageError

_KNOWN = (b"IHDR", b"PLTE", b"IDAT", b"IEND")
_ANIMATION = (b"acTL", b"fcTL", b"fdAT")
_USUAL_KIND = re.compile(rb"[a-z][a-zA-Z][A-Z][a-zA-Z]")  # ancillary chunks, which decoders may ignore
_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_PALETTE = 3
_PIECE = 1 << 20
_LAST_FILTER = 4
# First column and row, and strides of columns and rows, of the seven passes of an interlaced image.
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


@dataclass(frozen=True)
class Structure:
    """Describe the structure of one PNG file.

    Attributes:
        is_plain: whether the file follows the standard and all decoders read it alike. False does not say
            whether it can be decoded.
        bits: bits per channel.
        may_be_turned: whether a chunk may contain an orientation.
    """

    is_plain: bool
    bits: int
    may_be_turned: bool


def parse(content: bytes) -> Structure:
    """Parse the structure of a PNG, whose header Pillow can read.

    Args:
        content: the file, which begins with ``PNG_START``.

    Raises:
        DamageError: a chunk is cut off or has a wrong checksum, or pixels are missing or cannot be inflated.
    """
    chunks = list(read_chunks(content))
    header = next((bytes(data) for kind, data in chunks if kind == b"IHDR"), b"")
    if len(header) < 13:
        raise DamageError(HEADER)
    width, height, bits, colour, compression, filters, interlace = struct.unpack_from(">IIBBBBB", header)
    is_plain = len(header) == 13 and compression == filters == 0 and interlace in (0, 1)
    is_plain &= _are_in_order([kind for kind, _ in chunks]) and _is_usual_animation(chunks, width, height)
    for kind, data in chunks:
        if kind == b"PLTE":
            most = 3 << bits if colour == _PALETTE else 768
            is_plain &= 0 < len(data) <= most and len(data) % 3 == 0
        elif kind == b"eXIf":
            is_plain &= exif.is_usual(bytes(data))
    if is_plain:  # in unusual files, only a decoder can find the pixels
        rows = list(_rows(width, height, bits * _SAMPLES[colour], interlace == 1))
        is_plain = _are_whole([data for kind, data in chunks if kind == b"IDAT"], rows)
    return Structure(is_plain, bits, any(_may_hold_orientation(kind, data) for kind, data in chunks))


def read_chunks(content: bytes) -> Iterator[tuple[bytes, memoryview]]:
    """Yield the kind and data of every chunk up to the end of the image, after verifying its checksum."""
    view = memoryview(content)
    position = len(PNG_START)
    kind = b""
    while kind != b"IEND":
        if position + 12 > len(content):
            raise DamageError(CHUNK)
        length, kind = struct.unpack_from(">I4s", content, position)
        end = position + 12 + length
        if (
            end > len(content)
            or zlib.crc32(view[position + 4 : end - 4]).to_bytes(4, "big") != view[end - 4 : end]
        ):
            raise DamageError(CHUNK)
        yield kind, view[position + 8 : end - 4]
        position = end


def _are_in_order(kinds: list[bytes]) -> bool:
    """Return whether there is one header, at most one palette, and contiguous pixel data, in this order."""
    if any(kind not in _KNOWN and not _USUAL_KIND.fullmatch(kind) for kind in kinds):
        return False
    pixels = [place for place, kind in enumerate(kinds) if kind == b"IDAT"]
    palettes = [place for place, kind in enumerate(kinds) if kind == b"PLTE"]
    return (
        kinds[0] == b"IHDR"
        and kinds.count(b"IHDR") == 1
        and len(palettes) <= 1
        and len(pixels) > 0
        and pixels[-1] - pixels[0] == len(pixels) - 1
        and all(place < pixels[0] for place in palettes)
    )


def _is_usual_animation(chunks: list[tuple[bytes, memoryview]], width: int, height: int) -> bool:
    """Return whether the image is not animated, or its own pixels are the whole first frame.

    For other files, decoders differ in what they show: the image that is not a frame, or the first frame.
    """
    kinds = [kind for kind, _ in chunks if kind in (*_ANIMATION, b"IDAT")]
    if set(kinds) <= {b"IDAT"}:
        return True
    pixels = kinds.index(b"IDAT") if b"IDAT" in kinds else len(kinds)
    frame = next((bytes(data) for kind, data in chunks if kind == b"fcTL"), b"")
    behind = [kind for kind in kinds[pixels:] if kind != b"IDAT"]
    return (
        kinds[:pixels] == [b"acTL", b"fcTL"]
        and len(frame) == 26
        and struct.unpack_from(">IIII", frame, 4) == (width, height, 0, 0)
        and behind[:1] in ([], [b"fcTL"])
        and b"acTL" not in behind
    )


def _rows(width: int, height: int, bits: int, is_interlaced: bool) -> Iterator[tuple[int, int]]:
    """Yield the number of rows and the bytes per row, including the filter byte, of each pass.

    Args:
        bits: per pixel.
    """
    for left, top, across, down in _ADAM7 if is_interlaced else ((0, 0, 1, 1),):
        columns, rows = -(-(width - left) // across), -(-(height - top) // down)
        if columns > 0 and rows > 0:
            yield rows, 1 + (columns * bits + 7) // 8


def _are_whole(pieces: list[memoryview], passes: list[tuple[int, int]]) -> bool:
    """Return whether the compressed data contains exactly the pixels of the image.

    Args:
        pieces: pieces of the compressed data.
        passes: see :func:`_rows`.

    Returns:
        False if all pixels are present, but unexpected data follows them.

    Raises:
        DamageError: pixels are missing, or a row has an unknown filter.
    """
    unpacker = zlib.decompressobj()
    done, total = 0, sum(rows * length for rows, length in passes)
    for piece in pieces:
        left: bytes | memoryview = piece
        is_more = True
        while is_more:
            try:
                unpacked = unpacker.decompress(left, _PIECE)  # in pieces, to bound memory
            except zlib.error:
                if done < total:
                    raise DamageError(PIXELS) from None
                return False
            left = unpacker.unconsumed_tail
            if _last_filter(unpacked, done, passes) > _LAST_FILTER:
                raise DamageError(PIXELS)
            done += len(unpacked)
            if done > total:
                return False
            is_more = len(left) > 0 or len(unpacked) == _PIECE
    if done < total:
        raise DamageError(PIXELS)
    return unpacker.eof and not unpacker.unused_data


def _last_filter(unpacked: bytes, done: int, passes: list[tuple[int, int]]) -> int:
    """Return the largest filter type among the rows that begin in a piece of inflated pixels.

    Args:
        done: number of bytes before the piece.
    """
    greatest = begin = 0
    for rows, length in passes:
        first = max(0, -(-(done - begin) // length)) * length + begin - done
        end = begin + rows * length - done
        if first < min(end, len(unpacked)):
            greatest = max(greatest, max(unpacked[first : max(end, 0) : length]))
        begin += rows * length
    return greatest


def _may_hold_orientation(kind: bytes, data: memoryview) -> bool:
    keywords = (b"XML:com.adobe.xmp\0", b"Raw profile type exif\0")
    return kind == b"eXIf" or (kind in (b"iTXt", b"tEXt", b"zTXt") and bytes(data[:32]).startswith(keywords))

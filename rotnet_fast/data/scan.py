"""Check encoded images before training on them: find their sizes, and which of them are damaged.

A damaged image inside a training batch would stop the run, or worse, be trained on half-decoded. So every
image is checked before it is used, and every way to load a data set uses the same images. The check reads the
whole file, but only decodes unusual files and those that are neither JPEG nor PNG: see
:mod:`rotnet_fast.data.jpeg` and :mod:`rotnet_fast.data.png`. It does not notice damage inside the compressed
pixels of a JPEG that is still valid compressed data; such an image decodes to the same wrong pixels
everywhere. Decoding all images as well (``check`` = ``decode``) does not find that either, but it finds
whatever a decoder refuses for any other reason.

Worker processes import this module, so it does not import torch, which takes seconds.
"""

from __future__ import annotations

import functools
import hashlib
import struct
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile

from rotnet_fast.data import jpeg, kinds, png
from rotnet_fast.data.cache import read_cache, write_cache, write_text
from rotnet_fast.data.decode import DEEP_MODES, MODES, decode_rgb
from rotnet_fast.data.source import ImageSource
from rotnet_fast.data.verdicts import (
    BOMB,
    EMPTY,
    HEADER,
    LONGEST_SIDE,
    MOST_PIXELS,
    OTHER,
    RARE,
    TOO_DEEP,
    TOO_LONG,
    UNDECODABLE,
    UNREADABLE,
    DamageError,
)
from rotnet_fast.data.verdicts import GOOD as GOOD
from rotnet_fast.data.verdicts import REASONS as REASONS
from rotnet_fast.data.workers import in_chunks
from rotnet_fast.errors import DataError, printable
from rotnet_fast.files import is_out_of_descriptors
from rotnet_fast.plain import counted

_FORMAT = "5"  # increment it when the same images would get different values
_SHOWN = 5
_KEEP_SECONDS = 60.0  # of checking are lost at most when a process is killed
_KEY, _COLUMNS = 4, 8
_FLAGS, _VERDICT = 2, 3
_CONVERT, _DECODED = 1, 2
UNKNOWN = -1


CHECKS = ("structure", "decode")
"""How thoroughly images are checked, see :class:`Scanner`."""


@dataclass(frozen=True)
class Scan:
    """Hold the results for N images, in the order of their source.

    Attributes:
        sizes: int32 [N,2], height and width in pixels, after the camera's orientation tag; 0 for bad images.
        convert: bool [N], True for images that DALI would refuse, or decode to other pixels than
            :func:`rotnet_fast.data.decode.decode_rgb`: those with transparency, 16 bits per channel, CMYK,
            an orientation in a PNG or only in XMP, files that do not follow the standard, and all that are
            neither JPEG nor PNG.
        verdicts: int32 [N], ``GOOD`` or another position in ``REASONS``; ``UNKNOWN`` if not checked.
        contents: int32 [N,4], first 128 bits of the SHA-256 of each encoded image; 0 for unreadable images.
    """

    sizes: npt.NDArray[np.int32]
    convert: npt.NDArray[np.bool_]
    verdicts: npt.NDArray[np.int32]
    contents: npt.NDArray[np.int32]


class Scanner:
    """Check images in several processes, each of them once, and cache the results for later runs.

    Results are keyed by an image's name, size and modification time, so that only new images are checked
    after some of a folder were repaired, added or removed, or after the check was interrupted. The result of
    an image that cannot be read at the moment (no permission, a network that is down) is not cached.

    Args:
        source: the images.
        places: folders for the results, see :mod:`rotnet_fast.data.cache`.
        progress: show progress bars.
        check: ``structure``, or ``decode`` to decode every image as well, which takes as long as an epoch.
    """

    def __init__(
        self, source: ImageSource, places: list[Path], progress: bool, check: str = "structure"
    ) -> None:
        self.source = source
        self._places = places
        self._progress = progress
        self._decodes = check == "decode"
        self._table = np.zeros((len(source), _COLUMNS), dtype=np.int32)
        self._table[:, _VERDICT] = UNKNOWN
        self._keys = source.keys()
        kept = read_cache(places, "scan", _FORMAT, np.int32, (None, _KEY + _COLUMNS))
        if self._keys is not None and kept is not None and _is_scan(kept[:, _KEY:]):
            rows = find_rows(self._keys, np.ascontiguousarray(kept[:, :_KEY]).view(np.int64))
            self._table[rows >= 0] = kept[rows[rows >= 0], _KEY:]

    @property
    def scan(self) -> Scan:
        """Return the results so far."""
        table = self._table
        return Scan(
            sizes=table[:, :2],
            convert=table[:, _FLAGS] & _CONVERT != 0,
            verdicts=table[:, _VERDICT],
            contents=table[:, _VERDICT + 1 :],
        )

    def check(self, positions: npt.NDArray[np.int64]) -> None:
        """Check those of the given images that have no result yet.

        Raises:
            DataError: a worker process failed, see :func:`rotnet_fast.data.workers.in_chunks`.
        """
        table = self._table[positions]
        is_new = table[:, _VERDICT] == UNKNOWN
        if self._decodes:
            is_new |= (table[:, _VERDICT] == GOOD) & (table[:, _FLAGS] & _DECODED == 0)
        new = positions[is_new]
        if len(new) == 0:
            return
        work = functools.partial(_examine_chunk, decodes=self._decodes)
        kept_at = time.monotonic()
        try:
            for place, part in in_chunks(work, self.source.take(new), "checking", self._progress):
                self._table[new[place]] = part
                if time.monotonic() - kept_at > _KEEP_SECONDS:
                    self._keep()
                    kept_at = time.monotonic()
        except Exception:
            raise
        except BaseException:  # Ctrl-C, for example
            self._keep()
            raise
        self._keep()

    def mark_undecodable(self, positions: npt.NDArray[np.int64]) -> None:
        """Record images that passed the check but could not be decoded."""
        self._table[positions, :_VERDICT] = 0
        self._table[positions, _VERDICT] = UNDECODABLE
        self._keep()

    def _keep(self) -> None:
        if self._keys is None:
            return
        known = ~np.isin(self._table[:, _VERDICT], (UNKNOWN, UNREADABLE))
        keys = self._keys[known].view(np.int32).reshape(-1, _KEY)
        table = np.concatenate([keys, self._table[known]], axis=1)
        write_cache(self._places, "scan", _FORMAT, table, "the results of checking the images")


def check_images(
    source: ImageSource,
    scan: Scan,
    positions: npt.NDArray[np.int64],
    bad_images: str,
    places: Sequence[Path] = (),
) -> None:
    """Report bad images.

    Args:
        source, scan: all images, and what is known of them.
        positions: int64 [N] of the bad ones, sorted.
        bad_images: ``fail`` to raise an error if there are any. ``skip`` to list them on stderr if they are
            at most one in a thousand (or a single one in smaller sets): more suggest that the whole set is
            faulty, and skipping many would change what is measured.
        places: where to write a list that is too long for an error message.

    Raises:
        DataError: there are bad images, or more than may be skipped.
    """
    bad = positions.tolist()
    if not bad:
        return
    lines = [(source.names[i], REASONS[scan.verdicts[i]]) for i in bad]
    allowed = max(1, len(source) // 1000)
    count = f"{len(bad)} of {counted(len(source), 'image')} are unusable"
    is_allowed = bad_images == "skip" and len(bad) <= allowed
    if is_allowed:
        listed_lines = [printable(f"{name} {reason}") for name, reason in lines]
        print(f"WARNING: {count} and are skipped:", *listed_lines, sep="\n  ", file=sys.stderr)
        return
    shown = "; ".join(f"{name} {reason}" for name, reason in lines[:_SHOWN])
    if len(bad) > _SHOWN:
        one_line = (printable(name).replace("\n", "\\n") for name, _ in lines)
        text = "".join(f"{name}\t{reason}\n" for name, (_, reason) in zip(one_line, lines, strict=True))
        written = write_text(places, "bad-images.txt", text)
        listed = "" if written is None else f" (see {written} for all of them)"
        shown += f"; and {counted(len(bad) - _SHOWN, 'other')}{listed}"
    if bad_images != "skip":
        raise DataError(f"{count}: {shown}. Repair or remove them, or skip them with --bad-images skip")
    raise DataError(
        f"{count}, but --bad-images skip allows at most {allowed}, one in a thousand: {shown}. "
        f"Repair or remove them"
    )


def find_rows(keys: npt.NDArray[np.int64], among: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return the positions of keys [N,2] among others [M,2]; -1 for missing keys."""
    order = np.argsort(among[:, 0], kind="stable")
    places = np.searchsorted(among[order, 0], keys[:, 0])
    rows = np.append(order, 0)[places] if len(among) else np.zeros(len(keys), np.int64)
    is_there = (among[rows] == keys).all(axis=1) if len(among) else np.zeros(len(keys), np.bool_)
    return np.where(is_there, rows, -1)


def _examine_chunk(source: ImageSource, decodes: bool) -> npt.NDArray[np.int32]:
    rows = []
    for index in range(len(source)):
        try:
            content = source.read(index)
        except DataError as error:
            if is_out_of_descriptors(error.__cause__):  # not the fault of this image
                raise
            rows.append((0, 0, 0, UNREADABLE, 0, 0, 0, 0))
            continue
        height, width, convert, verdict = examine(content, decodes)
        flags = convert * _CONVERT + decodes * _DECODED
        digest = struct.unpack("<4i", hashlib.sha256(content).digest()[:16])
        rows.append((height, width, flags, verdict, *digest))
    return np.array(rows, dtype=np.int32).reshape(-1, _COLUMNS)


def _is_scan(table: npt.NDArray[np.int32]) -> bool:
    """Return whether the rows of a table are possible results of :func:`_examine_chunk`."""
    most = (LONGEST_SIDE, LONGEST_SIDE, _CONVERT + _DECODED, len(REASONS) - 1)
    return bool(((table[:, :4] >= 0) & (table[:, :4] <= most)).all())


def examine(content: bytes, decodes: bool = False) -> tuple[int, int, int, int]:
    """Return height, width, whether to convert (0 or 1) and verdict (see `Scan`) of one encoded image.

    Args:
        decodes: decode the image as well.
    """
    try:
        return (*_examine(content, decodes), GOOD)
    except DamageError as error:
        return 0, 0, 0, error.verdict
    except Exception:  # Pillow raises a dozen types on damaged headers
        return 0, 0, 0, HEADER


def _examine(content: bytes, decodes: bool) -> tuple[int, int, int]:
    """Return height, width and whether to convert.

    Raises:
        DamageError: the image is bad.
        Exception: any of the many types that Pillow raises on a bad header.
    """
    if not content:
        raise DamageError(EMPTY)
    kind = kinds.image_kind(content)
    if kind is None:
        raise DamageError(OTHER + kinds.NOT_READ.index(kinds.not_read(content)))
    is_png = kind == "PNG"
    if not is_png and kind != "JPEG":
        return _examine_by_decoding(content, kind)
    # Not Image.open, which opens a JPEG with several pictures as an MPO; only the first picture counts.
    with PngImageFile(BytesIO(content)) if is_png else JpegImageFile(BytesIO(content)) as image:
        _check_header(image)
        may_be_turned = True
        is_deep = False
        if is_png:
            structure = png.parse(content)
            # To look for a tag after the pixels, Pillow decodes a PNG, so do it only if there is one.
            is_plain, may_be_turned = structure.is_plain, structure.may_be_turned
            is_deep = structure.bits == 16
        else:
            is_plain = jpeg.is_plain(content)
        if decodes or not is_plain:
            # Pillow decodes unusual files later; they are rare enough to test right away whether it can.
            _check_decodes(content)
        # Without Adobe's marker, decoders disagree on whether CMYK is stored inverted.
        convert = not is_plain or is_deep or image.has_transparency_data or image.mode == "CMYK"
        width, height = image.size
        if may_be_turned:
            orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
            # In a PNG, DALI only finds a tag that occurs once and follows the standard.
            if orientation != 1 and (is_png or orientation != _exif_orientation(image)):
                convert = True
            if orientation in (5, 6, 7, 8):
                width, height = height, width
        return height, width, int(convert)


def _examine_by_decoding(content: bytes, kind: str) -> tuple[int, int, int]:
    """Return the same for rare formats, which Pillow always decodes, so that the check decodes them, too."""
    try:
        with Image.open(BytesIO(content), formats=(kind,)) as image:
            _check_header(image)
        height, width, _ = decode_rgb(content).shape
    except DamageError:
        raise
    except Image.DecompressionBombError as error:
        raise DamageError(BOMB) from error
    except Exception as error:  # Pillow raises a dozen types on damaged files
        raise DamageError(RARE) from error
    return height, width, 1


def _check_header(image: Image.Image) -> None:
    if image.width * image.height > MOST_PIXELS:
        raise DamageError(BOMB)
    if max(image.size) > LONGEST_SIDE:
        raise DamageError(TOO_LONG)
    if image.mode not in MODES:
        raise DamageError(TOO_DEEP if image.mode.startswith(DEEP_MODES) else RARE)


def _check_decodes(content: bytes) -> None:
    try:
        decode_rgb(content)
    except DataError as error:
        raise DamageError(UNDECODABLE) from error


def _exif_orientation(image: Image.Image) -> int:
    """Return the orientation in the EXIF block, the only place where DALI looks for it."""
    exif = Image.Exif()
    if "exif" in image.info:
        exif.load(image.info["exif"])
    orientation: int = exif.get(ExifTags.Base.Orientation, 1)
    return orientation

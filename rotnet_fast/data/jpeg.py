"""Check the structure of JPEG files without decoding their pixels.

Decoders tolerate damage, each in its own way and to its own degree, and DALI reads fewer unusual files than
Pillow. So that both give the same pixels, only files that follow the standard (ITU-T T.81) count as plain,
and only plain files are left to DALI.

Worker processes import this module, so it does not import torch, which takes seconds.
"""

from __future__ import annotations

import re
import struct

from rotnet_fast.data import exif
from rotnet_fast.data.verdicts import CUT_OFF, MARKER, DamageError

# In compressed pixels, 0xFF only occurs before a zero byte, a restart marker or another 0xFF.
_NEXT_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
_END_OF_IMAGE = b"\xff\xd9"
_FILL = re.compile(rb"\xff+")
_BASELINE, _EXTENDED, _PROGRESSIVE = 0xC0, 0xC1, 0xC2
_TABLES, _END, _SCAN, _QUANTISATION, _LINES, _RESTART, _COMMENT = 0xC4, 0xD9, 0xDA, 0xDB, 0xDC, 0xDD, 0xFE
_APPLICATION = range(0xE0, 0xF0)
_EXIF = 0xE1
_BEHIND_A_SCAN = {_TABLES, _END, _SCAN, _QUANTISATION, _LINES, _RESTART, _COMMENT, *_APPLICATION}
_ALL = 99  # missing bits of a coefficient before its first scan
_HUFFMAN_TABLES = {kind << 4 | number for kind in range(2) for number in range(4)}
_BLOCKS_AT_MOST = 10  # over all components in one unit of an interleaved scan


def is_plain(content: bytes) -> bool:
    """Return whether a JPEG follows the standard and is of a kind that all decoders support.

    Args:
        content: the file, whose header Pillow can read.

    Returns:
        False if the file is unusual, which does not say whether it can be decoded: it has bytes between its
        segments, inconsistent tables, a lossless or arithmetic process, or unusual EXIF data.

    Raises:
        DamageError: after the header, the file is truncated or contains an impossible marker.
    """
    frame = _Frame()
    position = 2
    while True:
        fill = _FILL.match(content, position)
        if fill is None or fill.end() == len(content):
            if not frame.scans:
                return False
            raise DamageError(MARKER if position < len(content) and fill is None else CUT_OFF)
        marker = content[fill.end()]
        start = fill.end() + 1
        if frame.scans:
            if marker == _END:
                return frame.is_plain and frame.is_complete
            if marker not in _BEHIND_A_SCAN:
                raise DamageError(MARKER)
        length = int.from_bytes(content[start : start + 2], "big")
        position = start + length
        is_behind_a_scan = frame.scans > 0
        if length < 2 or position > len(content):
            if not is_behind_a_scan:
                return False
            is_early = length >= 2 and content.find(_END_OF_IMAGE, start) < 0
            raise DamageError(CUT_OFF if is_early else MARKER)
        if not frame.takes(marker, content[start + 2 : position]) and not is_behind_a_scan:
            return False  # only decoders know where the rest of such a header lies
        if marker == _SCAN:
            found = _NEXT_MARKER.search(content, position)
            if found is None:
                raise DamageError(CUT_OFF)
            position = found.start()


class _Frame:
    """Accumulate what the segments so far contain.

    Attributes:
        is_plain: whether all of them follow the standard.
        scans: number of scans.
    """

    def __init__(self) -> None:
        self.is_plain = True
        self.scans = 0
        self._process = 0
        self._blocks: dict[int, int] = {}  # component -> its number of blocks in a unit
        self._missing: dict[int, list[int]] = {}  # component -> missing bits of each coefficient
        self._needed: set[int] = set()  # quantisation tables
        self._quantisation: set[int] = set()
        self._huffman: set[int] = set()
        self._exifs = 0

    def takes(self, marker: int, data: bytes) -> bool:
        """Add a segment and return whether it follows the standard."""
        try:
            is_plain = self._is_plain(marker, data)
        except (IndexError, ValueError, struct.error):  # its length is not the declared one
            is_plain = False
        self.is_plain &= is_plain
        return is_plain

    @property
    def is_complete(self) -> bool:
        """Return whether the scans contain all bits of all coefficients.

        If bits are missing, decoders smooth the result, each differently at the edges of a crop.
        """
        return not any(any(missing) for missing in self._missing.values())

    def _is_plain(self, marker: int, data: bytes) -> bool:
        if marker in (_BASELINE, _EXTENDED, _PROGRESSIVE):
            return self._is_frame(marker, data)
        if marker == _SCAN:
            self.scans += 1
            return self._is_scan(data)
        if marker == _TABLES:
            return self._are_huffman_tables(data)
        if marker == _QUANTISATION:
            return self._are_quantisation_tables(data)
        if marker == _RESTART:
            return len(data) == 2
        if marker == _EXIF and data.startswith(b"Exif\0"):
            self._exifs += 1
            return self._exifs == 1 and self.scans == 0 and data[5] == 0 and exif.is_usual(data[6:])
        return marker == _COMMENT or marker in _APPLICATION

    def _is_frame(self, marker: int, data: bytes) -> bool:
        precision, height, width, count = struct.unpack_from(">BHHB", data)
        if self._process or precision != 8 or not height or not width or count not in (1, 3, 4):
            return False
        self._process = marker
        components = list(struct.iter_unpack("BBB", data[6:]))
        sides = (
            [sampling >> 4 for _, sampling, _ in components],
            [sampling & 15 for _, sampling, _ in components],
        )
        for blocks in sides:
            if not 1 <= min(blocks) <= max(blocks) <= 4 or any(max(blocks) % block for block in blocks):
                return False
        for (name, _, table), across, down in zip(components, *sides, strict=True):
            self._blocks[name] = across * down
            self._missing[name] = [_ALL] * 64
            self._needed.add(table)
        return len(self._blocks) == len(components) == int(count)

    def _is_scan(self, data: bytes) -> bool:
        count = data[0]
        names, tables = data[1 : 1 + 2 * count : 2], data[2 : 2 + 2 * count : 2]
        first, last, successive = data[1 + 2 * count :]
        if not 1 <= count == len(set(names)) or not set(names) <= self._blocks.keys():
            return False
        if not self._needed <= self._quantisation:
            return False
        if count > 1 and sum(self._blocks[name] for name in names) > _BLOCKS_AT_MOST:
            return False
        high, low = successive >> 4, successive & 15
        is_band = first == last == 0 or (0 < first <= last < 64 and count == 1)
        if self._process != _PROGRESSIVE:
            is_band = (first, last, high, low) == (0, 63, 0, 0) and count == len(self._blocks)
        if not is_band or low > 13 or high not in (0, low + 1):
            return False
        used = set()  # only the refinement bits of the first coefficient have no code
        if first == 0 and high == 0:
            used |= {table >> 4 for table in tables}
        if last > 0:
            used |= {table & 15 | 16 for table in tables}
        had = {bits for name in names for bits in self._missing[name][first : last + 1]}
        for name in names:
            self._missing[name][first : last + 1] = [low] * (last + 1 - first)
        return used <= self._huffman and had == {high or _ALL}

    def _are_huffman_tables(self, data: bytes) -> bool:
        position = 0
        while position < len(data):
            name, counts = data[position], data[position + 1 : position + 17]
            symbols = data[position + 17 : position + 17 + sum(counts)]
            code = 0
            for length in range(16):
                code = 2 * code + counts[length]
                if code > 2 << length:  # more codes than this length allows
                    return False
            if name not in _HUFFMAN_TABLES or not 0 < len(symbols) == sum(counts) <= 256:
                return False
            if name < 16 and max(symbols) > 15:
                return False
            self._huffman.add(name)
            position += 17 + len(symbols)
        return position > 0

    def _are_quantisation_tables(self, data: bytes) -> bool:
        position = 0
        while position < len(data):
            precision, name = data[position] >> 4, data[position] & 15
            if precision > 1 or name > 3:
                return False
            self._quantisation.add(name)
            position += 65 + 64 * precision
        return 0 < position == len(data)

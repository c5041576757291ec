"""Read and write the orientation in EXIF data, which has the structure of a TIFF file.

Worker processes import this module, so it does not import torch, which takes seconds.
"""

from __future__ import annotations

import struct

_ORIENTATION, _SHORT = 0x0112, 3
_ENTRY = 12


def is_usual(tiff: bytes) -> bool:
    """Return whether the first directory is intact and has at most one orientation, a single short integer.

    Readers disagree about whether anything else is an orientation.

    Args:
        tiff: EXIF data, starting at the byte-order mark.
    """
    try:
        order, _, entries = _directory(tiff)
    except ValueError:
        return False
    found = [struct.unpack_from(order + "HHI", entry) for entry in entries]
    orientations = [entry for entry in found if entry[0] == _ORIENTATION]
    return orientations in ([], [(_ORIENTATION, _SHORT, 1)])


def with_orientation(tiff: bytes, orientation: int) -> bytes:
    """Return EXIF data, or a whole TIFF file, with another orientation and otherwise the same contents.

    An orientation that is there is overwritten in place. If there is none, a copy of the first directory with
    one more entry is appended, because everything else is found by its position and must not move.

    Args:
        tiff: EXIF data, starting at the byte-order mark.
        orientation: 1 to 8, see `rotnet_fast.data.upright`.

    Raises:
        ValueError: the first directory is damaged.
    """
    order, start, entries = _directory(tiff)
    ours = struct.pack(order + "HHIHH", _ORIENTATION, _SHORT, 1, orientation, 0)
    changed = [ours if entry[:2] == ours[:2] else entry for entry in entries]
    if changed != entries or ours in entries:
        begin = start + 2
        return tiff[:begin] + b"".join(changed) + tiff[begin + _ENTRY * len(entries) :]
    entries = sorted([*entries, ours], key=lambda entry: struct.unpack_from(order + "H", entry))
    following = tiff[start + 2 + _ENTRY * len(changed) :][:4].ljust(4, b"\0")  # where the next directory is
    padding = b"\0" * (len(tiff) % 2)  # directories start at even positions
    new = struct.pack(order + "H", len(entries)) + b"".join(entries) + following
    return tiff[:4] + struct.pack(order + "I", len(tiff + padding)) + tiff[8:] + padding + new


def _directory(tiff: bytes) -> tuple[str, int, list[bytes]]:
    """Return the byte order (as `struct` takes it), position and entries of the first directory.

    Raises:
        ValueError: there is no whole directory.
    """
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None:
        raise ValueError("the byte-order mark is missing")
    try:
        (start,) = struct.unpack_from(order + "I", tiff, 4)
        (count,) = struct.unpack_from(order + "H", tiff, start)
    except struct.error:
        raise ValueError("the first directory is missing") from None
    places = range(start + 2, start + 2 + _ENTRY * count, _ENTRY)
    if places.stop > len(tiff):
        raise ValueError("the first directory is cut off")
    return order, start, [tiff[place : place + _ENTRY] for place in places]

"""Check whether all readers of EXIF data find the same orientation.

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
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None:
        return False
    try:
        (start,) = struct.unpack_from(order + "I", tiff, 4)
        (count,) = struct.unpack_from(order + "H", tiff, start)
        entries = [struct.unpack_from(order + "HHI", tiff, start + 2 + _ENTRY * n) for n in range(count)]
    except struct.error:  # the data is truncated
        return False
    orientations = [entry for entry in entries if entry[0] == _ORIENTATION]
    is_whole = start + 2 + _ENTRY * count <= len(tiff)
    return is_whole and orientations in ([], [(_ORIENTATION, _SHORT, 1)])

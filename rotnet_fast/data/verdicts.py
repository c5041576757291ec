"""What can be said of an encoded image that was looked at."""

from __future__ import annotations

from rotnet_fast.data.decode import DEEP_GREY
from rotnet_fast.data.kinds import NOT_READ

LONGEST_SIDE = 2**15 - 1
MOST_PIXELS = 2 * 89_478_485  # from here on Pillow refuses to decode, too

GOOD = 0
REASONS = (
    "is good",
    "cannot be read",
    "is empty",
    "has a damaged header, one of no pixels, or one of a kind that is not supported",
    f"is a decompression bomb: it claims to have more than {MOST_PIXELS} pixels",
    f"has more than {LONGEST_SIDE} pixels a side",
    "ends early: the end-of-image marker is missing",
    "is damaged: a chunk is cut off or has a wrong checksum",
    DEEP_GREY,
    "is damaged: a marker that cannot be there stands among its compressed pixels",
    "is damaged: its compressed pixels are missing, cut off or not what a PNG may hold",
    "is damaged: it cannot be decoded",
    "cannot be decoded: it is damaged, or of a rare kind; save it anew as JPEG or PNG",
    *(f"is {kind}" for kind in NOT_READ),
)
"""What is said of an image: its name and the entry at its verdict."""
(
    UNREADABLE,
    EMPTY,
    HEADER,
    BOMB,
    TOO_LONG,
    CUT_OFF,
    CHUNK,
    TOO_DEEP,
    MARKER,
    PIXELS,
    UNDECODABLE,
    RARE,
) = range(1, len(REASONS) - len(NOT_READ))
OTHER = len(REASONS) - len(NOT_READ)  # and the position in ``NOT_READ``


class DamageError(Exception):
    """An image is damaged.

    Args:
        verdict: position in ``REASONS``.
    """

    def __init__(self, verdict: int) -> None:
        super().__init__(REASONS[verdict])
        self.verdict = verdict

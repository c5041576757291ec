"""Possible results of checking an encoded image."""

from __future__ import annotations

from rotnet_fast.data.decode import DEEP_GREY
from rotnet_fast.data.kinds import NOT_READ

LONGEST_SIDE = 2**15 - 1
MOST_PIXELS = 2 * 89_478_485  # above it, Pillow refuses to decode as well

GOOD = 0
REASONS = (
    "is good",
    "cannot be read",
    "is empty",
    "has a header that is damaged, declares no pixels or is of an unsupported kind",
    f"is a decompression bomb: it claims to have more than {MOST_PIXELS} pixels",
    f"has more than {LONGEST_SIDE} pixels per side",
    "is truncated: the end-of-image marker is missing",
    "is damaged: a chunk is cut off or has a wrong checksum",
    DEEP_GREY,
    "is damaged: its compressed pixels contain an invalid marker",
    "is damaged: its compressed pixels are missing, cut off or invalid in a PNG",
    "is damaged: it cannot be decoded",
    "cannot be decoded: it is damaged or of a rare kind; save it again as JPEG or PNG",
    *(f"is {kind}" for kind in NOT_READ),
)
"""Messages by verdict; each follows the name of an image."""
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
OTHER = len(REASONS) - len(NOT_READ)  # plus the position in ``NOT_READ``


class DamageError(Exception):
    """Report that an image is damaged.

    Args:
        verdict: position in ``REASONS``.
    """

    def __init__(self, verdict: int) -> None:
        super().__init__(REASONS[verdict])
        self.verdict = verdict

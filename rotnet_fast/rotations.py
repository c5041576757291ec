"""Rotation sets: degrees counter-clockwise, and how they become class labels.

Source: Gidaris et al., ICLR 2018, section 3. The label of a view is the position of its rotation
in the set, so that with the default set label k means k quarter turns counter-clockwise.
"""

from __future__ import annotations

from collections.abc import Sequence

FOUR_ROTATIONS: tuple[int, ...] = (0, 90, 180, 270)
"""The method's default set; label k is k quarter turns counter-clockwise."""


def quarter_turns(rotations: Sequence[int]) -> list[int]:
    """Turn degrees counter-clockwise into counts of quarter turns in 0..3.

    Args:
        rotations: non-empty sequence of multiples of 90; negative angles and angles of 360 or
            more are taken modulo 360.

    Returns:
        One count per rotation, in the order given.

    Raises:
        ValueError: empty, or an angle that is not a whole multiple of 90.
        TypeError: not a sequence of whole numbers.
    """
    if isinstance(rotations, (str, bytes)) or not isinstance(rotations, Sequence):
        raise TypeError(
            f"rotations must be a sequence of whole degrees such as (0, 90, 180, 270), got {rotations!r}"
        )
    if len(rotations) == 0:
        raise ValueError("rotations is empty; give at least one multiple of 90, such as (0, 90, 180, 270)")
    turns = []
    for angle in rotations:
        if isinstance(angle, bool) or not isinstance(angle, int):
            raise TypeError(f"rotations must hold whole degrees, found {angle!r}; write for example (0, 90)")
        if angle % 90 != 0:
            raise ValueError(f"rotations holds {angle} degrees; only multiples of 90 are supported here")
        turns.append(angle // 90 % 4)
    return turns

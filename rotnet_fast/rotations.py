"""Rotation sets in degrees counter-clockwise, and their class labels.

Source: Gidaris et al., ICLR 2018, section 3. The label of a view is the position of its rotation
in the set, so that with the default set label k means k quarter turns counter-clockwise.
"""

from __future__ import annotations

from collections.abc import Sequence

from rotnet_fast.plain import as_sequence, as_whole, shown

FOUR_ROTATIONS: tuple[int, ...] = (0, 90, 180, 270)
"""The method's default set; label k is k quarter turns counter-clockwise."""


EIGHT_ROTATIONS: tuple[int, ...] = (0, 45, 90, 135, 180, 225, 270, 315)
"""The multiples of 45 degrees; all of their views are warped (see `rotnet_fast.rotate_batch`)."""


MAX_ROTATIONS = 64
"""Largest number of rotations in a set, a limit of the kernels."""


def check_rotations(rotations: Sequence[int]) -> list[int]:
    """Check a set of rotations and return each of them modulo 360.

    Args:
        rotations: sequence, array or tensor [K] of 1 to 64 integer degrees, counter-clockwise; negative
            angles and angles of 360 or more are allowed.

    Returns:
        Degrees in 0..359, one per rotation, in the given order.

    Raises:
        ValueError: rotations is empty or has more than 64 angles.
        TypeError: rotations is not a sequence of integers.
    """
    angles = as_sequence(rotations)
    if angles is None:
        raise TypeError(
            f"rotations must be a sequence of integer degrees such as (0, 90, 180, 270), "
            f"got {shown(rotations)}"
        )
    if not angles:
        raise ValueError("rotations is empty; pass at least one angle, such as (0, 90, 180, 270)")
    degrees = []
    for position, given in enumerate(angles):
        # Counted one by one, because a range can be too long for len().
        if position == MAX_ROTATIONS:
            raise ValueError(
                f"rotations has more than {MAX_ROTATIONS} angles; at most that many are supported"
            )
        angle = as_whole(given)
        if angle is None:
            raise TypeError(
                f"rotations must hold integer degrees, found {shown(given)}; use for example (0, 90)"
            )
        degrees.append(angle % 360)
    return degrees

"""Rotation sets: degrees counter-clockwise, and how they become class labels.

Source: Gidaris et al., ICLR 2018, section 3. The label of a view is the position of its rotation
in the set, so that with the default set label k means k quarter turns counter-clockwise.
"""

from __future__ import annotations

from collections.abc import Sequence

FOUR_ROTATIONS: tuple[int, ...] = (0, 90, 180, 270)
"""The method's default set; label k is k quarter turns counter-clockwise."""


EIGHT_ROTATIONS: tuple[int, ...] = (0, 45, 90, 135, 180, 225, 270, 315)
"""The multiples of 45 degrees; all of their views are warped (see `rotnet_fast.rotate_batch`)."""


MAX_ROTATIONS = 64
"""The most rotations of a set: what the kernels have room for."""


def check_rotations(rotations: Sequence[int]) -> list[int]:
    """Check a set of rotations and take each modulo 360.

    Args:
        rotations: sequence of 1 to 64 whole degrees, counter-clockwise; negative angles and angles of
            360 or more are allowed.

    Returns:
        Degrees in 0..359, one per rotation, in the order given.

    Raises:
        ValueError: empty, or more than 64.
        TypeError: not a sequence of whole numbers.
    """
    if isinstance(rotations, (str, bytes)) or not isinstance(rotations, Sequence):
        raise TypeError(
            f"rotations must be a sequence of whole degrees such as (0, 90, 180, 270), got {rotations!r}"
        )
    if not rotations:
        raise ValueError("rotations is empty; give at least one angle, such as (0, 90, 180, 270)")
    for position, angle in enumerate(rotations):
        # Counted as they come: a range can be longer than anything that has a length.
        if position == MAX_ROTATIONS:
            raise ValueError(f"rotations has more than {MAX_ROTATIONS} angles; so many are supported")
        if isinstance(angle, bool) or not isinstance(angle, int):
            raise TypeError(f"rotations must hold whole degrees, found {angle!r}; write for example (0, 90)")
    return [angle % 360 for angle in rotations]


def quarter_turns(rotations: Sequence[int]) -> list[int]:
    """Turn degrees counter-clockwise into counts of quarter turns in 0..3.

    Args:
        rotations: as in :func:`check_rotations`, all multiples of 90.

    Returns:
        One count per rotation, in the order given.

    Raises:
        ValueError: empty, more than 64, or an angle that is not a whole multiple of 90.
        TypeError: not a sequence of whole numbers.
    """
    degrees = check_rotations(rotations)
    for angle, turned in zip(rotations, degrees, strict=True):
        if turned % 90 != 0:
            raise ValueError(f"rotations holds {angle} degrees; only multiples of 90 are quarter turns")
    return [turned // 90 for turned in degrees]

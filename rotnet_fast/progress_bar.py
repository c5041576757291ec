"""The bar of a status line, drawn by tqdm. A module of its own, because what never waits does without tqdm.

Importing this module does not import torch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tqdm import tqdm

from rotnet_fast.progress import NARROW, Status, fitted

_WIDTH = 8


class Bar(tqdm):  # type: ignore[misc]
    """Draws a status line with a bar in it.

    It does without tqdm's thread, which redraws idle bars and cannot start if memory is short.
    """

    monitor_interval = 0

    def __init__(self, describe: Callable[[], Status], is_shown: bool) -> None:
        self._describe = describe
        super().__init__(
            total=1,
            bar_format=f"{{left}}{{bar:{_WIDTH}}}{{right}}",
            dynamic_ncols=True,
            leave=False,
            miniters=0,
            # None shows the bar on terminals only, so that log files stay readable.
            disable=None if is_shown else True,
        )

    @property
    def format_dict(self) -> dict[str, Any]:
        """Values for the format; tqdm extends it with whatever is in here."""
        found: dict[str, Any] = super().format_dict
        width = (found["ncols"] or NARROW) - 1  # some terminals wrap after the last column
        what, fraction, parts = self._describe()
        left = f"{what} {fraction:4.0%} "
        right = fitted(parts, width - len(left) - _WIDTH - 1)
        # The total is 1, so that the bar shows the fraction.
        return {**found, "n": min(fraction, 1.0), "ncols": width, "left": left, "right": f" {right}"}

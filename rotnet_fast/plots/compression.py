"""Rotation accuracy on images that are compressed before and after they are turned."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from rotnet_fast.plain import counted
from rotnet_fast.plots.bars import Bar, bars
from rotnet_fast.verdict import wilson

NAMES = {
    "plain": "as they are",
    "compressed": "compressed, then turned",
    "both": "compressed along both axes, then turned",
    "across": "compressed with exchanged axes, then turned",
    "turned first": "turned, then compressed",
}
"""Variant of the test images -> what the figure calls it."""


def compression(result: Mapping[str, Any]) -> Figure:
    """Draw the accuracies of a result of `rotnet_fast.analysis.compression.compression`."""
    accuracy = result["rotation"]["accuracy"]
    rows = [
        Bar(name, accuracy[variant], interval=wilson(accuracy[variant], result["images"]))
        for variant, name in NAMES.items()
    ]
    images = counted(result["images"], "test image")
    return bars(
        rows,
        x_label=f"rotation accuracy in % (JPEG, quality {result['quality']}; 95 % interval of {images})",
        title=finding(result),
    )


def finding(result: Mapping[str, Any]) -> str:
    """Say what the axes of the compression are worth."""
    points, error = result["rotation"]["axis"]
    return f"The axes of JPEG compression are worth {points:.2f} ± {error:.2f} points of rotation accuracy"

"""A picture of predicted rotations, small and fast to draw: what a run shows in TensorBoard.

The figures of `rotnet_fast.plots` show the same in the quality of a paper, but matplotlib takes a second.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

CELL = 112
"""Pixels of a view's side."""

GAP, LINE = 12, 24
"""Pixels between views, and of a line of text."""

MOST_COLUMNS = 8
"""Largest number of rotations that are shown, evenly spaced."""

_RIGHT, _WRONG, _TEXT = "#0072B2", "#D55E00", "#000000"  # colour-blind-safe, as in rotnet_fast.plots


def draw_predictions(
    views: NDArray[np.uint8], probabilities: NDArray[np.float32], rotations: Sequence[int]
) -> NDArray[np.uint8]:
    """Draw images, one per row, in up to eight rotations, each with the prediction and its probability.

    A tick and a thin frame mark what is right; a cross and a thick frame mark what is wrong.

    Args:
        views: uint8 [S,K,H,H,C], C of 1 or 3.
        probabilities: float [S,K,K]; [s,k] are those of image s under rotation k.
        rotations: K degrees.

    Returns:
        uint8 [height,width,3].
    """
    shown = range(0, len(rotations), -(-len(rotations) // MOST_COLUMNS))
    width, height = CELL + GAP, CELL + LINE + GAP  # of one view and what is around it
    canvas = Image.new("RGB", (GAP + len(shown) * width, LINE + GAP + len(views) * height), "white")
    draw, font = ImageDraw.Draw(canvas), _font()
    for column, k in enumerate(shown):
        x = GAP + column * width
        draw.text((x + CELL / 2, LINE / 2), f"turned {rotations[k]}°", _TEXT, font, anchor="mm")
        for row, image in enumerate(views):
            y = LINE + GAP + row * height
            guess = int(probabilities[row, k].argmax())
            colour, mark, thickness = (_RIGHT, "✓", 1) if guess == k else (_WRONG, "✗", 4)
            frame = (x - thickness, y - thickness, x + CELL + thickness - 1, y + CELL + thickness - 1)
            draw.rectangle(frame, outline=colour, width=thickness)
            pixels = image[k] if image.shape[-1] == 3 else image[k, ..., 0]
            # Small images keep their pixels visible.
            method = Image.Resampling.NEAREST if len(pixels) <= CELL else Image.Resampling.LANCZOS
            canvas.paste(Image.fromarray(pixels).resize((CELL, CELL), method).convert("RGB"), (x, y))
            text = f"{mark} {rotations[guess]}° {100 * probabilities[row, k, guess]:.0f} %"
            draw.text((x + CELL / 2, y + CELL + LINE / 2 + 2), text, colour, font, anchor="mm")
    return np.asarray(canvas)


def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """The font of the figures, which comes with matplotlib; importing that would write to the home folder."""
    package = importlib.util.find_spec("matplotlib")
    folders = (package.submodule_search_locations if package is not None else None) or []
    for path in (Path(folder) / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf" for folder in folders):
        if path.exists():
            return ImageFont.truetype(str(path), 15)
    return ImageFont.load_default(15)

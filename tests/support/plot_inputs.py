"""Made-up results for the tests of the figures, and what every figure must fulfil."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Annotation, Text

from rotnet_fast.arrays import encode_array
from rotnet_fast.plots.style import style

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "$truck$"]
LONG = [f"Long-tailed {bird} of the north, {number}" for number in range(50) for bird in ("tit", "grouse")]
"""A hundred class names that no picture has room for."""

RANDOM = np.random.default_rng(0)


def pixels(*shape: int) -> dict[str, Any]:
    return encode_array(RANDOM.integers(0, 256, shape, dtype=np.uint8))


def attention_result(layers: tuple[str, ...], shown: int = 3, channels: int = 3) -> dict[str, Any]:
    images = np.random.default_rng(1).integers(0, 256, (shown, 8, 8, channels), dtype=np.uint8)
    return {
        "layers": list(layers),
        "powers": [1, 2, 4],
        "turns": [0, 90, 180, 270],
        "images": 10000,
        "shown": {
            "indices": list(range(shown)),
            "images": encode_array(images),
            "maps": {
                layer: encode_array(RANDOM.random((shown, 4, 3, 5, 5)).astype(np.float16)) for layer in layers
            },
        },
        "equivariance": {layer: {"1": 0.98, "2": None, "4": -0.12} for layer in layers},
        "left_out": {layer: {"1": 0, "2": 30000, "4": 0} for layer in layers},
    }


def filters_result(count: int = 192, channels: int = 3) -> dict[str, Any]:
    kernels = RANDOM.normal(size=(count, channels, 5, 5)).astype(np.float32)
    kernels[0] = 0
    return {
        "filters": encode_array(kernels),
        "count": count,
        "effective_rank": 55.5,
        "full_rank": 75,
        "mean_abs_cosine": None,
        "zero_filters": 1,
    }


def rotation_result(
    angles: list[int],
    shown: int = 3,
    hardest: int = 16,
    channels: int = 3,
    classes: Sequence[str] = CLASSES,
) -> dict[str, Any]:
    turned = len(angles)

    def gallery(count: int) -> dict[str, Any]:
        return {
            "indices": list(range(count)),
            "class_names": [classes[index % len(classes)] for index in range(count)],
            "predicted": RANDOM.choice(angles, (count, turned)).tolist(),
            "confidence": np.ones((count, turned)).tolist(),
        }

    counts = [0] * 3 + [3, 0, 10] + [500] * 8 + [30000]
    return {
        "rotations": angles,
        "images": 10000,
        "accuracy": 91.1,
        "accuracy_by_rotation": [91.1] * turned,
        "confusion": RANDOM.integers(0, 1000, (turned, turned)).tolist(),
        "mean_confidence": 0.93,
        "calibration": {
            "edges": [edge / 15 for edge in range(16)],
            "counts": counts,
            "confidence": [(place + 0.5) / 15 if count else None for place, count in enumerate(counts)],
            "accuracy": [place / 15 if count else None for place, count in enumerate(counts)],
            "expected_calibration_error": 0.034,
        },
        "shown": {**gallery(shown), "views": pixels(shown, turned, 8, 8, channels)},
        "hardest": {
            **gallery(hardest),
            "images": pixels(hardest, 8, 8, channels),
            "probability": RANDOM.random(hardest).tolist(),
        },
    }


def embedding_result(
    tsne: bool = True, images: int = 200, classes: int = 10, names: Sequence[str] = CLASSES * 10
) -> dict[str, Any]:
    points = encode_array(RANDOM.normal(size=(images, 2)).astype(np.float32))
    return {
        "layer": "conv2",
        "classes": list(names[:classes]),
        "images": images,
        "indices": encode_array(np.arange(images)),
        "labels": encode_array(np.arange(images) % classes),
        "pca": points,
        "explained_variance": [0.4, 0.1],
        "tsne": points if tsne else None,
        "perplexity": 30.0 if tsne else None,
    }


def neighbours_result(
    shown: int = 3, columns: int = 8, channels: int = 3, classes: Sequence[str] = CLASSES
) -> dict[str, Any]:
    return {
        "layer": "conv2",
        "classes": list(classes),
        "k": 20,
        "images": 10000,
        "bank_images": 50000,
        "accuracy": 65.4,
        "confusion": RANDOM.integers(0, 100, (10, 10)).tolist(),
        "queries": {
            "indices": list(range(shown)),
            "images": pixels(shown, 8, 8, channels),
            "labels": [1] * shown,
        },
        "neighbours": {
            "indices": np.zeros((shown, columns), int).tolist(),
            "images": pixels(shown, columns, 8, 8, channels),
            "labels": [[1, *[place % len(classes) for place in range(columns - 1)]]] * shown,
            "similarity": RANDOM.random((shown, columns)).tolist(),
        },
    }


def stage_rows(kinds: tuple[str, ...], per_kind: int, seconds: float = 1e-3) -> list[dict[str, Any]]:
    """Stages of a step, many of them as close to each other as in a real one."""
    rows = []
    for number, kind in enumerate(kinds):
        for place in range(per_kind):
            flops = 10.0 ** (6 + 4 * (number == 0)) * (1 + place % 3)
            for direction in ("update",) if kind == "optimiser" else ("forward", "backward"):
                rows.append(
                    {
                        "stage": f"{kind} 192→{160 + place}, 32²",
                        "kind": kind,
                        "direction": direction,
                        "count": 1 + place,
                        "flops": flops,
                        "bytes": 1e7,
                        "seconds": seconds * (1 + 0.001 * place),
                    }
                )
    return rows


def texts(figure: Figure) -> list[Text]:
    """Everything written on a figure that can be seen, laid out as it is written to a file."""
    with style():
        FigureCanvasAgg(figure).draw()
    unseen = _ticks_beyond_the_axes(figure)
    return [
        text
        for text in figure.findobj(Text)
        if isinstance(text, Text)
        and text.get_text().strip()
        and text.get_visible()
        and text not in unseen
        and (text.axes is None or text.axes.get_visible())
    ]


def _ticks_beyond_the_axes(figure: Figure) -> set[Text]:
    """Labels that matplotlib keeps but does not draw."""
    unseen = set()
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks()):
                if not (low - 1e-9 <= tick.get_loc() <= high + 1e-9 and axis.get_visible() and axes.axison):
                    unseen |= {tick.label1, tick.label2}
    return unseen


def check_legible(figure: Figure) -> None:
    """All text has at least 8 points, lies inside the figure and does not run into other text."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    boxes = []
    for text in texts(figure):
        assert text.get_fontsize() >= 8, text
        # Of an annotation, the text alone, without what it points at.
        box = Text.get_window_extent(text, renderer)
        assert isinstance(text, (Text, Annotation))
        inside = figure.bbox.padded(1)
        corners = [(box.x0, box.y0), (box.x1, box.y1)]
        assert all(inside.contains(*corner) for corner in corners), f"{text.get_text()!r} is cut off"
        boxes.append((text.get_text(), box.padded(-1)))
    for (one, box), (other, other_box) in combinations(boxes, 2):
        assert not box.overlaps(other_box), f"{one!r} runs into {other!r}"

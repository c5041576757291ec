"""How much of the rotation accuracy comes from traces of JPEG compression.

JPEG's standard table for brightness is not symmetric: waves along rows and along columns are rounded
differently, so that a view of a compressed image at 90 or 270 degrees differs from one at 0 or 180, whatever
it shows. For such shortcuts of pretext tasks, see Doersch et al., "Unsupervised Visual Representation
Learning by Context Prediction", ICCV 2015.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from rotnet_fast.analysis.images import Images, LabelledImages, batches_of
from rotnet_fast.analysis.views import PlainViews, pooled
from rotnet_fast.errors import ArgumentError
from rotnet_fast.models.network import FeatureNetwork
from rotnet_fast.protocols.knn import knn_predict

QUALITY = 75
"""JPEG quality of the compression: the usual default of programs that write such files."""

VARIANTS = ("plain", "compressed", "both", "across", "turned first")
"""Test images as they are; compressed, then turned; as the mean of compressed along the axes and with
exchanged axes, so that what is lost does not tell them; with exchanged axes; and turned, then compressed."""


@torch.no_grad()
def compression(
    network: FeatureNetwork,
    images: Images,
    rotations: Sequence[int],
    views: PlainViews,
    *,
    layer: str | None = None,
    queries: torch.Tensor | None = None,
    bank: LabelledImages | None = None,
    classes: int = 0,
    quality: int = QUALITY,
) -> dict[str, Any]:
    """Measure rotation accuracy, and the accuracy of nearest neighbours, on compressed test images.

    Args:
        network: with K outputs, put in eval mode.
        images: uint8 [N,H,W,C], H == W, on the network's device.
        rotations: K multiples of 90 degrees, in the order of the outputs.
        views: how views are made.
        layer, queries, bank, classes: for objects, the layer whose features are compared, the labels int64
            [N] of the images, labelled images to look among, and the number of classes; None leaves them out.
        quality: JPEG quality.

    Returns:
        ``images`` (N), ``quality``, and for ``rotation`` and, with labels, ``object``: ``accuracy`` (variant
        -> percent), and as pairs of a difference in points and its standard error over images,
        ``compression`` (compressed minus plain), ``axis`` (compressed minus both: what the axes of the
        compression are worth), ``misled`` (compressed minus across), and for rotations ``order`` (turned
        first minus plain).

    Raises:
        ArgumentError: a rotation that is no multiple of 90 degrees, or images that are not square.
    """
    if any(degrees % 90 for degrees in rotations):
        raise ArgumentError(
            f"rotations are {' '.join(map(str, rotations))}; compression is measured for multiples of 90 "
            f"degrees alone"
        )
    network.eval()
    turns = [degrees // 90 for degrees in rotations]
    correct: dict[str, list[torch.Tensor]] = {name: [] for name in VARIANTS}
    features: dict[str, list[torch.Tensor]] = {name: [] for name in VARIANTS[:-1]}
    for _, batch in batches_of(images, views.batch_size):
        if batch.shape[1] != batch.shape[2]:
            size = f"{batch.shape[1]} x {batch.shape[2]}"
            raise ArgumentError(f"images are {size}; compression is measured on square images only")
        stored = {
            "plain": batch,
            "compressed": compressed(batch, quality),
            "across": compressed(batch.transpose(1, 2), quality).transpose(1, 2),
        }
        stored["both"] = ((stored["compressed"].int() + stored["across"] + 1) // 2).to(torch.uint8)
        for name in VARIANTS:
            hits = []
            for number, turn in enumerate(turns):
                if name == "turned first":
                    seen = compressed(batch.rot90(turn, (1, 2)), quality)
                else:
                    seen = stored[name].rot90(turn, (1, 2))
                for _, shown in views.plain(seen.contiguous()):
                    with views.precision.autocast():
                        logits = network(shown)
                    hits.append(logits.argmax(dim=1).cpu() == number)
            correct[name].append(torch.stack(hits).double().mean(dim=0))  # share of an image's views, [B]
        if bank is not None and layer is not None:
            for name, parts in features.items():
                parts.append(pooled(network, stored[name].contiguous(), layer, views))
    found = {
        "images": len(images),
        "quality": quality,
        "rotation": _compared({name: torch.cat(parts) for name, parts in correct.items()}),
    }
    if bank is not None and layer is not None and queries is not None:
        known = pooled(network, bank.images, layer, views)
        found["object"] = _compared(
            {
                name: (knn_predict(known, bank.labels, torch.cat(parts), classes) == queries).double().cpu()
                for name, parts in features.items()
            }
        )
    return found


def compressed(images: torch.Tensor, quality: int) -> torch.Tensor:
    """Write images as JPEG files in memory, and read them again: uint8 [B,H,W,C] on the same device."""
    shown = []
    for image in images.cpu().contiguous().numpy():
        file = io.BytesIO()
        Image.fromarray(image.squeeze()).save(file, "JPEG", quality=quality)
        with Image.open(file) as again:
            shown.append(np.asarray(again).reshape(image.shape))
    return torch.from_numpy(np.stack(shown)).to(images.device)


def _compared(correct: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Return accuracies and differences of variants, from how right each is about each image, in [0, 1]."""
    found: dict[str, Any] = {
        "accuracy": {name: 100 * values.mean().item() for name, values in correct.items()},
        "compression": _difference(correct["compressed"] - correct["plain"]),
        "axis": _difference(correct["compressed"] - correct["both"]),
        "misled": _difference(correct["compressed"] - correct["across"]),
    }
    if "turned first" in correct:
        found["order"] = _difference(correct["turned first"] - correct["plain"])
    return found


def _difference(by_image: torch.Tensor) -> list[float]:
    count = len(by_image)
    error = (by_image.std() / count**0.5).item() if count > 1 else 0.0
    return [100 * by_image.mean().item(), 100 * error]

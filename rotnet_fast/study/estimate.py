"""How long cells take: their multiply-adds, divided by a rate that was measured."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence

import torch
from torch.nn import functional

from rotnet_fast.models.nin import NetworkInNetwork, scaled_channels
from rotnet_fast.study.cells import StudyCell
from rotnet_fast.study.context import Context
from rotnet_fast.study.settings import StudySettings

TRAINING = 3
"""A training step costs about three forward passes: forward, and two of the same size backward."""

SECONDS_PER_IMAGE = {"pixels": 1e-3, "hog": 3e-3, "scattering": 1e-2}
"""Hand-made features with their classifiers, before any was measured in this study; two cores of an AMD
EPYC (Zen 5)."""


def forward_multiply_adds(settings: StudySettings, blocks: int, layer: str | None = None) -> float:
    """Multiply-adds of one image's forward pass, up to a layer's feature map or through all blocks.

    251 million for 4 blocks of full width on a 32x32 image.
    """
    width = settings.pretext.width
    side = settings.data.image_size
    channels = settings.data.channels
    total = 0.0
    for block in range(1, blocks + 1):
        if block in (2, 3):
            side = -(-side // 2)  # pooled at the end of blocks 1 and 2
        kernels = (5, 1, 1) if block < 3 else (3, 1, 1)
        for kernel, full in zip(kernels, (192, 160, 96) if block == 1 else (192,) * 3, strict=True):
            after = scaled_channels(full, width)
            total += side * side * kernel * kernel * channels * after
            channels = after
        if layer == f"conv{block}":
            break
    return total


def head_multiply_adds(settings: StudySettings, layer: str, head: str) -> float:
    """Multiply-adds of one head on one image's feature map."""
    side = -(-settings.data.image_size // (2 if layer == "conv1" else 4))
    channels = scaled_channels(96 if layer == "conv1" else 192, settings.pretext.width)
    if head == "nonlinear":
        return side * side * channels * 200 + 200 * 200
    wide = scaled_channels(192, settings.pretext.width)
    return side * side * (9 * channels * wide + 2 * wide * wide)


def multiply_adds(cells: Sequence[StudyCell], settings: StudySettings) -> float:
    """Multiply-adds of the networks in a group of cells; 0 for those that run none."""
    first, data = cells[0], settings.data
    values = first.settings
    kind = first.kind
    if kind == "classical":
        return 0.0
    if kind == "pretext":
        views = len(values["rotations"])
        shown = 1 if values["ablation"] == "one-rotation" else views
        forward = forward_multiply_adds(settings, values["blocks"])
        epoch = TRAINING * data.train_images * shown + data.test_images * views
        return float(values["epochs"] * epoch * forward)
    if kind in ("supervised", "head", "fine-tune"):
        labelled = values.get("images_per_class")
        visits = data.train_images
        if labelled is not None and not values.get("revisit", True):
            visits = labelled * len(data.classes)
        if kind == "supervised":
            frozen, trained = 0.0, forward_multiply_adds(settings, 3)
        else:
            members = [cell.member or values for cell in cells]
            last = max(str(member["layer"]) for member in members)
            below = forward_multiply_adds(settings, 5, last)
            heads = sum(head_multiply_adds(settings, m["layer"], m["head"]) for m in members)
            frozen, trained = (below, heads) if kind == "head" else (0.0, below + heads)
        epochs = values["epochs"]
        tests = -(-epochs // 10)
        trainings = epochs * visits * (frozen + TRAINING * trained)
        return float(trainings + tests * data.test_images * (frozen + trained))
    if kind in ("knn", "linear"):
        layer = max(str(cell.member["layer"]) for cell in cells)
        return (data.train_images + data.test_images) * forward_multiply_adds(settings, 4, layer)
    passes = {"attention": 8, "rotations": 4, "embedding": 1, "filters": 0}[kind]
    return passes * data.test_images * forward_multiply_adds(settings, 4)


class Estimator:
    """Seconds that groups of cells will take on this machine.

    Rates come from the finished cells of the same kind that ran on this device; where there are none,
    from those of other kinds; and where nothing is finished, from a few training steps that are timed.

    Args:
        context: of the study.
        cells: all cells whose results count.
        device_name: only cells that ran on this device count.
    """

    def __init__(self, context: Context, cells: Sequence[StudyCell], device_name: str) -> None:
        self._context = context
        self._rates: dict[str, list[float]] = {}
        self._seconds: dict[str, float] = {}
        for cell in cells:
            content = context.results.read(cell)
            if content is None or content.get("resumed") or content["environment"]["device"] != device_name:
                continue
            self._seconds[_name(cell)] = content["group_seconds"]
            if content["group_seconds"] > 0 and content["multiply_adds"] > 0:
                rate = content["multiply_adds"] / content["group_seconds"]
                self._rates.setdefault(cell.kind, []).append(rate)
        self._measured: float | None = None

    def seconds(self, cells: Sequence[StudyCell]) -> float:
        """Estimate for one group."""
        work = multiply_adds(cells, self._context.settings)
        if work == 0:
            data = self._context.settings.data
            per_image = SECONDS_PER_IMAGE.get(cells[0].settings.get("features", ""), 0.0)
            return self._seconds.get(_name(cells[0]), per_image * (data.train_images + data.test_images))
        return work / self._rate(cells[0].kind)

    def _rate(self, kind: str) -> float:
        if kind in self._rates:
            return statistics.median(self._rates[kind])
        if self._rates:
            return statistics.median(rate for rates in self._rates.values() for rate in rates)
        if self._measured is None:
            self._measured = measured_rate(self._context)
        return self._measured


def _name(cell: StudyCell) -> str:
    return f"{cell.kind} {cell.settings.get('features', '')}"


def measured_rate(context: Context, seconds: float = 2.0) -> float:
    """Multiply-adds per second of the pretext network's training steps, timed now on random images.

    Args:
        seconds: how long to measure, after a first step that is not counted.
    """
    settings, device = context.settings, context.device
    side, channels = settings.data.image_size, settings.data.channels
    views = 4 * settings.pretext.batch_size
    network = NetworkInNetwork(4, 4, settings.pretext.width, channels).to(device).train()
    images = torch.randn(views, channels, side, side, device=device, dtype=context.precision.dtype)
    images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.arange(views, device=device) % 4

    def step() -> None:
        with context.precision.autocast():
            loss = functional.cross_entropy(network(images).float(), labels)
        network.zero_grad(set_to_none=True)
        loss.backward()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    step()
    start, steps = time.perf_counter(), 0
    while steps < 1 or time.perf_counter() - start < seconds:
        step()
        steps += 1
    work = TRAINING * views * forward_multiply_adds(settings, 4)
    return steps * work / (time.perf_counter() - start)

"""How long cells take: their multiply-adds, divided by a rate that was measured."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import replace
from functools import cache, partial

import torch

from rotnet_fast.config import PretrainConfig
from rotnet_fast.engine.pretext_task import task_class
from rotnet_fast.models.flops import multiply_adds as count_multiply_adds
from rotnet_fast.models.nin import NetworkInNetwork
from rotnet_fast.models.scattering import scattering_multiply_adds, scattering_shape
from rotnet_fast.pretext_tasks import ROTATION, PretextTaskName
from rotnet_fast.protocols.heads import HEADS, make_head
from rotnet_fast.protocols.run_time import VIEWS, seconds_per_view
from rotnet_fast.protocols.supervised import BLOCKS
from rotnet_fast.study.cells import StudyCell
from rotnet_fast.study.context import Context
from rotnet_fast.study.settings import StudySettings

TRAINING = 3
"""A training step costs about three forward passes: forward, and two of the same size backward."""

MOST_BLOCKS = 5
"""Blocks of the paper's largest network, which has the layers of all others."""

SECONDS_PER_IMAGE = {"pixels": 1e-3, "hog": 3e-3, "scattering": 1e-2}
"""First estimate for hand-made features with their classifiers, from two cores of an AMD
EPYC (Zen 5)."""


SCATTERING_RATE = 1e10
"""First estimate for trainings on scattering, in multiply-adds per second, from one core of the same: its
Fourier transforms are far from the rate of convolutions."""


@cache
def forward_multiply_adds(
    settings: StudySettings,
    blocks: int,
    placements: tuple[tuple[str, str], ...] = (),
    task: PretextTaskName = ROTATION,
) -> tuple[int, int]:
    """Count the multiply-adds of one image's forward pass.

    Args:
        settings: settings of the study.
        blocks: conv blocks of the Network in Network.
        placements: (layer, head) of classifiers on its feature maps; the pass ends at the last layer. A head
            that is none of `rotnet_fast.protocols.heads.HEADS` is free. Empty for the whole network.
        task: pretext task of the network.

    Returns:
        Multiply-adds of the network, and of all heads.
    """
    data, width = settings.data, settings.pretext.width
    config = replace(settings.pretext, blocks=blocks, pretext_task=task)  # type: ignore[arg-type]
    with torch.device("meta"):  # nothing is computed, and no random number is drawn
        network = task_class(task).make_network(config, data.channels).eval()
        image = torch.zeros(1, data.channels, data.image_size, data.image_size)
        if not placements:
            return count_multiply_adds(lambda: network(image)), 0
        maps: dict[str, torch.Tensor] = {}
        layers = [layer for layer, _ in placements]
        of_network = count_multiply_adds(lambda: maps.update(network.features(image, layers)))
        of_heads = 0
        for layer, kind in placements:
            if kind in HEADS:
                _, channels, height, breadth = maps[layer].shape
                head = make_head(kind, (channels, height, breadth), len(data.classes), width).eval()
                of_heads += count_multiply_adds(partial(head, maps[layer]))
    return of_network, of_heads


def _frozen_multiply_adds(
    settings: StudySettings, placements: tuple[tuple[str, str], ...], fixed: str | None
) -> tuple[int, int]:
    """:func:`forward_multiply_adds` of RotNet's largest network, or of a fixed one, and of heads on it."""
    if fixed is None:
        return forward_multiply_adds(settings, MOST_BLOCKS, placements)
    data = settings.data
    shape = scattering_shape(data.channels, data.image_size)
    of_heads = 0
    with torch.device("meta"):
        for _, kind in placements:
            if kind in HEADS:
                head = make_head(kind, shape, len(data.classes), settings.pretext.width).eval()
                of_heads += count_multiply_adds(partial(head, torch.zeros(1, *shape)))
    return scattering_multiply_adds(data.channels, data.image_size), of_heads


def multiply_adds(cells: Sequence[StudyCell], settings: StudySettings) -> float:
    """Count the multiply-adds of the networks in a group of cells; 0 for groups that run none."""
    first, data = cells[0], settings.data
    values, kind = first.settings, first.kind
    if kind == "classical":
        return 0.0
    if kind == "pretext":
        config = PretrainConfig.from_recipe(values)
        views = config.views_per_image
        shown = 1 if values["ablation"] == "one-rotation" else views
        forward, _ = forward_multiply_adds(settings, config.blocks, task=config.pretext_task)
        epoch = TRAINING * data.train_images * shown + data.test_images * views
        return float(values["epochs"] * epoch * forward)
    placements = (
        tuple(cell.placement for cell in cells)
        if kind in ("head", "fine-tune", "knn", "linear", "svm")
        else ()
    )
    if kind in ("supervised", "head", "fine-tune"):
        labelled = values.get("images_per_class")
        visits = data.train_images
        if labelled is not None and not values.get("revisit", True):
            visits = labelled * len(data.classes)
        if kind == "supervised":
            frozen, trained = 0, forward_multiply_adds(settings, BLOCKS)[0]
        else:
            below, heads = _frozen_multiply_adds(settings, placements, values.get("fixed"))
            frozen, trained = (below, heads) if kind == "head" else (0, below + heads)
        epochs = values["epochs"]
        tests = -(-epochs // 10)
        trainings = epochs * visits * (frozen + TRAINING * trained)
        return float(trainings + tests * data.test_images * (frozen + trained))
    if kind in ("knn", "linear", "svm"):
        labelled = values.get("images_per_class")
        known = data.train_images if labelled is None else labelled * len(data.classes)
        frozen, _ = _frozen_multiply_adds(settings, placements, values.get("fixed"))
        return float((known + data.test_images) * frozen)
    passes = {"attention": 8, "rotations": 4, "embedding": 1, "filters": 0}[kind]
    return float(passes * data.test_images * forward_multiply_adds(settings, 4)[0])


class Estimator:
    """Estimates how long groups of cells will take on this machine.

    Rates come from the finished cells of the same kind that ran on this device; without any,
    from those of other kinds; and where nothing is finished, from a few training steps that are timed.

    Args:
        context: context of the study.
        cells: all cells whose results count.
        device_name: only cells that ran on this device count.
    """

    def __init__(self, context: Context, cells: Sequence[StudyCell], device_name: str) -> None:
        self._context = context
        self._rates: dict[str, list[float]] = {}
        self._seconds: dict[str, float] = {}
        self._device_name = device_name
        self._measured: float | None = None
        for cell in cells:
            self.learn(cell)

    def learn(self, cell: StudyCell) -> None:
        """Take note of how long a cell took, if it is finished."""
        content = self._context.results.read(cell)
        if content is None or content["resumed"] or content["environment"]["device"] != self._device_name:
            return
        self._seconds[_name(cell)] = content["group_seconds"]
        if content["group_seconds"] > 0 and content["multiply_adds"] > 0:
            rate = content["multiply_adds"] / content["group_seconds"]
            self._rates.setdefault(_kind(cell), []).append(rate)

    def seconds(self, cells: Sequence[StudyCell]) -> float:
        """Return the estimate for one group."""
        work = multiply_adds(cells, self._context.settings)
        if work == 0:
            data = self._context.settings.data
            per_image = SECONDS_PER_IMAGE.get(cells[0].settings.get("features", ""), 0.0)
            return self._seconds.get(_name(cells[0]), per_image * (data.train_images + data.test_images))
        return work / self._rate(_kind(cells[0]))

    def _rate(self, kind: str) -> float:
        if kind in self._rates:
            return statistics.median(self._rates[kind])
        if kind.endswith("scattering") and self._context.device.type == "cpu":
            return SCATTERING_RATE
        if self._rates:
            return statistics.median(rate for rates in self._rates.values() for rate in rates)
        if self._measured is None:
            self._measured = measured_rate(self._context)
        return self._measured


def _kind(cell: StudyCell) -> str:
    """Return what cells with the same rate share."""
    return f"{cell.kind} {cell.settings.get('fixed', '')}".strip()


def _name(cell: StudyCell) -> str:
    return f"{cell.kind} {cell.settings.get('features', '')}"


def measured_rate(context: Context, seconds: float = 1.0) -> float:
    """Time training steps of the pretext network on random images; return multiply-adds per second.

    Args:
        context: context of the study.
        seconds: how long to measure, after a first step that is not counted.
    """
    settings = context.settings
    side, channels = settings.data.image_size, settings.data.channels

    def make() -> NetworkInNetwork:
        return NetworkInNetwork(4, 4, settings.pretext.width, channels)

    # A CPU is busy with few views, and a step of many would take longer than the measurement may.
    views = VIEWS if context.device.type == "cpu" else 4 * settings.pretext.batch_size
    shape = (views, channels, side, side)
    per_view = seconds_per_view(make, shape, context.device, context.precision, seconds)
    return TRAINING * forward_multiply_adds(settings, 4)[0] / per_view

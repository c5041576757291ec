"""The cells behind figures: what is to be seen of trained networks, as plain values."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from rotnet_fast.analysis.attention import attention, resemblance
from rotnet_fast.analysis.embedding import embedding
from rotnet_fast.analysis.filters import filters
from rotnet_fast.analysis.images import is_grey
from rotnet_fast.analysis.rotation import rotation
from rotnet_fast.analysis.views import PlainViews, one_of_each_class
from rotnet_fast.models.build import make_network
from rotnet_fast.models.network import FeatureNetwork
from rotnet_fast.protocols.supervised import BLOCKS
from rotnet_fast.study.cells import StudyCell
from rotnet_fast.study.context import Context, Found

SHOWN_IMAGES = 4
"""Test images in a figure of attention maps, one of each class."""

SHOWN_ROTATIONS = 8
"""Test images in a figure of predicted rotations."""


def network_of(context: Context, cell: StudyCell) -> FeatureNetwork:
    """Return the network of a pretraining or a supervised training, in eval mode, on the device."""
    settings, data = cell.settings, context.settings.data
    if cell.kind == "pretext":
        outputs, blocks = len(settings["rotations"]), settings["blocks"]
    else:
        outputs, blocks = len(data.classes), BLOCKS
    network = make_network(outputs, data.channels, blocks=blocks, width=settings["width"])
    network.load_state_dict(context.network_checkpoint(cell)["module"])
    return network.to(context.device).eval()


def attention_maps(context: Context, cells: list[StudyCell], folder: Path) -> Found:
    """Compute Figure 3: attention maps of the rotation network and of the supervised one."""
    (cell,) = cells
    images = _test_images(context)
    shown = one_of_each_class(context.dataset.test.labels, SHOWN_IMAGES, cell.settings["seed"])
    networks = [network_of(context, need) for need in cell.needs]
    found: dict[str, Any] = {
        name: attention(network, images, shown, _views(context))
        for name, network in zip(("rotation", "supervised"), networks, strict=True)
    }
    found["resemblance"] = resemblance(networks[0], networks[1], images, _views(context))
    return {cell.key: found}


def first_filters(context: Context, cells: list[StudyCell], folder: Path) -> Found:
    """Compute Figure 4: first-layer filters of both networks."""
    (cell,) = cells
    names = ("rotation", "supervised")
    networks = zip(names, cell.needs, strict=True)
    grey = is_grey(_test_images(context))
    return {cell.key: {name: filters(network_of(context, need), grey) for name, need in networks}}


def rotations(context: Context, cells: list[StudyCell], folder: Path) -> Found:
    """Compute the calibration of the rotation confidence, and the images that are hardest to turn upright."""
    (cell,) = cells
    (pretext,) = cell.needs
    test = context.dataset.test
    found = rotation(
        network_of(context, pretext),
        _test_images(context),
        test.labels.to(context.device),
        context.dataset.classes,
        pretext.settings["rotations"],
        one_of_each_class(test.labels, SHOWN_ROTATIONS, cell.settings["seed"]),
        _views(context),
    )
    return {cell.key: found}


def embedded(context: Context, cells: list[StudyCell], folder: Path) -> Found:
    """Compute PCA and t-SNE of the pooled conv2 features of test images."""
    (cell,) = cells
    found = embedding(
        network_of(context, cell.needs[0]),
        _test_images(context),
        context.dataset.test.labels.to(context.device),
        context.dataset.classes,
        "conv2",
        _views(context),
        seed=cell.settings["seed"],
    )
    return {cell.key: found}


def _views(context: Context) -> PlainViews:
    dataset = context.dataset
    return PlainViews(dataset.mean, dataset.std, context.precision, context.settings.batch_size)


def _test_images(context: Context) -> torch.Tensor:
    return context.dataset.test.images.to(context.device)


PICTURES: dict[str, Callable[[Context, list[StudyCell], Path], Found]] = {
    "attention": attention_maps,
    "filters": first_filters,
    "rotations": rotations,
    "embedding": embedded,
}
"""Kind of a cell -> function that computes it, as in `rotnet_fast.study.kinds.KINDS`."""

"""Check before the first training that BatchNorm can train on every batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from rotnet_fast.checks import batches_of_one, smallest_batch
from rotnet_fast.models.network import FeatureNetwork
from rotnet_fast.protocols.drivers import Unit
from rotnet_fast.protocols.evaluation import EvaluationSetup


def check_batches(setup: EvaluationSetup, network: FeatureNetwork, units: Sequence[Unit]) -> None:
    """Check that no BatchNorm gets a single value per channel to find a mean and a variance of.

    That happens in a batch of one image where a head takes the flattened map, and where a map has one pixel.

    Args:
        setup: setup of the evaluation.
        network: the pretrained one, on any device; it is in eval mode afterwards.
        units: units that will run.

    Raises:
        ArgumentError: batches of one image, with the remedy.
    """
    counts = {
        "training": len(setup.dataset.train),
        "labelled": len(setup.labelled()),
        "test": len(setup.dataset.test),
    }
    single = [what for what, count in counts.items() if smallest_batch(count, setup.batch_size) == 1]
    if not single:
        return
    height, width, channels = setup.dataset.train.image_shape
    weight = next(network.parameters())
    image = torch.zeros(1, channels, height, width, dtype=weight.dtype, device=weight.device)
    network.eval()
    for unit in units:
        values = _values_of_one_image(unit, network, image)
        for what in single:
            if values.get(what, 2) < 2:
                raise batches_of_one(counts[what], setup.batch_size, what)


def _values_of_one_image(unit: Unit, network: FeatureNetwork, image: torch.Tensor) -> dict[str, int]:
    """Kind of images -> fewest values per channel that a BatchNorm takes its statistics of, given one image.

    Kinds that are only normalised with running statistics are left out.
    """
    if unit.kind == "supervised":
        return {"training": fewest_values(network, lambda: network(image))}
    subject = unit.subject
    maps: dict[str, torch.Tensor] = {}
    of_network = fewest_values(network, lambda: maps.update(network.features(image, subject.layers)))
    values = {}
    if subject.batchnorm == "batch":
        values = {"training": of_network, "labelled": of_network, "test": of_network}
    elif unit.kind == "fine-tune":
        values = {"training": of_network}
    if unit.kind in ("head", "fine-tune"):
        for layer, head in subject.placements:
            of_head = 1 if head == "nonlinear" else maps[layer][0, 0].numel()
            values["training"] = min(values.get("training", of_head), of_head)
    return values


def fewest_values(module: torch.nn.Module, run: Callable[[], object]) -> int:
    """Return the fewest values per channel that a BatchNorm gets in a forward pass; 2 where there is none."""
    found = [2]

    def note(_: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        found.append(inputs[0].numel() // inputs[0].shape[1])

    norms = [part for part in module.modules() if isinstance(part, _BatchNorm)]
    handles = [norm.register_forward_pre_hook(note) for norm in norms]
    try:
        with torch.no_grad():
            run()
    finally:
        for handle in handles:
            handle.remove()
    return min(found)

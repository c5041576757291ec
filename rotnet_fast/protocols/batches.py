"""Whether BatchNorm can train on every batch, known before the first training."""

from __future__ import annotations

from collections.abc import Callable, Collection

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from rotnet_fast.checks import batches_of_one, smallest_batch
from rotnet_fast.models.network import FeatureNetwork
from rotnet_fast.protocols.evaluation import EvaluationSetup


def check_batches(setup: EvaluationSetup, network: FeatureNetwork, protocols: Collection[str]) -> None:
    """Check that no BatchNorm gets a single value per channel to find a mean and a variance of.

    That is so in a batch of one image where a head takes the flattened map, and where a map has one pixel.

    Args:
        setup: of the evaluation.
        network: the pretrained one, on any device; its mode is eval afterwards.
        protocols: keys of `rotnet_fast.protocols.PROTOCOLS` that will run.

    Raises:
        ArgumentError: batches of one image, with the remedy.
    """
    chosen = set(protocols)
    untrained = {"random-init", "random-init-knn", "random-init-linear"} & chosen
    counts = {"training": len(setup.dataset.train)}
    if untrained:  # which normalise with the statistics of whatever batch they see
        counts |= {"labelled": len(setup.labelled()), "test": len(setup.dataset.test)}
    if all(smallest_batch(count, setup.batch_size) > 1 for count in counts.values()):
        return
    height, width, channels = setup.dataset.train.image_shape
    weight = next(network.parameters())
    image = torch.zeros(1, channels, height, width, dtype=weight.dtype, device=weight.device)
    network.eval()
    with torch.no_grad():
        maps = network.features(image, setup.layers)
        of_layers = fewest_values(network, lambda: network.features(image, setup.layers))
        of_network = fewest_values(network, lambda: network(image))
    of_heads = 1 if "nonlinear" in setup.heads else min(found[0, 0].numel() for found in maps.values())
    needs = [(of_layers, what) for what in counts] if untrained else []
    needs += [(of_heads, "training")] if chosen & {"frozen", "random-init", "fine-tune"} else []
    needs += [(of_layers, "training")] if "fine-tune" in chosen else []
    needs += [(of_network, "training")] if "supervised" in chosen else []
    for values, what in needs:
        if values * smallest_batch(counts[what], setup.batch_size) < 2:
            raise batches_of_one(counts[what], setup.batch_size, what)


def fewest_values(module: torch.nn.Module, run: Callable[[], object]) -> int:
    """Values per channel that the BatchNorm with the fewest gets in a forward pass; 2 where there is none."""
    found = [2]

    def note(_: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        found.append(inputs[0].numel() // inputs[0].shape[1])

    norms = [part for part in module.modules() if isinstance(part, _BatchNorm)]
    handles = [norm.register_forward_pre_hook(note) for norm in norms]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return min(found)

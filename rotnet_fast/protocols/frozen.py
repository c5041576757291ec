"""Heads on frozen features: of the pretrained network, and of a random one as the baseline.

All heads of all layers train from one forward pass per step.

Paper: Tables 1-3; the random-init row does not say how BatchNorm ran. Ours: both ways.
"""

from __future__ import annotations

from rotnet_fast.models.network import FeatureNetwork
from rotnet_fast.protocols.evaluation import BATCHNORM_MODES, EvaluationSetup, Unit
from rotnet_fast.protocols.heads import frozen_heads_task, head_name
from rotnet_fast.protocols.result import Cell


def frozen(setup: EvaluationSetup) -> list[Unit]:
    """Heads on the pretrained network."""
    return [lambda: _train_heads(setup, "frozen", setup.pretrained_network(), note="")]


def random_init(setup: EvaluationSetup) -> list[Unit]:
    """The same heads on an untrained network, in both BatchNorm modes."""

    def unit(note: str) -> Unit:
        return lambda: _train_heads(setup, "random-init", setup.untrained_backbones()[note], note)

    return [unit(note) for note in BATCHNORM_MODES]


def _train_heads(setup: EvaluationSetup, method: str, backbone: FeatureNetwork, note: str) -> list[Cell]:
    module = setup.with_heads(backbone, setup.placements, frozen=True)
    confusions = setup.train(
        f"{method} {note}".strip().replace(" ", "-"),
        lambda views: frozen_heads_task(module, views, setup.lr, setup.epochs, setup.lr_factor),
    )
    return [
        Cell.of(method, layer, kind, note, confusions[head_name(layer, kind)])
        for layer, kind in module.placements
    ]

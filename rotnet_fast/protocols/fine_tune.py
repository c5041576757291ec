"""Fine-tuning: pretrained blocks and a fresh head, all trained on the labels.

Paper: Table 3, without a recipe. Ours: the blocks up to the head's layer, BatchNorm in train mode, the
head's schedule; learning rates 0.1 and 0.01 are both worth trying.
"""

from __future__ import annotations

from functools import partial

from rotnet_fast.protocols.evaluation import EvaluationSetup, Unit
from rotnet_fast.protocols.heads import fine_tuning_task, head_name
from rotnet_fast.protocols.result import Cell


def fine_tune(setup: EvaluationSetup) -> list[Unit]:
    """One training for each head on each layer."""
    return [partial(_fine_tune, setup, layer, head) for layer, head in setup.placements]


def _fine_tune(setup: EvaluationSetup, layer: str, head: str) -> list[Cell]:
    module = setup.with_heads(setup.pretrained_network(), ((layer, head),), frozen=False)
    confusions = setup.train(
        f"fine-tune-{layer}-{head}", lambda views: fine_tuning_task(module, views, setup.lr, setup.epochs)
    )
    return [Cell.of("fine-tune", layer, head, f"lr {setup.lr:g}", confusions[head_name(layer, head)])]

"""Heads that are trained: on frozen features, and together with the network below them.

All heads of a subject train from one forward pass per step.

Paper: Tables 1-3; the random-init row does not say how BatchNorm ran, and fine-tuning is without a recipe.
Ours: BatchNorm both ways, see `rotnet_fast.protocols.result.BATCHNORM_MODES`. Fine-tuned are the blocks up to
the head's layer, with BatchNorm in train mode and the head's schedule; learning rates 0.1 and 0.01 are both
worth trying.
"""

from __future__ import annotations

from rotnet_fast.protocols.evaluation import EvaluationSetup, Placement, Subject
from rotnet_fast.protocols.heads import head_name, heads_task
from rotnet_fast.protocols.result import Outcome


def train_heads(setup: EvaluationSetup, subject: Subject, frozen: bool) -> dict[Placement, Outcome]:
    """Train a head at every placement, and return their outcomes.

    Args:
        setup, subject: see `rotnet_fast.protocols.drivers.DRIVERS`.
        frozen: False trains the network below a head, too, which then is the only one.
    """
    module = setup.with_heads(setup.backbone(subject), subject.placements, frozen=frozen)
    outcomes = setup.train(subject, lambda views: heads_task(module, views, subject.recipe))
    return {placement: outcomes[head_name(*placement)] for placement in module.placements}

"""Heads on frozen features: of the pretrained network, and of an untrained one as the baseline.

All heads of all layers train from one forward pass per step.

Paper: Tables 1-3; the random-init row does not say how BatchNorm ran. Ours: both ways.
"""

from __future__ import annotations

from rotnet_fast.protocols.evaluation import EvaluationSetup, Placement, Subject
from rotnet_fast.protocols.heads import head_name, heads_task
from rotnet_fast.protocols.result import Outcome


def frozen(setup: EvaluationSetup, subject: Subject) -> dict[Placement, Outcome]:
    """Train a head at every placement, and return their outcomes."""
    module = setup.with_heads(setup.backbone(subject), subject.placements, frozen=True)
    outcomes = setup.train(subject, lambda views: heads_task(module, views, subject.recipe))
    return {placement: outcomes[head_name(*placement)] for placement in module.placements}

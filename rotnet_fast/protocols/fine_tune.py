"""Fine-tuning: pretrained blocks and a fresh head, all trained on the labels.

Paper: Table 3, without a recipe. Ours: the blocks up to the head's layer, BatchNorm in train mode, the
head's schedule; learning rates 0.1 and 0.01 are both worth trying.
"""

from __future__ import annotations

from rotnet_fast.protocols.evaluation import EvaluationSetup, Placement, Subject
from rotnet_fast.protocols.heads import head_name, heads_task
from rotnet_fast.protocols.result import Outcome


def fine_tune(setup: EvaluationSetup, subject: Subject) -> dict[Placement, Outcome]:
    """Train the head at the one placement together with the network below it."""
    (placement,) = subject.placements
    module = setup.with_heads(setup.backbone(subject), [placement], frozen=False)
    outcomes = setup.train(subject, lambda views: heads_task(module, views, subject.recipe))
    return {placement: outcomes[head_name(*placement)]}

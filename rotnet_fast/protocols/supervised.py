"""The supervised baseline: a network trained from scratch on the same labels.

It is the paper's 3-block network, or, where another one was pretrained, that one.

Source: Gidaris et al., ICLR 2018, Table 3 and Figure 5b; it trains on the pretext task's schedule.
"""

from __future__ import annotations

import torch

from rotnet_fast.engine.schedule import Schedule
from rotnet_fast.engine.task import ParameterGroup
from rotnet_fast.models.network import FeatureNetwork
from rotnet_fast.protocols.classification import ObjectClassification, ObjectViews, scaled_schedule
from rotnet_fast.protocols.evaluation import EvaluationSetup, Unit
from rotnet_fast.report import Cell

BLOCKS = 3


def supervised(setup: EvaluationSetup) -> list[Unit]:
    """Train at the width of the pretrained network."""
    return [lambda: _supervised(setup)]


def _supervised(setup: EvaluationSetup) -> list[Cell]:
    network = setup.random_network(len(setup.dataset.classes), BLOCKS)
    schedule = scaled_schedule("supervised", setup.lr, setup.epochs)
    confusions = setup.train("supervised", lambda views: supervised_task(network, views, schedule))
    return [Cell.of("supervised", None, None, "", confusions["object"])]


def supervised_task(network: FeatureNetwork, views: ObjectViews, schedule: Schedule) -> ObjectClassification:
    """Train a whole network, on the device of ``views``, to tell object classes; named ``object``."""

    def classify(batch: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"object": network(batch)}

    group = ParameterGroup("network", list(network.parameters()), schedule)
    return ObjectClassification(network, classify, [group], views)

"""The supervised baseline: a network trained from scratch on the same labels, by the pretext task's recipe.

It is the paper's 3-block network, or, where another one was pretrained, that one. Learning rate, schedule,
momentum, weight decay and optimiser are those of the pretraining; a schedule is scaled to the epochs.

Source: Gidaris et al., ICLR 2018, Table 3 and Figure 5b.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from rotnet_fast.config import ADDED_LATER
from rotnet_fast.engine.schedule import Schedule, stretched
from rotnet_fast.engine.task import parameter_groups
from rotnet_fast.models.network import FeatureNetwork
from rotnet_fast.protocols.classification import ObjectClassification, ObjectViews
from rotnet_fast.protocols.evaluation import EvaluationSetup, Unit
from rotnet_fast.report import Cell

BLOCKS = 3


@dataclass(frozen=True)
class SupervisedRecipe:
    """How a supervised network is trained.

    Attributes:
        schedule: of all parameters, but for those that ``muon`` is about.
        muon: of the filters of convolutions, which follow Muon then; None for SGD throughout.
        nesterov, weight_decay: of SGD.
    """

    schedule: Schedule
    muon: Schedule | None
    nesterov: bool
    weight_decay: float

    @classmethod
    def of(cls, recipe: Mapping[str, Any], epochs: int) -> SupervisedRecipe:
        """That of a pretraining, for a run of so many epochs.

        Args:
            recipe: as `rotnet_fast.config.PretrainConfig.recipe` gives it.
        """

        def known(name: str) -> Any:
            return recipe.get(name, ADDED_LATER.get(name))

        milestones = stretched(tuple(recipe["milestones"]), recipe["epochs"], epochs)
        warmup = known("warmup") * epochs / recipe["epochs"]

        def schedule(lr: float) -> Schedule:
            return Schedule(lr, recipe["schedule"], milestones, recipe["lr_factor"], epochs, warmup)

        muon = schedule(known("muon_lr")) if known("optimizer") == "muon" else None
        return cls(schedule(recipe["lr"]), muon, recipe["nesterov"], recipe["weight_decay"])


def supervised(setup: EvaluationSetup) -> list[Unit]:
    """Train at the width of the pretrained network."""
    return [lambda: _supervised(setup)]


def _supervised(setup: EvaluationSetup) -> list[Cell]:
    confusion = train_supervised(setup, setup.recipe, "supervised")
    return [Cell.of("supervised", None, None, "", confusion)]


def train_supervised(setup: EvaluationSetup, recipe: Mapping[str, Any], name: str) -> list[list[int]]:
    """Train the network by a pretraining's recipe in the folder ``name`` of a setup.

    Returns:
        Confusion matrix on the test images.
    """
    network = setup.random_network(len(setup.dataset.classes), BLOCKS)
    chosen = SupervisedRecipe.of(recipe, setup.epochs)
    confusions = setup.train(
        name,
        lambda views: supervised_task(network, views, chosen),
        nesterov=chosen.nesterov,
        weight_decay=chosen.weight_decay,
        identity={"recipe": asdict(chosen)},
    )
    return confusions["object"]


def supervised_task(
    network: FeatureNetwork, views: ObjectViews, recipe: SupervisedRecipe
) -> ObjectClassification:
    """Train a whole network, on the device of ``views``, to tell object classes; named ``object``."""

    def classify(batch: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"object": network(batch)}

    groups = parameter_groups(network, recipe.schedule, recipe.muon)
    return ObjectClassification(network, classify, groups, views)

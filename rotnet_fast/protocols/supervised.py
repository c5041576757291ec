"""The supervised baseline: a network trained from scratch on the same labels, by the pretext task's recipe.

It is the paper's 3-block network, or, where another one was pretrained, that one. Learning rate, schedule,
momentum, weight decay and optimiser are those of the pretraining; a schedule is scaled to the epochs.

Source: Gidaris et al., ICLR 2018, Table 3 and Figure 5b.
"""

from __future__ import annotations

from pathlib import Path

import torch

from rotnet_fast.engine import checkpoint
from rotnet_fast.engine.ambient import plain_torch
from rotnet_fast.engine.compiled import choose_compile, compile_forward
from rotnet_fast.engine.distributed import ALONE
from rotnet_fast.engine.task import parameter_groups
from rotnet_fast.errors import CheckpointError
from rotnet_fast.models.build import make_network
from rotnet_fast.models.network import FeatureNetwork
from rotnet_fast.protocols.classification import ObjectClassification, ObjectViews
from rotnet_fast.protocols.evaluation import WHOLE_NETWORK, EvaluationSetup, Placement, Subject
from rotnet_fast.protocols.result import Outcome
from rotnet_fast.settings import Optimisation

BLOCKS = 3

KIND = "supervised"
"""What checkpoints of these trainings say of themselves, whatever their folder is called."""


def supervised(setup: EvaluationSetup, subject: Subject) -> dict[Placement, Outcome]:
    """Train the network at the width of the pretrained one, and return its outcome."""
    network = setup.random_network(len(setup.dataset.classes), BLOCKS)

    def make_task(views: ObjectViews) -> ObjectClassification:
        steps = subject.recipe.epochs * len(views.loader)
        mode = choose_compile(setup.compile, setup.device, setup.precision, network, ALONE, steps)
        return supervised_task(
            network, views, subject.recipe, mode, is_compile_optional=setup.compile == "auto"
        )

    outcomes = setup.train(
        subject,
        make_task,
        identity={"kind": KIND, "blocks": BLOCKS, "image_size": setup.config.image_size},
    )
    return {WHOLE_NETWORK: outcomes["object"]}


def supervised_task(
    network: FeatureNetwork,
    views: ObjectViews,
    recipe: Optimisation,
    compile: str = "none",
    is_compile_optional: bool = False,
) -> ObjectClassification:
    """Return the task of training a whole network to tell object classes.

    Args:
        network: on the device of ``views``.
        views, recipe: what it is trained on, and how.
        compile: ``none``, ``default`` or ``max``, see `PretrainConfig`; only training steps are compiled.
        is_compile_optional: whether training continues where compiling fails.
    """
    train_forward = network if compile == "none" else compile_forward(network, compile, is_compile_optional)

    def classify(batch: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"object": train_forward(batch) if network.training else network(batch)}

    groups = parameter_groups("network", list(network.parameters()), *recipe.schedules())
    return ObjectClassification(network, classify, groups, views)


@plain_torch()
def load_supervised(path: Path) -> FeatureNetwork:
    """Load the network of a supervised training, such as RUN/evaluate-001/supervised, on the CPU.

    Args:
        path: of a checkpoint, or of a run folder, whose newest whole checkpoint is taken.

    Raises:
        CheckpointError: no whole checkpoint of a supervised training.
        ArgumentError: the network's library is missing.
    """
    found, state = checkpoint.load_newest(path)
    known = state.get("config", {})
    if known.get("kind") != KIND:
        raise CheckpointError(
            f"the checkpoint {found} is not one of a supervised training; give the folder supervised of an "
            f"evaluation with --supervised"
        )
    network = make_network(
        known["num_classes"],
        known["in_channels"],
        known["model"],
        blocks=known["blocks"],
        width=known["width"],
        image_size=known["image_size"],  # some networks take no other
    )
    network.load_state_dict(state["module"])
    return network

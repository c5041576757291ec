"""The pretext tasks that a network can be pretrained on, and what the rest of the program knows of each.

RotNet's own is ``rotation``. The others train RotNet's network by other ideas, so that a comparison differs
in nothing but the pretext task.

Importing this module does not import torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

PretextTaskName = Literal["rotation", "autoencoder", "jigsaw"]

ROTATION: PretextTaskName = "rotation"
"""RotNet's own pretext task."""


@dataclass(frozen=True)
class PretextFacts:
    """What the rest of the program knows of a pretext task.

    Attributes:
        implementation: module below ``rotnet_fast.engine``, and its subclass of `PretextTask`.
        title: name in a study's report.
        measure: name of the number in ``results.json`` that says how well the task is solved: an accuracy in
            percent, or an error.
        learned: what the network did, as the end of the sentence "a network that ...".
        outputs: number of classes that the network tells apart; 0 for a task that has none, whose network
            ends with its last feature map; None for one per rotation.
        outputs_name: what these classes are called, in the plural.
        views: views of each image in a step; None for one per rotation.
        shown: what is done to a training image after its crop and flip, for a model card.
        has_border: whether ``pad`` applies: whether a crop may include a black border.
        side_multiple: the side of an image in pixels must be a multiple of it.
        has_decoder: whether the network in training has a submodule ``decoder`` that only the task needs.
            Decoders are made for RotNet's own network; others have none.
        study_lr: learning rate in a study; None: that of the study's preset.
        differences: sentences for a study's report: what differs from RotNet's pretraining beside the task,
            and from what was published.
    """

    implementation: str
    title: str
    measure: str
    learned: str
    outputs: int | None
    outputs_name: str
    views: int | None
    shown: str = ""
    has_border: bool = True
    side_multiple: int = 1
    has_decoder: bool = False
    study_lr: float | None = None
    differences: str = ""

    @property
    def is_classification(self) -> bool:
        """Whether the network tells classes apart, so that its measure is an accuracy."""
        return self.outputs != 0


PRETEXT_TASKS: Mapping[PretextTaskName, PretextFacts] = {
    "rotation": PretextFacts(
        "rotation_task:RotationTask",
        title="RotNet",
        measure="rotation_accuracy",
        learned="learned to tell by how much an image had been turned",
        outputs=None,
        outputs_name="rotations",
        views=None,
    ),
    "autoencoder": PretextFacts(
        "autoencoder_task:AutoencoderTask",
        title="Autoencoder",
        measure="reconstruction_error",
        learned="learned to encode an image such that a decoder (left out here) could reconstruct it",
        outputs=0,
        outputs_name="classes",
        views=1,
        side_multiple=4,
        has_decoder=True,
        study_lr=0.02,  # the presets' are for a cross-entropy, see docs/design.md
        differences=(
            "The autoencoder sees one view of an image in a step, where RotNet sees four, so that its "
            "pretraining is about a third of the work; its learning rate by SGD is 0.02, because it hardly "
            "learns by higher ones. It is a plain one of our own, published nowhere."
        ),
    ),
    "jigsaw": PretextFacts(
        "jigsaw_task:JigsawTask",
        title="Jigsaw",
        measure="permutation_accuracy",
        learned="learned to tell in which of 24 orders the four quarters of an image had been put together",
        outputs=24,
        outputs_name="permutations",
        views=4,
        shown="its quarters in 4 of the 24 orders, each cropped to 7/8 of its side and normalised by itself",
        has_border=False,
        side_multiple=2,
        differences=(
            "The jigsaw is pretrained without cropping within a border, and on quarters that are normalised "
            "one by one, whereas its features are classified on whole images; its learning rate is RotNet's, "
            "and was not tuned for it. It was published with nine tiles in some of their orders, each tile "
            "through a network of its own; ours are four in all 24 orders, in one image."
        ),
    ),
}
"""Name for ``--pretext-task`` -> what is known of the task."""


def backbone_state(state: Mapping[str, Any], task: PretextTaskName) -> Mapping[str, Any]:
    """Return the weights and buffers of a network in training without those of its decoder, if it has one.

    Checkpoints hold all of them, for an exact resume; whatever reads a pretrained network leaves the decoder
    out.
    """
    if not PRETEXT_TASKS[task].has_decoder:
        return state
    return {name: tensor for name, tensor in state.items() if not name.startswith("decoder.")}

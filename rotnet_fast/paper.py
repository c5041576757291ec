"""Published numbers: test accuracy in percent on CIFAR-10 unless a name says otherwise.

Source: Gidaris, Singh, Komodakis, "Unsupervised Representation Learning by Predicting Image
Rotations", ICLR 2018 (arXiv 1803.07728), and public re-runs of its released code.
"""

from __future__ import annotations

from collections.abc import Sequence

from rotnet_fast.rotations import EIGHT_ROTATIONS, FOUR_ROTATIONS

CIFAR10_MEAN = (125.3 / 255, 123.0 / 255, 113.9 / 255)
CIFAR10_STD = (63.0 / 255, 62.1 / 255, 66.7 / 255)
"""Per-channel statistics of CIFAR-10's training images, for pixel values in [0, 1], as in the released code.
All data sets are normalised with them: BatchNorm follows every convolution, so others would change little."""

EPOCHS = 100
"""Of the pretraining and of all that is trained on its features."""

CIFAR10_CLASSES = frozenset(
    ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
)

NONLINEAR_HEAD: dict[int, dict[str, float]] = {
    3: {"conv1": 85.45, "conv2": 88.26, "conv3": 62.09},
    4: {"conv1": 85.07, "conv2": 89.06, "conv3": 86.21, "conv4": 61.73},
    5: {"conv1": 85.04, "conv2": 89.76, "conv3": 86.82, "conv4": 74.50, "conv5": 50.37},
}
"""Table 1: blocks -> layer -> accuracy of the non-linear head on frozen features."""

ROTATION_SETS: dict[tuple[int, ...], float] = {
    FOUR_ROTATIONS: 89.06,
    EIGHT_ROTATIONS: 88.51,
    (0, 180): 87.46,
    (90, 270): 85.52,
}
"""Table 2: rotations -> accuracy of the non-linear head on conv2 of 4 blocks."""

SUPERVISED = 92.80
"""Table 3: the 3-block network trained with all labels."""

RANDOM_INIT: dict[str, float] = {"conv": 72.50}
"""Table 3: head -> accuracy on conv2 of an untrained, frozen network."""

FROZEN: dict[str, float] = {"nonlinear": 89.06, "conv": 91.16}
"""Table 3: head -> accuracy on frozen conv2 of 4 blocks."""

FINE_TUNED: dict[str, float] = {"nonlinear": 91.73, "conv": 92.17}
"""Table 3: head -> accuracy with conv1 and conv2 trained on together with the head."""

OTHER_METHODS: dict[str, float] = {
    "Roto-Scat + SVM": 82.3,
    "ExemplarCNN": 84.3,
    "DCGAN": 82.8,
    "Scattering": 84.7,
}
"""Table 3: other methods, as published there."""

LEARNED_FROM: dict[str, str] = {
    "Roto-Scat + SVM": "no other images; features chosen by the labels",
    "ExemplarCNN": "trained on 100,000 images of STL-10",
    "DCGAN": "trained on ImageNet at 32 x 32",
    "Scattering": "no other images; three layers trained on the labels",
}
"""What other methods' published numbers come from, which are not like for like."""

SLIDES: dict[str, float] = {"conv": 90.02, "supervised": 92.06}
"""The lecture slides' own run, whose settings are preset slides: head on frozen conv2, or supervised."""

ROTATION_ACCURACY: dict[int, float] = {100: 91.1, 200: 93.65}
"""Epochs -> accuracy of predicting the rotation: the paper's schedule; a re-run of the released one."""

LABEL_SCARCITY: dict[str, dict[int, float]] = {
    "rotnet": {20: 64.8, 100: 75.8, 400: 85.3, 1000: 86.5, 5000: 91.2},
    "supervised": {20: 38.4, 100: 63.3, 400: 78.7, 1000: 85.7, 5000: 92.8},
}
"""Figure 5b, read off the plot (+-0.1): labels per class -> conv head on frozen conv2, or supervised."""

CORRELATION: dict[int, tuple[float, float]] = {
    1: (56.3, 81.2),
    21: (64.3, 88.7),
    41: (81.0, 90.8),
    61: (89.1, 90.9),
    81: (90.9, 91.3),
    100: (91.1, 91.3),
}
"""Figure 5a, read off the plot (+-0.15): epoch -> accuracy of rotations, of objects (conv head on conv2)."""


def published_accuracy(
    method: str,
    layer: str | None,
    head: str | None,
    *,
    blocks: int,
    rotations: Sequence[int],
    images_per_class: int | None = None,
    preset: str = "paper",
) -> float | None:
    """Return the published number that one of our results stands beside.

    Args:
        method, layer, head: as in `rotnet_fast.protocols.result.Cell`.
        blocks, rotations: of the pretrained network.
        images_per_class: labels per class that the classifier saw; None for all.
        preset: ``slides`` gives the numbers of the lecture slides, which are two; others the paper's.

    Returns:
        Accuracy in percent, or None where nothing was published.
    """
    if preset == "slides":
        is_main = (layer, blocks, tuple(rotations)) == ("conv2", 4, FOUR_ROTATIONS)
        name = "supervised" if method == "supervised" else head if method == "frozen" and is_main else None
        return SLIDES.get(name or "") if images_per_class is None else None
    if images_per_class is not None:
        if method == "supervised":
            return LABEL_SCARCITY["supervised"].get(images_per_class)
        if (method, layer, head, blocks, tuple(rotations)) == ("frozen", "conv2", "conv", 4, FOUR_ROTATIONS):
            return LABEL_SCARCITY["rotnet"].get(images_per_class)
        return None
    if method == "supervised":
        return SUPERVISED
    if layer is None or head is None:
        return None
    if method == "random-init" and layer == "conv2":
        return RANDOM_INIT.get(head)
    if method == "frozen" and head == "nonlinear" and tuple(rotations) == FOUR_ROTATIONS:
        return NONLINEAR_HEAD.get(blocks, {}).get(layer)
    if blocks != 4 or layer != "conv2":
        return None
    if method == "frozen" and head == "nonlinear":
        return ROTATION_SETS.get(tuple(rotations))
    if tuple(rotations) != FOUR_ROTATIONS:
        return None
    return {"frozen": FROZEN, "fine-tune": FINE_TUNED}.get(method, {}).get(head)

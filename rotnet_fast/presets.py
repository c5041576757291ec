"""Complete sets of pretraining settings, each with its source.

Importing this module does not import torch.
"""

from __future__ import annotations

from collections.abc import Callable

from rotnet_fast.config import PresetName, PretrainConfig


def paper() -> PretrainConfig:
    """100 epochs, the learning rate divided by five after 30, 60 and 80.

    Source: Gidaris et al., ICLR 2018, section 4.1.
    """
    return PretrainConfig(preset="paper", epochs=100, lr=0.1, milestones=(30, 60, 80), lr_factor=0.2)


def official() -> PretrainConfig:
    """200 epochs, the learning rate divided by five after 60, 120 and 160.

    Source: the authors' released code, gidariss/FeatureLearningRotNet.
    """
    return PretrainConfig(preset="official", epochs=200, lr=0.1, milestones=(60, 120, 160), lr_factor=0.2)


def slides() -> PretrainConfig:
    """100 epochs, the learning rate halved after 30, 60 and 80, without Nesterov's momentum.

    Source: the lecture slides' re-implementation, which reached 90.02 % with a frozen conv head.
    """
    return PretrainConfig(
        preset="slides", epochs=100, lr=0.1, milestones=(30, 60, 80), lr_factor=0.5, nesterov=False
    )


def speedrun() -> PretrainConfig:
    """Features like those of `paper` in fewer epochs of the same network, images and augmentation.

    Paper: SGD, 100 epochs, the rate divided by five three times. Ours: 30 epochs, Muon for the filters and
    SGD for the rest, three epochs of warm-up and then a linear fall to 0, because of the candidates compared
    it learns most in a given number of steps. On a CPU, at a quarter of the width and in 474 steps, rotation
    accuracy was 72.3 %, against 67.5 % with SGD and a linear fall and 65.1 % with `paper` squeezed into as
    many; the conv head's was 55.6, 52.0 and 49.4 % (one seed; benchmarks/results/cpu-speedrun.json). Muon's
    rate hardly mattered between 0.02 and 0.15. Half as many steps of it still beat `paper`'s (three seeds:
    68.9 against 66.0 %, conv head 56.1 against 52.8 %).

    The 30 epochs are a guess, and the aim, a conv head that loses at most 0.3 points against `paper`'s, has
    not been measured at full size: `python -m benchmarks.speedrun` does it.
    """
    return PretrainConfig(
        preset="speedrun",
        epochs=30,
        lr=0.1,
        schedule="linear",
        warmup=3.0,
        milestones=(),
        optimizer="muon",
        muon_lr=0.05,
    )


def cpu() -> PretrainConfig:
    """CIFAR-10 in about fifteen minutes on two CPU cores: half the width, two epochs, small batches.

    Paper: 100 epochs of batches of 128 at full width. Ours: the most progress that a CPU makes in the
    time; with so few epochs, more and smaller steps and a rate that falls to 0 do best. Two Zen 4
    cores train on some 115 images/s; with --limit-train 40000, rotation accuracy reaches 75.0 % in 13
    minutes.
    """
    return PretrainConfig(
        preset="cpu", width=0.5, epochs=2, batch_size=32, lr=0.05, schedule="linear", milestones=()
    )


def quickstart() -> PretrainConfig:
    """Handwritten digits in under a minute on two CPU cores, to see that everything works.

    Paper: 32x32 images, crops, flips, weight decay 5e-4. Ours: 16x16, because the digits are 8x8 by
    nature: a quarter of the work, spent on twice the width. Neither crops nor flips, because on 1,437
    images they cost more than they give (at 32x32 and a quarter of the width, 8 epochs: 96.4 % without,
    94.9 % with a crop of +-2 pixels, 87.9 % with flips as well: a mirrored digit is no digit). Weight
    decay 2e-3, against overfitting. Reaches about 96 %; some views cannot be told apart, as a 0 or an 8
    looks much the same upside down and a 6 becomes a 9.
    """
    return PretrainConfig(
        preset="quickstart",
        dataset="digits",
        image_size=16,
        width=0.5,
        pad=0,
        flip_prob=0.0,
        epochs=8,
        batch_size=32,
        lr=0.1,
        schedule="linear",
        milestones=(),
        weight_decay=2e-3,
    )


PRESETS: dict[PresetName, Callable[[], PretrainConfig]] = {
    "quickstart": quickstart,
    "cpu": cpu,
    "slides": slides,
    "paper": paper,
    "official": official,
    "speedrun": speedrun,
}
"""Name on the command line -> function that makes the settings."""

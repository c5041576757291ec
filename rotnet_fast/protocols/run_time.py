"""How long a pretraining will take, from a few training steps that are timed beforehand.

The steps run on a network of their own and on random numbers of their own: the training keeps its bits.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import torch

from rotnet_fast.config import NIN, PresetName, PretrainConfig
from rotnet_fast.engine.ambient import own_draws
from rotnet_fast.engine.precision import Precision
from rotnet_fast.engine.pretext_task import task_class
from rotnet_fast.engine.trainer import Trainer
from rotnet_fast.models.network import FeatureNetwork
from rotnet_fast.plain import duration
from rotnet_fast.presets import PRESETS

VIEWS = 32
"""Views of a timed step: enough for every core, and few enough for a second on a slow CPU."""

WORTH_SAYING = 600.0
"""Runs of fewer seconds show soon enough how long they take."""

WORTH_A_HINT = 3600.0
"""Runs of more seconds may have been started by mistake."""

FORWARD = 1 / 3
"""A test image costs about a third of a training image: the forward pass without the backward one."""


def seconds_per_view(
    make: Callable[[], FeatureNetwork],
    shape: tuple[int, int, int, int],
    device: torch.device,
    precision: Precision,
    seconds: float,
    enough: float = 0.0,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Time training steps on random views; the random state of the caller is left alone.

    Args:
        make: makes a network.
        shape: [V,C,H,W] of the views of a step.
        device: where to run.
        precision: number format.
        seconds: how long to measure, after a first step.
        enough: seconds per view; if even the first step, which is the slowest, takes less, nothing else is
            measured.
        clock: returns the time in seconds.

    Returns:
        Seconds per view of forward and backward pass.
    """
    with own_draws(0):
        network = make().to(device).train()
        views = torch.randn(shape).to(device, precision.dtype, memory_format=torch.channels_last)

    def step() -> None:
        with precision.autocast():
            loss = network(views).float().square().mean()  # of logits and reconstructions alike
        network.zero_grad(set_to_none=True)
        loss.backward()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    begun = clock()
    step()
    if (first := (clock() - begun) / len(views)) < enough:
        return first
    begun, steps = clock(), 0
    while steps < 1 or clock() - begun < seconds:
        step()
        steps += 1
    return (clock() - begun) / (steps * len(views))


def expected(
    config: PretrainConfig,
    train_images: int,
    test_images: int,
    per_view: float,
    epochs_done: float = 0.0,
) -> float:
    """Return the seconds that the rest of a pretraining takes.

    Args:
        config: settings of the pretraining.
        train_images, test_images: images of each split.
        per_view: see :func:`seconds_per_view`.
        epochs_done: epochs that are finished.
    """
    epochs = config.epochs - epochs_done
    tests = -(-epochs // config.eval_every)
    images = epochs * train_images + FORWARD * tests * test_images
    return images * config.views_per_image * per_view


def forecast(trainer: Trainer, config: PretrainConfig, test_images: int) -> str | None:
    """Say how long a training on a CPU will take, and what takes less; None for a short one.

    A GPU, or processes that share the work, show it sooner than a measurement would.

    Args:
        trainer: the training, with its checkpoint loaded if there is one.
        config: its settings.
        test_images: number of test images.
    """
    loader, progress = trainer.loader, trainer.progress
    if loader.device.type != "cpu" or trainer.processes.world > 1 or config.compile not in ("auto", "none"):
        return None
    train_images, channels = loader.epoch_size, trainer.identity["in_channels"]
    done = progress.epoch + progress.step / len(loader)
    if done >= config.epochs:
        return None
    whole = expected(config, train_images, test_images, 1.0, done)

    def measure(settings: PretrainConfig, enough: float) -> float:
        def make() -> FeatureNetwork:
            return task_class(settings.pretext_task).make_network(settings, channels)

        side = settings.image_size
        shape = (VIEWS, channels, side, side)
        return seconds_per_view(
            make, shape, loader.device, trainer.settings.precision, seconds=0.5, enough=enough
        )

    seconds = whole * measure(config, WORTH_SAYING / whole)
    if seconds < WORTH_SAYING:
        return None
    said = f"about {duration(seconds)} on this CPU"
    other = shorter(config)
    if other is None or done > 0 or seconds < WORTH_A_HINT:
        return said
    short = expected(other, train_images, test_images, measure(other, 0.0))
    return f"{said}; --preset {other.preset} takes about {duration(short)}" if short < seconds / 4 else said


def shorter(config: PretrainConfig) -> PretrainConfig | None:
    """Return the settings of the preset that is meant for a CPU, on the same images; None if it is used."""
    name: PresetName = "quickstart" if config.dataset == "digits" else "cpu"
    if config.preset == name or config.model != NIN:
        return None
    return replace(
        PRESETS[name](),
        dataset=config.dataset,
        data_dir=config.data_dir,
        pretext_task=config.pretext_task,
        image_size=PRESETS[name]().image_size if config.dataset == "digits" else config.image_size,
    )

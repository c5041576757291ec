"""How good the features are while the pretraining runs: its network is evaluated between two epochs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rotnet_fast.config import PretrainConfig
from rotnet_fast.data.datasets import Dataset, check_has_classes
from rotnet_fast.data.loaders import open_dataset
from rotnet_fast.data.split import AnySplit
from rotnet_fast.engine.ambient import own_draws
from rotnet_fast.engine.precision import Precision
from rotnet_fast.errors import ArgumentError, DataError
from rotnet_fast.plain import counted
from rotnet_fast.pretext_tasks import backbone_state
from rotnet_fast.protocols.drivers import classify_pooled
from rotnet_fast.protocols.evaluation import EvaluationSetup, Subject
from rotnet_fast.protocols.pretext import streaming_of

BATCH_SIZE = 128
"""Images per step, as in `rotnet_fast.evaluate`: in other batches, features round differently."""


@dataclass(frozen=True)
class Monitor:
    """Classify by the frozen features of a network in training, as `rotnet_fast.evaluate` would.

    The network is a copy, and nothing random is drawn: a training with a monitor has the same weights, to the
    bit, as one without.

    Attributes:
        config: settings of the pretraining.
        dataset: labelled images.
        device, precision: those of the pretraining.
        module: its network where a program gave it.
    """

    config: PretrainConfig
    dataset: Dataset[AnySplit]
    device: torch.device
    precision: Precision
    module: nn.Module | None = None

    def __call__(self, state: Mapping[str, Any]) -> dict[str, float]:
        """Evaluate the network with these weights and buffers.

        Returns:
            ``knn_accuracy`` and ``linear_accuracy``, whichever is monitored, in percent of the test images.

        Raises:
            NonFiniteError: the features are not finite.
        """
        with own_draws():  # the copy's first weights, which are overwritten
            setup = EvaluationSetup(
                pretrained=backbone_state(state, self.config.pretext_task),
                config=self.config,
                in_channels=self.dataset.train.image_shape[-1],
                pad=0,
                flip_prob=0.0,
                dataset=self.dataset,
                batch_size=BATCH_SIZE,
                images_per_class=None,
                seed=0,
                device=self.device,
                precision=self.precision,
                folder=Path(),  # nothing is trained
                progress=False,
                module=self.module,
            )
            layer = setup.pretrained_network().default_layer
            subject = Subject(tuple((layer, kind) for kind in self.config.monitor or ()))
            found = classify_pooled(setup, subject)
            return {f"{kind}_accuracy": outcome.accuracy for (_, kind), outcome in found.items()}


def make_monitor(
    config: PretrainConfig,
    dataset: Dataset[AnySplit],
    device: torch.device,
    precision: Precision,
    progress: bool,
    module: nn.Module | None = None,
) -> Monitor | None:
    """Make the monitor that the settings ask for; None where they ask for none.

    Args:
        config: settings of the pretraining.
        dataset: its images, which are used unless the settings name a folder of others.
        device, precision: those of the pretraining.
        progress: whether to show how far the reading of another folder is.
        module: see `Monitor`.

    Raises:
        ArgumentError, DataError: the images have no labels, or cannot be read.
    """
    if config.monitor is None:
        return None
    labelled = dataset
    if config.monitor_data is not None:
        try:
            labelled = open_dataset(
                "folder",
                config.monitor_data,
                config.image_size,
                None,
                None,
                streaming_of(config, device),
                progress=progress,
                bad_images=config.bad_images,
            )
        except (ArgumentError, DataError) as error:  # which name the argument of the pretraining's images
            raise type(error)(str(error).replace("data-dir", "monitor-data")) from error
        channels = labelled.train.image_shape[-1]
        if channels != (seen := dataset.train.image_shape[-1]):
            raise ArgumentError(
                f"monitor-data is {config.monitor_data}, whose images have {counted(channels, 'channel')}; "
                f"those of the pretraining have {seen}: give images of the same kind"
            )
    try:
        check_has_classes(labelled)
    except DataError as error:
        raise DataError(
            f"monitor is {' '.join(config.monitor)}, which compares features by labels, but {error}; or give "
            f"a folder of labelled images with --monitor-data"
        ) from None
    return Monitor(config, labelled, device, precision, module)

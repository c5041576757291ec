"""The network and the images of a finished training, for the commands that look at them."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rotnet_fast.data.datasets import Dataset, load_dataset
from rotnet_fast.engine import checkpoint
from rotnet_fast.engine.run_folder import read_settings, run_of
from rotnet_fast.errors import CheckpointError
from rotnet_fast.models.nin import BLOCK_COUNTS, NetworkInNetwork, scaled_channels


@dataclass(frozen=True)
class Pretrained:
    """A checkpoint of a pretraining.

    Attributes:
        path: of the checkpoint's file.
        run: folder of the pretraining.
        module: state of its `NetworkInNetwork`.
        recipe: the settings that decided the result, see `rotnet_fast.config.PretrainConfig.recipe`, and
            ``in_channels``.
        epoch: epochs done.
    """

    path: Path
    run: Path
    module: Mapping[str, Any]
    recipe: Mapping[str, Any]
    epoch: int

    @property
    def rotations(self) -> tuple[int, ...]:
        """Degrees, in the order of the network's outputs."""
        return tuple(self.recipe["rotations"])

    def network(self) -> NetworkInNetwork:
        """A fresh copy of the network, on the CPU."""
        recipe = self.recipe
        network = NetworkInNetwork(
            len(self.rotations), recipe["blocks"], recipe["width"], recipe["in_channels"]
        )
        network.load_state_dict(self.module)
        return network

    def dataset(
        self,
        name: str | None = None,
        data_dir: Path | None = None,
        limit_train: int | None = None,
        limit_test: int | None = None,
    ) -> Dataset:
        """The images of the pretraining, or others of the same size.

        Args:
            name: of the data set; None for that of the pretraining, with its folder and limits where the
                other arguments do not say otherwise.
            data_dir, limit_train, limit_test: see `load_dataset`.

        Raises:
            ArgumentError: a value that cannot be used.
            DataError: the data set is missing, incomplete or damaged.
        """
        recipe = self.recipe
        display_name = None
        if name in (None, recipe["dataset"]):
            if data_dir is None:  # the very images of the pretraining, so under the same name
                settings = read_settings(self.run) or {}
                data_dir = Path(settings["data_dir"]) if settings.get("data_dir") else None
                display_name = settings.get("dataset_name")
            limit_train = limit_train or recipe["limit_train"]
            limit_test = limit_test or recipe["limit_test"]
        return load_dataset(
            name or recipe["dataset"],
            data_dir,
            recipe["image_size"],
            limit_train,
            limit_test,
            display_name=display_name,
        )


def load_pretrained(path: Path) -> Pretrained:
    """Read a checkpoint of a pretraining, and say which.

    Args:
        path: of the file, or of a run folder, whose newest whole checkpoint is taken.

    Raises:
        CheckpointError: no whole checkpoint of a pretraining.
    """
    found, state = _newest(path)
    recipe = state.get("config", {})
    if recipe.get("task") != "pretrain":
        raise CheckpointError(
            f"the checkpoint {found} is not one of a pretraining; give a run folder of "
            f"python -m rotnet_fast.pretrain"
        )
    print(f"features of {found}, after {state['epoch']} of {recipe['epochs']} epochs")
    return Pretrained(found, run_of(path), state["module"], recipe, state["epoch"])


def load_supervised(path: Path, width: float) -> NetworkInNetwork:
    """The network of a supervised training, on the CPU, such as RUN/evaluate-001/supervised.

    Its size is read off the weights.

    Args:
        path: of a checkpoint, or of a run folder, whose newest whole checkpoint is taken.
        width: multiplier of the channels to try first.

    Raises:
        CheckpointError: no whole checkpoint of a whole `NetworkInNetwork`, or one of a pretraining.
    """
    found, state = _newest(path)
    if state.get("config", {}).get("task") == "pretrain":
        raise CheckpointError(
            f"the checkpoint {found} is one of a pretraining; give a supervised training, such as the folder "
            f"supervised of an evaluation with --supervised"
        )
    network = network_from_state(state.get("module", {}), width)
    if network is None:
        raise CheckpointError(
            f"the checkpoint {found} does not hold a whole Network in Network; give a supervised training, "
            f"such as the folder supervised of an evaluation with --supervised"
        )
    return network


def network_from_state(state: Mapping[str, Any], width: float) -> NetworkInNetwork | None:
    """A network with these weights; None where they are not those of a `NetworkInNetwork`.

    Args:
        state: state dict.
        width: multiplier of the channels to try before those that the weights suggest.
    """
    names = ("conv1.0.conv.weight", "conv1.1.conv.weight", "classifier.weight")
    if not set(names) <= state.keys():
        return None
    first, second, classifier = (tuple(state[name].shape) for name in names)
    blocks = len({name.partition(".")[0] for name in state if re.match(r"conv\d\.", name)})
    if blocks not in BLOCK_COUNTS:
        return None
    for multiplier in (width, first[0] / 192, second[0] / 160):
        if (scaled_channels(192, multiplier), scaled_channels(160, multiplier)) != (first[0], second[0]):
            continue
        network = NetworkInNetwork(classifier[0], blocks, multiplier, first[1])
        try:
            network.load_state_dict(state)
        except RuntimeError:  # names or shapes that differ
            continue
        return network
    return None


def _newest(path: Path) -> tuple[Path, dict[str, Any]]:
    """Path and state of a checkpoint, with a warning for each damaged one that was passed over."""
    found, state, skipped = checkpoint.load_newest(path)
    for error in skipped:
        print(f"WARNING: {error}; taking an older one", file=sys.stderr)
    return found, state

"""The network and the images of a finished training, for the commands that look at them."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rotnet_fast.checks import CIFAR10_SIDE, check_images
from rotnet_fast.data.crop import Decoder, RandomResizedCrop
from rotnet_fast.data.datasets import Dataset, load_dataset
from rotnet_fast.data.loaders import LoaderName, Streaming, open_dataset
from rotnet_fast.data.split import AnySplit
from rotnet_fast.engine import checkpoint
from rotnet_fast.engine.run_folder import loader_of, read_settings, run_of
from rotnet_fast.errors import ArgumentError, CheckpointError
from rotnet_fast.models.build import make_network, pretrained_network
from rotnet_fast.models.network import FeatureNetwork
from rotnet_fast.models.nin import BLOCK_COUNTS, NetworkInNetwork


@dataclass(frozen=True)
class Pretrained:
    """A checkpoint of a pretraining.

    Attributes:
        path: of the checkpoint's file.
        run: folder of the pretraining.
        module: state of its network.
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

    def network(self) -> FeatureNetwork:
        """A fresh copy of the network, on the CPU.

        Raises:
            ArgumentError: its library is missing.
        """
        return pretrained_network(self.recipe, self.module)

    def dataset(
        self,
        name: str | None = None,
        data_dir: Path | None = None,
        limit_train: int | None = None,
        limit_test: int | None = None,
        bad_images: str | None = None,
    ) -> Dataset:
        """The images of the pretraining, or others of the same size, in memory.

        Args:
            name: of the data set; None for that of the pretraining, with its folder and limits where the
                other arguments do not say otherwise.
            data_dir, limit_train, limit_test: see `load_dataset`.
            bad_images: likewise; None for what the pretraining did about them.

        Raises:
            ArgumentError: a value that cannot be used.
            DataError: the data set is missing, incomplete or damaged.
        """
        return load_dataset(**self._request(name, data_dir, limit_train, limit_test, bad_images))

    def open_dataset(
        self,
        name: str | None,
        data_dir: Path | None,
        limit_train: int | None,
        limit_test: int | None,
        bad_images: str | None,
        device: torch.device,
        loader: LoaderName | None,
        progress: bool,
        check_images: str = "structure",
    ) -> Dataset[AnySplit]:
        """The same, in memory or streamed, with the crops of the pretraining.

        Args:
            device: where batches are needed.
            loader: see `rotnet_fast.data.loaders.Streaming`; None for what the pretraining used.
            progress, check_images: see `rotnet_fast.data.loaders.open_dataset`.
        """
        request = self._request(name, data_dir, limit_train, limit_test, bad_images)
        recipe = self.recipe
        crop = None
        if recipe.get("crop", "pad") == "resized" and request["name"] == "folder":
            crop = RandomResizedCrop(
                tuple(recipe.get("crop_scale", RandomResizedCrop.scale)),
                tuple(recipe.get("crop_ratio", RandomResizedCrop.ratio)),
            )
        begun = None
        if loader is None:
            loader, begun = "auto", loader_of(self.run)
        decoder: Decoder = recipe.get("decoder", "auto") if device.type == "cuda" else "auto"
        streaming = Streaming(device, loader, crop, decoder, begun)
        return open_dataset(**request, streaming=streaming, progress=progress, check_images=check_images)

    def _request(
        self,
        name: str | None,
        data_dir: Path | None,
        limit_train: int | None,
        limit_test: int | None,
        bad_images: str | None,
    ) -> dict[str, Any]:
        """Arguments of `load_dataset`."""
        recipe, settings = self.recipe, read_settings(self.run) or {}
        display_name = None
        if name in (None, recipe["dataset"]):
            if data_dir is None:  # the very images of the pretraining, so under the same name
                data_dir = Path(settings["data_dir"]) if settings.get("data_dir") else None
                display_name = settings.get("dataset_name")
            limit_train = limit_train or recipe["limit_train"]
            limit_test = limit_test or recipe["limit_test"]
        name = name or recipe["dataset"]
        check_images(name, data_dir, limit_train, limit_test)
        if name == "cifar10" and recipe["image_size"] != CIFAR10_SIDE:
            raise ArgumentError(
                f"dataset is cifar10, whose images have {CIFAR10_SIDE} pixels, and the checkpoint is of a "
                f"network for {recipe['image_size']}; give another --dataset, or another --checkpoint"
            )
        return {
            "name": name,
            "data_dir": data_dir,
            "image_size": recipe["image_size"],
            "limit_train": limit_train,
            "limit_test": limit_test,
            "bad_images": bad_images or settings.get("bad_images", "fail"),
            "display_name": display_name,
        }


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


def load_supervised(path: Path) -> FeatureNetwork:
    """The network of a supervised training, on the CPU, such as RUN/evaluate-001/supervised.

    Args:
        path: of a checkpoint, or of a run folder, whose newest whole checkpoint is taken.

    Raises:
        CheckpointError: no whole checkpoint of a whole network, or one of a pretraining.
        ArgumentError: the network's library is missing.
    """
    found, state = _newest(path)
    config, module = state.get("config", {}), state.get("module", {})
    if config.get("task") == "pretrain":
        raise CheckpointError(
            f"the checkpoint {found} is one of a pretraining; give a supervised training, such as the folder "
            f"supervised of an evaluation with --supervised"
        )
    network = _library_network(config, module) if "model" in config else network_from_state(module)
    if network is None:
        raise CheckpointError(
            f"the checkpoint {found} does not hold a whole network; give a supervised training, such as the "
            f"folder supervised of an evaluation with --supervised"
        )
    return network


def _library_network(config: Mapping[str, Any], state: Mapping[str, Any]) -> FeatureNetwork | None:
    """The network that a supervised training's settings name; None where the weights are not its."""
    network = make_network(config["num_classes"], config["in_channels"], config["model"])
    try:
        network.load_state_dict(state)
    except RuntimeError:  # names or shapes that differ: heads, say
        return None
    return network


def network_from_state(state: Mapping[str, Any]) -> NetworkInNetwork | None:
    """A network with these weights, its size read off them; None where they are no `NetworkInNetwork`'s.

    Args:
        state: state dict.
    """
    names = [f"conv1.{position}.conv.weight" for position in range(3)]
    if not {*names, "classifier.weight"} <= state.keys():
        return None
    blocks = len({name.partition(".")[0] for name in state if re.match(r"conv\d\.", name)})
    if blocks not in BLOCK_COUNTS:
        return None
    # A layer with c channels at width 1 has n, a multiple of 8, for widths from (n - 4) / c to (n + 4) / c.
    counts = list(zip((192, 160, 96), (len(state[name]) for name in names), strict=True))
    narrowest = max((found - 4) / channels for channels, found in counts)
    widest = min((found + 4) / channels for channels, found in counts)
    try:
        network = NetworkInNetwork(
            num_classes=len(state["classifier.weight"]),
            blocks=blocks,
            width=(narrowest + widest) / 2,
            in_channels=state[names[0]].shape[1],
        )
        network.load_state_dict(state)
    except (ArgumentError, RuntimeError):  # an impossible width; names or shapes that differ
        return None
    return network


def _newest(path: Path) -> tuple[Path, dict[str, Any]]:
    """Path and state of a checkpoint, with a warning for each damaged one that was passed over."""
    found, state, skipped = checkpoint.load_newest(path)
    for error in skipped:
        print(f"WARNING: {error}; taking an older one", file=sys.stderr)
    return found, state

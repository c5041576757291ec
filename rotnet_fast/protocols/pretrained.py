"""The network and the images of a finished training, for the commands that look at them."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rotnet_fast import checks
from rotnet_fast.data.crop import Decoder, RandomResizedCrop
from rotnet_fast.data.datasets import Dataset, load_dataset
from rotnet_fast.data.loaders import LoaderName, Streaming, open_dataset
from rotnet_fast.data.split import AnySplit, EncodedSplit
from rotnet_fast.engine import checkpoint
from rotnet_fast.engine.ambient import plain_torch
from rotnet_fast.engine.run_folder import loader_of, read_settings, run_of
from rotnet_fast.errors import ArgumentError, CheckpointError, DataError
from rotnet_fast.files import named
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

    def open_dataset(
        self,
        device: torch.device,
        *,
        name: str | None = None,
        data_dir: Path | None = None,
        limit_train: int | None = None,
        limit_test: int | None = None,
        bad_images: str | None = None,
        loader: LoaderName | None = None,
        progress: bool = True,
        check_images: str = "structure",
    ) -> Dataset[AnySplit]:
        """The images of the pretraining, or others of the same size, in memory or streamed, with its crops.

        Args:
            device: where batches are needed.
            name: of the data set; None for that of the pretraining, with its folder and limits where the
                other arguments do not say otherwise.
            data_dir, limit_train, limit_test: see `load_dataset`.
            bad_images: likewise; None for what the pretraining did about them.
            loader: see `rotnet_fast.data.loaders.Streaming`; None for what the pretraining used.
            progress, check_images: see `rotnet_fast.data.loaders.open_dataset`.

        Raises:
            ArgumentError: a value that cannot be used.
            DataError: the data set is missing, incomplete or damaged; or nobody named other images, and those
                that lie where the pretraining had its own are others.
        """
        recipe, settings = self.recipe, read_settings(self.run) or {}
        is_own = name in (None, recipe["dataset"]) and data_dir is None
        if name in (None, recipe["dataset"]):
            limit_train = limit_train or recipe["limit_train"]
            limit_test = limit_test or recipe["limit_test"]
        name = name or recipe["dataset"]
        if is_own:
            data_dir = self._own_folder(settings.get("data_dir"))
        checks.check_images(name, data_dir, limit_train, limit_test)
        if name == "cifar10" and recipe["image_size"] != checks.CIFAR10_SIDE:
            raise ArgumentError(
                f"dataset is cifar10, whose images have {checks.CIFAR10_SIDE} pixels, and the checkpoint is "
                f"of a network for {recipe['image_size']}; give another --dataset, or another --checkpoint"
            )
        crop = None
        if recipe.get("crop", "pad") == "resized" and name == "folder":
            crop = RandomResizedCrop(
                tuple(recipe.get("crop_scale", RandomResizedCrop.scale)),
                tuple(recipe.get("crop_ratio", RandomResizedCrop.ratio)),
            )
        begun = None
        if loader is None:
            loader, begun = "auto", loader_of(self.run)
        decoder: Decoder = recipe.get("decoder", "auto") if device.type == "cuda" else "auto"
        bad_images = bad_images or settings.get("bad_images", "fail")
        try:
            dataset = open_dataset(
                name,
                data_dir,
                recipe["image_size"],
                limit_train,
                limit_test,
                Streaming(device, loader, crop, decoder, begun),
                progress=progress,
                bad_images=bad_images,
                check_images=check_images,
                display_name=settings.get("dataset_name") if is_own else None,  # that of the very images
            )
        except ArgumentError as error:
            limits = {"limit_train": limit_train, "limit_test": limit_test}
            blamed = str(error).partition(" is ")[0]
            if is_own and blamed in limits and limits[blamed] == recipe[blamed]:  # which once were there
                raise self._others(data_dir, str(error).partition(":")[0]) from error
            raise
        if is_own:
            self._check_own(dataset, data_dir, (limit_train, limit_test), bad_images)
        return dataset

    def described(self, dataset: Dataset[AnySplit], data_dir: Path | None) -> dict[str, Any]:
        """What results say of the pretraining beside a data set that was opened from this folder."""
        recipe = self.recipe
        is_other_folder = dataset.name == "folder" and data_dir is not None
        is_same = not is_other_folder or dataset.fingerprint == recipe["data_fingerprint"]
        return {
            "epochs": self.epoch,
            "is_limited": recipe["limit_train"] is not None,
            "has_same_images": dataset.name == recipe["dataset"] and is_same,
        }

    def _own_folder(self, recorded: str | None) -> Path | None:
        """Where the pretraining had its images; None for a data set that needs no folder."""
        kind, place = self.recipe["dataset"], None if recorded is None else Path(recorded)
        if kind == "folder":
            found = f"the images of this run lay in {place}, as {self._config} says, which is not there"
            if place is None:
                found = f"where the images of this run lie is not known, as {self._config} does not say it"
            if place is None or not place.is_dir():
                raise DataError(f"{found}; give their folder with --data-dir")
        is_missing = kind == "cifar10" and place is not None and not place.exists()
        return None if is_missing else place  # the archive is the same wherever it lies

    @property
    def _config(self) -> Path:
        return self.run / "config.json"

    def _check_own(
        self, dataset: Dataset[AnySplit], data_dir: Path | None, limits: tuple[int | None, ...], bad: str
    ) -> None:
        """Make sure that images are those that the network was pretrained on.

        Args:
            dataset: what lies there now, after the limits.
            data_dir: where; None for a data set that needs no folder.
            limits: of training and test images.
            bad: what to do about damaged images.
        """
        recipe = self.recipe
        known = {name: recipe[name] for name in ("data_fingerprint", "data_contents") if name in recipe}
        is_encoded = recipe["data_fingerprint"].startswith("files:")
        own_limits = recipe["limit_train"], recipe["limit_test"]
        if limits != own_limits or is_encoded != isinstance(dataset.train, EncodedSplit):
            # Fingerprints are over what was taken of a data set, and in what form.
            dataset = load_dataset(
                recipe["dataset"],
                data_dir,
                recipe["image_size"],
                *own_limits,
                progress=False,
                bad_images=bad,
                encoded=is_encoded,
            )
        found = dataset.identity()
        for name, what in (
            ("data_fingerprint", "fingerprint"),
            ("data_contents", "digest of their contents"),
        ):
            old, new = (str(values.get(name)).removeprefix("files:")[:12] for values in (known, found))
            if old != new:
                raise self._others(data_dir, f"their {what} is {new}..., and the checkpoint's is {old}...")

    def _others(self, data_dir: Path | None, finding: str) -> DataError:
        where = "" if data_dir is None else f" in {data_dir}, where {self._config} says that they lay,"
        return DataError(
            f"the images{where} are not those of the pretraining: {finding}; restore them, or name the "
            f"images to use with --data-dir"
        )


def load_pretrained(path: Path) -> Pretrained:
    """Read a checkpoint of a pretraining, and say which.

    Args:
        path: of the file, or of a run folder, whose newest whole checkpoint is taken.

    Raises:
        CheckpointError: no whole checkpoint of a pretraining.
    """
    path = named(path)
    found, state = _newest(path)
    recipe = state.get("config", {})
    if recipe.get("task") != "pretrain":
        raise CheckpointError(
            f"the checkpoint {found} is not one of a pretraining; give a run folder of "
            f"python -m rotnet_fast.pretrain"
        )
    print(f"features of {found}, after {state['epoch']} of {recipe['epochs']} epochs")
    return Pretrained(found, run_of(path), state["module"], recipe, state["epoch"])


@plain_torch()
def load_supervised(path: Path) -> FeatureNetwork:
    """The network of a supervised training, on the CPU, such as RUN/evaluate-001/supervised.

    Args:
        path: of a checkpoint, or of a run folder, whose newest whole checkpoint is taken.

    Raises:
        CheckpointError: no whole checkpoint of a whole network, or one of a pretraining.
        ArgumentError: the network's library is missing.
    """
    found, state = _newest(named(path))
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

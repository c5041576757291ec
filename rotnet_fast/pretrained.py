"""Resolve and read pretrained networks.

One resolver serves all commands and `rotnet_fast.load_backbone`. It takes a run folder of ``python -m
rotnet_fast.pretrain``, a checkpoint or snapshot in it, a result of ``python -m rotnet_fast.export``, or the
name of a model that ships with the package. A file's contents, not its name, decide what it is.

Importing this module does not import torch.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rotnet_fast.config import PretrainConfig
from rotnet_fast.engine.ambient import own_draws, plain_torch
from rotnet_fast.engine.run_folder import candidates, read_settings, run_of
from rotnet_fast.errors import ArgumentError, CheckpointError
from rotnet_fast.files import named, open_plain
from rotnet_fast.models.names import OWN, own_name
from rotnet_fast.pretext_tasks import backbone_state

if TYPE_CHECKING:
    import torch
    from torch import nn

    from rotnet_fast.models.network import FeatureNetwork

MODEL_FILE = "model.safetensors"
"""Name of the file with the weights in an exported folder."""

SHIPPED: dict[str, str] = {
    "nin4-cifar10-jpeg": "f15aef7212906cf862dee1c331656e33df4e21f605c70335783ed74421eed601",
    "nin4-cifar10-jpeg-paper": "b1ea412587cb5b17e2e89da8cc2a0b7373a11005554be14bc71ee12658201906",
}
"""Map the name of a model that ships with the package to the SHA-256 (hexadecimal) of its file, which is
``rotnet_fast/weights/NAME.safetensors``."""

_WEIGHTS = Path(__file__).resolve().parent / "weights"


def _remedy() -> str:
    """Return what to pass as a model, as the end of a sentence."""
    return (
        "pass a run folder of python -m rotnet_fast.pretrain, a checkpoint in it, a folder of python -m "
        f"rotnet_fast.export, or the name of a model that ships with the package: {', '.join(SHIPPED)}"
    )


@dataclass(frozen=True)
class ModelPath:
    """Locate a pretrained network.

    Attributes:
        path: a run folder, or a file.
        home: default folder for the results of commands on this network.
        shipped_as: name of a model that ships with the package; None for others.
    """

    path: Path
    home: Path
    shipped_as: str | None = None


def find_model(model: str | os.PathLike[str], argument: str = "checkpoint") -> ModelPath:
    """Resolve the path of a pretrained network without reading it.

    Args:
        model: a path, or the name of a model that ships with the package. A name takes precedence.
        argument: name of the argument in error messages.

    Raises:
        ArgumentError: the path is empty.
        CheckpointError: the path does not exist, or is a folder without a model.
    """
    if isinstance(model, str) and model in SHIPPED:
        return ModelPath(_WEIGHTS / f"{model}.safetensors", Path("runs") / model, model)
    path = named(model, argument)
    if not path.exists():
        near = difflib.get_close_matches(os.fspath(model), SHIPPED, n=1)
        meant = f"did you mean {near[0]}? Otherwise {_remedy()}" if near else _remedy()
        raise CheckpointError(f"{argument} {path} does not exist; {meant}")
    if not path.is_dir():
        return ModelPath(path, run_of(path))
    if candidates(path):  # an older export may lie in the folder of a run
        return ModelPath(path, path)
    if (path / MODEL_FILE).exists():
        return ModelPath(path / MODEL_FILE, path)
    of = (read_settings(path) or {}).get("checkpoint")
    if of is not None:
        raise CheckpointError(f"{argument} {path} is an evaluation of {of}: pass that instead")
    if (path / "checkpoints").is_dir():
        raise CheckpointError(f"{argument} {path} is a run that has no checkpoint yet; {_remedy()}")
    runs = sorted(place for place in path.iterdir() if candidates(place))
    if runs:
        shown = ", ".join(map(str, runs[:3])) + (", ..." if len(runs) > 3 else "")
        raise CheckpointError(
            f"{argument} {path} is not a run folder, but contains {len(runs)}: pass {shown}"
        )
    raise CheckpointError(f"{argument} {path} contains neither {MODEL_FILE} nor checkpoints/; {_remedy()}")


@dataclass(frozen=True)
class Pretrained:
    """Hold a pretrained network and what is known about its pretraining.

    Attributes:
        path: file that the weights were read from.
        home: see `ModelPath`.
        run: run folder of the pretraining; None for an exported network.
        state: weights and buffers by name, on the CPU; without a decoder that only the pretext task needs.
        identity: everything that determined the pretraining, as plain values: the recipe, ``in_channels``,
            the fingerprint of the images, ...
        config: the recipe in ``identity``.
        epoch, step: number of finished epochs, and of steps in the next one.
        metrics: test metrics, accuracies in percent; empty within an epoch.
        images_per_epoch: number of training images; None if unknown.
        mean, std: normalisation, per channel.
        dataset_name: name of the images in results; None if not recorded here.
        module: the network, with any weights, where a program gave it and its name builds none.
    """

    path: Path
    home: Path
    run: Path | None
    state: Mapping[str, torch.Tensor]
    identity: Mapping[str, Any]
    config: PretrainConfig
    epoch: int
    step: int
    metrics: Mapping[str, float]
    images_per_epoch: int | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    dataset_name: str | None
    module: nn.Module | None = None

    @property
    def in_channels(self) -> int:
        """Return the number of channels of the images."""
        return int(self.identity["in_channels"])

    @plain_torch()
    def network(self) -> FeatureNetwork:
        """Create the network with its weights, on the CPU.

        Raises:
            CheckpointError: the weights do not match the described network.
            ArgumentError: the network's library is not installed.
        """
        from rotnet_fast.models.build import make_network

        config = self.config
        with own_draws():  # the first weights, which are overwritten
            network = make_network(
                config.outputs,
                self.in_channels,
                config.model,
                blocks=config.blocks,
                width=config.width,
                module=self.module,
                image_size=config.image_size,
            )
        if self.module is not None:
            check_weights(network, self.state, self.path)
        try:
            network.load_state_dict(self.state)
        except RuntimeError as error:
            raise undescribed(self.path, error) from error
        return network

    def metadata(self, dataset_name: str) -> dict[str, str]:
        """Return the metadata of an exported file; values that are not strings are JSON."""
        network = self.network()
        values = {
            "config": self.identity,
            "epochs": self.epoch,
            "metrics": self.metrics,
            "images_per_epoch": self.images_per_epoch,
            "layers": network.layers,
            "mean": self.mean,
            "std": self.std,
        }
        return {
            "architecture": network.name,
            "dataset_name": dataset_name,
            "state_hash": self.state_hash(),
            **{name: json.dumps(value, sort_keys=True) for name, value in values.items()},
        }

    def state_hash(self) -> str:
        """Return the hash of the state, see `rotnet_fast.engine.checkpoint.state_hash`."""
        from rotnet_fast.engine.checkpoint import state_hash

        return state_hash(self.state)


@plain_torch()
def read_pretrained(
    model: str | os.PathLike[str], argument: str = "checkpoint", module: nn.Module | None = None
) -> Pretrained:
    """Read a pretrained network; for a run folder, its newest intact checkpoint.

    Args:
        model, argument: see :func:`find_model`.
        module: see `Pretrained`.

    Raises:
        ArgumentError: the path is empty.
        CheckpointError: the path does not exist, is damaged, was not written by this package, belongs to
            another kind of training, or a module is given for a network that its name builds.
    """
    from rotnet_fast.engine import checkpoint

    found = find_model(model, argument)
    if found.shipped_as or (not found.path.is_dir() and _is_safetensors(found.path)):
        return _read_exported(found, module)
    path, state = checkpoint.load_newest(found.path)
    identity = state.get("config", {})
    if identity.get("task") != "pretrain":
        raise CheckpointError(
            f"the checkpoint {path} was not written by pretraining; pass a run folder of "
            f"python -m rotnet_fast.pretrain"
        )
    step = state.get("step", 0)  # snapshots are taken between epochs and lack the number of images
    images = state["log"]["images"] if "log" in state and state["epoch"] and not step else None
    from rotnet_fast.paper import CIFAR10_MEAN, CIFAR10_STD

    config = _config_in(identity, path)
    _check_module(module, config, path)
    return Pretrained(
        path=path,
        home=found.home,
        run=run_of(found.path),
        state=backbone_state(state["module"], config.pretext_task),
        identity=identity,
        config=config,
        epoch=state["epoch"],
        step=step,
        metrics={} if step else state["metrics"].get("test", {}),
        images_per_epoch=None if images is None else images // state["epoch"],
        mean=CIFAR10_MEAN,  # used for all data sets
        std=CIFAR10_STD,
        dataset_name=None,
        module=module,
    )


def _check_module(module: nn.Module | None, config: PretrainConfig, origin: Path) -> None:
    """Refuse a module for a network that its name builds; its absence is reported when it is needed."""
    if module is not None and not config.model.startswith(OWN):
        raise CheckpointError(
            f"model is {own_name(module)}, but {origin} holds {config.model}, which needs none: omit model"
        )


def check_weights(network: nn.Module, state: Mapping[str, torch.Tensor], origin: Path) -> None:
    """Refuse weights of another network, by the first of them that differs.

    Raises:
        CheckpointError: names or shapes differ.
    """
    here, there = (
        {name: list(tensor.shape) for name, tensor in weights.items()}
        for weights in (network.state_dict(), state)
    )
    for name in there | here:
        if here.get(name) != there.get(name):
            raise CheckpointError(
                f"{origin} holds the weights of another network than model: {name} has the shape "
                f"{there.get(name, 'of nothing')} there and {here.get(name, 'of nothing')} here; pass the "
                f"network that was trained"
            )


def _read_exported(found: ModelPath, module: nn.Module | None) -> Pretrained:
    from rotnet_fast.engine import checkpoint

    try:
        content = found.path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"cannot read {found.path}: {error.strerror or error}") from error
    if found.shipped_as is not None and hashlib.sha256(content).hexdigest() != SHIPPED[found.shipped_as]:
        raise CheckpointError(
            f"{found.path} is damaged: its SHA-256 is not that of the pretrained model {found.shipped_as}; "
            f"install rotnet_fast again"
        )
    state, metadata = checkpoint.unpack_weights(content, found.path)
    try:
        names = ("config", "epochs", "metrics", "images_per_epoch", "layers", "mean", "std")
        known = {name: json.loads(metadata[name]) for name in names}
        pretrained = Pretrained(
            path=found.path,
            home=found.home,
            run=None,
            state=state,
            identity=known["config"],
            config=_config_in(known["config"], found.path),
            epoch=known["epochs"],
            step=0,
            metrics=known["metrics"],
            images_per_epoch=known["images_per_epoch"],
            mean=tuple(known["mean"]),
            std=tuple(known["std"]),
            dataset_name=metadata["dataset_name"],
            module=module,
        )
        _check_module(module, pretrained.config, found.path)
        if known["layers"] != list(pretrained.network().layers):
            raise ValueError(f"layers {known['layers']}")
    except (KeyError, TypeError, ValueError) as error:
        raise undescribed(found.path, error) from error
    return pretrained


def _is_safetensors(path: Path) -> bool:
    """Return whether a file starts like safetensors: with the length of a JSON header, and the header."""
    try:
        with os.fdopen(open_plain(path), "rb") as file:
            return file.read(10)[8:] == b'{"'
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error


def _config_in(identity: Mapping[str, Any], origin: Path) -> PretrainConfig:
    try:
        return PretrainConfig.from_recipe(identity)
    except (KeyError, ArgumentError) as error:
        raise undescribed(origin, error) from error


def undescribed(origin: Path, error: Exception) -> CheckpointError:
    """Return the error for a file whose description is incomplete or inconsistent."""
    return CheckpointError(
        f"{origin} does not describe a network that this version of rotnet_fast can build ({error})"
    )

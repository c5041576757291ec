"""Settings of a pretraining run: what ``python -m rotnet_fast.pretrain`` takes as flags.

Importing this module does not import torch.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from rotnet_fast.checks import check_image_size, check_needs_gpu, check_seed, check_streaming
from rotnet_fast.engine.schedule import Schedule, stretched
from rotnet_fast.errors import ArgumentError, CheckpointError
from rotnet_fast.files import named, resolve_path
from rotnet_fast.rotations import FOUR_ROTATIONS, check_rotations
from rotnet_fast.settings import ImageSettings, at_least_one

PresetName = Literal["quickstart", "cpu", "slides", "paper", "official", "speedrun"]

NIN = "nin"
"""Name of the paper's network, the Network in Network."""

_OF_NIN_ALONE = ("blocks", "width", "uniform_gamma", "kernels")
"""Settings that no other network has."""

_NOT_PART_OF_THE_RECIPE = (
    "preset",
    "data_dir",
    "bad_images",
    "check_images",
    "accept_changed_data",
    "dataset_name",
    "device",
    "compile",
    "graph",
    "kernels",
    "output",
    "resume",
    "eval_every",
    "log_every",
    "checkpoint_every_steps",
    "checkpoint_every_seconds",
    "tensorboard",
    "loader",
)
"""Settings that a resumed run may change: where and how fast it runs and what it reports. The images that
``bad_images`` leaves out are part of the data's fingerprint, which a resumed run must repeat unless it is
told to ``accept_changed_data``."""

_OPTIMISATION = (
    "lr",
    "schedule",
    "milestones",
    "warmup",
    "lr_factor",
    "optimizer",
    "muon_lr",
    "nesterov",
    "weight_decay",
)

_LARGEST_PADDED_SIZE = 64


@dataclass(frozen=True)
class PretrainConfig(ImageSettings):
    """Pretrain RotNet: learn image features by predicting by how much an image was turned."""

    paths_as_text = ("resume",)

    preset: PresetName = "paper"
    """Set of values that the other flags override.
    quickstart: handwritten digits, under a minute on two cores.
    cpu: CIFAR-10 in about fifteen minutes on two cores.
    slides, paper, official: the published recipes, 100, 100 and 200 epochs.
    speedrun: another optimiser and schedule, for features like the paper's in a fraction of its epochs."""

    accept_changed_data: bool = False
    """Go on with a run although its images have changed since: some were repaired, removed or added, say.
    What has changed is listed either way."""

    image_size: int = 32
    """Height and width in pixels that the images of folder and digits are resized to."""

    loader: Literal["auto", "resident", "dali"] = "auto"
    """resident: all images decoded once and kept on the device. dali: images are read and decoded as they
    are needed, which only folders can be.
    auto: resident where the images fit into half of the free memory, or as the run began; else dali."""

    decoder: Literal["auto", "cpu", "gpu"] = "auto"
    """Where dali decodes JPEGs. cpu: to the very pixels that resident has.
    auto: on the GPU where there is one."""

    crop: Literal["auto", "pad", "resized"] = "auto"
    """pad: whole images, with --pad. resized: training images are parts of random size and place, test
    images their centres, resized to image-size; this needs dali.
    auto: pad up to 64 pixels, resized above."""

    crop_scale: tuple[float, float] = (0.08, 1.0)
    """Least and greatest area of a resized crop, as a share of the image's."""

    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Least and greatest width / height of a resized crop."""

    model: str = NIN
    """nin: the paper's Network in Network. Else the name of a classification network of torchvision, such as
    resnet18, or timm/NAME for one of timm (pip install timm); untrained, as they all are here."""

    blocks: Literal[3, 4, 5] = 4
    """Conv blocks of the Network in Network."""

    width: float = 1.0
    """Multiplies the number of channels of the Network in Network."""

    uniform_gamma: bool = False
    """Draw the Network in Network's BatchNorm scales from U(0, 1), as the released code's framework did,
    instead of 1."""

    rotations: tuple[int, ...] = FOUR_ROTATIONS
    """Whole degrees counter-clockwise: every image is shown under each of them.
    Unless all are multiples of 90, every view is the central square, turned and enlarged."""

    pad: int = 4
    """Pixels of black border that a random crop may take in; 0 switches the crop off.
    Not used where crops are resized."""

    flip_prob: float = 0.5
    """Probability of a left-right flip, before the rotations."""

    epochs: int = 100
    """Passes over the training images."""

    batch_size: int = 128
    """Images per step, over all processes; each gives one view per rotation."""

    lr: float = 0.1
    """Learning rate of the first step, or at the end of a warm-up."""

    schedule: Literal["step", "linear", "cosine"] = "step"
    """step: times lr-factor at each milestone. linear, cosine: down to 0 at the end."""

    warmup: float = 0.0
    """Epochs, whole or not, in which linear and cosine rise from 0 to lr before they fall."""

    milestones: tuple[int, ...] = (30, 60, 80)
    """Epochs after which the step schedule multiplies the learning rate."""

    lr_factor: float = 0.2
    """What the step schedule multiplies by."""

    optimizer: Literal["sgd", "muon"] = "sgd"
    """sgd: for all parameters. muon: for the filters of convolutions, with sgd for the rest; it takes steps
    that move all directions of a filter by about as much."""

    muon_lr: float = 0.05
    """Learning rate of muon, where lr is that of the rest. Both follow the schedule."""

    sync_batchnorm: bool = False
    """With several processes, normalise with the statistics of all their images together.
    Otherwise each process uses those of its own part of the batch."""

    nesterov: bool = True
    """Nesterov's form of the momentum, which is 0.9."""

    weight_decay: float = 5e-4
    """Weight decay, on all parameters."""

    seed: int = 0
    """Decides the first weights, the order of the images and their augmentation."""

    compile: Literal["auto", "none", "default", "max"] = "auto"
    """torch.compile of the network: off, on, or on with a longer search for fast kernels.
    auto: what is known to be faster on the device, which is off."""

    graph: Literal["auto", "on", "off"] = "auto"
    """Replay training steps from a CUDA graph, so that a fast GPU need not wait for the host.
    auto: on for nin on a GPU in bf16 or fp32, with one process."""

    kernels: Literal["torch", "triton-bn", "triton"] = "torch"
    """What computes the blocks of the Network in Network in training on a GPU.
    torch: separate layers. triton-bn: BatchNorm with ReLU as one. triton: those inside the 1x1 convolutions,
    too, so that normalised activations are never written. Neither of these two has run on a GPU yet."""

    output: Path | None = None
    """Run folder. None: runs/<preset>-<dataset>-seed<seed>, with the model before the seed unless it is nin,
    or what --resume names."""

    resume: str | None = None
    """Resume a run: from this checkpoint file, or the newest whole one of this run folder. Its settings are
    taken, unless a preset is named or other flags say otherwise.
    auto: the run folder of these settings; from the beginning where it has no checkpoint."""

    eval_every: int = 1
    """Test after every so many epochs, and always after the last."""

    log_every: int | None = None
    """Steps between two reports, each of which waits for the device. None: 20 on a CPU, 500 on a GPU; the end
    of an epoch is always reported."""

    checkpoint_every_steps: int | None = None
    """Save within an epoch after every so many steps, too."""

    checkpoint_every_seconds: float | None = 300.0
    """Save within an epoch when the last checkpoint is so many seconds old, too."""

    tensorboard: bool = True
    """Write TensorBoard events to the run folder."""

    def validate(self) -> None:
        """Check what the types alone do not.

        Raises:
            ArgumentError: one sentence with the setting, the value found and what is allowed.
            DataError: ``data_dir`` is no folder where one is needed.
            CheckpointError: ``resume`` names a path that does not exist, or a file that is in no run folder.
        """
        _require(
            "rotations",
            self.rotations,
            _is_rotation_set(self.rotations),
            "must be two to 64 different whole degrees, such as 0 90 180 270",
        )
        super().validate()
        at_least_one(self, "epochs", "batch_size", "eval_every", "log_every", "checkpoint_every_steps")
        seconds = self.checkpoint_every_seconds
        _require(
            "checkpoint_every_seconds", seconds, seconds is None or seconds > 0, "must be above 0, or None"
        )
        if self.model != NIN:
            for name in _OF_NIN_ALONE:
                value = getattr(self, name)
                is_default = value == self.__dataclass_fields__[name].default
                _require(name, value, is_default, f"is of model {NIN} alone: leave it out for {self.model}")
        _require("width", self.width, 0 < self.width <= 16, "must lie in (0, 16]")
        _require("pad", self.pad, 0 <= self.pad <= 32767, "must lie in [0, 32767]")
        _require("flip_prob", self.flip_prob, 0 <= self.flip_prob <= 1, "must lie in [0, 1]")
        _require("lr", self.lr, 0 < self.lr < math.inf, "must be a number above 0")
        _require("muon_lr", self.muon_lr, 0 < self.muon_lr < math.inf, "must be a number above 0")
        is_used = self.optimizer == "muon" or self.muon_lr == self.__dataclass_fields__["muon_lr"].default
        _require("muon_lr", self.muon_lr, is_used, "is of --optimizer muon alone: leave it out")
        is_possible = self.warmup == 0 or (self.schedule != "step" and 0 < self.warmup < self.epochs)
        _require(
            "warmup",
            self.warmup,
            is_possible,
            "must be 0 or, with schedule linear or cosine, above 0 and less than epochs",
        )
        _require("lr_factor", self.lr_factor, 0 < self.lr_factor < math.inf, "must be a number above 0")
        _require("weight_decay", self.weight_decay, 0 <= self.weight_decay < math.inf, "must be at least 0")
        increasing = [0, *self.milestones] == sorted({0, *self.milestones})
        _require("milestones", self.milestones, increasing, "must increase from above 0, such as 30 60 80")
        low, high = self.crop_scale
        _require(
            "crop_scale", self.crop_scale, 0 < low <= high <= 1, "must be two numbers in (0, 1], ascending"
        )
        low, high = self.crop_ratio
        _require(
            "crop_ratio",
            self.crop_ratio,
            0 < low <= high < math.inf,
            "must be two numbers above 0, ascending",
        )
        check_seed(self.seed)
        check_image_size(self.dataset, self.image_size)
        check_streaming(self.dataset, self.loader, self.is_cropped)
        self.check_needs_gpu(self.device)
        if self.resume not in (None, "auto"):
            check_resume(self.resume, self.output)

    def check_needs_gpu(self, device: str) -> None:
        """Check the settings that need a GPU.

        Args:
            device: see `rotnet_fast.checks.check_needs_gpu`.

        Raises:
            ArgumentError: one of them, for a run on the CPU.
        """
        check_needs_gpu("decoder", self.decoder, self.decoder == "gpu", device)
        check_needs_gpu("graph", self.graph, self.graph == "on", device)
        check_needs_gpu("kernels", self.kernels, self.kernels != "torch", device)

    def recipe(self) -> dict[str, Any]:
        """The settings that decide the result; a run is resumed only with the same ones."""
        values = {**asdict(self), "crop": "resized" if self.is_cropped else "pad"}
        return {name: value for name, value in values.items() if name not in _NOT_PART_OF_THE_RECIPE}

    @classmethod
    def from_recipe(cls, recipe: Mapping[str, Any], **others: Any) -> PretrainConfig:
        """Make settings of what :meth:`recipe` gave; lists may stand for tuples, as JSON has them.

        Args:
            recipe: may hold other names as well, which are passed over.
            others: settings that are no part of a recipe, or that replace some of it.

        Raises:
            KeyError: a setting is missing.
            ArgumentError: a value is not one of its setting.
        """
        names = cls.__dataclass_fields__.keys() - set(_NOT_PART_OF_THE_RECIPE)
        return cls(**{**{name: recipe[name] for name in names}, **others})

    @property
    def is_cropped(self) -> bool:
        """Whether images are crops of random size, rather than whole ones with a border."""
        if self.crop == "auto":
            return self.dataset == "folder" and self.image_size > _LARGEST_PADDED_SIZE
        return self.crop == "resized"

    def with_model(self, model: str) -> PretrainConfig:
        """These settings for a network: those of the Network in Network alone are dropped for another one."""
        if model == NIN:
            return replace(self, model=model)
        defaults: dict[str, Any] = {name: self.__dataclass_fields__[name].default for name in _OF_NIN_ALONE}
        return replace(self, model=model, **defaults)

    def stretched(self, epochs: int) -> PretrainConfig:
        """These settings for another number of epochs, with milestones and warm-up in proportion."""
        return replace(
            self,
            epochs=epochs,
            milestones=stretched(self.milestones, self.epochs, epochs),
            warmup=self.warmup * epochs / self.epochs,
        )

    def architecture(self) -> dict[str, Any]:
        """Name of the network, and its sizes where it has any."""
        sizes = {"blocks": self.blocks, "width": self.width} if self.model == NIN else {}
        return {"model": self.model, **sizes}

    def optimisation(self) -> dict[str, Any]:
        """How weights follow gradients, by the names of the settings; a supervised training takes no more."""
        return {name: getattr(self, name) for name in _OPTIMISATION}

    def schedules(self) -> tuple[Schedule, Schedule | None]:
        """Learning rates of what SGD trains, and of what Muon does; None where SGD trains everything."""

        def schedule(lr: float) -> Schedule:
            return Schedule(lr, self.schedule, self.milestones, self.lr_factor, self.epochs, self.warmup)

        return schedule(self.lr), schedule(self.muon_lr) if self.optimizer == "muon" else None

    def output_folder(self) -> Path:
        """Where the run is kept."""
        if self.output is not None:
            return resolve_path(self.output)
        if self.resume is not None and self.resume != "auto":
            path = Path(self.resume)
            return resolve_path(path.parent.parent if path.is_file() else path)
        model = "" if self.model == NIN else f"-{self.model.replace('/', '-')}"
        return resolve_path(Path("runs") / f"{self.preset}-{self.dataset}{model}-seed{self.seed}")


def check_resume(resume: str | os.PathLike[str], output: str | os.PathLike[str] | None) -> Path:
    """The run folder or checkpoint that a run is to be resumed from.

    Args:
        resume: as the user gave it.
        output: run folder; None for that of the checkpoint.

    Raises:
        ArgumentError: an empty path.
        CheckpointError: it does not exist, or is a file that belongs to no run folder.
    """
    path = named(resume, "resume")
    if not path.exists():
        raise CheckpointError(f"resume is {path}, which does not exist; give auto, or a run folder")
    if path.is_file() and path.parent.name != "checkpoints" and output is None:
        raise CheckpointError(
            f"resume is {path}, which is no file in the checkpoints/ of a run folder; give one, or the run "
            f"folder itself, or say with --output where the run is to be resumed"
        )
    return path


def _require(name: str, value: object, is_allowed: bool, rule: str) -> None:
    if not is_allowed:
        raise ArgumentError(f"{name.replace('_', '-')} is {value}; it {rule}")


def _is_rotation_set(rotations: tuple[int, ...]) -> bool:
    try:
        degrees = check_rotations(rotations)
    except (TypeError, ValueError):
        return False
    return 2 <= len(degrees) <= 64 and len(set(degrees)) == len(degrees)

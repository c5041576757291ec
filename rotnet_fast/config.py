"""Settings of a pretraining run, which are the flags of ``python -m rotnet_fast.pretrain``.

Importing this module does not import torch.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from rotnet_fast.checks import check_image_size, check_images, check_needs_gpu, check_seed, check_streaming
from rotnet_fast.errors import ArgumentError, CheckpointError
from rotnet_fast.files import named, resolve_path
from rotnet_fast.pretext_tasks import PRETEXT_TASKS, ROTATION, PretextTaskName
from rotnet_fast.rotations import FOUR_ROTATIONS, check_rotations
from rotnet_fast.settings import ImageSettings, Optimisation, at_least_one, require

PresetName = Literal["quickstart", "cpu", "slides", "paper", "official", "speedrun"]

NIN = "nin"
"""Name of the paper's network, the Network in Network."""

_NIN_ONLY = ("blocks", "width", "uniform_gamma")
"""Settings that only apply to the Network in Network."""

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
    "output",
    "resume",
    "eval_every",
    "log_every",
    "checkpoint_every_steps",
    "checkpoint_every_seconds",
    "tensorboard",
    "loader",
    "monitor",
    "monitor_every",
    "monitor_data",
    "init_from",
)
"""Settings that a resumed run may change: where and how fast it runs, and what it reports. The images that
``bad_images`` skips change the data's fingerprint, which must be the same in a resumed run unless
``accept_changed_data`` is set."""

_PARTICULAR: dict[str, Any] = {"pretext_task": ROTATION, "muon_weight_decay": None}
"""Settings that only the recipes name in which they have another value."""

_LARGEST_PADDED_SIZE = 64


@dataclass(frozen=True)
class PretrainConfig(ImageSettings, Optimisation):
    """Pretrain RotNet: learn image features by predicting the rotation of each image."""

    examples = (
        "--preset quickstart",
        "--preset cpu --data-dir FOLDER",
        "--dataset folder --data-dir PHOTOS --image-size 224 --model resnet18",
        "--resume runs/quickstart-digits-seed0",
    )
    paths_as_text = ("resume", "init_from")

    preset: PresetName = "paper"
    """Defaults that the other flags override.
    quickstart: handwritten digits, under a minute on two cores.
    cpu: CIFAR-10 in about fifteen minutes on two cores.
    slides, paper, official: the published recipes with 100, 100 and 200 epochs.
    speedrun: Muon and a linear decay over 30 epochs; not yet compared with paper at full size."""

    accept_changed_data: bool = False
    """Resume a run even though its images have changed, for example because some were repaired, removed or
    added. The changes are listed either way."""

    image_size: int = 32
    """Height and width in pixels that the images of folder and digits are resized to."""

    loader: Literal["auto", "resident", "dali"] = "auto"
    """resident: decode all images once and keep them on the device. dali: read and decode images as they
    are needed; requires --dataset folder.
    auto: resident if the images fit into half of the free memory, else dali; a resumed run keeps its own."""

    decoder: Literal["auto", "cpu", "gpu"] = "auto"
    """Where dali decodes JPEGs. cpu: to exactly the same pixels as resident.
    auto: on the GPU if there is one."""

    crop: Literal["auto", "pad", "resized"] = "auto"
    """pad: whole images, with --pad. resized: random resized crops of training images and centre crops of
    test images, resized to image-size; requires dali.
    auto: pad up to 64 pixels, resized above."""

    crop_scale: tuple[float, float] = (0.08, 1.0)
    """Minimum and maximum area of a resized crop, as a fraction of the image's."""

    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Minimum and maximum width / height of a resized crop."""

    model: str = NIN
    """nin: the paper's Network in Network. Otherwise the name of a torchvision classification network, such
    as resnet18, or timm/NAME for one of timm (pip install timm). All networks start untrained."""

    blocks: Literal[3, 4, 5] = 4
    """Conv blocks of the Network in Network."""

    width: float = 1.0
    """Multiplier of the number of channels of the Network in Network."""

    uniform_gamma: bool = False
    """Initialise the Network in Network's BatchNorm scales from U(0, 1), as the released code's framework
    did, instead of 1."""

    pretext_task: PretextTaskName = ROTATION
    """What the network has to find out about an image without a label.
    rotation: by how much it was rotated, as in RotNet. jigsaw: in which of 24 orders its quarters were put
    together. autoencoder: the pixels, by a decoder that is left out afterwards; a baseline, for nin alone."""

    rotations: tuple[int, ...] = FOUR_ROTATIONS
    """Rotations of every image, in integer degrees counter-clockwise.
    Unless all are multiples of 90, every view is the central square, rotated and enlarged."""

    pad: int = 4
    """Pixels of black border that a random crop may include; 0 disables the crop.
    Not used with resized crops, nor by jigsaw, to which a border would show which tile is an outer one."""

    flip_prob: float = 0.5
    """Probability of a left-right flip before the rotations."""

    batch_size: int = 128
    """Images per step over all processes; each image gives one view per rotation."""

    milestones: tuple[int, ...] = (30, 60, 80)
    """Epochs after which the step schedule multiplies the learning rate."""

    init_from: str | None = None
    """Start from the weights of this model instead of random ones: a run folder, a checkpoint, an exported
    folder, or the name of a model that ships with the package, of the same network. With other rotations or
    another pretext task, the last layer starts from random weights. None: random weights."""

    sync_batchnorm: bool = False
    """With several processes, normalise with the statistics over all of their images.
    Otherwise each process uses those of its own batch share."""

    seed: int = 0
    """Seed of the initial weights, the order of the images and their augmentation."""

    compile: Literal["auto", "none", "default", "max"] = "auto"
    """Whether to torch.compile the network: off, on, or on with a longer search for fast kernels.
    auto: default for nin on a GPU in bf16 with one process, from 10,000 steps on; else none."""

    graph: Literal["auto", "on", "off"] = "auto"
    """Replay training steps from a CUDA graph, so that a fast GPU does not wait for the host.
    auto: on for nin on a GPU in bf16 or fp32 with one process."""

    output: Path | None = None
    """Run folder. None: the folder that --resume names, or runs/<preset>-<dataset>-seed<seed>, with the model
    before the seed unless it is nin, and the pretext task unless it is rotation."""

    resume: str | None = None
    """Resume a run from this checkpoint file, or from the newest intact one of this run folder. Its settings
    are used; other flags override them, and --preset replaces all of them.
    auto: resume from the run folder of these settings, or start a new run if it has no checkpoint."""

    eval_every: int = 1
    """Epochs between tests; the last epoch is always tested."""

    monitor: tuple[Literal["knn", "linear"], ...] | None = None
    """Between epochs, classify objects by the frozen features of conv2 (another network's default layer), as
    rotnet_fast.evaluate does with --knn and --linear, and keep the checkpoint of the best epoch. The training
    remains the same to the bit. None: do not."""

    monitor_every: int | None = None
    """Epochs between two of these evaluations; there is always one after the last epoch. None: a tenth of the
    epochs, and two at least."""

    monitor_data: Path | None = None
    """Folder of labelled images to classify, with class folders. None: the images of the pretraining."""

    log_every: int | None = None
    """Steps between reports, each of which waits for the device. None: 20 on a CPU, 500 on a GPU. The end of
    an epoch is always reported."""

    checkpoint_every_steps: int | None = None
    """Steps between additional checkpoints within an epoch."""

    checkpoint_every_seconds: float | None = 300.0
    """Seconds since the last checkpoint after which to save another one within an epoch."""

    tensorboard: bool = True
    """Write TensorBoard events to the run folder."""

    def validate(self) -> None:
        """Check the values of the settings, beyond their types.

        Raises:
            ArgumentError: a setting has an invalid value.
            DataError: ``data_dir`` is needed, but is not a folder.
            CheckpointError: ``resume`` is a path that does not exist, or a file outside a run folder.
        """
        require(
            self,
            "rotations",
            _is_rotation_set(self.rotations),
            "must be 2 to 64 different integer degrees, such as 0 90 180 270",
        )
        super().validate()
        at_least_one(self, "batch_size", "eval_every", "log_every", "checkpoint_every_steps", "monitor_every")
        kinds = self.monitor
        if kinds is not None and not 0 < len(kinds) == len(set(kinds)):
            raise ArgumentError(f"monitor is {' '.join(kinds) or 'empty'}; give knn, linear, or both")
        for name in ("monitor_every", "monitor_data"):
            is_used = kinds is not None or getattr(self, name) is None
            require(self, name, is_used, "only applies with --monitor: add --monitor knn, or remove it")
        if self.monitor_data is not None:
            check_images("folder", self.monitor_data, None, None, argument="monitor-data")
        seconds = self.checkpoint_every_seconds
        require(self, "checkpoint_every_seconds", seconds is None or seconds > 0, "must be above 0, or None")
        self._check_pretext_task()
        if self.model != NIN:
            for name in _NIN_ONLY:
                is_default = getattr(self, name) == self.__dataclass_fields__[name].default
                require(self, name, is_default, f"only applies to --model {NIN}: remove it")
        require(self, "width", 0 < self.width <= 16, "must lie in (0, 16]")
        require(self, "pad", 0 <= self.pad <= 32767, "must lie in [0, 32767]")
        require(self, "flip_prob", 0 <= self.flip_prob <= 1, "must lie in [0, 1]")
        low, high = self.crop_scale
        require(self, "crop_scale", 0 < low <= high <= 1, "must be two numbers in (0, 1], ascending")
        low, high = self.crop_ratio
        require(self, "crop_ratio", 0 < low <= high < math.inf, "must be two numbers above 0, ascending")
        check_seed(self.seed)
        check_image_size(self.dataset, self.image_size)
        check_streaming(self.dataset, self.loader, self.is_cropped)
        self.check_needs_gpu(self.device)
        # The folder may lie only on the machine of rank 0.
        if self.resume not in (None, "auto") and os.environ.get("RANK", "0") == "0":
            check_resume(self.resume, self.output)

    def _check_pretext_task(self) -> None:
        task, name = PRETEXT_TASKS[self.pretext_task], self.pretext_task
        if task.has_decoder and self.model != NIN:
            raise ArgumentError(
                f"pretext-task {name} only applies to --model {NIN}, and model is {self.model}; choose "
                f"another pretext task or network"
            )
        if name != ROTATION and self.rotations != FOUR_ROTATIONS:
            raise ArgumentError(
                f"rotations is {' '.join(map(str, self.rotations))}, but pretext-task is {name}, which "
                f"rotates nothing: remove one of them"
            )
        if self.image_size % task.side_multiple:
            raise ArgumentError(
                f"image-size is {self.image_size}; with pretext-task {name} it must be a multiple of "
                f"{task.side_multiple}"
            )

    def check_needs_gpu(self, device: str) -> None:
        """Check the settings that need a GPU.

        Args:
            device: see `rotnet_fast.checks.check_needs_gpu`.

        Raises:
            ArgumentError: a setting needs a GPU, but the run uses the CPU.
        """
        check_needs_gpu("decoder", self.decoder, self.decoder == "gpu", device)
        check_needs_gpu("graph", self.graph, self.graph == "on", device)

    def recipe(self) -> dict[str, Any]:
        """Return the settings that determine the result, which a resumed run must not change.

        What is particular to other recipes than RotNet's own is only named in those.
        """
        values = {**asdict(self), "crop": "resized" if self.is_cropped else "pad"}
        left_out = {name for name, usual in _PARTICULAR.items() if values[name] == usual}
        return {
            name: value
            for name, value in values.items()
            if name not in left_out and name not in _NOT_PART_OF_THE_RECIPE
        }

    @classmethod
    def from_recipe(cls, recipe: Mapping[str, Any], **others: Any) -> PretrainConfig:
        """Create settings from what :meth:`recipe` returned; tuples may be lists, as in JSON.

        Args:
            recipe: the recipe; other names in it are ignored.
            others: settings that are not part of a recipe, or that override it.

        Raises:
            KeyError: a setting is missing.
            ArgumentError: a setting has an invalid value.
        """
        names = cls.__dataclass_fields__.keys() - _PARTICULAR.keys() - set(_NOT_PART_OF_THE_RECIPE)
        particular = {name: recipe.get(name, usual) for name, usual in _PARTICULAR.items()}
        return cls(**{**particular, **{name: recipe[name] for name in names}, **others})

    @property
    def outputs(self) -> int:
        """Number of the network's outputs: K rotations, or the classes of another pretext task."""
        outputs = PRETEXT_TASKS[self.pretext_task].outputs
        return len(self.rotations) if outputs is None else outputs

    @property
    def views_per_image(self) -> int:
        """Number of views of each image in a step."""
        views = PRETEXT_TASKS[self.pretext_task].views
        return len(self.rotations) if views is None else views

    @property
    def is_cropped(self) -> bool:
        """Return whether images are random resized crops instead of whole images with a border."""
        if self.crop == "auto":
            return self.dataset == "folder" and self.image_size > _LARGEST_PADDED_SIZE
        return self.crop == "resized"

    def with_model(self, model: str) -> PretrainConfig:
        """Return these settings for another network, without those that only apply to the old one."""
        if model == NIN:
            return replace(self, model=model)
        defaults: dict[str, Any] = {name: self.__dataclass_fields__[name].default for name in _NIN_ONLY}
        return replace(self, model=model, **defaults)

    def architecture(self) -> dict[str, Any]:
        """Name of the network, and its sizes where it has any."""
        sizes = {"blocks": self.blocks, "width": self.width} if self.model == NIN else {}
        return {"model": self.model, **sizes}

    def output_folder(self) -> Path:
        """Return the run folder."""
        if self.output is not None:
            return resolve_path(self.output)
        if self.resume is not None and self.resume != "auto":
            path = Path(self.resume)
            return resolve_path(path.parent.parent if path.is_file() else path)
        model = "" if self.model == NIN else f"-{self.model.replace('/', '-')}"
        task = "" if self.pretext_task == ROTATION else f"-{self.pretext_task}"
        return resolve_path(Path("runs") / f"{self.preset}-{self.dataset}{model}{task}-seed{self.seed}")


def check_resume(resume: str | os.PathLike[str], output: str | os.PathLike[str] | None) -> Path:
    """Check and return the run folder or checkpoint to resume from.

    Args:
        resume: the path as given by the user.
        output: run folder; None for that of the checkpoint.

    Raises:
        ArgumentError: the path is empty.
        CheckpointError: the path does not exist, or is a file outside a run folder.
    """
    path = named(resume, "resume")
    if not path.exists():
        raise CheckpointError(f"resume is {path}, which does not exist; pass auto, or a run folder")
    if path.is_file() and path.parent.name != "checkpoints" and output is None:
        raise CheckpointError(
            f"resume is {path}, which is not in the checkpoints/ of a run folder; pass such a file or the "
            f"run folder itself, or choose the folder of the resumed run with --output"
        )
    return path


def _is_rotation_set(rotations: tuple[int, ...]) -> bool:
    try:
        degrees = check_rotations(rotations)
    except (TypeError, ValueError):
        return False
    return 2 <= len(degrees) <= 64 and len(set(degrees)) == len(degrees)

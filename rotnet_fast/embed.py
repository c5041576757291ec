"""Compute features of every image under a folder: ``python -m rotnet_fast.embed --checkpoint MODEL --data-dir
PHOTOS --output features.npz [flags]``.

A .npz file holds the arrays ``names`` (N paths below the folder, with /, sorted), ``vectors`` (float32
[N,D], as `rotnet_fast.backbone.Backbone` returns them), ``rotation_probabilities`` (float32 [N,K]),
``rotations`` (int64 [K], degrees), ``layer``, ``metadata`` (a JSON text) and, where images lie in class
folders, ``labels`` (int64 [N], -1 for none) and ``classes``. A .csv file has the columns name, label and
class, LAYER_0, LAYER_1 ... and rotation_0, rotation_90 ...; its metadata is in FILE.csv.json.

A network with another pretext task than RotNet's has neither probabilities nor rotations.

An interrupted command resumes when it is given again; until the end, its parts lie in OUTPUT.parts.

Exit codes: see `rotnet_fast.command`. torch is imported only once the flags are known to be right.
"""

from __future__ import annotations

import itertools
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import rotnet_fast
from rotnet_fast.checks import check_device, check_folder
from rotnet_fast.command import announce, run_command
from rotnet_fast.engine.ambient import plain_torch
from rotnet_fast.engine.run_folder import check_output
from rotnet_fast.engine.signals import Interrupted, StopSignals
from rotnet_fast.errors import ArgumentError, CannotWriteError, DataError, printable
from rotnet_fast.files import ensure_folder, resolve_path
from rotnet_fast.flags import parse_flags
from rotnet_fast.next_steps import print_next
from rotnet_fast.plain import counted
from rotnet_fast.pretrained import find_model, read_pretrained
from rotnet_fast.progress import CountingLine
from rotnet_fast.settings import Settings, at_least_one

if TYPE_CHECKING:
    from rotnet_fast.backbone import Backbone
    from rotnet_fast.data.every_image import EveryImage
    from rotnet_fast.feature_files import Parts

PROGRAM = "python -m rotnet_fast.embed"
SUFFIXES = (".npz", ".csv")

PART_BYTES = 1 << 26
"""Bytes of decoded images that are lost at most when a process is killed, unless one batch has more."""


@dataclass(frozen=True)
class EmbedConfig(Settings):
    """Write features and rotation probabilities of every image under a folder."""

    examples = (
        "--checkpoint nin4-cifar10-jpeg --data-dir PHOTOS --output features.npz",
        "--checkpoint runs/my-run --data-dir PHOTOS --output features.csv --layer conv3",
    )
    paths_as_text = ("checkpoint",)
    positional = "checkpoint"

    checkpoint: str
    """Run folder of a pretraining (its newest checkpoint is used), a checkpoint file, an exported folder, or
    the name of a model that ships with the package."""

    data_dir: Path
    """Folder of the images. All images in it and its subfolders are used, sorted by path. If there are none,
    those in .tar shards."""

    output: Path
    """File to write, which ends in .npz or .csv. The same command resumes an interrupted one."""

    layer: str | None = None
    """Feature map whose means over place are the vectors, such as conv3, or layer3 of resnet18. None: conv2
    of nin, or the last map of the second-to-last stage of other networks."""

    batch_size: int = 256
    """Images per forward pass."""

    device: str = "auto"
    """Device: auto (a CUDA device if there is one), cpu, cuda, cuda:N or mps."""

    loader: Literal["auto", "resident", "dali"] = "auto"
    """What decodes the images, to the same pixels and a few batches at a time. resident: Pillow.
    dali: NVIDIA DALI. auto: dali if it is installed and the network was pretrained on resized crops, else
    resident."""

    bad_images: Literal["fail", "skip"] = "fail"
    """How to treat damaged images.
    fail: stop and name them. skip: skip and list them, if they are at most one in a thousand."""

    check_images: Literal["structure", "decode"] = "structure"
    """How thoroughly to check the images first; each is checked once, see rotnet_fast.pretrain."""

    def validate(self) -> None:
        """Check the values of the settings, beyond their types.

        Raises:
            ArgumentError: a setting has an invalid value.
            CheckpointError: the checkpoint's path does not exist.
            DataError: the folder of the images does not exist.
        """
        super().validate()
        check_device(self.device)
        at_least_one(self, "batch_size")
        if self.output.suffix not in SUFFIXES:
            raise ArgumentError(f"output is {self.output}; its name must end in {' or '.join(SUFFIXES)}")
        find_model(self.checkpoint)
        check_folder(self.data_dir, "a folder of images")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)

    def command() -> None:
        config = parse_flags(EmbedConfig, PROGRAM, arguments)
        config.validate()
        announce(f"embedding the images of {config.data_dir}")
        try:
            metadata = embed(config)
        except Interrupted:
            if config.output.with_name(f"{config.output.name}.parts").exists():
                print(f"saved; resume with: {PROGRAM} {shlex.join(arguments)}", file=sys.stderr)
            raise
        print_next(next_steps(config, metadata), "in Python")

    return run_command(command)


def next_steps(config: EmbedConfig, metadata: dict[str, Any]) -> list[str]:
    """Return the lines of Python that use the features: of a classifier, if there are classes."""
    name = str(config.output)
    if config.output.suffix == ".csv":
        return [
            "import csv",
            f"rows = list(csv.DictReader(open({name!r}, newline='', encoding='utf-8')))",
            f"print(len(rows), rows[0]['name'], rows[0]['{metadata['layer']}_0'])",
        ]
    load = f"import numpy; features = numpy.load({name!r})"
    if metadata["classes"]:
        return [
            load,
            "from sklearn.neighbors import KNeighborsClassifier",
            "KNeighborsClassifier(1).fit(features['vectors'], features['labels'])",
        ]
    return [load, "print(features['names'][:3], features['vectors'].shape)"]


def embed(config: EmbedConfig) -> dict[str, Any]:
    """Compute the features, or what is missing of them, and write the file.

    Returns:
        The metadata: ``model``, ``digest`` of its weights, ``layer``, ``image_size``, ``is_cropped``,
        ``rotations``, ``batch_size``, ``device``, ``rotnet_fast`` (the version), ``images`` (their digest)
        and ``classes``.

    Raises:
        ArgumentError: a setting is invalid, or the output belongs to other settings.
        DataError: the folder holds no images or damaged ones, or they have changed since an interruption.
        CheckpointError: the network cannot be read.
        CannotWriteError: a file cannot be written.
        Interrupted: stopped by a signal, with everything saved.
    """
    config.validate()
    output = resolve_path(config.output)
    if output.is_dir():
        raise CannotWriteError(f"cannot write {output}: it is a folder; choose a file with --output")
    check_output(output.parent)
    with StopSignals() as stop:
        return _embed(config, output, stop)


@plain_torch()
def _embed(config: EmbedConfig, output: Path, stop: StopSignals) -> dict[str, Any]:
    """Do the work of :func:`embed` for an output that was checked."""
    with stop.interruptible():
        import torch

        from rotnet_fast.backbone import backbone_of
        from rotnet_fast.data.every_image import open_every_image
        from rotnet_fast.engine.precision import working_device
        from rotnet_fast.feature_files import Parts, differences, images_digest, read_metadata

        device = working_device(config.device)
        # A resumed run has to choose the same algorithms as the interrupted one.
        torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = False, True
        pretrained = read_pretrained(config.checkpoint)
        recipe = pretrained.config
        if pretrained.in_channels != 3:
            raise ArgumentError(
                f"checkpoint {config.checkpoint} is of a network for images of "
                f"{counted(pretrained.in_channels, 'channel')}, but files are decoded to 3; choose another"
            )
        print(
            f"features of {pretrained.path}, after {pretrained.epoch} of {counted(recipe.epochs, 'epoch')}",
            flush=True,
        )
        backbone = backbone_of(pretrained).to(device)
        if not backbone.rotations:
            print(f"without rotation probabilities: pretext task {recipe.pretext_task}", flush=True)
        layer = backbone.network.default_layer if config.layer is None else config.layer
        backbone.network.check_layers([layer])
        metadata: dict[str, Any] = {
            "model": find_model(config.checkpoint).shipped_as or str(config.checkpoint),
            "digest": backbone.metadata["state_hash"],
            "layer": layer,
            "image_size": backbone.image_size,
            "is_cropped": backbone.is_cropped,
            "rotations": list(backbone.rotations),
            "batch_size": config.batch_size,
            "device": device.type,
            "rotnet_fast": rotnet_fast.__version__,
        }
        before = read_metadata(output)
        if before is not None and (found := differences(before, metadata)):
            raise ArgumentError(
                f"output {output} holds features of other settings: {found}; remove it, or choose another "
                f"file with --output"
            )
        parts = Parts(output, metadata)
        images = open_every_image(
            config.data_dir, backbone.image_size, bad_images=config.bad_images, check=config.check_images
        )
        print(printable(f"data: {images.summary()}"), flush=True)
        metadata |= {"images": images_digest(images.files), "classes": list(images.classes)}
    if before is not None:
        if before.get("images") != metadata["images"]:
            raise ArgumentError(
                f"output {output} holds features of other images than those in {config.data_dir} now; "
                f"remove it, or choose another file with --output"
            )
        print(f"{output} is complete already")
        parts.remove()
        return metadata
    ensure_folder(output.parent)
    try:
        parts.claim(images.files)
        count = _compute(config, backbone, layer, images, parts, stop)
        with stop.interruptible():
            _write(output, metadata, images, parts, count)
        parts.remove()
    finally:
        parts.close()
    print(f"written: {output}")
    return metadata


def _compute(
    config: EmbedConfig, backbone: Backbone, layer: str, images: EveryImage, parts: Parts, stop: StopSignals
) -> int:
    """Compute the parts that are missing, and return the number of all parts."""
    import torch

    from rotnet_fast.data.decode import FIND_ALL, UndecodableError
    from rotnet_fast.data.every_image import decoded_batches

    batch_size, side = config.batch_size, backbone.image_size
    batches_per_part = max(1, PART_BYTES // (batch_size * side * side * 3))
    images_per_part = batches_per_part * batch_size
    count, finished = -(-len(images) // images_per_part), parts.finished()
    done = min(finished * images_per_part, len(images))
    if done:
        print(f"resuming: {done:,} of {counted(len(images), 'image')} are done", flush=True)
    batches = decoded_batches(
        images.files,
        batch_size,
        _loader(config.loader, backbone.is_cropped),
        is_cropped=backbone.is_cropped,
        start_batch=finished * batches_per_part,
    )
    try:
        with CountingLine("embedding", len(images), "images", True, done=done) as line:
            for number in range(finished, count):
                rows = []
                with stop.interruptible():
                    for batch in itertools.islice(batches, batches_per_part):
                        both = backbone.vectors_and_rotations(batch, layer)
                        rows.append(torch.cat(both, dim=1).cpu())
                        line.count(len(batch))
                parts.write(number, torch.cat(rows).numpy())
    except UndecodableError as error:
        raise DataError(f"{error}. {FIND_ALL}") from error
    return count


def _write(output: Path, metadata: dict[str, Any], images: EveryImage, parts: Parts, count: int) -> None:
    from rotnet_fast.feature_files import Description, write_table

    names = [images.name(number) for number in range(len(images))]
    description = Description(metadata, names, images.classes, images.files.labels.numpy())
    write_table(output, description, parts, count)


def _loader(wanted: str, is_cropped: bool) -> Literal["resident", "dali"]:
    """Choose what decodes the images."""
    import torch

    from rotnet_fast.data.dali import require_dali

    if wanted == "resident" or (wanted == "auto" and not is_cropped):
        return "resident"  # whole images that are resized are decoded by Pillow with either loader
    try:
        require_dali(torch.device("cpu"))
    except ArgumentError:
        if wanted == "dali":
            raise
        return "resident"
    return "dali"


if __name__ == "__main__":
    sys.exit(main())

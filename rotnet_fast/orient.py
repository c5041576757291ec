"""Find photos that are not upright: ``python -m rotnet_fast.orient --checkpoint MODEL --data-dir PHOTOS``.

Writes for each image under a folder by how much it is turned and with what confidence, and with ``--apply``
upright copies. ``--evaluate`` measures on photos that are all upright how often a model errs.

Exit codes: see `rotnet_fast.command`. torch is only imported once the flags are known to be valid.
"""

from __future__ import annotations

import csv
import io
import os
import shutil
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from rotnet_fast.checks import check_device, check_folder
from rotnet_fast.command import announce, run_command
from rotnet_fast.engine.ambient import plain_torch
from rotnet_fast.engine.run_folder import check_output
from rotnet_fast.errors import ArgumentError, CheckpointError, DataError, printable
from rotnet_fast.files import cannot_write, make_folder, replacing, resolve_path, write_atomically
from rotnet_fast.flags import parse_flags
from rotnet_fast.next_steps import look_at, print_next, shell
from rotnet_fast.plain import counted
from rotnet_fast.pretext_tasks import ROTATION
from rotnet_fast.pretrained import Pretrained, find_model, read_pretrained
from rotnet_fast.progress import CountingLine
from rotnet_fast.rotations import FOUR_ROTATIONS
from rotnet_fast.settings import Settings, at_least_one, require

if TYPE_CHECKING:
    import torch

    from rotnet_fast.analysis.orientation import Point
    from rotnet_fast.data.every_image import EveryImage
    from rotnet_fast.data.source import ImageSource

PROGRAM = "python -m rotnet_fast.orient"
COLUMNS = ("file", "degrees_counter_clockwise", "confidence", "decision", "copy")
"""Columns of the CSV file, see docs/upright.md."""
MEASURES = ("min_confidence", "coverage", "error", "decided", "wrong", "judged")
"""Columns of the CSV file of --evaluate."""
UPRIGHT, TURNED, DOUBTFUL = "upright", "turned", "doubtful"
"""Decisions about an image."""


@dataclass(frozen=True)
class OrientConfig(Settings):
    """Find out by how much photos are turned, and write upright copies."""

    examples = (
        "--checkpoint MODEL --data-dir PHOTOS",
        "--checkpoint MODEL --data-dir PHOTOS --apply UPRIGHT --min-confidence 0.95",
        "--checkpoint nin4-cifar10-jpeg --data-dir UPRIGHT-TEST-PHOTOS --evaluate",
    )
    paths_as_text = ("checkpoint",)
    positional = "checkpoint"

    checkpoint: str
    """Run folder of a pretraining (its newest checkpoint is used), a checkpoint file, an exported folder, or
    the name of a model that ships with the package. It must have learned the rotations 0 90 180 270."""

    data_dir: Path
    """Folder of the photos. All images in it and its subfolders are used, sorted by path."""

    output: Path | None = None
    """CSV file to write. None: orientations.csv, or orientation-coverage.csv with --evaluate."""

    apply: Path | None = None
    """Folder for upright copies of all photos, with the same relative paths. The photos themselves stay as
    they are; what cannot be turned without loss is copied unchanged. The same command resumes an
    interrupted one."""

    min_confidence: float = 0.0
    """Leave photos alone whose confidence, a probability in [0, 1], is lower."""

    average: bool = True
    """Show each photo to the network in all four positions and average what it says, which errs less and
    takes four times as long."""

    evaluate: bool = False
    """Take all photos for upright, turn each in all four ways (and compress turned JPEGs again, as those that
    lie on their side were), and say for several values of --min-confidence which share is decided on, and how
    many of the decisions are wrong."""

    bad_images: Literal["fail", "skip"] = "fail"
    """How to treat damaged images.
    fail: stop and name them. skip: skip and list them, if they are at most one in a thousand."""

    check_images: Literal["structure", "decode"] = "structure"
    """How thoroughly to check the images first; each is checked once, see rotnet_fast.pretrain."""

    batch_size: int = 64
    """Photos per forward pass, in one or four positions each."""

    device: str = "auto"
    """Device: auto (a CUDA device if there is one), cpu, cuda, cuda:N or mps."""

    def validate(self) -> None:
        """Check the values of the settings, beyond their types.

        Raises:
            ArgumentError: a setting has an invalid value.
            CannotWriteError: the output cannot be written.
            CheckpointError: the checkpoint's path does not exist.
            DataError: the folder of the photos does not exist.
        """
        super().validate()
        check_device(self.device)
        at_least_one(self, "batch_size")
        require(self, "min_confidence", 0 <= self.min_confidence <= 1, "must lie in [0, 1]")
        find_model(self.checkpoint)
        check_folder(self.data_dir, "a folder of images")
        output = self.output_file()
        check_output(output.parent)
        _check_replaceable(output, self.evaluate)
        if self.apply is None:
            return
        if self.evaluate:
            raise ArgumentError(f"apply is {self.apply}, but --evaluate only measures; remove one of them")
        _check_apart(self.data_dir, self.apply)
        check_output(resolve_path(self.apply), "apply")

    def output_file(self) -> Path:
        """Return the CSV file to write."""
        default = "orientation-coverage.csv" if self.evaluate else "orientations.csv"
        output = Path(default) if self.output is None else self.output
        return resolve_path(output.parent) / output.name


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)

    def command() -> None:
        config = parse_flags(OrientConfig, PROGRAM, arguments)
        config.validate()
        if config.evaluate:
            announce(f"turning the images of {config.data_dir} in all four ways")
            print_next(evaluation_steps(evaluate(config)))
        else:
            announce(f"finding out how the images of {config.data_dir} are turned")
            print_next(next_steps(config, arguments, orient(config)))

    return run_command(command)


def next_steps(config: OrientConfig, arguments: Sequence[str], found: Found) -> list[str]:
    """Return what to do after :func:`orient`.

    Args:
        config: its settings.
        arguments: the flags that it was given.
        found: its result.
    """
    if config.apply is not None:
        return [look_at(config.apply)]
    if not found.decisions[TURNED]:
        return []
    photos = Path(os.path.abspath(config.data_dir))
    return [shell("orient", *arguments, "--apply", photos.with_name(f"{photos.name}-upright"))]


def evaluation_steps(measured: Measured) -> list[str]:
    """Return what to do after :func:`evaluate`."""
    return [look_at(measured.figure)]


class Found(NamedTuple):
    """Count what :func:`orient` found.

    Attributes:
        decisions: number of images by decision.
        unchanged: number of images that are turned but could only be copied, by the reason.
    """

    decisions: Counter[str]
    unchanged: Counter[str]


def orient(config: OrientConfig) -> Found:
    """Decide for each image by how much it is turned, and write the CSV file and the copies.

    Raises:
        RotnetError: an error of `rotnet_fast.errors`. Copies that are finished stay.
    """
    config.validate()
    return _orient(config)


@plain_torch()
def _orient(config: OrientConfig) -> Found:
    """Do the work of :func:`orient` with settings that have been checked."""
    model = _read_model(config)
    images = _open_images(config, model)
    source = images.files.source
    if config.apply is not None:
        _check_copyable(images, config.apply)
    found = Found(Counter(), Counter())
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(COLUMNS)
    for index, probabilities in enumerate(_probabilities(config, model, images)):
        confidence, quarters = probabilities.max(dim=0)
        turned = FOUR_ROTATIONS[int(quarters)]
        decision = TURNED if turned else UPRIGHT
        if not confidence >= config.min_confidence:  # or not a number
            decision = DOUBTFUL
        copy = ""
        if config.apply is not None:
            to_undo = turned if decision == TURNED else 0
            copy = _write_copy(source, index, to_undo, resolve_path(config.apply), found.unchanged)
        found.decisions[decision] += 1
        table.writerow([source.relative_name(index), turned, f"{confidence:.6f}", decision, copy])
    output = config.output_file()
    write_atomically(output, text.getvalue().encode("utf-8", "surrogateescape"))  # names may be any bytes
    parts = ", ".join(f"{found.decisions[name]:,} {name}" for name in (UPRIGHT, TURNED, DOUBTFUL))
    print(f"{counted(len(images), 'image')}: {parts}")
    for reason, count in found.unchanged.most_common():
        print(f"{counted(count, 'turned image')} could only be copied: each {reason}")
    print(f"orientations: {output}")
    if config.apply is not None:
        print(f"copies: {config.apply}")
    return found


class Measured(NamedTuple):
    """What :func:`evaluate` measured.

    Attributes:
        points: coverage and error at each threshold.
        figure: the file of the picture.
    """

    points: list[Point]
    figure: Path


def evaluate(config: OrientConfig) -> Measured:
    """Turn upright images in all four ways, and measure coverage and error at each threshold.

    Raises:
        RotnetError: an error of `rotnet_fast.errors`.
    """
    config.validate()
    return _evaluate(config)


@plain_torch()
def _evaluate(config: OrientConfig) -> Measured:
    """Do the work of :func:`evaluate` with settings that have been checked."""
    import torch

    from rotnet_fast.analysis.orientation import THRESHOLDS, advised, as_text, coverage_points
    from rotnet_fast.plots.orientation import coverage
    from rotnet_fast.plots.style import save

    model = _read_model(config)
    images = _open_images(config, model)
    found = torch.stack(list(_probabilities(config, model, images)))  # [N*4,4]
    confidences, quarters = found.max(dim=1)
    is_right = quarters == torch.arange(4).repeat(len(images))
    thresholds = sorted({*THRESHOLDS, config.min_confidence})
    points = coverage_points(confidences, is_right, thresholds)
    print(f"{counted(len(images), 'image')}, each turned in all four ways:\n\n{as_text(points)}\n")
    best = advised(points)
    print("no threshold brings the error to 1 % or less" if best is None else f"advised: {in_words(best)}")
    output = config.output_file()
    write_atomically(output, _as_csv(points).encode())
    drawn = [
        (point.min_confidence, 100 * point.coverage, 100 * point.error) for point in points if point.decided
    ]
    picture = coverage(drawn, None if best is None else best.min_confidence)
    figure = save(picture, output.with_suffix(""))[0]
    wrong = [100 * (1 - right.double().mean().item()) for right in is_right.view(-1, 4).T]
    by_turn = ", ".join(
        f"{share:.1f} % at {angle}" for share, angle in zip(wrong, FOUR_ROTATIONS, strict=True)
    )
    print(f"error rate by true rotation: {by_turn} degrees")
    print(f"table: {output}\npicture: {figure}")
    return Measured(points, figure)


def _as_csv(points: Sequence[Point]) -> str:
    """Format as CSV with shares in [0, 1]."""
    stream = io.StringIO()
    rows = csv.writer(stream, lineterminator="\n")
    rows.writerow(MEASURES)
    for point in points:
        shares = [f"{point.coverage:.6f}", f"{point.error:.6f}"]
        rows.writerow([point.min_confidence, *shares, point.decided, point.wrong, point.judged])
    return stream.getvalue()


def in_words(point: Point) -> str:
    """Describe a threshold as in ``--min-confidence 0.95 decides on 73.7 % with 0.95 % wrong``."""
    shares = f"decides on {100 * point.coverage:.1f} % with {100 * point.error:.2f} % wrong"
    counts = f"{point.wrong:,} of {point.decided:,}, up to {point.error_bound:.1f} % in a 95 % interval"
    return f"--min-confidence {point.min_confidence:g} {shares} ({counts})"


def _read_model(config: OrientConfig) -> Pretrained:
    """Read the network.

    Raises:
        CheckpointError: it is no network for the four multiples of 90 degrees, or see `read_pretrained`.
    """
    model = read_pretrained(config.checkpoint)
    rotations, task = model.config.rotations, model.config.pretext_task
    if task != ROTATION:
        raise CheckpointError(
            f"checkpoint {config.checkpoint} was pretrained by the task {task}, not by rotations; pass a "
            f"model of the rotations {' '.join(map(str, FOUR_ROTATIONS))}"
        )
    if sorted(angle % 360 for angle in rotations) != list(FOUR_ROTATIONS):
        raise CheckpointError(
            f"checkpoint {config.checkpoint} was trained on the rotations {' '.join(map(str, rotations))}; "
            f"pass a model of the rotations {' '.join(map(str, FOUR_ROTATIONS))}"
        )
    return model


def _open_images(config: OrientConfig, model: Pretrained) -> EveryImage:
    from rotnet_fast.data.every_image import open_every_image

    images = open_every_image(
        config.data_dir,
        model.config.image_size,
        bad_images=config.bad_images,
        check=config.check_images,
    )
    print(printable(f"data: {images.summary()}"))
    return images


def _probabilities(config: OrientConfig, model: Pretrained, images: EveryImage) -> Iterator[torch.Tensor]:
    """Yield [4] for each image, or for each of its four turned copies in an evaluation.

    See `rotnet_fast.analysis.orientation.orientation_probabilities`.
    """
    from rotnet_fast.analysis.orientation import orientation_probabilities
    from rotnet_fast.backbone import backbone_of
    from rotnet_fast.data.decode import FIND_ALL, UndecodableError
    from rotnet_fast.data.every_image import pillow_batches
    from rotnet_fast.engine.precision import working_device

    backbone = backbone_of(model).to(working_device(config.device))
    is_cropped = model.config.is_cropped
    batches = pillow_batches(
        images.files.source,
        model.config.image_size,
        max(1, config.batch_size // 4) if config.evaluate else config.batch_size,
        is_cropped=is_cropped,
        are_turned=config.evaluate,
    )
    try:
        with CountingLine("orienting", len(images), "images", True) as line:
            for batch in batches:
                copies = batch.flatten(0, 1) if config.evaluate else batch
                yield from orientation_probabilities(backbone, copies, config.average)
                line.count(len(batch))
    except UndecodableError as error:
        raise DataError(f"{error}. {FIND_ALL}") from error


def _write_copy(source: ImageSource, index: int, turned: int, folder: Path, unchanged: Counter[str]) -> str:
    """Write the upright copy of an image, or an unchanged one, and return what the CSV file says of it.

    Args:
        turned: degrees counter-clockwise that the image is turned by.
        folder: the folder of the copies, with all links resolved.
        unchanged: counts the reasons for unchanged copies of turned images.

    Raises:
        ArgumentError: another file has the name of the copy.
        CannotWriteError: the copy cannot be written.
    """
    from rotnet_fast.data.upright import KeptError, turn_upright

    content, said = source.read(index), "turned" if turned else "identical"
    try:
        content = turn_upright(content, turned)
    except KeptError as error:
        unchanged[str(error)] += 1
        said = f"unchanged: it {error}"
    path = folder / source.relative_name(index)
    try:
        if not os.path.lexists(path):
            make_folder(path.parent)
            with replacing(path) as file:
                file.write(content)
        elif path.is_symlink() or not path.is_file() or path.read_bytes() != content:
            raise ArgumentError(
                f"apply {folder} already holds another {source.relative_name(index)}; remove it, or choose "
                f"another folder with --apply"
            )
        shutil.copystat(source.names[index], path)
    except OSError as error:
        raise cannot_write(path, error, "--apply") from error
    return said


def _check_copyable(images: EveryImage, apply: Path) -> None:
    """Refuse tar shards, and links from the folder of the photos into that of the copies."""
    inside = os.path.join(os.path.realpath(apply), "")
    for name in images.files.source.names:
        if not os.path.isfile(name):
            raise ArgumentError(
                f"apply is {apply}, but the images are in tar shards such as {os.path.dirname(name)}; unpack "
                f"them"
            )
        if os.path.realpath(name).startswith(inside):
            raise ArgumentError(
                f"apply is {apply}, to which a link in data-dir leads ({name}); choose another folder"
            )


def _check_apart(photos: Path, apply: Path) -> None:
    is_inside, is_around = _is_within(apply, photos), _is_within(photos, apply)
    if is_inside or is_around:
        how = "is" if is_inside and is_around else "lies inside" if is_inside else "contains"
        raise ArgumentError(f"apply is {apply}, which {how} data-dir {photos}; choose a folder apart from it")


def _is_within(inner: Path, outer: Path) -> bool:
    """Return whether a path is a folder or lies inside it, whatever links lead there."""
    real = Path(os.path.realpath(inner))
    return outer.exists() and any(
        place.exists() and os.path.samefile(place, outer) for place in (real, *real.parents)
    )


def _check_replaceable(output: Path, is_evaluation: bool) -> None:
    """Refuse to replace files that this command has not written.

    Args:
        output: CSV file to write.
        is_evaluation: whether it gets a table of coverage and error, and a picture beside it.

    Raises:
        ArgumentError: there are such files.
    """
    if output.suffix != ".csv":
        raise ArgumentError(f"output is {output}; its name must end in .csv")
    is_table = False
    if output.is_file():
        with open(output, encoding="utf-8", errors="replace") as file:
            is_table = file.readline(200).strip() == ",".join(MEASURES if is_evaluation else COLUMNS)
    for suffix in (".csv", ".png", ".svg") if is_evaluation else (".csv",):
        path = output.with_suffix(suffix)
        if os.path.lexists(path) and not is_table:
            raise ArgumentError(
                f"output is {output}, but {path.name} is there and is no such result; choose another file "
                f"with --output"
            )


if __name__ == "__main__":
    sys.exit(main())

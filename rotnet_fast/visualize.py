"""Visualize a pretrained network: ``python -m rotnet_fast.visualize --checkpoint RUN [flags]``.

Each picture is saved as PNG and SVG in RUN/figures, or in the folder given by ``--output``.

Exit codes: see `rotnet_fast.command`. torch is only imported once the flags are known to be valid.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from rotnet_fast.checks import check_seed
from rotnet_fast.command import announce, run_command
from rotnet_fast.config import PretrainConfig
from rotnet_fast.engine.ambient import plain_torch
from rotnet_fast.engine.run_folder import check_is_no_study, check_output
from rotnet_fast.errors import ArgumentError, CheckpointError
from rotnet_fast.files import resolve_path
from rotnet_fast.flags import parse_flags
from rotnet_fast.next_steps import evaluation, given_network, look_at, print_next, shell
from rotnet_fast.plain import counted
from rotnet_fast.pretext_tasks import ROTATION, PretextTaskName
from rotnet_fast.pretrained import find_model, read_pretrained
from rotnet_fast.settings import PretrainedImageSettings, at_least_one

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from rotnet_fast.models.network import FeatureNetwork

PROGRAM = "python -m rotnet_fast.visualize"

Picture = Literal[
    "overview",
    "rotations",
    "filters",
    "attention",
    "knn",
    "confusion",
    "embedding",
    "calibration",
    "hardest",
    "compression",
]

IMAGES_WITH_ATTENTION = 4
"""Largest number of images with attention maps, limited by the width of a page."""

NEEDS_ROTATIONS = ("overview", "rotations", "calibration", "hardest", "compression")
"""Pictures of predicted rotations, which networks of other pretext tasks do not predict."""

MOST_IMAGES = 100
"""Largest number of rows in a picture; drawing time and memory grow with it."""


@dataclass(frozen=True)
class VisualizeConfig(PretrainedImageSettings):
    """Draw what a pretrained network predicts and what its features see."""

    examples = (
        "--checkpoint runs/quickstart-digits-seed0",
        "--checkpoint nin4-cifar10-jpeg --data-dir FOLDER --what overview --images 3",
    )
    paths_as_text = ("checkpoint",)
    positional = "checkpoint"

    checkpoint: str
    """Run folder of a pretraining (its newest checkpoint is used), a checkpoint file, an exported folder, or
    the name of a model that ships with the package."""

    what: tuple[Picture | Literal["all"], ...] = ("all",)
    """overview: test images in all rotations, with predictions, next to their nearest training images.
    rotations: test images in all rotations, with predictions.
    filters: the first layer. attention: maps of three layers, and how well they rotate with the image.
    knn: nearest training images. confusion: of rotations, and of object classes by nearest neighbours.
    embedding: PCA and t-SNE. calibration: confidence against accuracy. hardest: images whose rotation is
    hardest to predict. compression: what traces of JPEG compression give away; it takes longest, and all does
    not include it. A network with another pretext task than RotNet's has no pictures of rotations."""

    supervised: Path | None = None
    """Run folder or checkpoint of a supervised training, such as RUN/evaluate-001/supervised, which attention
    and filters show next to the pretrained network."""

    layer: str | None = None
    """Feature map for knn, confusion and embedding, such as conv3, or layer3 of resnet18. None: conv2 of nin,
    or the last map of the second-to-last stage of other networks."""

    images: int = 6
    """Test images that rotations and knn show; attention shows the first four of them."""

    seed: int = 0
    """Seed of the choice of images and of t-SNE."""

    batch_size: int | None = None
    """Images per forward pass. None: as in pretraining."""

    precision: Literal["auto", "fp32", "bf16", "fp16"] = field(default="auto", kw_only=True)
    """Number format. auto: that of the pretraining, to match its accuracy, or fp32 if the device does not
    support it."""

    output: Path | None = None
    """Folder for the pictures. None: figures in the run folder."""

    def validate(self) -> None:
        """Check the values of the settings, beyond their types.

        Raises:
            ArgumentError: a setting has an invalid value.
            CheckpointError: the path of a checkpoint does not exist.
        """
        super().validate()
        check_seed(self.seed)
        at_least_one(self, "images", "batch_size")
        if self.images > MOST_IMAGES:
            raise ArgumentError(f"images is {self.images}; it must be at most {MOST_IMAGES}, one row each")
        if not self.what:
            raise ArgumentError(f"what is empty; choose from all, {', '.join(PICTURES)}")
        find_model(self.checkpoint)
        if self.supervised is not None and not self.supervised.exists():
            raise CheckpointError(
                f"supervised {self.supervised} does not exist; pass the folder supervised of an evaluation "
                f"with --supervised"
            )

    def pictures(self) -> list[str]:
        """Return the keys of ``PICTURES`` to draw, in its order."""
        everything = [name for name in PICTURES if name != "compression"] if "all" in self.what else []
        return [name for name in PICTURES if name in (*self.what, *everything)]

    def output_folder(self) -> Path:
        """Return the folder for the pictures."""
        if self.output is not None:
            return resolve_path(self.output)
        return resolve_path(find_model(self.checkpoint).home) / "figures"


class Analyses:
    """Compute what the pictures of one network show, each analysis once and on demand.

    Raises:
        RotnetError: an error of `rotnet_fast.errors`.
    """

    def __init__(self, config: VisualizeConfig) -> None:
        from rotnet_fast.analysis.images import images_of, is_grey
        from rotnet_fast.analysis.views import PlainViews, one_of_each_class
        from rotnet_fast.engine.precision import resolve_precision, working_device
        from rotnet_fast.protocols.images import open_images
        from rotnet_fast.protocols.supervised import load_supervised

        device = working_device(config.device)
        resolve_precision(config.precision, device)  # before the network is read
        pretrained = read_pretrained(config.checkpoint)
        recipe = pretrained.config
        self.pictures = drawable(config, recipe.pretext_task)
        print(f"features of {pretrained.path}, after {pretrained.epoch} of {counted(recipe.epochs, 'epoch')}")
        precision = resolve_precision(precision_of(config, recipe, device.type), device)
        batch_size = config.batch_size or recipe.batch_size
        self.network = pretrained.network().to(device)
        self.layer = self.network.default_layer if config.layer is None else config.layer
        self.network.check_layers([self.layer])  # before a data set is read
        self.networks: dict[str, FeatureNetwork] = {f"{recipe.pretext_task} network": self.network}
        if config.supervised is not None:
            self.networks["supervised network"] = load_supervised(config.supervised).to(device)
        self.dataset = recipe.dataset
        self.classes: tuple[str, ...] = ()
        self.is_grey = recipe.dataset == "digits"
        if self.pictures == ["filters"]:  # which need no images
            return
        dataset, _ = open_images(
            pretrained,
            device,
            data_dir=config.data_dir,
            limit_train=config.limit_train,
            limit_test=config.limit_test,
            validation=config.validation,
            bad_images=config.bad_images,
            loader=config.loader,
        )
        if len(dataset.test) < 2 and "embedding" in self.pictures:
            if "embedding" in config.what:
                raise ArgumentError(
                    "what holds embedding, which needs two test images or more, and there is one; give more, "
                    "or choose other pictures"
                )
            print("without the embedding: there is one test image")
            self.pictures.remove("embedding")
        self.classes = dataset.classes
        self.seed = config.seed
        self.rotations = recipe.rotations if recipe.pretext_task == ROTATION else ()
        self.bank = images_of(dataset, dataset.train, device, batch_size)
        self.test = images_of(dataset, dataset.test, device, batch_size)
        self.is_grey = is_grey(self.test.images)
        self.shown = one_of_each_class(dataset.test.labels, config.images, config.seed)
        self.views = PlainViews(dataset.mean, dataset.std, precision, batch_size)

    @cached_property
    def rotation(self) -> Mapping[str, Any]:
        """Return the result of `rotnet_fast.analysis.rotation.rotation`."""
        from rotnet_fast.analysis.rotation import rotation

        images, labels = self.test.images, self.test.labels
        return rotation(self.network, images, labels, self.classes, self.rotations, self.shown, self.views)

    @cached_property
    def neighbours(self) -> Mapping[str, Any]:
        """Return the result of `rotnet_fast.analysis.neighbours.neighbours`."""
        from rotnet_fast.analysis.neighbours import neighbours

        return neighbours(
            self.network, self.test, self.bank, self.classes, self.layer, self.shown, self.views
        )

    def embedding(self) -> Mapping[str, Any]:
        """Return the result of `rotnet_fast.analysis.embedding.embedding`."""
        from rotnet_fast.analysis.embedding import embedding

        images, labels = self.test.images, self.test.labels
        return embedding(self.network, images, labels, self.classes, self.layer, self.views, seed=self.seed)

    def attention(self) -> list[tuple[str, Mapping[str, Any]]]:
        """Return the result of `rotnet_fast.analysis.attention.attention` for each network."""
        from rotnet_fast.analysis.attention import attention

        shown = self.shown[:IMAGES_WITH_ATTENTION]
        return [
            (name, attention(network, self.test.images, shown, self.views))
            for name, network in self.networks.items()
        ]

    def compression(self) -> Mapping[str, Any]:
        """Return the result of `rotnet_fast.analysis.compression.compression`."""
        from rotnet_fast.analysis.compression import compression

        objects: dict[str, Any] = {}
        if self.classes:
            bank, queries = self.bank, self.test.labels
            objects = {"layer": self.layer, "bank": bank, "queries": queries, "classes": len(self.classes)}
        return compression(self.network, self.test.images, self.rotations, self.views, **objects)

    def filters(self) -> list[tuple[str, Mapping[str, Any]]]:
        """Return the result of `rotnet_fast.analysis.filters.filters` for each network."""
        from rotnet_fast.analysis.filters import filters

        return [(name, filters(network, self.is_grey)) for name, network in self.networks.items()]


def drawable(config: VisualizeConfig, task: PretextTaskName) -> list[str]:
    """Return the keys of ``PICTURES`` to draw of a network with this pretext task.

    Raises:
        ArgumentError: a picture of predicted rotations is asked for by name, and the network predicts none.
    """
    pictures = config.pictures()
    if task == ROTATION:
        return pictures
    left_out = [name for name in pictures if name in NEEDS_ROTATIONS]
    possible = [name for name in PICTURES if name not in NEEDS_ROTATIONS]
    if named := [name for name in left_out if name in config.what]:
        raise ArgumentError(
            f"what holds {', '.join(named)}, but checkpoint {config.checkpoint} was pretrained by the task "
            f"{task} and predicts no rotations; choose from {', '.join(possible)}"
        )
    if left_out:
        print(f"without pictures of rotations ({', '.join(left_out)}): pretext task {task}")
    return [name for name in pictures if name in possible]


def precision_of(config: VisualizeConfig, recipe: PretrainConfig, device: str) -> str:
    """Return the requested number format, or by default the pretraining's if the device supports it."""
    wanted = recipe.precision if config.precision == "auto" else config.precision
    return "fp32" if config.precision == "auto" and wanted == "fp16" and device == "cpu" else wanted


def draw_overview(analyses: Analyses) -> dict[str, Figure]:
    """Draw predicted rotations next to the nearest training images."""
    from rotnet_fast.plots.overview import overview

    return {"overview": overview(analyses.rotation, analyses.neighbours)}


def draw_rotations(analyses: Analyses) -> dict[str, Figure]:
    """Draw test images in all rotations."""
    from rotnet_fast.plots.rotation import rotations

    return {"rotations": rotations(analyses.rotation)}


def draw_filters(analyses: Analyses) -> dict[str, Figure]:
    """Draw the first-layer filters of each network."""
    from rotnet_fast.plots.filters import filters

    return {"filters": filters(analyses.filters())}


def draw_attention(analyses: Analyses) -> dict[str, Figure]:
    """Draw the attention maps of each network."""
    from rotnet_fast.plots.attention import attention

    return {"attention": attention(analyses.attention())}


def draw_knn(analyses: Analyses) -> dict[str, Figure]:
    """Draw the nearest training images."""
    from rotnet_fast.plots.neighbours import neighbours

    return {"knn": neighbours(analyses.neighbours)}


def draw_confusion(analyses: Analyses) -> dict[str, Figure]:
    """Draw the confusion of rotations, if they are predicted, and of object classes, if there are any."""
    from rotnet_fast.plots.confusion import confusion

    figures = {}
    if analyses.rotations:
        rotation = analyses.rotation
        angles = [f"{angle}°" for angle in rotation["rotations"]]
        turned = f"Predicted rotations, {rotation['accuracy']:.1f} % correct"
        figures["confusion-rotations"] = confusion(rotation["confusion"], angles, turned, what="rotation")
    if analyses.classes:
        neighbours = analyses.neighbours
        voted = f"Votes of {counted(neighbours['k'], 'neighbour')} by {neighbours['layer']} features"
        figures["confusion-classes"] = confusion(
            neighbours["confusion"], neighbours["classes"], f"{voted}, {neighbours['accuracy']:.1f} % correct"
        )
    return figures


def draw_embedding(analyses: Analyses) -> dict[str, Figure]:
    """Draw PCA and t-SNE of the features."""
    from rotnet_fast.plots.embedding import embedding

    return {"embedding": embedding(analyses.embedding())}


def draw_calibration(analyses: Analyses) -> dict[str, Figure]:
    """Draw confidence against accuracy."""
    from rotnet_fast.plots.rotation import calibration

    return {"calibration": calibration(analyses.rotation)}


def draw_hardest(analyses: Analyses) -> dict[str, Figure]:
    """Draw the images whose rotation is hardest to predict."""
    from rotnet_fast.plots.rotation import hardest

    return {"hardest": hardest(analyses.rotation)}


def draw_compression(analyses: Analyses) -> dict[str, Figure]:
    """Draw rotation accuracy on compressed images, and print it with that of object classes."""
    from rotnet_fast.plots.compression import compression, finding

    result = analyses.compression()
    print(finding(result))
    for name, what in (("rotation", "rotation accuracy"), ("object", "nearest neighbours' accuracy")):
        if name in result:
            accuracies = ", ".join(f"{key} {value:.2f} %" for key, value in result[name]["accuracy"].items())
            points, error = result[name]["axis"]
            print(f"{what}: {accuracies}; axes of the compression {points:+.2f} ± {error:.2f} points")
    return {"compression": compression(result)}


PICTURES: dict[str, Callable[[Analyses], dict[str, Figure]]] = {
    "overview": draw_overview,
    "rotations": draw_rotations,
    "filters": draw_filters,
    "attention": draw_attention,
    "knn": draw_knn,
    "confusion": draw_confusion,
    "embedding": draw_embedding,
    "calibration": draw_calibration,
    "hardest": draw_hardest,
    "compression": draw_compression,
}
"""Map a name on the command line to a function that returns figures by file name."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)

    def command() -> None:
        config = parse_flags(VisualizeConfig, PROGRAM, arguments)
        announce(f"drawing {', '.join(config.pictures())} of {config.checkpoint}")
        print_next(next_steps(config, visualize(config)))

    return run_command(command)


def next_steps(config: VisualizeConfig, drawn: Drawn) -> list[str]:
    """Return what to do after drawing."""
    network = given_network(config.checkpoint)
    where = [] if config.data_dir is None else ["--data-dir", config.data_dir]
    shown = drawn.files[0] if len(drawn.files) == 2 else config.output_folder()  # PNG and SVG
    if len(drawn.classes) >= 2:
        return [look_at(shown), evaluation(network, drawn.dataset, where)]
    return [look_at(shown), shell("export", network)]


class Drawn(NamedTuple):
    """What was drawn.

    Attributes:
        files: the written files.
        dataset, classes: name of the images and their classes; none if no images were needed.
    """

    files: list[Path]
    dataset: str
    classes: tuple[str, ...]


def visualize(config: VisualizeConfig) -> Drawn:
    """Compute and draw the requested pictures, and print the paths of their files.

    Raises:
        RotnetError: an error of `rotnet_fast.errors`.
    """
    config.validate()
    folder = config.output_folder()
    check_is_no_study(folder)
    check_output(folder)  # before data and network are read
    return _visualize(config, folder)


@plain_torch()
def _visualize(config: VisualizeConfig, folder: Path) -> Drawn:
    """Do the work of :func:`visualize` in a folder that was checked."""
    analyses = Analyses(config)
    from rotnet_fast.plots.style import save

    pictures = analyses.pictures
    if not analyses.classes and "confusion" in pictures:
        print("WARNING: the images have no classes; skipping confusion-classes", file=sys.stderr)
    written = []
    for number, picture in enumerate(pictures, 1):
        print(f"{number} of {len(pictures)}: {picture}", flush=True)
        for name, figure in PICTURES[picture](analyses).items():
            for path in save(figure, folder / name):
                print(path, flush=True)
                written.append(path)
    return Drawn(written, analyses.dataset, analyses.classes)


if __name__ == "__main__":
    sys.exit(main())

"""Export pretrained weights: ``python -m rotnet_fast.export --checkpoint RUN [flags]``.

Writes a folder with ``model.safetensors`` and ``README.md``, the model card; `rotnet_fast.load_backbone`
takes it. The same checkpoint and results give the same bytes.

Exit codes: see `rotnet_fast.command`. torch is imported only once the flags are known to be right.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rotnet_fast.command import announce, run_command
from rotnet_fast.engine.ambient import plain_torch
from rotnet_fast.engine.run_folder import STUDY_FILE, check_is_no_study, check_output, read_settings
from rotnet_fast.errors import ArgumentError
from rotnet_fast.files import ensure_folder, resolve_path, write_atomically
from rotnet_fast.flags import parse_flags
from rotnet_fast.json_files import read_object
from rotnet_fast.model_card import CardFacts, render_card
from rotnet_fast.next_steps import print_next
from rotnet_fast.plain import counted
from rotnet_fast.pretrained import MODEL_FILE, Pretrained, find_model, read_pretrained
from rotnet_fast.protocols.result import load_results
from rotnet_fast.settings import Settings
from rotnet_fast.study.summary import evaluation_of, load_study

if TYPE_CHECKING:
    from rotnet_fast.backbone import Backbone

PROGRAM = "python -m rotnet_fast.export"
CARD_FILE = "README.md"

_DISPLAY_NAMES = {
    "cifar10": "CIFAR-10",
    "digits": "handwritten digits (scikit-learn)",
    "folder": "images of a folder",
}
"""Data set -> what it is called where the run does not say."""


@dataclass(frozen=True)
class ExportConfig(Settings):
    """Write a pretrained network as safetensors with a model card."""

    examples = ("--checkpoint runs/quickstart-digits-seed0 --output my-rotnet",)
    paths_as_text = ("checkpoint",)
    positional = "checkpoint"

    checkpoint: str
    """Run folder of a pretraining (its newest checkpoint is taken), a checkpoint or snapshot file, an
    exported folder, or the name of a model that comes with the package."""

    output: Path | None = None
    """Folder to write. None: export in the run folder, or export-<name> for a checkpoint file."""

    data_licence: str | None = None
    """Licence of the images, for the model card. None: what is known of cifar10 and digits, else unknown."""

    def validate(self) -> None:
        """Check what the types alone cannot.

        Raises:
            ArgumentError: a licence without a text.
            CheckpointError: the checkpoint's path does not exist.
        """
        if self.data_licence is not None and not self.data_licence.strip():
            raise ArgumentError("data-licence is empty; give a text, or remove it")
        find_model(self.checkpoint)

    def output_folder(self) -> Path:
        """Return the folder of the export."""
        if self.output is not None:
            return resolve_path(self.output)
        model = find_model(self.checkpoint)
        is_one_of_several = model.path.is_file() and model.path.parent != model.home
        suffix = f"-{model.path.stem}" if is_one_of_several and not model.shipped_as else ""
        return resolve_path(model.home) / f"export{suffix}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Command-line entry point; returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)

    def command() -> None:
        config = parse_flags(ExportConfig, PROGRAM, arguments)
        announce(f"exporting {config.checkpoint}")
        folder = export(config)
        print(f"model and card: {folder}")
        print_next(next_steps(folder), "in Python")

    return run_command(command)


def next_steps(folder: Path) -> list[str]:
    """Return the lines of Python that compute features with an export."""
    recipe = read_pretrained(folder)
    size = recipe.config.image_size
    return [
        "import torch, rotnet_fast",
        f"images = torch.zeros(8, {size}, {size}, {recipe.in_channels}, dtype=torch.uint8)  # yours",
        f"vectors = rotnet_fast.load_backbone({str(folder)!r})(images)",
    ]


def export(config: ExportConfig) -> Path:
    """Write the model and its card.

    Returns:
        The folder.

    Raises:
        ArgumentError: the folder holds other files of the same names, or a results file cannot be read.
        CheckpointError: no whole checkpoint of a pretraining.
        CannotWriteError: a file could not be written.
    """
    config.validate()
    folder = config.output_folder()
    check_is_no_study(folder)
    check_output(folder)
    check_replaceable(folder)
    _export(config, folder)
    return folder


@plain_torch()
def _export(config: ExportConfig, folder: Path) -> None:
    """Do the work of :func:`export` in a folder that has been checked."""
    from rotnet_fast.backbone import backbone_of
    from rotnet_fast.engine import checkpoint

    pretrained = read_pretrained(config.checkpoint)
    recipe, run = pretrained.config, pretrained.run or pretrained.home
    print(f"weights of {pretrained.path}, after {pretrained.epoch} of {counted(recipe.epochs, 'epoch')}")
    settings, results = read_run(run, pretrained)
    name = (
        pretrained.dataset_name
        or settings.get("dataset_name")
        or results.get("dataset")
        or _DISPLAY_NAMES[recipe.dataset]
    )
    backbone = backbone_of(pretrained)
    metadata = pretrained.metadata(name)
    content = checkpoint.pack_weights(pretrained.state, metadata)
    facts = CardFacts(
        config=recipe,
        in_channels=pretrained.in_channels,
        ablation=pretrained.identity.get("ablation", ""),
        epochs=pretrained.epoch,
        steps=pretrained.step,
        metrics=pretrained.metrics,
        preset=settings.get("preset"),
        dataset_name=name,
        train_images=results.get("train_images") or recipe.limit_train or pretrained.images_per_epoch,
        test_images=results.get("test_images") or recipe.limit_test or recipe.validation,
        hardware=results.get("environment", {}).get("device"),
        evaluations=find_evaluations(run, metadata["state_hash"]),
        feature_shapes=feature_shapes(backbone, pretrained.in_channels),
        default_layer=backbone.network.default_layer,
        parameters=sum(parameter.numel() for parameter in backbone.network.parameters()),
        state_hash=metadata["state_hash"],
        file_name=MODEL_FILE,
        file_sha256=hashlib.sha256(content).hexdigest(),
        data_licence=config.data_licence,
    )
    is_of_study = run.parent.name == "runs" and (run.parent.parent / STUDY_FILE).exists()
    if is_of_study and pretrained.epoch == recipe.epochs:
        study = load_study(run.parent.parent)
        if (found := evaluation_of(study, run.name)) is not None:
            of_study = (f"study {study.folder.name}", found)
            facts = replace(facts, evaluations=[of_study, *facts.evaluations])
    card = render_card(facts)
    ensure_folder(folder)
    for name, written in ((CARD_FILE, card.encode()), (MODEL_FILE, content)):
        print(f"writing {folder / name}", flush=True)
        write_atomically(folder / name, written)


def check_replaceable(folder: Path) -> None:
    """Refuse to replace what is not an earlier export, which its model card tells; it is written first.

    Raises:
        ArgumentError: the folder has a model or a README.md, but no model card of this program.
    """
    card = folder / CARD_FILE
    if card.exists() and "library_name: rotnet_fast" in card.read_text(errors="replace"):
        return
    for path, lack in ((card, "that is no model card"), (folder / MODEL_FILE, "without a model card")):
        if path.exists():
            raise ArgumentError(
                f"output {folder} has a {path.name} {lack} of rotnet_fast; choose another folder with "
                f"--output"
            )


def read_run(run: Path, pretrained: Pretrained) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return settings and results of the run that a checkpoint belongs to; empty where they are missing.

    Results only count if they are about the same data, because the checkpoint may have been moved.

    Raises:
        ArgumentError: a file cannot be read.
    """
    settings = read_settings(run) or {}
    path = run / "results.json"
    results = read_object(path, "results", {}, "restore or remove it") if path.exists() else {}
    if results.get("data_fingerprint") != pretrained.identity["data_fingerprint"]:
        results = {}
    if settings.get("dataset") != pretrained.config.dataset:
        settings = {}
    return settings, results


def find_evaluations(run: Path, state_hash: str) -> list[tuple[str, dict[str, Any]]]:
    """Return name and results of each evaluation of these very weights in the run folder, in order.

    Raises:
        ArgumentError: a results file cannot be read.
    """
    found = []
    # evaluate-1000 after evaluate-999.
    for path in sorted(run.glob("evaluate-*/results.json"), key=lambda path: (len(path.parent.name), path)):
        results = load_results(path)
        if results.get("backbone") == state_hash:
            found.append((path.parent.name, results))
        else:
            print(f"{path} is not about these weights, or does not say so: left out", file=sys.stderr)
    return found


def feature_shapes(backbone: Backbone, channels: int) -> dict[str, tuple[int, int, int]]:
    """Return layer -> (C, H, W) of its feature map."""
    import torch

    size = backbone.image_size
    maps = backbone.features(torch.zeros(1, channels, size, size), backbone.layers)
    shapes = {}
    for layer, feature_map in maps.items():
        _, depth, height, width = feature_map.shape
        shapes[layer] = (depth, height, width)
    return shapes


if __name__ == "__main__":
    sys.exit(main())

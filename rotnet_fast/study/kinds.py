"""How each kind of cell is computed, from the protocols that the other commands use, too."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from rotnet_fast.arrays import encode_array
from rotnet_fast.config import PretrainConfig
from rotnet_fast.engine.run_folder import RunFolder, epoch_checkpoints
from rotnet_fast.engine.trainer import Trainer
from rotnet_fast.pretext_tasks import PRETEXT_TASKS
from rotnet_fast.protocols.ablations import PRETEXT_ABLATIONS
from rotnet_fast.protocols.classical import classical
from rotnet_fast.protocols.drivers import DRIVERS
from rotnet_fast.protocols.evaluation import WHOLE_NETWORK, Subject, first_of_each_class
from rotnet_fast.protocols.pretext import pretrain_with, pretraining
from rotnet_fast.protocols.result import Outcome
from rotnet_fast.settings import Optimisation
from rotnet_fast.study.cells import StudyCell
from rotnet_fast.study.context import Context, Found
from rotnet_fast.study.pictures import PICTURES


def pretext(context: Context, cells: list[StudyCell], folder: Path) -> Found:
    """Pretrain in a run folder like that of any other pretraining."""
    (cell,) = cells
    config = PretrainConfig.from_recipe(
        cell.settings,
        preset=context.settings.pretext.preset,
        data_dir=context.data_dir,
        dataset_name=context.dataset_name,
        device=str(context.device),
        compile=context.compile,  # type: ignore[arg-type]
        graph=context.graph,
        output=folder,
        resume="auto",
        tensorboard=False,
    )
    snapshots = tuple(cell.settings["snapshots"])
    with RunFolder(folder, resume=True) as run:
        trainer = pretraining(
            config,
            context.dataset,
            context.device,
            context.precision,
            run,
            task_type=PRETEXT_ABLATIONS[cell.settings["ablation"]] if cell.settings["ablation"] else None,
            snapshot_epochs=snapshots,
            progress=context.progress,
        )
        results = pretrain_with(trainer, config, context.dataset, Trainer.resume)
        measure = PRETEXT_TASKS[config.pretext_task].measure
        found = {name: results[name] for name in (measure, f"{measure}_by_degrees") if name in results}
        for epoch in snapshots:
            metrics = context.network_checkpoint(cell, epoch)["metrics"]
            found[f"rotation_accuracy_after/{epoch}"] = metrics["test"]["rotation_accuracy"]
        for name in ("images_per_second", "train_seconds", "state_hash"):
            found[name] = results[name]
    keep_last_checkpoint(folder)
    return {cell.key: found}


def keep_last_checkpoint(run: Path) -> None:
    """Remove the checkpoints that only an unfinished training needs."""
    for _, path in epoch_checkpoints(run / "checkpoints"):
        path.unlink()


def classifiers(context: Context, cells: list[StudyCell], folder: Path) -> Found:
    """Train or fit classifiers that share a network, with the driver of their kind."""
    first = cells[0]
    subject = Subject(
        tuple(cell.placement for cell in cells),
        is_pretrained=bool(first.needs),
        batchnorm=first.settings.get("batchnorm", "running"),
        name=first.kind,
        recipe=recipe_of(first),
    )
    return _classify(context, cells, folder, subject)


def whole_network(context: Context, cells: list[StudyCell], folder: Path) -> Found:
    """Train a supervised network, whose run folder is kept for the cells that start from it."""
    subject = Subject((WHOLE_NETWORK,), is_pretrained=False, name=folder.name, recipe=recipe_of(cells[0]))
    found = _classify(context, cells, folder.parent, subject)
    keep_last_checkpoint(folder)
    return found


def recipe_of(cell: StudyCell) -> Optimisation:
    """Return how the network or the heads of a cell are trained; probes that are fitted have no recipe."""
    names = {field.name for field in fields(Optimisation)} & cell.settings.keys()
    return Optimisation(**{name: cell.settings[name] for name in names})


def _classify(context: Context, cells: list[StudyCell], folder: Path, subject: Subject) -> Found:
    first = cells[0]
    outcomes = DRIVERS[first.kind](context.setup(first, folder), subject)
    return {
        cell.key: _classified(outcomes[placement])
        for cell, placement in zip(cells, subject.placements, strict=True)
    }


def hand_made(context: Context, cells: list[StudyCell], folder: Path) -> Found:
    """Fit logistic regression to hand-made features."""
    (cell,) = cells
    dataset, count = context.dataset, cell.settings.get("images_per_class")
    if count is not None:
        dataset = replace(dataset, train=first_of_each_class(dataset.train, count))
    return {cell.key: _classified(classical(dataset, cell.settings["features"]))}


def _classified(outcome: Outcome) -> dict[str, Any]:
    """Return the result of a classifier; eight images share a byte of ``correct``."""
    correct = encode_array(np.packbits(outcome.correct))
    return {**outcome.found, "accuracy": outcome.accuracy, "confusion": outcome.confusion, "correct": correct}


KINDS: dict[str, Callable[[Context, list[StudyCell], Path], Found]] = {
    **dict.fromkeys(DRIVERS, classifiers),
    "pretext": pretext,
    "supervised": whole_network,
    "classical": hand_made,
    **PICTURES,
}
"""Kind of a cell -> function that computes a group of them in a folder."""

NETWORK_KINDS = ("pretext", "supervised")
"""Kinds whose networks other cells start from, so that their run folders are kept."""

"""How each kind of cell is computed, from the protocols that the other commands use, too."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from rotnet_fast.config import PretrainConfig
from rotnet_fast.engine import checkpoint
from rotnet_fast.engine.run_folder import RunFolder, epoch_checkpoints
from rotnet_fast.engine.trainer import Trainer
from rotnet_fast.models.network import FeatureNetwork
from rotnet_fast.protocols.ablations import PRETEXT_ABLATIONS
from rotnet_fast.protocols.classical import classical
from rotnet_fast.protocols.evaluation import EvaluationSetup
from rotnet_fast.protocols.heads import fine_tuning_task, frozen_heads_task, head_name, use_batch_statistics
from rotnet_fast.protocols.knn import classify_features, knn_predict
from rotnet_fast.protocols.linear import linear_predict
from rotnet_fast.protocols.pretext import pretrain_with, pretraining
from rotnet_fast.protocols.supervised import train_supervised
from rotnet_fast.report import accuracy
from rotnet_fast.study.cells import StudyCell
from rotnet_fast.study.context import Context, Found
from rotnet_fast.study.pictures import PICTURES


def pretext(context: Context, cells: list[StudyCell], folder: Path) -> Found:
    """A pretraining, in a run folder like any other's."""
    (cell,) = cells
    config = PretrainConfig.from_recipe(
        cell.settings,
        preset=context.settings.preset,
        data_dir=context.data_dir,
        dataset_name=context.dataset_name,
        device=str(context.device),
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
            task_type=PRETEXT_ABLATIONS[cell.settings["ablation"]],
            snapshot_epochs=snapshots,
            progress=context.progress,
        )
        results = pretrain_with(trainer, config, context.dataset, Trainer.resume)
        found = {name: results[name] for name in ("rotation_accuracy", "rotation_accuracy_by_degrees")}
        for epoch in snapshots:
            state = checkpoint.load(run.snapshot(epoch))
            found[f"rotation_accuracy_after/{epoch}"] = state["metrics"]["test"]["rotation_accuracy"]
        for name in ("images_per_second", "train_seconds", "state_hash"):
            found[name] = results[name]
    keep_last_checkpoint(folder)
    return {cell.key: found}


def keep_last_checkpoint(run: Path) -> None:
    """Remove what only an unfinished training needs."""
    for _, path in epoch_checkpoints(run / "checkpoints"):
        path.unlink()


def heads(context: Context, cells: list[StudyCell], folder: Path) -> Found:
    """Heads on one frozen network, all from one forward pass."""
    first = cells[0]
    setup = context.setup(first, folder)
    backbone = frozen_network(setup, first)
    if first.settings["batchnorm"] == "batch":
        use_batch_statistics(backbone)
    placements = [(cell.member["layer"], cell.member["head"]) for cell in cells]
    module = setup.with_heads(backbone, placements, frozen=True)
    confusions = setup.train(
        "heads",
        lambda views: frozen_heads_task(module, views, setup.lr, setup.epochs, setup.lr_factor),
    )
    return {
        cell.key: _classified(confusions[head_name(*placement)])
        for cell, placement in zip(cells, placements, strict=True)
    }


def frozen_network(setup: EvaluationSetup, cell: StudyCell) -> FeatureNetwork:
    """The network that a cell needs, or an untrained one."""
    if cell.needs:
        return setup.pretrained_network()
    return setup.random_network(len(setup.config.rotations), setup.config.blocks)


def fine_tune(context: Context, cells: list[StudyCell], folder: Path) -> Found:
    """A head together with the blocks below it."""
    (cell,) = cells
    setup = context.setup(cell, folder)
    placement = (cell.settings["layer"], cell.settings["head"])
    module = setup.with_heads(setup.pretrained_network(), [placement], frozen=False)
    confusions = setup.train(
        "fine-tune", lambda views: fine_tuning_task(module, views, setup.lr, setup.epochs)
    )
    return {cell.key: _classified(confusions[head_name(*placement)])}


def supervised(context: Context, cells: list[StudyCell], folder: Path) -> Found:
    """A 3-block network from scratch, by the recipe of the pretraining."""
    (cell,) = cells
    confusion = train_supervised(context.setup(cell, folder.parent), folder.name)
    keep_last_checkpoint(folder)
    return {cell.key: _classified(confusion)}


def knn(context: Context, cells: list[StudyCell], folder: Path) -> Found:
    """Nearest neighbours among pooled features."""
    return _on_features(context, cells, folder, knn_predict)


def linear(context: Context, cells: list[StudyCell], folder: Path) -> Found:
    """Logistic regression on pooled features."""
    return _on_features(context, cells, folder, linear_predict)


def _on_features(
    context: Context, cells: list[StudyCell], folder: Path, predict: Callable[..., torch.Tensor]
) -> Found:
    setup = context.setup(cells[0], folder)
    layers = [cell.member["layer"] for cell in cells]
    confusions = classify_features(setup, frozen_network(setup, cells[0]), layers, predict)
    return {cell.key: _classified(confusions[cell.member["layer"]]) for cell in cells}


def hand_made(context: Context, cells: list[StudyCell], folder: Path) -> Found:
    """Logistic regression on hand-made features."""
    (cell,) = cells
    return {cell.key: _classified(classical(context.dataset, cell.settings["features"]))}


def _classified(confusion: list[list[int]]) -> dict[str, Any]:
    return {"accuracy": accuracy(confusion), "confusion": confusion}


KINDS: dict[str, Callable[[Context, list[StudyCell], Path], Found]] = {
    "pretext": pretext,
    "supervised": supervised,
    "head": heads,
    "fine-tune": fine_tune,
    "knn": knn,
    "linear": linear,
    "classical": hand_made,
    **PICTURES,
}
"""Kind of a cell -> function that computes a group of them in a folder."""

NETWORK_KINDS = ("pretext", "supervised")
"""Kinds whose networks other cells start from, so that their run folders are kept."""

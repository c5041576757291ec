"""Makes the cells that tables and figures ask for.

Importing this module does not import torch.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from rotnet_fast.pretext_tasks import PRETEXT_TASKS, ROTATION, PretextTaskName
from rotnet_fast.rotations import FOUR_ROTATIONS
from rotnet_fast.settings import Optimisation
from rotnet_fast.study.cells import StudyCell
from rotnet_fast.study.settings import StudySettings


class Builder:
    """Makes cells of a study for one seed; equal requests give equal cells."""

    def __init__(self, settings: StudySettings, seed: int) -> None:
        self.study = settings
        self.seed = seed

    def pretext(
        self,
        blocks: int = 4,
        rotations: tuple[int, ...] = FOUR_ROTATIONS,
        ablation: str = "",
        task: PretextTaskName = ROTATION,
    ) -> StudyCell:
        """Request a pretraining."""
        config = replace(
            self.study.pretext,
            blocks=blocks,  # type: ignore[arg-type]
            rotations=rotations,
            pretext_task=task,
            seed=self.seed,
        )
        if (lr := PRETEXT_TASKS[task].study_lr) is not None:
            config = replace(config, lr=lr)
        if ablation == "lr-halved":
            if not self.halving_changes_the_pretext:
                return self.pretext(blocks, rotations)
            config = replace(config, lr_factor=0.5)
        is_main = blocks == 4 and rotations == FOUR_ROTATIONS and not ablation and task == ROTATION
        return StudyCell(
            "pretext",
            {
                **config.recipe(),
                "data": self.study.data.fingerprint,
                "ablation": ablation,
                "snapshots": list(self.study.snapshot_epochs) if is_main else [],
            },
        )

    @property
    def halving_changes_the_pretext(self) -> bool:
        """Whether the preset divides the pretext's rate by five, so that halving it is a mistake."""
        return self.study.pretext.schedule == "step" and self.study.pretext.lr_factor != 0.5

    def head(
        self,
        pretext: StudyCell | None,
        layer: str = "conv2",
        head: str = "conv",
        *,
        epoch: int | None = None,
        images_per_class: int | None = None,
        batchnorm: str = "running",
        revisit: bool = True,
        lr_factor: float | None = None,
        fixed: str = "",
    ) -> StudyCell:
        """Request a classifier on frozen features.

        Args:
            pretext: pretraining of the frozen network; None for an untrained one of 4 blocks, or ``fixed``.
            layer, head: where it sits, and which one.
            epoch: which snapshot of the pretraining to take; None for its end.
            images_per_class: how many labels of each class are used; None for as many as the study has.
            batchnorm: see `rotnet_fast.protocols.result.BATCHNORM_MODES`; ``batch`` on a pretrained network
                is an ablation.
            revisit, lr_factor: other values than these are ablations.
            fixed: key of `rotnet_fast.study.context.FIXED_NETWORKS`.
        """
        recipe = self.study.head
        settings = self._training(recipe if lr_factor is None else replace(recipe, lr_factor=lr_factor))
        settings |= {
            "snapshot": None if epoch == self.study.pretext.epochs else epoch,
            "images_per_class": self._labels(images_per_class),
            "batchnorm": batchnorm,
            "revisit": revisit,
        }
        if fixed:
            settings["fixed"] = fixed
        if self.study.precision == "fp16":
            settings["alone"] = f"{layer} {head}"  # heads of a group would share the loss scaler
        return StudyCell("head", settings, {"layer": layer, "head": head}, (pretext,) if pretext else ())

    def fine_tune(self, pretext: StudyCell, head: str, lr: float) -> StudyCell:
        """Request a head on conv2 that is trained together with the blocks below it.

        Args:
            pretext, head: what is trained.
            lr: learning rate; Muon's is lowered in proportion.
        """
        recipe = self.study.head
        muon_lr = recipe.muon_lr * (lr / recipe.lr) if recipe.optimizer == "muon" else recipe.muon_lr
        recipe = replace(recipe, lr=lr, muon_lr=muon_lr)
        settings = {**self._training(recipe), "layer": "conv2", "head": head} | self._limit()
        return StudyCell("fine-tune", settings, needs=(pretext,))

    def supervised(self, images_per_class: int | None = None, revisit: bool = True) -> StudyCell:
        """Request the 3-block network trained from scratch on the labels, by the pretext task's schedule."""
        settings = self._training(self.study.supervised)
        settings |= {"images_per_class": self._labels(images_per_class), "revisit": revisit}
        return StudyCell("supervised", settings)

    def features(
        self,
        kind: str,
        pretext: StudyCell | None,
        layer: str,
        images_per_class: int | None = None,
        batchnorm: str = "running",
        fixed: str = "",
    ) -> StudyCell:
        """Request kNN or a linear probe on pooled frozen features, or an SVM on whole ones.

        Args:
            kind: ``knn``, ``linear`` or ``svm``.
            pretext, layer, images_per_class, batchnorm, fixed: as in :meth:`head`.
        """
        settings = self._data() | {"batch_size": self.study.batch_size, "seed": self.seed}
        settings |= self._limit(images_per_class)
        if batchnorm != "running":
            settings["batchnorm"] = batchnorm
        if fixed:
            settings |= {"fixed": fixed, "seed": 0}  # neither features nor classifier are random
        return StudyCell(kind, settings, {"layer": layer}, (pretext,) if pretext else ())

    def classical(self, features: str) -> StudyCell:
        """Request hand-made features, which involve no random number."""
        settings = {"data": self.study.data.fingerprint, "features": features} | self._limit()
        return StudyCell("classical", settings)

    def picture(self, kind: str, *needs: StudyCell) -> StudyCell:
        """Request what a figure shows of trained networks."""
        return StudyCell(kind, {"data": self.study.data.fingerprint, "seed": self.seed}, needs=needs)

    def _data(self) -> dict[str, Any]:
        return {
            "data": self.study.data.fingerprint,
            "width": self.study.pretext.width,
            "precision": self.study.precision,
        }

    def _training(self, recipe: Optimisation) -> dict[str, Any]:
        pretext = self.study.pretext
        return self._data() | {
            "pad": pretext.pad,
            "flip_prob": pretext.flip_prob,
            "uniform_gamma": pretext.uniform_gamma,
            **recipe.optimisation(),
            "batch_size": self.study.batch_size,
            "seed": self.seed,
        }

    def _labels(self, images_per_class: int | None = None) -> int | None:
        """Return how many labels of each class a cell sees; None for all, so that their cell is shared."""
        count = images_per_class or self.study.images_per_class
        return None if count is None or count >= self.study.data.smallest_class else count

    def _limit(self, images_per_class: int | None = None) -> dict[str, int]:
        """Return the number of labels as a setting of a cell, without it if there is no limit."""
        count = self._labels(images_per_class)
        return {} if count is None else {"images_per_class": count}


def rotation_set_name(rotations: tuple[int, ...]) -> str:
    """Return a set's short name: ``eight`` for the multiples of 45 degrees, else the angles."""
    return "eight" if len(rotations) == 8 else "-".join(map(str, rotations))

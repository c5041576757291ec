"""The data set, device and settings that a study runs with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rotnet_fast.config import PretrainConfig
from rotnet_fast.data.datasets import Dataset
from rotnet_fast.engine import checkpoint
from rotnet_fast.engine.precision import Precision
from rotnet_fast.errors import CheckpointError
from rotnet_fast.models.network import FeatureNetwork
from rotnet_fast.models.scattering import Scattering
from rotnet_fast.pretext_tasks import backbone_state
from rotnet_fast.protocols.evaluation import EvaluationSetup
from rotnet_fast.study.cells import StudyCell
from rotnet_fast.study.settings import StudySettings
from rotnet_fast.study.store import Results

FIXED_NETWORKS: dict[str, Callable[[int, int], FeatureNetwork]] = {"scattering": Scattering}
"""Name -> makes the network, for so many channels and pixels along a side."""

Found = dict[str, dict[str, Any]]
"""Key of a cell -> its result."""


@dataclass(frozen=True)
class Context:
    """The data set, device and settings that a study runs with.

    Attributes:
        settings, results, dataset, device, precision: those of the study.
        data_dir, dataset_name: what the user said of the data, for the run folders.
        command: the command line that results record as their origin.
        compile: ``auto``, ``none``, ``default`` or ``max``, see `rotnet_fast.engine.compiled.choose_compile`.
        graph: ``auto``, ``on`` or ``off``, see `rotnet_fast.engine.replay.use_graph`.
        progress: whether trainings report on the terminal.
    """

    settings: StudySettings
    results: Results
    dataset: Dataset
    device: torch.device
    precision: Precision
    data_dir: Path | None = None
    dataset_name: str | None = None
    command: str = ""
    compile: str = "auto"
    graph: str = "auto"
    progress: bool = True

    def network_checkpoint(self, cell: StudyCell, epoch: int | None = None) -> dict[str, Any]:
        """Return the checkpoint of a finished network, or a snapshot.

        Raises:
            CheckpointError: the file is damaged.
        """
        try:
            return checkpoint.load(self.results.network(cell, epoch))
        except CheckpointError as error:
            raise CheckpointError(
                f"{error}; remove {self.results.run_folder(cell)}, and the network is trained again"
            ) from error

    def fixed_network(self, name: str | None) -> FeatureNetwork | None:
        """Make the network that cells name which sit on none that was trained.

        Raises:
            ImportError: its library is not installed.
        """
        if name is None:
            return None
        data = self.settings.data
        return FIXED_NETWORKS[name](data.channels, data.image_size)

    def setup(self, cell: StudyCell, folder: Path) -> EvaluationSetup:
        """Set up an evaluation with the settings of a cell, on the network it needs or an untrained one."""
        settings = cell.settings
        pretext = cell.needs[0].settings if cell.needs else None
        state = (
            self.network_checkpoint(cell.needs[0], settings.get("snapshot"))["module"] if cell.needs else {}
        )
        config = PretrainConfig.from_recipe(pretext) if pretext else self.settings.pretext
        return EvaluationSetup(
            pretrained=backbone_state(state, config.pretext_task),
            config=config,
            in_channels=self.settings.data.channels,
            pad=settings.get("pad", 0),
            flip_prob=settings.get("flip_prob", 0.0),
            dataset=self.dataset,
            batch_size=settings["batch_size"],
            images_per_class=settings.get("images_per_class"),
            seed=settings["seed"],
            device=self.device,
            precision=self.precision,
            folder=folder,
            revisit=settings.get("revisit", True),
            fixed=self.fixed_network(settings.get("fixed")),
            compile=self.compile,
            graph=self.graph,
            progress=self.progress,
        )

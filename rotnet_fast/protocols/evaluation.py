"""What all evaluation protocols share: setup, subject and training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rotnet_fast.config import PretrainConfig
from rotnet_fast.data.datasets import Dataset, SplitT, take
from rotnet_fast.data.loader import Loader
from rotnet_fast.data.loaders import make_loader
from rotnet_fast.data.split import AnySplit
from rotnet_fast.engine import checkpoint
from rotnet_fast.engine.ambient import own_draws
from rotnet_fast.engine.precision import Precision
from rotnet_fast.engine.run_folder import RunFolder
from rotnet_fast.engine.task import TrainerSettings
from rotnet_fast.engine.trainer import Trainer
from rotnet_fast.errors import ArgumentError
from rotnet_fast.models.build import make_network
from rotnet_fast.models.network import FeatureNetwork
from rotnet_fast.plain import counted
from rotnet_fast.protocols.classification import ObjectClassification, ObjectViews
from rotnet_fast.protocols.heads import HeadsOnBackbone, use_batch_statistics
from rotnet_fast.protocols.result import Outcome
from rotnet_fast.settings import Optimisation

Placement = tuple[str, str]
"""(layer, head) of a classifier; a head is ``nonlinear``, ``conv``, ``perceptron``, ``knn``, ``linear`` or
``svm``."""

WHOLE_NETWORK: Placement = ("", "")
"""The placement of a classifier that is a whole network."""

RELEASED = Optimisation()
"""How the released code trains heads."""


@dataclass(frozen=True)
class Subject:
    """What a protocol is applied to.

    Attributes:
        placements: where classifiers sit, and which ones.
        is_pretrained: whether they sit on the pretrained network, or on an untrained one like it.
        batchnorm: one of ``BATCHNORM_MODES``: what BatchNorm of the network normalises with while frozen.
            The running statistics of an untrained network normalise nothing: at width 1, features have a
            standard deviation of about 5e-3, and the eps of a head's BatchNorm matters. With batch
            statistics, test results depend on how test images are batched: in a fixed pseudo-random
            order, in batches of the training's size.
        name: folder of the training within that of the setup; unused by protocols that train nothing.
        recipe: how to train them; without milestones, each head follows the published ones of its kind.
    """

    placements: tuple[Placement, ...]
    is_pretrained: bool = True
    batchnorm: str = "running"
    name: str = ""
    recipe: Optimisation = RELEASED

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers of the placements, each once."""
        return tuple(dict.fromkeys(layer for layer, _ in self.placements))


@dataclass(frozen=True)
class EvaluationSetup:
    """One pretrained network, one data set and the settings of an evaluation.

    Attributes:
        pretrained: state of the pretrained network.
        config: recipe of its pretraining, which untrained and supervised networks follow, too.
        in_channels: channels of the images.
        pad, flip_prob: augmentation of training images, see `ObjectViews`.
        dataset: object images with labels.
        batch_size: images per step of every training.
        images_per_class: train classifiers on the first so many images of each class; None for all.
            An epoch keeps the size of the whole training set: the few images are revisited.
        seed: of first weights, order and augmentation.
        device, precision: device and number format of all computations.
        folder: holds a run folder for each training.
        revisit: False is an ablation: an epoch is one visit to each labelled image.
        compile: ``auto``, ``none``, ``default`` or ``max``, see `rotnet_fast.engine.compiled.choose_compile`.
        graph: ``auto``, ``on`` or ``off``, see `rotnet_fast.engine.replay.use_graph`.
        pretraining: what results say of it: ``epochs`` done, whether its images were some of a larger set
            (``is_limited``), and whether they are those of ``dataset`` (``has_same_images``).
        progress: whether trainings report on the terminal.
        module: the pretrained network where a program gave it, see `rotnet_fast.models.build.make_network`.
        fixed: a network that nothing was pretrained for and that takes the place of the pretrained and the
            untrained one, such as `rotnet_fast.models.scattering.Scattering`.
    """

    pretrained: Mapping[str, Any]
    config: PretrainConfig
    in_channels: int
    pad: int
    flip_prob: float
    dataset: Dataset[AnySplit]
    batch_size: int
    images_per_class: int | None
    seed: int
    device: torch.device
    precision: Precision
    folder: Path
    revisit: bool = True
    compile: str = "auto"
    graph: str = "auto"
    pretraining: Mapping[str, Any] = field(default_factory=dict)
    progress: bool = True
    module: nn.Module | None = None
    fixed: FeatureNetwork | None = None

    def backbone(self, subject: Subject) -> FeatureNetwork:
        """Return a fresh copy of the network that the classifiers of a subject sit on, on the device."""
        if self.fixed is not None:
            return deepcopy(self.fixed).to(self.device)
        if subject.is_pretrained:
            network = self.pretrained_network()
        else:
            network = self.random_network(self.config.outputs, self.config.blocks)
        if subject.batchnorm == "batch":
            use_batch_statistics(network)
        return network

    def pretrained_network(self) -> FeatureNetwork:
        """Return a fresh copy of the pretrained network, on the device."""
        network = self._network(self.config.outputs, self.config.blocks)
        network.load_state_dict(self.pretrained)
        return network.to(self.device)

    def random_network(self, num_classes: int, blocks: int) -> FeatureNetwork:
        """Return an untrained network on the device, whose weights depend on the seed alone."""
        with own_draws(self.seed):
            network = self._network(num_classes, blocks)
        return network.to(self.device)

    def _network(self, num_classes: int, blocks: int) -> FeatureNetwork:
        return make_network(
            num_classes,
            self.in_channels,
            self.config.model,
            blocks=blocks,
            width=self.config.width,
            uniform_gamma=self.config.uniform_gamma,
            module=self.module,
            image_size=self.config.image_size,
        )

    def with_heads(
        self, backbone: FeatureNetwork, placements: Sequence[Placement], frozen: bool
    ) -> HeadsOnBackbone:
        """Put fresh heads on a backbone, on the device."""
        height, breadth, channels = self.dataset.train.image_shape
        return HeadsOnBackbone(
            backbone,
            placements,
            image_shape=(channels, height, breadth),
            num_classes=len(self.dataset.classes),
            width=self.config.width,
            seed=self.seed,
            frozen=frozen,
        ).to(self.device)

    def labelled(self) -> AnySplit:
        """Return the labelled training images."""
        split = self.dataset.train
        return split if self.images_per_class is None else first_of_each_class(split, self.images_per_class)

    def plain_loader(self, split: AnySplit) -> Loader:
        """Load all images once, as for testing, in a pseudo-random order that is always the same."""
        return make_loader(self.dataset, split, self.device, self.batch_size, seed=0, is_test=True)

    def views(self, is_augmented: bool = True) -> ObjectViews:
        """Return views of the labelled training images and of all test images.

        Args:
            is_augmented: whether training images are shown as in training, or each once, as test images.
        """
        dataset = self.dataset
        if is_augmented:
            visits = len(dataset.train) if self.revisit else None
            loader = make_loader(
                dataset, self.labelled(), self.device, self.batch_size, self.seed, epoch_size=visits
            )
        else:
            loader = self.plain_loader(self.labelled())
        test_loader, dtype = self.plain_loader(dataset.test), self.precision.dtype
        pad = 0 if dataset.crop else self.pad
        return ObjectViews(loader, test_loader, dataset.mean, dataset.std, dtype, pad, self.flip_prob)

    def train(
        self,
        subject: Subject,
        make_task: Callable[[ObjectViews], ObjectClassification],
        identity: Mapping[str, Any] | None = None,
    ) -> dict[str, Outcome]:
        """Train to the end in ``folder/name``, resuming from its checkpoint if it has one.

        Args:
            subject: what is trained, which gives the training its name and recipe.
            make_task: makes the task to train.
            identity: further settings that a resumed training must share.

        Returns:
            Outcome of each classifier on the test images, after the last epoch.

        Raises:
            CheckpointError: the folder holds a training with other settings, or only damaged files.
            Interrupted: stopped by a signal, with everything saved.
        """
        recipe = subject.recipe
        views = self.views()
        task = make_task(views)
        settings = TrainerSettings(
            recipe.epochs,
            self.precision,
            nesterov=recipe.nesterov,
            weight_decay=recipe.weight_decay,
            muon_weight_decay=recipe.muon_weight_decay,
            eval_every=10,
            graph=self.graph,
            print_every=10,
            tensorboard=False,
            progress=self.progress,
        )
        identity = {**self._identity(task, subject), **(identity or {})}
        with RunFolder(self.folder / subject.name, resume=True) as run:
            trainer = Trainer(task, views.loader, settings, run, identity)
            trainer.resume()
            trainer.fit()
            with self.precision.autocast():
                return task.outcomes()

    def _identity(self, task: ObjectClassification, subject: Subject) -> dict[str, Any]:
        return {
            "model": self.config.model if self.fixed is None else self.fixed.name,
            "width": self.config.width,
            "num_classes": len(self.dataset.classes),
            "in_channels": self.in_channels,
            "task": f"evaluate {subject.name}",
            "backbone": checkpoint.state_hash(self.pretrained),
            **self.dataset.identity(),
            "classifiers": [group.name for group in task.parameter_groups()],
            **subject.recipe.optimisation(),
            "batch_size": self.batch_size,
            "images_per_class": self.images_per_class,
            "pad": self.pad,
            "flip_prob": self.flip_prob,
            "revisit": self.revisit,
            "seed": self.seed,
            "precision": self.precision.name,
        }


def first_of_each_class(split: SplitT, count: int) -> SplitT:
    """Take the first ``count`` images of each class, in file order.

    Raises:
        ArgumentError: a class has fewer images.
    """
    smallest = int(split.labels.bincount().min())
    if not 1 <= count <= smallest:
        raise ArgumentError(
            f"images-per-class is {count}; the smallest class has {counted(smallest, 'training image')}: "
            f"give 1 to {smallest}, or omit it for all"
        )
    classes = range(int(split.labels.max()) + 1)
    kept = torch.cat([(split.labels == label).nonzero()[:count, 0] for label in classes]).sort().values
    return take(split, kept)

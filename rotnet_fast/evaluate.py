"""Evaluate pretrained features: ``python -m rotnet_fast.evaluate --checkpoint RUN [flags]``.

The evaluation's folder, RUN/evaluate-001 and so on unless ``--output`` says otherwise, holds
results.json and one run folder for each training. Giving the folder of an interrupted evaluation as
``--output`` resumes it.

Under torchrun, the trainings are divided among the processes, which have to share the folder; the numbers are
those of a single process.

Exit codes: see `rotnet_fast.command`. torch is imported only once the flags are known to be right.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rotnet_fast.checks import check_images, check_needs_gpu, check_seed, check_streaming
from rotnet_fast.command import announce, program_as_started, rank0_only, run_command, silenced
from rotnet_fast.engine.ambient import plain_torch
from rotnet_fast.engine.distributed import ALONE, Processes, is_restart, job, join
from rotnet_fast.engine.run_folder import (
    check_is_no_study,
    check_output,
    claimed,
    environment,
    read_settings,
    was_begun_by_this_job,
)
from rotnet_fast.engine.signals import Interrupted
from rotnet_fast.errors import ArgumentError
from rotnet_fast.files import resolve_path
from rotnet_fast.flags import parse_flags
from rotnet_fast.next_steps import given_network, print_next, shell
from rotnet_fast.plain import counted
from rotnet_fast.presets import PRESETS
from rotnet_fast.pretext_tasks import ROTATION
from rotnet_fast.pretrained import find_model, read_pretrained
from rotnet_fast.protocols.result import BATCHNORM_MODES, load_results, render
from rotnet_fast.settings import Optimisation, PretrainedImageSettings, at_least_one

if TYPE_CHECKING:
    from rotnet_fast.config import PretrainConfig
    from rotnet_fast.protocols.drivers import Unit
    from rotnet_fast.protocols.evaluation import EvaluationSetup

PROGRAM = "python -m rotnet_fast.evaluate"


_DECISIVE = (
    *(field.name for field in fields(Optimisation)),
    *("batch_size", "pad", "flip_prob", "seed", "precision", "images_per_class"),
)
"""Settings on which every row of an evaluation depends."""


@dataclass(frozen=True)
class EvaluateConfig(PretrainedImageSettings):
    """Measure how good pretrained features are by training object classifiers on them."""

    examples = (
        "--checkpoint runs/paper-cifar10-seed0",
        "--checkpoint runs/quickstart-digits-seed0 --images-per-class 1 --epochs 10 --pad 2",
        "--checkpoint nin4-cifar10-jpeg --data-dir FOLDER --no-frozen --knn --linear",
    )
    paths_as_text = ("checkpoint",)
    positional = "checkpoint"

    checkpoint: str
    """Run folder of a pretraining (its newest checkpoint is taken), a checkpoint file, an exported folder, or
    the name of a model that comes with the package."""

    layers: tuple[str, ...] | None = None
    """Feature maps to put heads on: conv1, conv2 ... of nin, each after its block's pool; of another network,
    modules, such as layer3. None: conv2, or the last map of the stage before the last."""

    heads: tuple[Literal["nonlinear", "conv"], ...] = ("nonlinear", "conv")
    """nonlinear: two hidden layers of 20 units per class on the whole map, averaged down to 8x8 where another
    network than nin has a larger one. conv: nin's third conv block."""

    frozen: bool = True
    """Train the heads on the frozen pretrained network, all of them from one forward pass per step."""

    random_init: bool | None = None
    """Train the same heads on a frozen untrained network, and its kNN and linear probe, in both BatchNorm
    modes. None: with batch statistics, which mostly favour an untrained network, for each frozen measurement;
    this doubles the time. Running statistics are used where a batch would have one image."""

    fine_tune: bool = False
    """Train each head once more together with all of the network that is below it."""

    supervised: bool = False
    """Train a network from scratch on the same labels, by the pretraining's recipe: nin with 3 blocks, or the
    network of the pretraining."""

    knn: bool = False
    """Classify by nearest neighbours among the pooled frozen features of the same labelled images."""

    linear: bool = False
    """Fit logistic regression to the same features."""

    images_per_class: int | None = None
    """Use only the first N labelled images of each class; epochs keep their size. None: all."""

    preset: Literal["paper", "slides"] | None = None
    """Defaults of lr-factor, milestones and nesterov. paper: each head's schedule in the released code.
    slides: the pretext task's schedule, as in the lecture slides' run. None: slides for a network that was
    pretrained with its settings, else paper."""

    epochs: int = 100
    """Passes over the training images; the published schedules of 100 epochs are scaled to it."""

    lr: float = 0.1
    """Learning rate of the first step of heads and of fine-tuning, or at the end of the warm-up."""

    schedule: Literal["step", "linear", "cosine"] = "step"
    """Schedule of heads and of fine-tuning. step: multiply lr by lr-factor at each milestone. linear, cosine:
    decay to 0 at the end."""

    warmup: float = 0.0
    """Epochs, possibly fractional, in which linear and cosine rise from 0 to lr before they decay."""

    milestones: tuple[int, ...] | None = None
    """Epochs after which the step schedule multiplies the learning rate. None: the preset's, scaled to the
    epochs."""

    lr_factor: float | None = None
    """Factor of the step schedule. None: the preset's, 0.2 of paper and 0.5 of slides."""

    optimizer: Literal["sgd", "muon"] = "sgd"
    """Optimizer of heads and of fine-tuning, see rotnet_fast.pretrain."""

    muon_lr: float = 0.05
    """Learning rate of muon; lr is that of the other parameters. Both follow the schedule."""

    nesterov: bool | None = None
    """Use Nesterov momentum for heads and fine-tuning. None: as the preset, paper with and slides without."""

    weight_decay: float = 5e-4
    """Weight decay of heads and of fine-tuning, on all parameters."""

    muon_weight_decay: float | None = None
    """Weight decay of the filters that follow muon. None: weight-decay."""

    batch_size: int = 128
    """Images per step; 128 is the published recipe's, whatever the pretraining used."""

    pad: int | None = None
    """Pixels of black border that a random crop of training images may take in. None: as in pretraining,
    so that after one without augmentation, such as the quickstart's, heads train without it, too."""

    flip_prob: float | None = None
    """Probability of a left-right flip of training images. None: as in pretraining, as for the crop."""

    seed: int = 0
    """Decides the first weights of heads and untrained networks, the order and the augmentation."""

    dataset: Literal["cifar10", "folder", "digits"] | None = None
    """Images with labels. None: those of the pretraining, with its folder, size and limits."""

    check_images: Literal["structure", "decode"] = "structure"
    """How thoroughly to check the images first, see rotnet_fast.pretrain."""

    compile: Literal["auto", "none", "default", "max"] = "auto"
    """Whether to torch.compile networks that are trained as a whole, as in rotnet_fast.pretrain."""

    graph: Literal["auto", "on", "off"] = "auto"
    """Replay training steps from a CUDA graph, as in rotnet_fast.pretrain."""

    output: Path | None = None
    """Folder of this evaluation. None: a new one in the run folder, evaluate-001 and so on."""

    def protocols(self) -> list[str]:
        """Names of the protocols to run, in order, see `rotnet_fast.protocols.drivers.protocol_units`."""
        chosen = {
            "frozen": self.frozen,
            "random-init": self.frozen if self.random_init is None else self.random_init,
            "fine-tune": self.fine_tune,
            "supervised": self.supervised,
            "knn": self.knn,
            "random-init-knn": self.knn and self.random_init is not False,
            "linear": self.linear,
            "random-init-linear": self.linear and self.random_init is not False,
        }
        return [name for name, is_chosen in chosen.items() if is_chosen]

    def validate(self) -> None:
        """Check what the types alone cannot.

        Raises:
            ArgumentError: a setting with a value that cannot be used.
            DataError: the data folder does not exist.
            CheckpointError: the checkpoint's path does not exist.
        """
        super().validate()
        check_seed(self.seed)
        at_least_one(self, "batch_size", "images_per_class")
        self.recipe(self.preset or "paper").validate()
        if self.pad is not None and not 0 <= self.pad <= 32767:
            raise ArgumentError(f"pad is {self.pad}; it must lie in [0, 32767]")
        if self.flip_prob is not None and not 0 <= self.flip_prob <= 1:
            raise ArgumentError(f"flip-prob is {self.flip_prob}; it must lie in [0, 1]")
        check_needs_gpu("graph", self.graph, self.graph == "on", self.device)
        if self.dataset is not None:
            check_images(self.dataset, self.data_dir, self.limit_train, self.limit_test)
            check_streaming(self.dataset, self.loader, is_cropped=False)
        for name, values in (("layers", self.layers), ("heads", self.heads)):
            if values is not None and not 0 < len(values) == len(set(values)):
                raise ArgumentError(f"{name} is {' '.join(values) or 'empty'}; give one or more, each once")
        if not self.protocols():
            raise ArgumentError(
                "nothing to evaluate; remove --no-frozen, or add --random-init, --fine-tune, "
                "--supervised, --knn or --linear"
            )
        find_model(self.checkpoint)

    def preset_for(self, pretraining: PretrainConfig) -> Literal["paper", "slides"]:
        """Return the preset: the one named, or the one that fits how the network was pretrained."""
        if self.preset is not None:
            return self.preset
        slides = PRESETS["slides"]().stretched(pretraining.epochs)
        return "slides" if pretraining.optimisation() == slides.optimisation() else "paper"

    def recipe(self, preset: Literal["paper", "slides"]) -> Optimisation:
        """Return how heads are trained by a preset, with the flags that override it."""
        base = Optimisation(**PRESETS["slides"]().optimisation()) if preset == "slides" else Optimisation()
        names = [field.name for field in fields(Optimisation) if field.name != "epochs"]
        given: dict[str, Any] = {name: getattr(self, name) for name in names}
        chosen = {name: value for name, value in given.items() if value is not None}
        return replace(base.stretched(self.epochs), **chosen)

    def output_folder(self) -> Path:
        """Return the folder of this evaluation."""
        if self.output is not None:
            return resolve_path(self.output)
        run = resolve_path(find_model(self.checkpoint).home)
        number = 1
        while (run / f"evaluate-{number:03d}").exists():
            if is_restart() and was_begun_by_this_job(run / f"evaluate-{number:03d}"):
                break
            number += 1
        return run / f"evaluate-{number:03d}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Command-line entry point; returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)

    def command() -> None:
        with rank0_only():
            config = parse_flags(EvaluateConfig, PROGRAM, arguments)
            config.validate()
        announce(f"evaluating {config.checkpoint}")
        with join() as processes:
            folder = processes.from_main(config.output_folder)
            try:
                results = evaluate(config, folder, processes)
            except Interrupted:
                if processes.is_main:
                    again = shlex.join([*arguments, *([] if config.output else ["--output", str(folder)])])
                    print(f"saved; resume with: {program_as_started(PROGRAM)} {again}", file=sys.stderr)
                raise
            if processes.is_main:
                print(f"\n{render(results)}\n\nresults: {folder / 'results.json'}")
                print_next(next_steps(config, arguments, folder, results))

    return run_command(command)


def next_steps(
    config: EvaluateConfig, arguments: Sequence[str], folder: Path, results: Mapping[str, Any]
) -> list[str]:
    """Return what to do after an evaluation.

    Args:
        config: its settings.
        arguments: the flags that it was given, with which a further training is comparable.
        folder: where it was written; what is finished in there is not trained again.
        results: content of results.json.
    """
    network = given_network(config.checkpoint)
    is_other_set = config.dataset is not None and not results["pretraining"]["has_same_images"]
    where = [] if config.data_dir is None else ["--data-dir", config.data_dir]
    steps = []
    if config.supervised:
        both = ["--what", "attention", "filters", "--supervised", folder / "supervised"]
    else:
        both = []
        output = [] if config.output else ["--output", folder]
        steps.append(shell("evaluate", *arguments, "--supervised", *output))
    if is_other_set:  # visualize has no images of a set that the network was not pretrained on
        steps.append(shell("visualize", network, "--what", "filters"))
    else:
        steps.append(shell("visualize", network, *both, *where))
    if results["dataset"]["name"] == "digits":
        steps.append(shell("reproduce", "--dataset", "digits", "--preset", "demo"))
    else:
        steps.append(shell("export", network))
    return steps


def evaluate(config: EvaluateConfig, folder: Path, processes: Processes = ALONE) -> dict[str, Any]:
    """Run every protocol asked for and write results.json; a single process writes it after each training.

    Args:
        folder: folder of this evaluation; whatever is finished in it is not trained again.
        processes: processes that divide the trainings among them.

    Returns:
        Content of results.json: ``cells`` (rows of the table, see `rotnet_fast.protocols.result.Cell`),
        ``checkpoint``, ``backbone`` (hash of the pretrained weights), ``network``, ``pretraining``,
        ``dataset``, ``settings`` and ``environment``.

    Raises:
        RotnetError: one of its kinds, see `rotnet_fast.errors`.
        Interrupted: stopped by a signal, with everything saved.
    """
    config.validate()
    folder = resolve_path(folder)

    def begun() -> dict[str, Any] | None:
        check_is_no_study(folder)
        check_output(folder)
        previous = read_settings(folder)
        if previous is not None and previous.get("checkpoint") != place_of(config.checkpoint):
            raise ArgumentError(f"output {folder} holds another run; choose another folder with --output")
        return previous

    previous = processes.from_main(begun)  # before torch is imported, let alone data and network read
    return _evaluate(config, folder, processes, is_new=previous is None)


@plain_torch()
def _evaluate(config: EvaluateConfig, folder: Path, processes: Processes, is_new: bool) -> dict[str, Any]:
    """Do the work of :func:`evaluate` in a folder that has been checked."""
    from rotnet_fast.engine import checkpoint

    def prepare() -> tuple[EvaluationSetup, tuple[str, ...], list[Unit]]:
        with silenced(not processes.is_main):
            return load_setup(config, folder, processes)

    setup, layers, units = processes.local_main_first(prepare)
    settings = asdict(config)
    preset = config.preset_for(setup.config)
    dataset = setup.dataset
    results: dict[str, Any] = {
        "checkpoint": str(config.checkpoint),
        "backbone": checkpoint.state_hash(setup.pretrained),
        "network": network_of(setup),
        "pretraining": setup.pretraining,
        "dataset": {
            "name": dataset.name,
            "display_name": dataset.display_name,
            "classes": dataset.classes,
            "train_images": len(dataset.train),
            "test_images": len(dataset.test),
            "tested_on": dataset.tested_on,
            "fingerprint": dataset.fingerprint,
            "skipped": dataset.skipped,
        },
        "settings": {
            **settings,
            "layers": layers,
            "pad": 0 if dataset.crop else setup.pad,
            "flip_prob": setup.flip_prob,
            "precision": setup.precision.name,
            "preset": preset,
            **config.recipe(preset).optimisation(),
        },
        "environment": {**environment(str(setup.device)), "processes": processes.world},
        "cells": [],
    }
    earlier = processes.from_main(lambda: earlier_rows(folder, results))
    rows: dict[int, list[dict[str, Any]]] = {}
    with claimed(folder, True, processes) as run:
        # Absolute, because this evaluation may be resumed from another working directory.
        there = {**settings, "checkpoint": place_of(config.checkpoint)}
        written = {"settings": there, "environment": results["environment"], "job": job()}

        def write() -> None:
            table = dict(earlier)
            for number in sorted(rows):
                table |= {_place(row): row for row in rows[number]}
            results["cells"] = list(table.values())
            # Not before a training: a folder of trainings with other settings is refused and stays as it was.
            run.write_config(written)
            run.write_results(results)

        def compute_mine() -> None:
            for number in range(processes.rank, len(units), processes.world):
                if processes.is_main:
                    print(f"{number + 1} of {len(units)}: {units[number].title}", flush=True)
                rows[number] = [asdict(cell) for cell in units[number].cells(setup)]
                if processes.world == 1:
                    write()

        if is_new:
            processes.on_main(lambda: run.write_config(written))
        processes.everywhere(compute_mine)
        if processes.world > 1:
            for mine in processes.gather(rows):
                rows |= mine
            processes.on_main(write)
    return results


def earlier_rows(folder: Path, results: Mapping[str, Any]) -> dict[tuple[str, ...], dict[str, Any]]:
    """Return the rows that an evaluation of the same network has already written, by their places.

    It had other protocols, or was not finished: rows that are not computed anew stay.

    Args:
        folder: folder of the evaluation.
        results: content of results.json, as far as it is known before.

    Raises:
        ArgumentError: they were found on other images or with other settings.
    """
    try:
        found = load_results(folder)
    except ArgumentError:
        return {}

    def decisive(content: Mapping[str, Any]) -> dict[str, Any]:
        settings, dataset = content["settings"], content["dataset"]
        images = {name: dataset[name] for name in ("fingerprint", "train_images", "test_images", "tested_on")}
        kept = {name: settings.get(name) for name in _DECISIVE}
        return {"backbone": content["backbone"], **images, **kept}

    there, here = decisive(found), decisive(json.loads(json.dumps(dict(results), default=str)))
    differing = [
        f"{name} is {there[name]} there and {here[name]} here" for name in here if there[name] != here[name]
    ]
    if differing:
        raise ArgumentError(
            f"output {folder} has results of another evaluation ({', '.join(differing)}); choose another "
            f"folder with --output"
        )
    return {_place(row): row for row in found["cells"]}


def _place(row: Mapping[str, Any]) -> tuple[str, ...]:
    """What tells a row of the table from the others."""
    return tuple(str(row[name]) for name in ("method", "layer", "head", "note"))


def place_of(checkpoint: str) -> str:
    """Return the name of a model that ships with the package, or the real path of another one."""
    return find_model(checkpoint).shipped_as or os.path.realpath(checkpoint)


def network_of(setup: EvaluationSetup) -> dict[str, Any]:
    """Return what results.json says of the network."""
    config = setup.config
    rotations = config.rotations if config.pretext_task == ROTATION else ()
    return {**config.architecture(), "pretext_task": config.pretext_task, "rotations": rotations}


def load_setup(
    config: EvaluateConfig, folder: Path, processes: Processes = ALONE
) -> tuple[EvaluationSetup, tuple[str, ...], list[Unit]]:
    """Load checkpoint and data set.

    Returns:
        The setup, the layers that classifiers are trained on, and the units to run.

    Raises:
        ArgumentError: a layer that the pretrained network does not have, a network whose library is missing,
            or another unusable value.
        CheckpointError: no whole checkpoint of a pretraining.
        DataError: the data set is missing, incomplete or damaged, or has no classes.
    """
    from rotnet_fast.data.datasets import check_has_classes
    from rotnet_fast.engine.precision import resolve_precision
    from rotnet_fast.protocols.batches import check_batches
    from rotnet_fast.protocols.drivers import protocol_units
    from rotnet_fast.protocols.evaluation import EvaluationSetup, first_of_each_class
    from rotnet_fast.protocols.images import described, open_images

    device = processes.device(config.device)
    check_needs_gpu("graph", config.graph, config.graph == "on", device.type)
    precision = resolve_precision(config.precision, device)
    pretrained = read_pretrained(config.checkpoint)
    recipe = pretrained.config
    print(f"features of {pretrained.path}, after {pretrained.epoch} of {counted(recipe.epochs, 'epoch')}")
    network = pretrained.network()
    layers = (network.default_layer,) if config.layers is None else config.layers
    network.check_layers(layers)  # before a data set is read
    dataset, has_same_images = open_images(
        pretrained,
        device,
        name=config.dataset,
        data_dir=config.data_dir,
        limit_train=config.limit_train,
        limit_test=config.limit_test,
        bad_images=config.bad_images,
        loader=config.loader,
        progress=processes.local_rank == 0,
        check_images=config.check_images,
        validation=config.validation,
    )
    check_has_classes(dataset)
    if config.images_per_class is not None:
        first_of_each_class(dataset.train, config.images_per_class)
    network.check_image_size(*dataset.train.image_shape[:2])
    setup = EvaluationSetup(
        pretrained=pretrained.state,
        config=recipe,
        in_channels=pretrained.in_channels,
        pad=recipe.pad if config.pad is None else config.pad,
        flip_prob=recipe.flip_prob if config.flip_prob is None else config.flip_prob,
        dataset=dataset,
        batch_size=config.batch_size,
        images_per_class=config.images_per_class,
        seed=config.seed,
        device=device,
        precision=precision,
        compile=config.compile,
        graph=config.graph,
        folder=folder,
        pretraining=described(pretrained, has_same_images),
        progress=processes.is_main,
    )
    heads_recipe = config.recipe(config.preset_for(recipe))

    def units_with(modes: Sequence[str]) -> list[Unit]:
        by_protocol = protocol_units(
            layers, config.heads, heads_recipe, recipe.stretched(config.epochs), modes
        )
        units = [unit for name in config.protocols() for unit in by_protocol[name]]
        check_batches(setup, network, units)
        return units

    if config.random_init is not None:
        return setup, layers, units_with(BATCHNORM_MODES)
    try:
        return setup, layers, units_with(["batch"])
    except ArgumentError:  # an evaluation is not refused for a baseline that nobody asked for
        return setup, layers, units_with(["running"])


if __name__ == "__main__":
    sys.exit(main())

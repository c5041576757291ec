"""Pretrain RotNet: ``python -m rotnet_fast.pretrain [--preset NAME] [flags]``; in Python, see `train_rotnet`.

With several processes, each of which trains on its share of every batch:
``torchrun --nproc-per-node N -m rotnet_fast.pretrain ...``.

Exit codes: see `rotnet_fast.command`. torch is imported only once the flags are known to be right.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rotnet_fast.checks import check_streaming
from rotnet_fast.command import announce, program_as_started, rank0_only, run_command
from rotnet_fast.config import NIN, PretrainConfig, check_resume
from rotnet_fast.engine.ambient import own_draws, plain_torch
from rotnet_fast.engine.distributed import Processes, is_main, is_restart, join
from rotnet_fast.engine.run_folder import (
    RunFolder,
    candidates,
    check_is_no_study,
    claimed,
    loader_of,
    read_settings,
    run_of,
    was_begun_by_this_job,
)
from rotnet_fast.engine.signals import Interrupted
from rotnet_fast.errors import ArgumentError, CheckpointError, printable
from rotnet_fast.flags import given_flags, parse_flags
from rotnet_fast.models.names import check_model_name
from rotnet_fast.next_steps import as_argument, curves, evaluation, print_next, shell
from rotnet_fast.plain import counted
from rotnet_fast.presets import PRESETS
from rotnet_fast.pretext_tasks import PRETEXT_TASKS, ROTATION
from rotnet_fast.pretrained import Pretrained, check_weights, find_model, read_pretrained
from rotnet_fast.settings import require
from rotnet_fast.verdict import of_pretraining

if TYPE_CHECKING:
    import torch
    from torch import nn

    from rotnet_fast.data.datasets import Dataset
    from rotnet_fast.data.own import OwnImages
    from rotnet_fast.data.split import AnySplit
    from rotnet_fast.engine.precision import Precision
    from rotnet_fast.engine.trainer import Trainer

PROGRAM = "python -m rotnet_fast.pretrain"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)

    def command() -> None:
        with rank0_only():
            config = parse(arguments)
        announce(beginning(config))
        try:
            results = pretrain(config)
        except Interrupted:
            if is_main():
                folder = as_argument(config.output_folder())
                print(f"saved; resume with: {program_as_started(PROGRAM)} --resume {folder}", file=sys.stderr)
            raise
        if is_main():
            print(summary(config, results))
            print_next(next_steps(config, results))

    return run_command(command)


def beginning(config: PretrainConfig) -> str:
    """Say what is about to happen."""
    if config.resume is not None and config.resume != "auto":
        return f"resuming {config.resume}"
    epochs = counted(config.epochs, "epoch")
    return f"pretraining on {config.dataset} for {epochs} (preset {config.preset})"


def parse(arguments: Sequence[str]) -> PretrainConfig:
    """Read settings from flags; the resumed run or else the preset supplies the rest.

    Raises:
        ArgumentError: a flag is unknown, or a value is invalid.
        CheckpointError: there is no run to resume at the path given.
        SystemExit: with 0, after ``--help``.
    """
    is_help = not {"-h", "--help"}.isdisjoint(arguments)
    given: dict[str, Any] = {}
    with suppress(*[ArgumentError] * is_help):
        given = given_flags(PretrainConfig, PROGRAM, arguments)
    base = base_settings(given) if not is_help else PRESETS[given.get("preset", "paper")]()
    config = parse_flags(PretrainConfig, PROGRAM, arguments, base)
    config.validate()
    if config.init_from is not None and config.resume is None:
        find_model(config.init_from, "init-from")
    check_model_name(config.model)
    return config


def base_settings(given: Mapping[str, Any]) -> PretrainConfig:
    """Return the settings that flags override: those of the run to resume, unless a preset is named.

    Args:
        given: values of the flags, by field name.

    Raises:
        ArgumentError, CheckpointError: see :func:`parse`.
    """
    # The width in a preset is meant for its own network; a width from a flag stays.
    preset = PRESETS[given.get("preset", "paper")]().with_model(given.get("model", NIN)).followed_by(given)
    if given.get("resume") is None or "preset" in given or not is_main():  # other ranks take over rank 0's
        return preset
    if given["resume"] == "auto":
        saved = settings_of_run(replace(preset, **given).output_folder())
        if saved is None:
            return preset
    else:
        path = check_resume(given["resume"], given.get("output"))
        saved = settings_of_run(run_of(path), "resume") or settings_in_checkpoint(path)
    return saved.with_model(given.get("model", saved.model)).followed_by(given)


def settings_of_run(run: Path, argument: str = "output") -> PretrainConfig | None:
    """Read the settings in config.json of a run folder; None if there is none.

    Args:
        run: the folder.
        argument: name of the argument in error messages.

    Raises:
        ArgumentError: it cannot be read, or belongs to another command.
    """
    settings = read_settings(run)
    if settings is None:
        return None
    check_is_pretraining(run, settings, argument)
    # Changed images are accepted once only, and a run may have moved.
    kept = {name: value for name, value in settings.items() if name not in _FOR_ONE_RUN}
    try:
        return PretrainConfig(**kept)
    except (TypeError, ArgumentError) as error:
        raise ArgumentError(f"{run / 'config.json'} is not that of a pretraining ({error})") from error


def check_is_pretraining(folder: Path, settings: Mapping[str, Any], argument: str = "output") -> None:
    """Refuse the folder of another command.

    Raises:
        ArgumentError: the settings in it are not those of a pretraining.
    """
    if "preset" not in settings or "checkpoint" in settings:  # which an evaluation has
        remedy = "choose another folder with --output" if argument == "output" else "pass a run of " + PROGRAM
        raise ArgumentError(
            f"{argument} {folder} holds a run of another command, not a pretraining; {remedy}"
        )


_FOR_ONE_RUN = ("accept_changed_data", "output", "resume")


def settings_in_checkpoint(path: Path) -> PretrainConfig:
    """Read the recipe in a checkpoint, which records neither the folder of the images nor how to report.

    Raises:
        CheckpointError: no whole checkpoint of a pretraining.
    """
    if path.is_dir() and not candidates(path):
        raise CheckpointError(
            f"resume is {path}, which is no run folder; pass a run folder of {PROGRAM}, or a file in its "
            f"checkpoints/"
        )
    return read_pretrained(path, "resume").config


@dataclass(frozen=True)
class OwnParts:
    """What a program gives beside the settings.

    Attributes:
        images: take the place of the settings' data set; None reads that.
        network: takes the place of the settings' model; None builds that.
        progress: whether to print how far the run is.
    """

    images: OwnImages | None = None
    network: nn.Module | None = None
    progress: bool = True

    def validate(self, config: PretrainConfig) -> None:
        """Check settings, of which some do not apply to what the program gave.

        Raises:
            ArgumentError, DataError, CheckpointError: see `PretrainConfig.validate`.
        """
        if self.images is None:
            config.validate()
        else:
            check_streaming(type(self.images.train).__name__, config.loader, config.crop == "resized")
            replace(config, data_dir=Path(os.curdir)).validate()  # because a folder's is required
        if self.network is not None:
            rule = "only applies to a model by name: load the weights into the network instead"
            require(config, "init_from", config.init_from is None, rule)


NOTHING = OwnParts()


def pretrain(config: PretrainConfig, own: OwnParts = NOTHING) -> dict[str, Any]:
    """Run or resume a pretraining, from the data set to results.json, with the processes of this job.

    Args:
        config: the settings.
        own: what a program gives beside them.

    Returns:
        The content of results.json.

    Raises:
        RotnetError: an error of `rotnet_fast.errors`.
        Interrupted: a signal stopped the run, which has been saved.
    """
    own.validate(config)
    with join() as processes:
        if config.resume is not None:  # only rank 0 needs to have the run folder
            config = processes.from_main(lambda: config)
        folder = config.output_folder()
        # After a failure on one machine, only the agent of that machine counts a restart.
        is_restarted = bool(processes.maximum(is_restart())[0])
        is_restarted = processes.from_main(lambda: is_restarted and was_begun_by_this_job(folder))
        if is_restarted and (config.resume is None or processes.from_main(lambda: bool(candidates(folder)))):
            config = replace(config, resume="auto", output=folder)
        processes.on_main(lambda: check_folder(folder))
        if processes.is_main:
            warn_of_late_milestones(config)
        goes_on = is_restarted or processes.from_main(lambda: goes_on_in(folder, config.resume))
        with claimed(folder, goes_on, processes) as run:
            return _pretrain(config, run, processes, own)


def goes_on_in(folder: Path, resume: str | None) -> bool:
    """Whether the run to resume is the one in this folder, not one that a run begun here starts from."""
    if resume is None or resume == "auto":
        return resume is not None
    return run_of(Path(resume)).resolve() == folder.resolve()


def check_folder(folder: Path) -> None:
    """Refuse a folder that holds the results of another command.

    Raises:
        ArgumentError: it holds a study or an evaluation.
    """
    check_is_no_study(folder)
    try:
        settings = read_settings(folder)
    except ArgumentError:
        return  # reported when the settings are needed
    if settings is not None:
        check_is_pretraining(folder, settings)


@plain_torch()
def _pretrain(config: PretrainConfig, run: RunFolder, processes: Processes, own: OwnParts) -> dict[str, Any]:
    """Do the work of :func:`pretrain` in an open run folder."""
    from rotnet_fast.data import image_list
    from rotnet_fast.data.loaders import free_memory, open_dataset
    from rotnet_fast.engine.precision import resolve_precision
    from rotnet_fast.engine.pretext_task import task_class
    from rotnet_fast.protocols.monitor import make_monitor
    from rotnet_fast.protocols.pretext import pretrain_with, pretraining, streaming_of
    from rotnet_fast.protocols.run_time import forecast

    # Check everything that needs no images before a data set is read or downloaded.
    def check() -> torch.device:
        device = processes.device(config.device)
        config.check_needs_gpu(device.type)
        with own_draws():
            task_class(config.pretext_task).make_network(config, module=own.network)
        return device

    def begun() -> str | None:
        if config.resume is None:
            return None
        return loader_of(run.path if config.resume == "auto" else run_of(Path(config.resume)))

    def say(text: str) -> None:
        if own.progress and processes.is_main:
            print(text, flush=True)

    device = processes.everywhere(check)
    found = processes.from_main(lambda: checkpoint_to_resume(config, run.path))
    if config.resume is not None and found is None:
        say(f"{run.path} has no checkpoint yet: starting from the beginning")
    is_open = config.precision == "auto" and found is not None
    chosen = found[1]["config"]["precision"] if found is not None and is_open else config.precision
    precision = processes.everywhere(lambda: resolve_precision(chosen, device))
    processes.on_main(lambda: check_same_recipe(config, precision, found))
    # All processes use the same loader: that of the run, or one that suits the process with least memory.
    free = free_memory(device)
    least = None if free is None else -processes.maximum(-free)[0]
    streaming = streaming_of(config, device, processes.from_main(begun), least)

    is_shown = own.progress and processes.local_rank == 0

    def read() -> Dataset[AnySplit]:
        if own.images is not None:
            return own.images.read(
                config.limit_train, config.limit_test, config.validation, config.dataset_name, is_shown
            )
        return open_dataset(
            config.dataset,
            config.data_dir,
            config.image_size,
            config.limit_train,
            config.limit_test,
            streaming,
            progress=is_shown,
            bad_images=config.bad_images,
            display_name=config.dataset_name,
            check_images=config.check_images,
            validation=config.validation,
        )

    dataset = processes.local_main_first(read)
    monitor = processes.local_main_first(
        lambda: make_monitor(config, dataset, device, precision, is_shown, own.network)
    )
    saved = None if found is None else found[1]
    init, init_hash = processes.everywhere(lambda: beginning_of(config, saved, run.path))
    trainer = pretraining(
        config,
        dataset,
        device,
        precision,
        run,
        progress=own.progress,
        processes=processes,
        monitor=monitor,
        init=init,
        init_hash=init_hash,
        module=own.network,
    )

    say(how(trainer))
    if config.tensorboard:
        say(f"curves: {curves(run.path)}")

    def load(trainer: Trainer) -> None:
        nonlocal found
        if found is not None:
            path, state = found
            settings = processes.from_main(lambda: on_these_images(config, state, dataset, path, run))
            # If images were removed, the shorter epoch may be over already.
            step = min(state["step"], len(trainer.loader))
            if own.network is not None:
                processes.everywhere(lambda: check_weights(trainer.task.module, state["module"], path))
            trainer.load_state({**state, "config": settings, "step": step}, path)
            found = None  # frees a copy of weights and momentum
            say(f"resuming from {path}: {counted(state['epoch'], 'epoch')} and {counted(step, 'step')} done")
            if monitor is not None and trainer.progress.epoch == config.epochs:
                say("no epoch is left to monitor; see --knn and --linear of python -m rotnet_fast.evaluate")
        processes.on_main(lambda: image_list.keep(run.path, dataset))
        is_known = own.progress and own.network is None
        if is_known and (said := forecast(trainer, config, len(dataset.test))) is not None:
            say(said)

    return pretrain_with(trainer, config, dataset, load)


def how(trainer: Trainer) -> str:
    """Describe in one line how the training runs on its device."""
    import torch

    from rotnet_fast.engine.pretext_task import PretextTask

    device, task = trainer.loader.device, trainer.task
    assert isinstance(task, PretextTask)
    name = (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else counted(torch.get_num_threads(), "thread")
    )
    graph = "on" if trainer.training_step.is_replayed else "off"
    precision = trainer.settings.precision.name
    return f"training on {device} ({name}): precision {precision}, compile {task.compile}, graph {graph}"


def warn_of_late_milestones(config: PretrainConfig) -> None:
    """Warn of milestones that come too late to change the learning rate of any epoch."""
    late = [str(milestone) for milestone in config.milestones if milestone >= config.epochs]
    if config.schedule == "step" and late:
        print(
            f"WARNING: milestones {' '.join(late)} never take effect in {counted(config.epochs, 'epoch')}; "
            f"choose others with --milestones",
            file=sys.stderr,
        )


def checkpoint_to_resume(config: PretrainConfig, run: Path) -> tuple[Path, dict[str, Any]] | None:
    """Load the checkpoint to resume from; None to start from the beginning.

    Args:
        config: names a file, or a run folder, whose newest whole checkpoint is loaded.
        run: folder of this run; ``--resume auto`` starts from the beginning if it has no checkpoint.

    Returns:
        Path and state of the checkpoint.

    Raises:
        CheckpointError: no whole checkpoint of a pretraining.
    """
    from rotnet_fast.engine import checkpoint

    if config.resume is None:
        return None
    path = run if config.resume == "auto" else Path(config.resume)
    if path.is_dir() and path.resolve() == run.resolve() and not candidates(path):
        return None
    found, state = checkpoint.load_newest(path)
    if state.get("config", {}).get("task") != "pretrain" or "optimizer" not in state:
        raise CheckpointError(
            f"the checkpoint {found} is not one that a pretraining can be resumed from; give a run folder of "
            f"{PROGRAM}, or a file in its checkpoints/"
        )
    return found, state


def beginning_of(
    config: PretrainConfig, saved: Mapping[str, Any] | None, run: Path
) -> tuple[Pretrained | None, str | None]:
    """Return the network to start from and the hash of its weights; None for random weights.

    Args:
        config: the settings.
        saved: the state in the checkpoint that the run is resumed from, which goes on without the network:
            that may be gone, or have been trained further.
        run: folder of the run.

    Raises:
        CheckpointError: the network cannot be read.
    """
    from rotnet_fast.protocols.pretext import place_of_init

    if config.init_from is None:
        return None, None
    if saved is not None and (read_settings(run) or {}).get("init_from") == place_of_init(config):
        return None, saved["config"].get("init")
    try:
        init = read_pretrained(config.init_from, "init-from")
    except CheckpointError:
        if saved is None:
            raise
        return None, saved["config"].get("init")
    return init, init.state_hash()


def check_same_recipe(
    config: PretrainConfig, precision: Precision, found: tuple[Path, dict[str, Any]] | None
) -> None:
    """Refuse a checkpoint of other settings; its images are compared later, once they are read.

    Raises:
        CheckpointError: settings differ; the message names all of them.
    """
    from rotnet_fast.engine import checkpoint

    if found is None:
        return
    path, state = found
    settings = {**config.recipe(), "precision": precision.name}
    others = ("ablation", "pretext_task")  # which are only named where they are none of RotNet's
    saved = {name: value for name, value in state["config"].items() if name in settings or name in others}
    settings, saved = ({"pretext_task": ROTATION, **values} for values in (settings, saved))
    refusal = checkpoint.refusal(saved, settings, path)
    if refusal is not None:
        raise refusal


def on_these_images(
    config: PretrainConfig, state: dict[str, Any], dataset: Dataset[AnySplit], origin: Path, run: RunFolder
) -> dict[str, Any]:
    """Return the settings in a checkpoint, adapted to the images as they are now.

    Args:
        config: says whether images that have changed are accepted.
        state: state in the checkpoint.
        origin: file of the checkpoint.
        run: folder in which to list what has changed.

    Raises:
        CheckpointError: the images have changed, and this is not accepted.
    """
    from rotnet_fast.data import image_list

    saved, now = dict(state.get("config", {})), dataset.identity()
    is_other = {name for name, value in now.items() if saved.get(name, value) != value}
    began_with_files = str(saved.get("data_fingerprint")).startswith("files:")
    if not is_other or began_with_files != now["data_fingerprint"].startswith("files:"):
        return saved  # loading the checkpoint reports if the run began with the other loader
    said = "data_fingerprint differs"
    if "data_fingerprint" not in is_other:
        said = "the content of files has changed, but not their names and lengths"
    said += image_list.what_changed(saved, dataset, run_of(origin), run.path)
    if not config.accept_changed_data:
        raise CheckpointError(
            f"the checkpoint {origin} is of a run on other images: {said}. Restore them, resume on the "
            f"present images with --accept-changed-data, or start a new run with another --output"
        )
    print(printable(f"WARNING: resuming on other images than the run began with: {said}"), file=sys.stderr)
    return {**saved, **now}


def solved(config: PretrainConfig, results: Mapping[str, Any]) -> str:
    """Say how well the pretext task is solved: ``rotation accuracy 91.65 %``."""
    task = PRETEXT_TASKS[config.pretext_task]
    name, value = task.measure.replace("_", " "), results[task.measure]
    return f"{name} {value:.2f} %" if task.is_classification else f"{name} {value:.4g} (mean squared)"


def summary(config: PretrainConfig, results: dict[str, Any]) -> str:
    """Format what is printed at the end."""
    folder = config.output_folder()
    lines = [
        f"{solved(config, results)} on the "
        f"{counted(results['test_images'], results['tested_on'] + ' image')} of {results['dataset']}",
        f"{results['images_per_second']:.0f} images/s, {results['train_seconds']:.0f} s of training",
        f"run folder: {folder}",
    ]
    for name, found in results["features"].items():
        best = f"{found['best']:.2f} % after {counted(int(found['best_epoch']), 'epoch')}"
        lines.append(
            f"{name.removesuffix('_accuracy')} on the features: {found['last']:.2f} %, at best {best}"
        )
    wrong = of_pretraining(results)
    if wrong is not None:
        lines.append(f"WARNING: {wrong.sentence}")
    return "\n".join(lines)


def next_steps(config: PretrainConfig, results: dict[str, Any]) -> list[str]:
    """Return what to do with a finished run: nothing but to look at its curves if it learned nothing."""
    run = config.output_folder()
    watch = [curves(run)] if config.tensorboard else []
    wrong = of_pretraining(results)
    if wrong is not None and wrong.is_hopeless:
        return watch
    if results["classes"] >= 2:  # without them, there is nothing to evaluate
        steps = [evaluation(run, config.dataset), shell("visualize", run)]
        return steps + (watch or [shell("export", run)])
    pictures = ("overview", "knn") if config.pretext_task == ROTATION else ("knn",)
    return [shell("visualize", run, "--what", *pictures), shell("export", run), *watch]


if __name__ == "__main__":
    sys.exit(main())

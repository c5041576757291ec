"""Pretrain RotNet: ``python -m rotnet_fast.pretrain [--preset NAME] [flags]``.

With several processes, each of which trains on its part of every batch:
``torchrun --nproc-per-node N -m rotnet_fast.pretrain ...``.

Exit codes: see `rotnet_fast.command`. torch is imported only once the flags are known to be right.
"""

from __future__ import annotations

import hashlib
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rotnet_fast.command import program_as_started, run_command, said_once
from rotnet_fast.config import NIN, PretrainConfig
from rotnet_fast.engine.ambient import plain_torch
from rotnet_fast.engine.atomic import write_atomically
from rotnet_fast.engine.distributed import Processes, is_main, is_restart, join
from rotnet_fast.engine.output import claimed
from rotnet_fast.engine.run_folder import RunFolder, loader_of, run_of, was_begun_by_this_job
from rotnet_fast.engine.signals import Interrupted
from rotnet_fast.errors import ArgumentError, CheckpointError, printable
from rotnet_fast.flags import Parser, parse_flags
from rotnet_fast.models.names import check_model_name
from rotnet_fast.presets import PRESETS
from rotnet_fast.verdict import of_pretraining

if TYPE_CHECKING:
    import torch

    from rotnet_fast.data.datasets import Dataset
    from rotnet_fast.data.split import AnySplit
    from rotnet_fast.engine.precision import Precision
    from rotnet_fast.engine.trainer import Trainer

PROGRAM = "python -m rotnet_fast.pretrain"


def main(arguments: Sequence[str] | None = None) -> int:
    """Command-line entry point; returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)

    def command() -> None:
        with said_once():
            config = parse(arguments)
        try:
            results = pretrain(config)
        except Interrupted:
            if is_main():
                print(f"saved; go on with: {resume_command(arguments, config)}", file=sys.stderr)
            raise
        if is_main():
            print(summary(config, results))

    return run_command(command)


def parse(arguments: Sequence[str]) -> PretrainConfig:
    """Settings from flags: the preset's values, and what the other flags say instead.

    Raises:
        ArgumentError: a value that cannot be used.
        SystemExit: with 0, after ``--help``.
    """
    parser = Parser(PROGRAM, add_help=False, allow_abbrev=False)
    parser.add_argument("--preset", default="paper")
    parser.add_argument("--model", default=NIN)
    known = parser.parse_known_args(arguments)[0]
    if known.preset not in PRESETS:
        raise ArgumentError(f"preset is {known.preset!r}; choose from {', '.join(PRESETS)}")
    # The width that a preset has is meant for its own network; one that a flag gives is not forgotten.
    default = PRESETS[known.preset]().with_model(known.model)
    config = parse_flags(PretrainConfig, PROGRAM, arguments, default)
    config.validate()
    check_model_name(config.model)
    return config


def pretrain(config: PretrainConfig) -> dict[str, Any]:
    """Run a pretraining from data set to results.json, or the rest of one, with the processes of this job.

    Returns:
        What results.json holds.

    Raises:
        RotnetError: one of its kinds, see `rotnet_fast.errors`.
        Interrupted: stopped by a signal, with everything saved.
    """
    config.validate()
    with join() as processes:
        folder = config.output_folder()
        # The agent of one machine alone counts a restart after a failure there.
        is_again = bool(processes.maximum(is_restart())[0])
        is_again = processes.from_main(lambda: is_again and was_begun_by_this_job(folder))
        if is_again and (config.resume is None or processes.from_main(lambda: has_checkpoint(folder))):
            config = replace(config, resume="auto", output=folder)
        if processes.is_main:
            warn_of_late_milestones(config)
        with claimed(folder, is_again or config.resume is not None, processes) as run:
            return _pretrain(config, run, processes)


@plain_torch()
def _pretrain(config: PretrainConfig, run: RunFolder, processes: Processes) -> dict[str, Any]:
    """:func:`pretrain` in an open run folder."""
    from rotnet_fast.data.loaders import free_memory, open_dataset
    from rotnet_fast.engine.precision import resolve_precision
    from rotnet_fast.models.build import make_network
    from rotnet_fast.protocols.pretext import pretrain_with, pretraining, streaming_of

    # All that can be known before a data set is read or downloaded.
    def check() -> tuple[torch.device, Precision]:
        device = processes.device(config.device)
        precision = resolve_precision(config.precision, device)
        config.check_needs_gpu(device.type)
        if config.model != NIN:
            make_network(len(config.rotations), model=config.model)
        return device, precision

    def begun() -> str | None:
        if config.resume is None:
            return None
        return loader_of(run.path if config.resume == "auto" else run_of(Path(config.resume)))

    device, precision = processes.everywhere(check)
    found = processes.from_main(lambda: checkpoint_to_resume(config, run.path, precision))
    # All take the same loader: that of the run, or what suits the process with the least memory.
    least = -processes.maximum(-free_memory(device))[0]
    streaming = streaming_of(config, device, processes.from_main(begun), least)

    def read() -> Dataset[AnySplit]:
        return open_dataset(
            config.dataset,
            config.data_dir,
            config.image_size,
            config.limit_train,
            config.limit_test,
            streaming,
            progress=processes.local_rank == 0,
            bad_images=config.bad_images,
            display_name=config.dataset_name,
            check_images=config.check_images,
        )

    dataset = processes.local_main_first(read)
    trainer = pretraining(config, dataset, device, precision, run, processes=processes)

    if processes.is_main:
        print(how(trainer))

    def load(trainer: Trainer) -> None:
        nonlocal found
        if found is not None:
            path, state = found
            settings = processes.from_main(lambda: on_these_images(config, state, dataset, path, run))
            # A shorter epoch than the one that was left may be over already.
            step = min(state["step"], len(trainer.loader))
            trainer.load_state({**state, "config": settings, "step": step}, path)
            found = None  # a copy of weights and momentum, which would be kept until the run ends
            if processes.is_main:
                print(f"going on from {path}: {state['epoch']} epochs and {step} steps done")
        processes.on_main(lambda: keep_image_list(run.path, dataset))

    return pretrain_with(trainer, config, dataset, load)


def how(trainer: Trainer) -> str:
    """One line on what was chosen for the device."""
    import torch

    from rotnet_fast.engine.rotation_task import RotationTask

    device, task = trainer.loader.device, trainer.task
    assert isinstance(task, RotationTask)
    name = (
        torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    )
    graph = "on" if trainer.training_step.is_replayed else "off"
    precision = trainer.settings.precision.name
    kernels = getattr(task.module, "kernels", "torch")
    return (
        f"training on {device} ({name}): precision {precision}, compile {task.compile}, graph {graph}, "
        f"kernels {kernels}"
    )


def has_checkpoint(run: Path) -> bool:
    """Whether a run folder holds a checkpoint, damaged ones included."""
    from rotnet_fast.engine import checkpoint

    return bool(checkpoint.candidates(run))


def warn_of_late_milestones(config: PretrainConfig) -> None:
    """Say which milestones come too late to change the learning rate of any epoch."""
    late = [str(milestone) for milestone in config.milestones if milestone >= config.epochs]
    if config.schedule == "step" and late:
        print(
            f"WARNING: milestones {' '.join(late)} never take effect in {config.epochs} epochs; "
            f"choose others with --milestones",
            file=sys.stderr,
        )


def checkpoint_to_resume(
    config: PretrainConfig, run: Path, precision: Precision
) -> tuple[Path, dict[str, Any]] | None:
    """Path and state of the checkpoint to go on from; None to start from the beginning.

    Args:
        config: says which: a file, or the newest whole one of a run folder.
        run: folder of this run; ``--resume auto`` starts from the beginning where it has no checkpoint.
        precision: in use.

    Raises:
        CheckpointError: no whole checkpoint of a pretraining, or one with other settings. Whether the data
            are the same is known later.
    """
    from rotnet_fast.engine import checkpoint

    if config.resume is None:
        return None
    is_auto = config.resume == "auto"
    path = run if is_auto else Path(config.resume)
    if is_auto and not checkpoint.candidates(path):
        print(f"{path} has no checkpoint yet: starting from the beginning")
        return None
    found, state, skipped = checkpoint.load_newest(path)
    for error in skipped:
        print(f"WARNING: {error}; trying an older one", file=sys.stderr)
    saved = state.get("config", {})
    if saved.get("task") != "pretrain" or "optimizer" not in state:
        raise CheckpointError(
            f"the checkpoint {found} is not one that a pretraining can go on from; give a run folder of "
            f"{PROGRAM}, or a file in its checkpoints/"
        )
    settings = {**config.recipe(), "precision": precision.name}
    others = ("task", "in_channels", "data_fingerprint")
    refusal = checkpoint.refusal({k: v for k, v in saved.items() if k not in others}, settings, found)
    if refusal is not None:
        raise refusal
    return found, state


def on_these_images(
    config: PretrainConfig, state: dict[str, Any], dataset: Dataset[AnySplit], origin: Path, run: RunFolder
) -> dict[str, Any]:
    """The settings in a checkpoint, for the images that are there now.

    Args:
        config: says whether these may be others than the run began with.
        state: of the checkpoint.
        origin: where it was read from.
        run: folder for the list of what has changed.

    Raises:
        CheckpointError: they are others, and may not be.
    """
    saved, now = dict(state.get("config", {})), dataset.identity()
    is_other = {name for name, value in now.items() if saved.get(name, value) != value}
    began_with_files = str(saved.get("data_fingerprint")).startswith("files:")
    if not is_other or began_with_files != now["data_fingerprint"].startswith("files:"):
        return saved  # or the other loader, of which loading the checkpoint tells
    said = "its data_fingerprint is another"
    if "data_fingerprint" not in is_other:
        said = "files of the same names and lengths now hold something else"
    said += what_changed(saved, dataset, run_of(origin), run)
    if not config.accept_changed_data:
        raise CheckpointError(
            f"the checkpoint {origin} is of a run on other images: {said}. Restore them, go on with those "
            f"that are there now with --accept-changed-data, or start a new run with another --output"
        )
    print(printable(f"WARNING: going on with other images than the run began with: {said}"), file=sys.stderr)
    return {**saved, **now}


def what_changed(saved: dict[str, Any], dataset: Dataset[AnySplit], origin: Path, run: RunFolder) -> str:
    """Which images are others, as the end of a sentence; empty where that is not known."""
    from rotnet_fast.data import image_list

    if dataset.files is None:
        return ""
    try:
        found = image_list.changes((origin / image_list_name(saved)).read_bytes(), dataset.files)
    except (OSError, ValueError):
        return ""
    told = image_list.told(found)
    if told and not image_list.is_told_in_full(found):
        path = run.path / "changed-images.txt"
        lines = [f"{kind}: {printable(name)}" for kind, names in found.items() for name in names]
        write_atomically(path, "".join(f"{line}\n" for line in lines).encode())
        told += f", all of which {path} lists"
    return f": {told}" if told else ""


def keep_image_list(run: Path, dataset: Dataset[AnySplit]) -> None:
    """Keep which files a run is on; lists of other images that it was on before stay."""
    from rotnet_fast.data import image_list

    path = run / image_list_name(dataset.identity())
    if dataset.files is not None and not path.exists():
        write_atomically(path, image_list.pack(dataset.files))


def image_list_name(identity: Mapping[str, Any]) -> str:
    """Name of the list of a run's images, after what a checkpoint says of them."""
    known = f"{identity.get('data_fingerprint')} {identity.get('data_contents')}"
    return f"images-{hashlib.sha256(known.encode()).hexdigest()[:12]}.json.gz"


def resume_command(arguments: Sequence[str], config: PretrainConfig) -> str:
    """The command that goes on with a run started with these arguments."""
    parser = Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("--resume")
    others = parser.parse_known_args(list(arguments))[1]
    program = program_as_started(PROGRAM)
    return f"{program} {shlex.join([*others, '--resume', str(config.output_folder())])}"


def summary(config: PretrainConfig, results: dict[str, Any]) -> str:
    """What is printed at the end."""
    folder = config.output_folder()
    lines = [
        f"rotation accuracy {results['rotation_accuracy']:.2f} % on the {results['test_images']} test images "
        f"of {results['dataset']}",
        f"{results['images_per_second']:.0f} images/s, {results['train_seconds']:.0f} s of training",
        f"run folder: {folder}",
    ]
    wrong = of_pretraining(results)
    if wrong is not None:
        lines.append(f"WARNING: {wrong.sentence}")
    if wrong is None or not wrong.is_hopeless:
        lines.append(f"next: python -m rotnet_fast.evaluate --checkpoint {shlex.quote(str(folder))}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())

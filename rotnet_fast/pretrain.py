"""Pretrain RotNet: ``python -m rotnet_fast.pretrain [--preset NAME] [flags]``.

Exit codes: see `rotnet_fast.command`. torch is imported only once the flags are known to be right.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from rotnet_fast.command import run_command
from rotnet_fast.config import NIN, PretrainConfig
from rotnet_fast.engine.run_folder import RunFolder, loader_of, run_of
from rotnet_fast.engine.signals import Interrupted
from rotnet_fast.errors import ArgumentError
from rotnet_fast.presets import PRESETS

if TYPE_CHECKING:
    from rotnet_fast.engine.trainer import Trainer

PROGRAM = "python -m rotnet_fast.pretrain"


def main(arguments: Sequence[str] | None = None) -> int:
    """Command-line entry point; returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)

    def command() -> None:
        config = parse(arguments)
        try:
            results = pretrain(config)
        except Interrupted:
            print(f"saved; go on with: {resume_command(arguments, config)}", file=sys.stderr)
            raise
        print(summary(config, results))

    return run_command(command)


def parse(arguments: Sequence[str]) -> PretrainConfig:
    """Settings from flags: the preset's values, and what the other flags say instead.

    Raises:
        ArgumentError: a value that cannot be used.
        SystemExit: with code 2 for an unknown flag or unreadable value, with 0 after ``--help``.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--preset", default="paper")
    parser.add_argument("--model", default=NIN)
    known = parser.parse_known_args(arguments)[0]
    if known.preset not in PRESETS:
        raise ArgumentError(f"preset is {known.preset!r}; choose from {', '.join(PRESETS)}")
    # The width that a preset has is meant for its own network; one that a flag gives is not forgotten.
    default = PRESETS[known.preset]().with_model(known.model)
    config = tyro.cli(PretrainConfig, prog=PROGRAM, default=default, args=arguments)
    config.validate()
    return config


def pretrain(config: PretrainConfig) -> dict[str, Any]:
    """Run a pretraining from data set to results.json, or the rest of one.

    Returns:
        What results.json holds.

    Raises:
        RotnetError: one of its kinds, see `rotnet_fast.errors`.
        Interrupted: stopped by a signal, with everything saved.
    """
    config.validate()
    warn_of_late_milestones(config)
    with RunFolder(config.output_folder(), resume=config.resume is not None) as run:
        from rotnet_fast.data.loaders import open_dataset
        from rotnet_fast.engine.device import resolve_device
        from rotnet_fast.engine.precision import resolve_precision
        from rotnet_fast.models.build import make_network
        from rotnet_fast.protocols.pretext import pretrain_with, pretraining, streaming_of

        device = resolve_device(config.device)
        precision = resolve_precision(config.precision, device)
        if config.model != NIN:
            make_network(len(config.rotations), model=config.model)  # before a data set is read or downloaded
        begun = None
        if config.resume is not None:
            begun = loader_of(run.path if config.resume == "auto" else run_of(Path(config.resume)))
        dataset = open_dataset(
            config.dataset,
            config.data_dir,
            config.image_size,
            config.limit_train,
            config.limit_test,
            streaming_of(config, device, begun),
            bad_images=config.bad_images,
            display_name=config.dataset_name,
        )
        trainer = pretraining(config, dataset, device, precision, run)

        def load(trainer: Trainer) -> None:
            if config.resume is not None:
                is_auto = config.resume == "auto"
                go_on(trainer, run.path if is_auto else Path(config.resume), is_auto)

        return pretrain_with(trainer, config, dataset, load)


def warn_of_late_milestones(config: PretrainConfig) -> None:
    """Say which milestones come too late to change the learning rate of any epoch."""
    late = [str(milestone) for milestone in config.milestones if milestone >= config.epochs]
    if config.schedule == "step" and late:
        print(
            f"WARNING: milestones {' '.join(late)} never take effect in {config.epochs} epochs; "
            f"choose others with --milestones",
            file=sys.stderr,
        )


def go_on(trainer: Trainer, path: Path, may_start: bool) -> None:
    """Load a checkpoint file, or the newest whole one of a run folder, and say which.

    Args:
        may_start: leave the trainer at the beginning where the folder has no checkpoint at all.
    """
    from rotnet_fast.engine import checkpoint

    if may_start and not checkpoint.candidates(path):
        print(f"{path} has no checkpoint yet: starting from the beginning")
        return
    found, state, skipped = checkpoint.load_newest(path)
    for error in skipped:
        print(f"WARNING: {error}; trying an older one", file=sys.stderr)
    trainer.load_state(state, found)
    print(f"going on from {found}: {state['epoch']} epochs and {state['step']} steps done")


def resume_command(arguments: Sequence[str], config: PretrainConfig) -> str:
    """The command that goes on with a run started with these arguments."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--resume")
    others = parser.parse_known_args(list(arguments))[1]
    return f"{PROGRAM} {shlex.join([*others, '--resume', str(config.output_folder())])}"


def summary(config: PretrainConfig, results: dict[str, Any]) -> str:
    """What is printed at the end."""
    folder = config.output_folder()
    return (
        f"rotation accuracy {results['rotation_accuracy']:.2f} % on the {results['test_images']} test images "
        f"of {results['dataset']}\n"
        f"{results['images_per_second']:.0f} images/s, {results['train_seconds']:.0f} s of training\n"
        f"run folder: {folder}\n"
        f"next: python -m rotnet_fast.evaluate --checkpoint {shlex.quote(str(folder))}"
    )


if __name__ == "__main__":
    sys.exit(main())

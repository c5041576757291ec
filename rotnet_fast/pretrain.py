"""Pretrain RotNet: ``python -m rotnet_fast.pretrain [--preset NAME] [flags]``.

Exit codes: see `rotnet_fast.command`. torch is imported only once the flags are known to be right.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from rotnet_fast.command import run_command
from rotnet_fast.config import PretrainConfig
from rotnet_fast.engine.run_folder import RunFolder, environment
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
    preset = parser.parse_known_args(arguments)[0].preset
    if preset not in PRESETS:
        raise ArgumentError(f"preset is {preset!r}; choose from {', '.join(PRESETS)}")
    config = tyro.cli(PretrainConfig, prog=PROGRAM, default=PRESETS[preset](), args=arguments)
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
        import torch

        from rotnet_fast.data.datasets import load_dataset
        from rotnet_fast.data.resident import ResidentLoader
        from rotnet_fast.engine.device import resolve_device
        from rotnet_fast.engine.precision import resolve_precision
        from rotnet_fast.engine.rotation_task import RotationTask
        from rotnet_fast.engine.schedule import Schedule
        from rotnet_fast.engine.trainer import Trainer, TrainerSettings
        from rotnet_fast.models.nin import NetworkInNetwork

        device = resolve_device(config.device)
        precision = resolve_precision(config.precision, device)
        dataset = load_dataset(
            config.dataset,
            config.data_dir,
            config.image_size,
            config.limit_train,
            config.limit_test,
            display_name=config.dataset_name,
        )
        loader = ResidentLoader(dataset.train, device, config.batch_size, config.seed)
        channels = dataset.train.images.shape[-1]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            network = NetworkInNetwork(
                num_classes=len(config.rotations),
                blocks=config.blocks,
                width=config.width,
                in_channels=channels,
                uniform_gamma=config.uniform_gamma,
            )
        task = RotationTask(
            network.to(device),
            Schedule(config.lr, config.schedule, config.milestones, config.lr_factor, config.epochs),
            loader.images,
            dataset.test.images.to(device),
            rotations=config.rotations,
            seed=config.seed,
            pad=config.pad,
            flip_prob=config.flip_prob,
            mean=dataset.mean,
            std=dataset.std,
            dtype=precision.dtype,
            test_batch_size=config.batch_size,
            compile=config.compile,
        )
        settings = TrainerSettings(
            epochs=config.epochs,
            precision=precision,
            nesterov=config.nesterov,
            weight_decay=config.weight_decay,
            eval_every=config.eval_every,
            log_every=config.log_every,
            checkpoint_every_steps=config.checkpoint_every_steps,
            checkpoint_every_seconds=config.checkpoint_every_seconds,
            tensorboard=config.tensorboard,
        )
        identity = {
            "task": "pretrain",
            **config.recipe(),
            "precision": precision.name,
            "in_channels": channels,
            "data_fingerprint": dataset.fingerprint,
        }
        trainer = Trainer(task, loader, settings, run, identity)
        if config.resume is not None:
            go_on(
                trainer, run.path if config.resume == "auto" else Path(config.resume), config.resume == "auto"
            )
        # Only now: a refused checkpoint leaves the folder's settings as they were.
        run.write_config({"settings": asdict(config), "environment": environment(str(device))})
        metrics = trainer.fit()
        results = {
            "rotation_accuracy": metrics["rotation_accuracy"],
            "rotation_accuracy_by_degrees": {
                degrees: metrics[f"rotation_accuracy/{degrees}"] for degrees in config.rotations
            },
            "images_per_second": trainer.progress.images_per_second,
            "train_seconds": trainer.progress.seconds,
            "dataset": dataset.display_name,
            "train_images": len(dataset.train.images),
            "test_images": len(dataset.test.images),
            "data_fingerprint": dataset.fingerprint,
            "precision": precision.name,
            "state_hash": trainer.state_hash(),
            "settings": asdict(config),
            "environment": environment(str(device)),
        }
        run.write_results(results)
        return results


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

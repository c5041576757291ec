"""Pretraining on the pretext task, from data set to results.json."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from rotnet_fast.config import PretrainConfig
from rotnet_fast.data.cifar10 import DEFAULT_DATA_DIR
from rotnet_fast.data.crop import RandomResizedCrop
from rotnet_fast.data.datasets import Dataset
from rotnet_fast.data.loader import Loader
from rotnet_fast.data.loaders import Streaming, make_loader
from rotnet_fast.data.sampling import BatchShare
from rotnet_fast.data.split import AnySplit, EncodedSplit
from rotnet_fast.engine.ambient import own_draws
from rotnet_fast.engine.compiled import choose_compile
from rotnet_fast.engine.distributed import ALONE, Processes, job
from rotnet_fast.engine.precision import Precision
from rotnet_fast.engine.pretext_task import PretextTask, task_class
from rotnet_fast.engine.run_folder import RunFolder, environment
from rotnet_fast.engine.task import TrainerSettings
from rotnet_fast.engine.trainer import Trainer
from rotnet_fast.errors import ArgumentError
from rotnet_fast.models.network import FeatureNetwork
from rotnet_fast.ops.limits import MAX_ELEMENTS
from rotnet_fast.plain import counted
from rotnet_fast.pretext_tasks import ROTATION
from rotnet_fast.pretrained import SHIPPED, Pretrained

if TYPE_CHECKING:
    from rotnet_fast.protocols.monitor import Monitor


def streaming_of(
    config: PretrainConfig, device: torch.device, begun: str | None = None, free: int | None = None
) -> Streaming:
    """Decide how to load the images of a pretraining.

    Args:
        config: validated settings.
        device: device of the training.
        begun, free: see `Streaming`.
    """
    crop = RandomResizedCrop(config.crop_scale, config.crop_ratio) if config.is_cropped else None
    return Streaming(device, config.loader, crop, config.decoder, begun, free)


def pretraining(
    config: PretrainConfig,
    dataset: Dataset[AnySplit],
    device: torch.device,
    precision: Precision,
    run: RunFolder,
    *,
    task_type: type[PretextTask] | None = None,
    snapshot_epochs: tuple[int, ...] = (),
    progress: bool = True,
    processes: Processes = ALONE,
    monitor: Monitor | None = None,
    init: Pretrained | None = None,
    init_hash: str | None = None,
    module: nn.Module | None = None,
) -> Trainer:
    """Set up a pretraining, ready to load a checkpoint or to start.

    Args:
        config: validated settings.
        dataset: the images, after the limits.
        device: device of this process.
        precision: number format of the forward and backward pass.
        run: folder that the trainer writes to.
        task_type: what to train instead of the settings' pretext task: an ablation, see
            `rotnet_fast.protocols.ablations`.
        snapshot_epochs, progress: see `TrainerSettings`.
        processes: the processes that train together.
        monitor: evaluates the features between epochs.
        init: network to start from; None for random weights.
        init_hash: hash of its weights, by which a resumed run knows its beginning.
        module: the network that a program gave; it is copied.

    Raises:
        ArgumentError, ElsewhereError: the network is unknown or does not accept these images, there are more
            processes than images per batch, or the processes were given different settings.
    """
    if processes.world > config.batch_size:
        message = (
            f"batch-size is {config.batch_size}, fewer images than the "
            f"{counted(processes.world, 'process')}; start fewer processes with --nproc-per-node, or "
            "use a larger batch"
        )
        raise processes.shared(ArgumentError(message))
    processes.everywhere(lambda: config.check_needs_gpu(device.type))
    share = BatchShare(processes.rank, processes.world)
    channels = dataset.train.image_shape[-1]
    named = task_class(config.pretext_task)
    task_type = task_type or named
    rotations = config.rotations if config.pretext_task == ROTATION else (0,)
    per_image = len(rotations) * math.prod(dataset.train.image_shape)
    if (most := MAX_ELEMENTS // per_image * processes.world) < config.batch_size:
        message = (
            f"batch-size is {config.batch_size}, whose views would have more than 2**31 - 1 values in a "
            f"process; use {most} or less"
        )
        raise processes.shared(ArgumentError(message))

    def build() -> tuple[Loader, Loader, FeatureNetwork]:
        visits = len(config.rotations) if task_type.shows_views_apart else 1
        loader = make_loader(
            dataset,
            dataset.train,
            device,
            config.batch_size * visits,
            config.seed,
            epoch_size=len(dataset.train) * visits,
            share=share,
        )
        test_loader = make_loader(
            dataset,
            dataset.test,
            device,
            config.batch_size,
            config.seed,
            is_test=True,
            shuffle=False,
            share=share,
        )
        with own_draws(config.seed):
            network = task_type.make_network(config, channels, module)
        network.check_image_size(*dataset.train.image_shape[:2])
        if init is not None:
            start_from(network, init, config)
        return loader, test_loader, network.to(device)

    loader, test_loader, network = processes.everywhere(build)
    group = processes.tensor_group(device)

    def prepare() -> None:
        if group is not None and config.sync_batchnorm:
            from rotnet_fast.models.sync_batchnorm import synchronise_batchnorm

            synchronise_batchnorm(network, group)

    processes.everywhere(prepare)

    schedule, muon = config.schedules()
    steps = config.epochs * len(loader)
    task = task_type(
        network,
        schedule,
        test_loader,
        rotations=rotations,
        seed=config.seed,
        pad=0 if dataset.crop else config.pad,
        flip_prob=config.flip_prob,
        mean=dataset.mean,
        std=dataset.std,
        dtype=precision.dtype,
        compile=choose_compile(config.compile, device, precision, network, processes, steps),
        is_compile_optional=config.compile == "auto",
        processes=processes,
        group=group,
        muon=muon,
    )
    settings = TrainerSettings(
        epochs=config.epochs,
        precision=precision,
        nesterov=config.nesterov,
        weight_decay=config.weight_decay,
        muon_weight_decay=config.muon_weight_decay,
        eval_every=config.eval_every,
        monitor_every=config.monitor_every or max(2, config.epochs // 10),  # under 5 % more time
        log_every=config.log_every,
        checkpoint_every_steps=config.checkpoint_every_steps,
        checkpoint_every_seconds=config.checkpoint_every_seconds,
        snapshot_epochs=snapshot_epochs,
        graph=config.graph,
        progress=progress and processes.is_main,
        tensorboard=config.tensorboard and processes.is_main,
    )
    identity = {
        "task": "pretrain",
        **config.recipe(),
        "precision": precision.name,
        "in_channels": channels,
        **dataset.identity(),
    }
    if init_hash is not None:
        identity["init"] = init_hash
    if task_type is not named:
        identity["ablation"] = task_type.__name__
    return Trainer(task, loader, settings, run, identity, processes, monitor=monitor)


@torch.no_grad()
def start_from(network: FeatureNetwork, init: Pretrained, config: PretrainConfig) -> None:
    """Copy the weights and buffers of a pretrained network.

    With another pretext task or other rotations, what comes after the last feature map keeps the weights that
    it has, because its outputs mean something else.

    Args:
        network: network to change, on the CPU.
        init: network to copy.
        config: settings of ``network``.

    Raises:
        ArgumentError: it is another network.
    """
    asked, found = config.architecture(), init.config.architecture()
    asked["channels"], found["channels"] = network.in_channels, init.in_channels
    if asked != found:
        differing = [name for name in asked | found if asked.get(name) != found.get(name)]
        said = [f"{name} is {found.get(name)} there and {asked.get(name)} here" for name in differing]
        raise ArgumentError(
            f"init-from is {config.init_from}, which is another network: {', '.join(said)}; use the same one"
        )
    source = init.network()
    is_same_task = init.config.pretext_task == config.pretext_task
    if is_same_task and init.config.rotations == config.rotations and config.outputs > 0:
        network.load_state_dict(source.state_dict())
        return
    last = network.layers[-1]
    for mine, its in zip(network.feature_parameters(last), source.feature_parameters(last), strict=True):
        mine.copy_(its)
    buffers = dict(network.named_buffers())  # those of a decoder, too, which no source has
    for name, its_buffer in source.named_buffers():
        buffers[name].copy_(its_buffer)


def place_of_images(config: PretrainConfig) -> str | None:
    """Absolute path of the folder of the images, which may be needed elsewhere; None if there is none."""
    place = config.data_dir
    if place is None and config.dataset == "cifar10":
        place = DEFAULT_DATA_DIR
    return None if place is None else os.path.abspath(place)


def place_of_init(config: PretrainConfig) -> str | None:
    """Absolute path, or name of a shipped model, of the network to start from; None for random weights."""
    if config.init_from is None or config.init_from in SHIPPED:
        return config.init_from
    return os.path.abspath(config.init_from)


def pretrain_with(
    trainer: Trainer,
    config: PretrainConfig,
    dataset: Dataset[AnySplit],
    load: Callable[[Trainer], None] | None = None,
) -> dict[str, Any]:
    """Train to the end, writing config.json before and results.json afterwards.

    Args:
        trainer: what :func:`pretraining` returned.
        config, dataset: what it was set up with.
        load: loads a checkpoint into the trainer.

    Returns:
        The content of results.json.

    Raises:
        RotnetError: one of its subclasses, see `rotnet_fast.errors`.
        Interrupted: stopped by a signal, with everything saved.
    """
    run = trainer.run
    where = {**environment(str(trainer.loader.device)), "processes": trainer.processes.world}
    if load is not None:
        load(trainer)
    # Only now, because a refused checkpoint must leave the folder's settings unchanged.
    loader = "dali" if isinstance(dataset.train, EncodedSplit) else "resident"
    places = {"data_dir": place_of_images(config), "init_from": place_of_init(config)}
    if config.monitor_data is not None:
        places["monitor_data"] = os.path.abspath(config.monitor_data)
    settings = {**asdict(config), **places}
    written = {"settings": settings, "environment": where, "loader": loader, "job": job()}
    trainer.processes.on_main(lambda: run.write_config(written))
    metrics = trainer.fit()
    task = trainer.task
    assert isinstance(task, PretextTask)
    results = {
        "pretext_task": config.pretext_task,
        **task.results(metrics),
        "train": trainer.progress.metrics["train"],
        "images_per_second": trainer.progress.images_per_second,
        "train_seconds": trainer.progress.seconds,
        "skipped_steps": trainer.progress.skipped,
        "features": trainer.progress.monitored,
        "data_wait": trainer.progress.data_wait,
        "dataset": dataset.display_name,
        "train_images": len(dataset.train),
        "test_images": len(dataset.test),
        "tested_on": dataset.tested_on,
        "classes": len(dataset.classes),
        "data_fingerprint": dataset.fingerprint,
        "loader": loader,
        "skipped_images": dataset.skipped,
        "precision": trainer.settings.precision.name,
        "state_hash": trainer.state_hash(),
        "settings": asdict(config),
        "environment": where,
    }
    trainer.processes.on_main(lambda: run.write_results(results))
    return results

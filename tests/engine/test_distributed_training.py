"""Several processes train what one trains: the same images, gradients, statistics and metrics."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from ranks import on_ranks
from tiny import EPOCHS, tiny_config
from torch import nn
from torch.func import functional_call
from torch.nn import functional

from rotnet_fast.config import PretrainConfig
from rotnet_fast.data.datasets import Dataset, load_dataset
from rotnet_fast.data.loader import Batch
from rotnet_fast.data.sampling import BatchShare, epoch_order
from rotnet_fast.engine import checkpoint
from rotnet_fast.engine.distributed import join
from rotnet_fast.engine.precision import Precision
from rotnet_fast.engine.pretext_task import UnlessEmpty
from rotnet_fast.engine.rotation_task import RotationTask
from rotnet_fast.engine.run_folder import open_run_folder
from rotnet_fast.engine.task import StepOutput
from rotnet_fast.engine.trainer import Trainer
from rotnet_fast.errors import RotnetError
from rotnet_fast.models.nin import NetworkInNetwork
from rotnet_fast.ops.reference import rotate_batch_reference
from rotnet_fast.pretrain import pretrain
from rotnet_fast.protocols.pretext import pretraining

CPU = torch.device("cpu")
TRAIN, TEST, BATCH = 33, 20, 16  # batches of 16, 16 and 1, of which most processes get nothing


def config_in(folder: Path, **changes: Any) -> PretrainConfig:
    settings = {"limit_train": TRAIN, "limit_test": TEST, "log_every": 1, "checkpoint_every_steps": None}
    return tiny_config(folder, **{**settings, **changes})


def load(config: PretrainConfig) -> Dataset:
    return load_dataset("digits", None, config.image_size, config.limit_train, config.limit_test)


@contextmanager
def trainer_of(config: PretrainConfig, module: nn.Module | None = None) -> Iterator[Trainer]:
    """This process's trainer."""
    assert config.output is not None
    with join() as processes, open_run_folder(config.output, False, processes) as run:
        data, precision = load(config), Precision("fp32", "cpu")
        yield pretraining(
            config, data, CPU, precision, run, progress=False, processes=processes, module=module
        )


def module_of(folder: Path) -> dict[str, torch.Tensor]:
    return checkpoint.load_newest(folder)[1]["module"]


def first_report(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "metrics.jsonl").read_text().splitlines()[0])


GENTLE = {"lr": 0.01, "sync_batchnorm": True}
TOLERANCE = 2e-6
"""Largest difference of a weight or statistic after six steps of this rate; measured were 3.0e-7 for two and
for three processes."""


@pytest.mark.parametrize("world", [2, 3])
def test_with_synchronised_batchnorm_processes_train_to_the_weights_of_one(
    world: int, tmp_path: Path
) -> None:
    alone = pretrain(config_in(tmp_path / "alone", **GENTLE))
    together = on_ranks(world, pretrain, config_in(tmp_path / "together", **GENTLE))[0]
    expected, found = module_of(tmp_path / "alone"), module_of(tmp_path / "together")
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=TOLERANCE, atol=TOLERANCE, msg=name)
    assert (alone["environment"]["processes"], together["environment"]["processes"]) == (1, world)

    # At the first step, weights are the same: so are the counts, and losses but for rounding.
    one, many = first_report(tmp_path / "alone"), first_report(tmp_path / "together")
    assert many["rotation_accuracy"] == one["rotation_accuracy"]
    assert many["loss"] == pytest.approx(one["loss"], rel=1e-6)


def test_local_batchnorm_and_uneven_parts_give_the_gradient_of_the_mean_over_all_images(
    tmp_path: Path,
) -> None:
    world, lr, config = 3, 0.05, config_in(tmp_path / "run", epochs=1, lr=0.05)
    on_ranks(world, pretrain, config)

    dataset = load(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = NetworkInNetwork(blocks=3, width=config.width)
    optimizer = torch.optim.SGD(network.parameters(), lr=lr, momentum=0.9, nesterov=True, weight_decay=5e-4)
    indices, ids = epoch_order(TRAIN, TRAIN, seed=0, epoch=0)
    for step, start in enumerate(range(0, TRAIN, BATCH)):
        stop = min(start + BATCH, TRAIN)
        total = torch.zeros(())
        for rank in range(world):
            part = BatchShare(rank, world).part(start, stop)
            if part.start == part.stop:
                continue
            views, labels = rotate_batch_reference(
                dataset.train.images, indices[part], ids[part], 0, 0, [0, 1, 2, 3], 4, 0.5,
                dataset.mean, dataset.std, torch.float32,
            )  # fmt: skip
            # The first process's running averages count; others leave theirs in copies.
            buffers = {
                name: buffer if rank == 0 else buffer.clone() for name, buffer in network.named_buffers()
            }
            logits = functional_call(network, buffers, (views.permute(0, 3, 1, 2),))
            total = total + functional.cross_entropy(logits, labels, reduction="sum")
        for group in optimizer.param_groups:
            group["lr"] = lr * (1 - step / 3)
        optimizer.zero_grad()
        (total / (4 * (stop - start))).backward()
        optimizer.step()

    found = module_of(tmp_path / "run")
    for name, tensor in network.state_dict().items():
        if "num_batches_tracked" not in name:
            torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=5e-6, msg=name)


def recorded_steps(config: PretrainConfig) -> list[tuple[torch.Tensor, ...]]:
    """Indices, sample ids and views of every step of this process."""
    steps = []
    with trainer_of(config) as trainer:
        views_of = trainer.task.views

        def recording(batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
            views, labels = views_of(batch)
            steps.append((batch.indices, batch.sample_ids, views.clone()))
            return views, labels

        trainer.task.views = recording
        trainer.fit()
    return steps


def test_processes_see_the_images_and_draws_of_one_between_them(tmp_path: Path) -> None:
    alone = recorded_steps(config_in(tmp_path / "alone"))
    warm_up, *together = zip(*on_ranks(3, recorded_steps, config_in(tmp_path / "together")), strict=True)
    assert len(together) == len(alone) == 6
    for expected, shares in zip(alone, together, strict=True):
        for tensor, parts in zip(expected, zip(*shares, strict=True), strict=True):
            assert torch.equal(torch.cat(parts), tensor)
    for share, again in zip(warm_up, together[0], strict=True):
        assert all(torch.equal(*pair) for pair in zip(share, again, strict=True))


def metrics_with(config: PretrainConfig, state: dict[str, torch.Tensor]) -> dict[str, float]:
    """What this process finds on the test images with these tensors of a network."""
    with trainer_of(config) as trainer:
        trainer.task.module.load_state_dict(state)
        return trainer.task.evaluate()


def test_testing_in_parts_counts_as_testing_at_once(tmp_path: Path) -> None:
    with trainer_of(config_in(tmp_path / "alone")) as alone:
        network, loader = alone.task.module.eval(), alone.task.test_loader
        with torch.no_grad():  # an untrained network that guesses every rotation about equally often
            logits = torch.cat([network(alone.task.plain_views(batch)[0]) for batch in loader.epoch(0)])
            network.classifier.bias -= logits.mean(dim=0)
        expected = alone.task.evaluate()
        assert all(0 < expected[f"rotation_accuracy/{degrees}"] < 100 for degrees in (0, 90, 180, 270))
        state = network.state_dict()
    for metrics in on_ranks(3, metrics_with, config_in(tmp_path / "together"), state):
        assert metrics == {**expected, "loss": pytest.approx(expected["loss"], rel=1e-6)}


def make_folder(data_dir: Path) -> None:
    """Two classes with 33 training and 6 test images of noise between them, every other one a JPEG."""
    rng = np.random.default_rng(0)
    for number in range(39):
        folder = data_dir / ("train" if number < 33 else "test") / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8))
        image.save(folder / f"{number}.{'png' if number % 4 < 2 else 'jpg'}")


@pytest.mark.needs_dali
def test_processes_that_stream_their_images_train_like_those_that_keep_them(tmp_path: Path) -> None:
    make_folder(tmp_path / "images")
    hashes = []
    for loader in ("dali", "resident"):
        config = config_in(
            tmp_path / loader,
            **{"dataset": "folder", "data_dir": tmp_path / "images", "loader": loader},
            **{"limit_train": None, "limit_test": None},
        )
        results = on_ranks(2, pretrain, config)
        assert {found["loader"] for found in results} == {loader}
        hashes.append(checkpoint.state_hash(module_of(tmp_path / loader)))
    assert hashes[0] == hashes[1]


def parameters_after(config: PretrainConfig, spoil: bool) -> dict[str, Any]:
    """Parameters and state of the loss scaler, after an overflow in the last process alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Precision, "grad_scaler", lambda self: torch.amp.GradScaler("cpu", init_scale=1024.0))
        with trainer_of(config) as trainer:
            loss, calls = trainer.task.loss, []

            def overflowing(logits: Any, labels: torch.Tensor) -> StepOutput:
                output = loss(logits, labels)
                calls.append(labels)
                if spoil and trainer.processes.rank == 1 and len(calls) == 3:  # after warm-up and one step
                    output.loss = output.loss * torch.inf
                return output

            trainer.task.loss = overflowing
            trainer.fit()
            return {
                "scaler": trainer.training_step.state_dict()["scaler"],
                "parameters": list(map(torch.Tensor.detach, trainer.task.module.parameters())),
            }


@pytest.mark.parametrize("optimizer", ["sgd", "muon"])
def test_an_overflow_in_one_process_makes_all_skip_the_step(optimizer: str, tmp_path: Path) -> None:
    config = config_in(tmp_path / "spoilt", optimizer=optimizer)
    spoilt = on_ranks(2, parameters_after, config, True)
    whole = on_ranks(2, parameters_after, replace(config, output=tmp_path / "whole"), False)
    assert [one["scaler"]["scale"] for one in spoilt] == [512.0, 512.0]
    assert [one["scaler"]["scale"] for one in whole] == [1024.0, 1024.0]
    for runs in (spoilt, whole):
        for first, second in zip(runs[0]["parameters"], runs[1]["parameters"], strict=True):
            assert torch.equal(first, second)
            assert first.isfinite().all()


def test_scaling_by_powers_of_two_is_exact_with_several_processes(tmp_path: Path) -> None:
    scaled = on_ranks(2, parameters_after, config_in(tmp_path / "scaled"), False)[0]["parameters"]
    on_ranks(2, pretrain, config_in(tmp_path / "plain"))
    names = [name for name, _ in NetworkInNetwork(blocks=3, width=0.05).named_parameters()]
    plain = module_of(tmp_path / "plain")
    assert all(torch.equal(scaled[i], plain[name]) for i, name in enumerate(names))


def test_a_compiled_network_is_spared_empty_batches() -> None:
    # Compiling takes long on the CPU; what compiled code cannot take is what this stand-in refuses.
    class Compiled(nn.Linear):
        def forward(self, views: torch.Tensor) -> torch.Tensor:
            assert len(views) > 0
            return super().forward(views) + 1

    plain, compiled = nn.Linear(3, 4), Compiled(3, 4)
    network = UnlessEmpty(plain, compiled)
    assert network(torch.zeros(0, 3)).shape == (0, 4)
    assert torch.equal(network(torch.ones(2, 3)), compiled(torch.ones(2, 3)))


def test_the_class_of_the_task_is_what_trains(tmp_path: Path) -> None:
    with trainer_of(config_in(tmp_path / "run")) as trainer:
        assert type(trainer.task) is RotationTask
        assert trainer.task._train_forward is trainer.task.module  # no wrapper around a single process


class WithAuxiliary(nn.Module):
    """A network with a second classifier that its output does not depend on."""

    def __init__(self) -> None:
        super().__init__()
        self.maps = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.MaxPool2d(2), nn.ReLU())
        self.auxiliary = nn.Linear(4, 4)

    def forward(self, views: torch.Tensor) -> torch.Tensor:
        return self.maps(views)


def train_with_auxiliary(folder: Path, is_frozen: bool) -> str:
    """Hash of the weights, or the error."""
    module = WithAuxiliary()
    module.auxiliary.requires_grad_(not is_frozen)
    try:
        with trainer_of(config_in(folder), module) as trainer:
            trainer.fit()
            return checkpoint.state_hash(trainer.task.module.state_dict())
    except RotnetError as error:
        return str(error)


def test_several_processes_need_a_loss_that_depends_on_every_parameter(tmp_path: Path) -> None:
    reason, elsewhere = on_ranks(2, train_with_auxiliary, tmp_path / "refused", False)
    assert "model has 2 parameters that its output does not depend on, as auxiliary.weight" in reason
    assert "another process" in elsewhere
    first, second = on_ranks(2, train_with_auxiliary, tmp_path / "frozen", True)
    assert first == second
    assert len(first) == 64


def fit_with_an_infinite_loss(folder: Path) -> tuple[dict[str, int], str, list[dict[str, Any]]]:
    """Train where the loss of the process that has image 7 is infinite, but its gradients are not."""
    views, loss = RotationTask.views, RotationTask.loss

    def watching(self: RotationTask, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        self.is_poisonous = (batch.indices == 7).any()
        return views(self, batch)

    def poisoned(self: RotationTask, logits: Any, labels: torch.Tensor) -> StepOutput:
        output = loss(self, logits, labels)
        output.loss = output.loss + torch.where(self.is_poisonous, float("inf"), 0.0)
        return output

    with pytest.MonkeyPatch.context() as patch, trainer_of(config_in(folder)) as trainer:
        patch.setattr(RotationTask, "views", watching)
        patch.setattr(RotationTask, "loss", poisoned)
        trainer.fit()
        weights = checkpoint.state_hash(dict(trainer.task.module.named_parameters()))
        if not trainer.processes.is_main:
            return trainer.training_step.guard.state_dict(), weights, []
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        return trainer.training_step.guard.state_dict(), weights, lines


@pytest.mark.parametrize("world", [2, 3])
def test_a_loss_that_is_infinite_in_one_process_skips_the_step_in_all(world: int, tmp_path: Path) -> None:
    found = on_ranks(world, fit_with_an_infinite_loss, tmp_path / "run")
    guards, weights, lines = zip(*found, strict=True)
    assert all(guard == guards[0] for guard in guards)
    assert guards[0]["skipped"] == EPOCHS
    assert len(set(weights)) == 1
    assert sum(line.get("skipped_steps", 0) for line in lines[0] if line["kind"] == "train") == EPOCHS
    assert all(torch.isfinite(torch.tensor(line["loss"])) for line in lines[0] if "loss" in line)

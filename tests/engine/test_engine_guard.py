"""A non-finite step changes nothing, and three in a row stop a run."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from recorded_graph import RecordingCapture
from test_engine_trainer import dataset as dataset  # a fixture
from test_engine_trainer import make_trainer

from rotnet_fast.data.datasets import Dataset
from rotnet_fast.data.loader import Batch
from rotnet_fast.engine import checkpoint
from rotnet_fast.engine.rotation_task import RotationTask
from rotnet_fast.engine.run_folder import RunFolder
from rotnet_fast.engine.schedule import Schedule
from rotnet_fast.engine.step import StepGuard
from rotnet_fast.engine.task import StepOutput
from rotnet_fast.engine.trainer import Trainer
from rotnet_fast.errors import NonFiniteError
from rotnet_fast.models.library import LibraryNetwork
from rotnet_fast.models.network import FeatureNetwork
from rotnet_fast.models.nin import NetworkInNetwork
from rotnet_fast.models.own import OwnNetwork

CPU = torch.device("cpu")
NAN, INF = float("nan"), float("inf")
UNSCALED = torch.ones(())
STEPS_PER_EPOCH = 3


class Poisoned(RotationTask):
    """Something becomes NaN or infinite in the steps whose batch holds the poisonous image.

    Told by the data, on the device, as the real thing would be: it works in captured steps, too.
    """

    poison = "loss"
    images = (7,)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.is_bad = torch.zeros((), dtype=torch.bool, device=self.key.device)
        self.poisonous = torch.tensor(self.images, dtype=torch.int64, device=self.key.device)
        if self.poison == "one gradient":
            parameter = list(self.module.parameters())[-1]
            parameter.register_hook(lambda gradient: torch.where(self.is_bad, INF, gradient))

    def views(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        self.is_bad = torch.isin(batch.indices, self.poisonous).any()
        views, labels = super().views(batch)
        if self.poison == "one pixel":
            views[0, 0, 0, 0] = torch.where(self.is_bad, NAN, views[0, 0, 0, 0])
        return views, labels

    def loss(self, logits: dict[str, torch.Tensor], labels: torch.Tensor) -> StepOutput:
        output = super().loss(logits, labels)
        if self.poison == "loss":
            output.loss = output.loss * torch.where(self.is_bad, NAN, 1.0)
            output.sums["loss"] = output.sums["loss"] * torch.where(self.is_bad, NAN, 1.0)
        if self.poison == "infinite loss":  # its gradients are finite
            output.loss = output.loss + torch.where(self.is_bad, INF, 0.0)
        if self.poison == "one statistic":  # neither loss nor gradients show it
            buffer = next(self.module.buffers())
            buffer[0] = torch.where(self.is_bad, INF, buffer[0])
        return output


POISONS = ["loss", "infinite loss", "one pixel", "one gradient", "one statistic"]


def poisoned(poison: str, *images: int) -> type[RotationTask]:
    """A task in which these images are poisonous."""
    return type("PoisonedTask", (Poisoned,), {"poison": poison, "images": images})


def order(trainer: Trainer, epoch: int) -> list[list[int]]:
    """The images of each step of an epoch."""
    return [batch.indices.tolist() for batch in trainer.loader.epoch(epoch)]


def learned(trainer: Trainer) -> str:
    """Hash of weights, statistics, momentum and what is not zero of the metric sums."""
    state = trainer.state()
    sums = {name: value for name, value in state["sums"]["sums"].items() if value != 0}
    return checkpoint.state_hash([state["module"], state["optimizer"]["state"], sums])


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.faults("non-finite step")
@pytest.mark.parametrize("optimizer", ["sgd", "muon"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("poison", POISONS)
def test_a_non_finite_step_changes_nothing(
    poison: str, precision: str, optimizer: str, dataset: Dataset, tmp_path: Path
) -> None:
    # Each step of the epoch is the bad one in turn: the first one, too, before there is any momentum.
    muon = Schedule(0.02) if optimizer == "muon" else None
    for bad in range(STEPS_PER_EPOCH):
        with RunFolder(tmp_path / str(bad)) as run:
            clean = make_trainer(dataset, run, CPU, Schedule(0.05), precision, muon=muon)
            image = order(clean, 0)[bad][0]
            trainer = make_trainer(
                dataset, run, CPU, Schedule(0.05), precision, task_class=poisoned(poison, image), muon=muon
            )
            for each in (clean, trainer):
                each.task.begin_epoch(0)
            for step, batch in enumerate(trainer.loader.epoch(0)):
                before = learned(trainer)
                trainer.train_step(batch)
                assert (learned(trainer) == before) == (step == bad)
                if step == bad:
                    clean.progress.step += 1  # as if this batch did not exist
                else:
                    clean.train_step(batch)
                assert learned(clean) == learned(trainer)
            assert trainer.training_step.guard.read() == (1, 1)


@pytest.mark.parametrize("poison", POISONS)
def test_captured_non_finite_steps_change_nothing_either(
    poison: str, dataset: Dataset, tmp_path: Path
) -> None:
    # One of three steps in each of 8 epochs, at another place each time: two thirds of them are replayed.
    hashes, lines = [], []
    for capture in (None, RecordingCapture()):
        with RunFolder(tmp_path / str(capture is None)) as run:
            trainer = make_trainer(
                dataset, run, CPU, Schedule(0.05), epochs=8, task_class=poisoned(poison, 7), capture=capture
            )
            trainer.fit()
            hashes.append(trainer.state_hash())
            lines.append(metrics(run.path))
            assert trainer.training_step.guard.read() == (8, 1)
    assert hashes[0] == hashes[1]
    assert [line.get("loss") for line in lines[0]] == [line.get("loss") for line in lines[1]]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
@pytest.mark.parametrize(
    ("precision", "graph"), [("fp32", "on"), ("bf16", "on"), ("bf16", "off"), ("fp16", "off")]
)
@pytest.mark.parametrize("poison", POISONS)
def test_non_finite_steps_of_a_gpu_change_nothing(
    poison: str, precision: str, graph: str, dataset: Dataset, tmp_path: Path
) -> None:
    with RunFolder(tmp_path) as run:
        trainer = make_trainer(
            dataset,
            run,
            torch.device("cuda"),
            Schedule(0.05),
            precision,
            task_class=poisoned(poison, 7),
            graph=graph,
        )
        seen = 0
        for epoch in range(8):
            trainer.task.begin_epoch(epoch)
            trainer.progress.epoch, trainer.progress.step = epoch, 0
            for batch in trainer.loader.epoch(epoch):
                before, is_bad = learned(trainer), 7 in batch.indices.tolist()
                trainer.train_step(batch)
                if is_bad or precision != "fp16":  # whose scaler may skip others, too
                    assert is_bad == (learned(trainer) == before)
                seen += is_bad
        assert trainer.training_step.is_replayed == (graph == "on")
        assert seen == 8 <= trainer.training_step.guard.read().skipped


@pytest.mark.parametrize("log_every", [1, 2, 3])
def test_a_skipped_step_is_reported_and_is_in_no_mean(
    log_every: int, dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with RunFolder(tmp_path) as run:
        trainer = make_trainer(
            dataset, run, CPU, Schedule(0.01), task_class=poisoned("loss", 7), epochs=2, log_every=log_every
        )
        trainer.fit()
    lines = metrics(tmp_path)
    intervals = [line for line in lines if line["kind"] == "train"]
    assert sum(line.get("skipped_steps", 0) for line in intervals) == 2
    assert all(math.isfinite(line["loss"]) for line in lines if "loss" in line)
    assert all("loss" in line for line in intervals if log_every == 3 or "skipped_steps" not in line)
    assert capsys.readouterr().err.count("WARNING: skipped 1 of the last") == 2


def test_a_skipped_step_is_one_of_those_since_the_last_report_whatever_a_resume(
    dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def trainer_in(run: RunFolder) -> Trainer:
        return make_trainer(
            dataset,
            run,
            CPU,
            Schedule(0.01),
            task_class=poisoned("loss", 7),
            epochs=1,
            log_every=8,
            checkpoint_every_steps=1,
        )

    with RunFolder(tmp_path) as run:
        trainer = trainer_in(run)
        step = trainer.train_step

        def killed(batch: Batch) -> None:
            if trainer.progress.step == 2:
                raise MemoryError
            step(batch)

        monkeypatch.setattr(trainer, "train_step", killed)
        with pytest.raises(MemoryError):
            trainer.fit()
    with RunFolder(tmp_path, resume=True) as run:
        trainer = trainer_in(run)
        trainer.resume()
        trainer.fit()
    assert "WARNING: skipped 1 of the last 3 steps, with a loss" in capsys.readouterr().err


class PoisonedLater(Poisoned):
    """All images are poisonous from the second epoch on."""

    def begin_epoch(self, epoch: int) -> None:
        super().begin_epoch(epoch)
        self.poisonous = torch.arange(40 if epoch > 0 else 0)


@pytest.mark.faults("three non-finite steps in a row")
@pytest.mark.parametrize("poison", [poison for poison in POISONS if poison != "one gradient"])
def test_three_in_a_row_stop_a_run_and_the_last_good_checkpoint_is_kept(
    poison: str, dataset: Dataset, tmp_path: Path
) -> None:
    with RunFolder(tmp_path) as run:
        trainer = make_trainer(
            dataset, run, CPU, Schedule(0.01), task_class=PoisonedLater, checkpoint_every_steps=1, epochs=4
        )
        trainer.task.poison = poison  # type: ignore[attr-defined]
        message = r"3 steps in a row in epoch 2, at or before step 3, .* rate 0\.01.*lower --lr.*last\.pt"
        with pytest.raises(NonFiniteError, match=message):
            trainer.fit()
        state = checkpoint.load(tmp_path / "checkpoints" / "last.pt")
        good = checkpoint.load(tmp_path / "checkpoints" / "epoch-0001.pt")
        assert (state["epoch"], state["step"]) == (1, 2)  # not that of the third
        for part in ("module", "optimizer"):
            assert checkpoint.state_hash(state[part]) == checkpoint.state_hash(good[part])
        with pytest.raises(NonFiniteError, match="3 steps in a row"):
            trainer.save_checkpoint("last.pt")


def test_two_in_a_row_do_not_stop_a_run(dataset: Dataset, tmp_path: Path) -> None:
    guard = StepGuard(torch.nn.BatchNorm2d(1), CPU)
    worst = 0
    for verdict in (NAN, NAN, 1.0, NAN, NAN, 1.0, 1.0, NAN):
        guard.check([torch.tensor([verdict])], UNSCALED)
        worst = guard.read().in_a_row
    assert (worst, guard.read().skipped) == (2, 5)


@pytest.mark.parametrize("cut", range(1, 2 * STEPS_PER_EPOCH))
def test_a_row_is_counted_on_by_a_resumed_run(cut: int, dataset: Dataset, tmp_path: Path) -> None:
    # Two bad steps end the first epoch, and one begins the second.
    def trainer_in(run: RunFolder) -> Trainer:
        return make_trainer(dataset, run, CPU, Schedule(0.01), task_class=task, checkpoint_every_steps=1)

    with RunFolder(tmp_path / "whole") as run:
        clean = make_trainer(dataset, run, CPU, Schedule(0.01))
        last, first = order(clean, 0)[1:], order(clean, 1)[0]
        task = poisoned("loss", last[0][0], last[1][0], first[0])
        steps = [set(task.images) & set(images) for epoch in (0, 1) for images in order(clean, epoch)]
        assert [bool(bad) for bad in steps[1:4]] == [True] * 3
        with pytest.raises(NonFiniteError, match="3 steps in a row in epoch 2, at or before step 1"):
            trainer_in(run).fit()
    with RunFolder(tmp_path / "cut") as run:
        begun = trainer_in(run)
        for epoch in (0, 1):
            begun.task.begin_epoch(epoch)
            for batch in begun.loader.epoch(epoch):
                if begun.progress.epoch * STEPS_PER_EPOCH + begun.progress.step < min(cut, 3):
                    begun.train_step(batch)
        begun.save_checkpoint("last.pt")
    with RunFolder(tmp_path / "cut", resume=True) as run:
        resumed = trainer_in(run)
        resumed.resume()
        with pytest.raises(NonFiniteError, match="3 steps in a row in epoch 2, at or before step 1"):
            resumed.fit()


def test_scaled_gradients_that_overflow_are_skipped_but_do_not_stop_a_run() -> None:
    module = torch.nn.BatchNorm2d(2)
    guard = StepGuard(module, CPU)
    scale = torch.tensor(1.5)
    for _ in range(5):
        guard.remember()
        guard.mark(torch.ones(()), images=1)
        assert guard.check([torch.tensor([INF])], scale) == 1
    assert guard.read() == (5, 0)
    for _ in range(3):
        guard.remember()
        guard.mark(torch.tensor(NAN), images=1)
        guard.check([torch.tensor([NAN])], scale)
    assert guard.read() == (8, 3)


def test_gradients_that_no_loss_scale_makes_finite_stop_a_run(dataset: Dataset, tmp_path: Path) -> None:
    # The loss stays finite: nothing but the gradients shows it, and lower scales do not help.
    task = poisoned("one gradient", *range(40))
    with RunFolder(tmp_path) as run:
        trainer = make_trainer(dataset, run, CPU, Schedule(0.01), task_class=task)
        step = trainer.training_step
        step._scaler = torch.amp.GradScaler("cpu", init_scale=4.0)  # as with fp16, which needs a GPU
        found = []
        for epoch in (0, 1):
            trainer.task.begin_epoch(epoch)
            for batch in trainer.loader.epoch(epoch):
                scale = step._scaler.get_scale()
                trainer.train_step(batch)
                found.append((scale, *step.guard.read()))
    assert found[:5] == [(4, 1, 0), (2, 2, 0), (1, 3, 1), (0.5, 4, 2), (0.25, 5, 3)]


def test_the_loss_of_no_images_is_no_fault() -> None:
    guard = StepGuard(torch.nn.BatchNorm2d(2), CPU)
    guard.remember()
    guard.mark(torch.tensor(NAN), images=0)
    assert guard.check([torch.zeros(1)], UNSCALED) == 0
    assert guard.read() == (0, 0)


@pytest.mark.parametrize("change", ["statistics", "count", "other buffer"])
def test_all_buffers_are_restored_whatever_their_type(change: str) -> None:
    module = torch.nn.BatchNorm2d(3)
    module.register_buffer("mask", torch.tensor([True, False]))
    changes: dict[str, Callable[[], object]] = {
        "statistics": lambda: module.running_mean.fill_(NAN),
        "count": lambda: module.num_batches_tracked.fill_(2**60 + 1),
        "other buffer": lambda: module.mask.logical_not_(),
    }
    before = checkpoint.state_hash(module.state_dict())
    guard = StepGuard(module, CPU)
    guard.remember()
    changes[change]()
    guard.mark(torch.ones(()), images=1)
    guard.restore(torch.zeros(()))
    assert checkpoint.state_hash(module.state_dict()) != before
    guard.restore(torch.ones(()))
    assert checkpoint.state_hash(module.state_dict()) == before


def wrapped() -> torch.nn.Module:
    """A user's own network, whose state-dict keys are not those of the wrapper's modules."""
    inner = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Conv2d(4, 4, 3))
    inner.append(
        torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(4, 4))
    )
    return OwnNetwork(inner, 4, 3, 32)


@pytest.mark.parametrize(
    "network",
    [
        lambda: NetworkInNetwork(4, blocks=3, width=0.1),
        lambda: LibraryNetwork("resnet18", 4),
        wrapped,
        lambda: torch.nn.ModuleDict(
            {"network": LibraryNetwork("resnet18", 4), "head": torch.nn.BatchNorm1d(4)}
        ),
    ],
    ids=["NIN", "torchvision", "own", "beside a head"],
)
def test_statistics_of_every_kind_of_network_are_restored(network: Callable[[], torch.nn.Module]) -> None:
    module = network()
    before = checkpoint.state_hash(module.state_dict())
    guard = StepGuard(module, CPU)
    guard.remember()
    for norm in module.modules():
        if isinstance(norm, torch.nn.modules.batchnorm._BatchNorm):
            norm.running_mean.fill_(NAN)
            norm.num_batches_tracked.add_(1)
    marked = guard.mark(torch.ones(()), images=1)
    assert marked.isnan()
    guard.restore(guard.check([marked[None]], UNSCALED))
    assert checkpoint.state_hash(module.state_dict()) == before


@pytest.mark.parametrize(
    "constant", [torch.full((2, 2), -INF).triu(1), torch.full((100,), 60_000.0, dtype=torch.float16)]
)
def test_constants_that_are_infinite_or_whose_sum_is_are_no_fault(constant: torch.Tensor) -> None:
    module = torch.nn.BatchNorm2d(2)
    module.register_buffer("constant", constant)
    guard = StepGuard(module, CPU)
    guard.remember()
    assert guard.mark(torch.ones(()), images=1).isfinite()
    module.running_var[1] = INF
    assert guard.mark(torch.ones(()), images=1).isnan()


class Diverged(RotationTask):
    """A task that begins with the statistics of a network that has diverged."""

    def __init__(self, network: FeatureNetwork, *arguments: Any, **settings: Any) -> None:
        means = [buffer for name, buffer in network.named_buffers() if name.endswith("running_mean")]
        means[0].fill_(math.nan)
        super().__init__(network, *arguments, **settings)


def test_statistics_that_were_no_numbers_from_the_beginning_are_no_constants(
    dataset: Dataset, tmp_path: Path
) -> None:
    with RunFolder(tmp_path) as run:
        trainer = make_trainer(dataset, run, CPU, Schedule(0.1), task_class=Diverged)
        with pytest.raises(NonFiniteError, match="BatchNorm statistic became non-finite"):
            trainer.save_checkpoint("last.pt")


def test_a_divergent_run_is_stopped(dataset: Dataset, tmp_path: Path) -> None:
    with (
        RunFolder(tmp_path) as run,
        pytest.raises(NonFiniteError, match=r"learning rate 1e\+30"),
    ):
        make_trainer(dataset, run, CPU, Schedule(1e30)).fit()

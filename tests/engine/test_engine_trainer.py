"""The training loop does what twenty lines of plain torch do, and knows when to stop."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import tiny_config
from torch.nn import functional

from rotnet_fast.data.datasets import Dataset, load_dataset
from rotnet_fast.data.resident import ResidentLoader
from rotnet_fast.data.sampling import epoch_order
from rotnet_fast.engine import checkpoint
from rotnet_fast.engine.precision import resolve_precision
from rotnet_fast.engine.replay import Capture
from rotnet_fast.engine.rotation_task import RotationTask
from rotnet_fast.engine.run_folder import RunFolder, epoch_checkpoints
from rotnet_fast.engine.schedule import Schedule
from rotnet_fast.engine.task import TrainerSettings
from rotnet_fast.engine.trainer import Trainer
from rotnet_fast.models.nin import NetworkInNetwork
from rotnet_fast.ops.reference import rotate_batch_reference
from rotnet_fast.pretrain import pretrain


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return load_dataset("digits", image_size=16, limit_train=40, limit_test=23)


def make_network() -> NetworkInNetwork:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        return NetworkInNetwork(blocks=3, width=0.05)


def make_trainer(
    dataset: Dataset,
    run: RunFolder,
    device: torch.device,
    schedule: Schedule,
    precision: str = "fp32",
    compile: str = "none",
    task_class: type[RotationTask] = RotationTask,
    capture: Capture | None = None,
    muon: Schedule | None = None,
    **settings: Any,
) -> Trainer:
    loader = ResidentLoader(dataset.train, device, batch_size=16, seed=5)
    resolved = resolve_precision(precision, device)
    task = task_class(
        make_network().to(device),
        schedule,
        ResidentLoader(dataset.test, device, batch_size=10, seed=0, shuffle=False),
        rotations=(0, 90, 180, 270),
        seed=5,
        pad=2,
        flip_prob=0.5,
        mean=dataset.mean,
        std=dataset.std,
        dtype=resolved.dtype,
        compile=compile,
        muon=muon,
    )
    defaults: dict[str, Any] = {"epochs": 3, "progress": False, "tensorboard": False, "log_every": 1}
    resolved_settings = TrainerSettings(precision=resolved, **{**defaults, **settings})
    return Trainer(task, loader, resolved_settings, run, {}, capture=capture)


def test_training_equals_twenty_lines_of_plain_torch(dataset: Dataset, tmp_path: Path) -> None:
    schedule = Schedule(0.05, "step", milestones=(2,), factor=0.2)
    with RunFolder(tmp_path) as run:
        trainer = make_trainer(dataset, run, torch.device("cpu"), schedule)
        trainer.fit()

    network = make_network()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [2], gamma=0.2)
    for epoch in range(3):
        indices, ids = epoch_order(40, 40, seed=5, epoch=epoch)
        for start in range(0, 40, 16):
            part = slice(start, start + 16)
            views, labels = rotate_batch_reference(
                dataset.train.images, indices[part], ids[part], 5, epoch, [0, 1, 2, 3], 2, 0.5,
                dataset.mean, dataset.std, torch.float32,
            )  # fmt: skip
            loss = functional.cross_entropy(network(views.permute(0, 3, 1, 2)), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        scheduler.step()

    for (name, ours), plain in zip(
        trainer.task.module.state_dict().items(), network.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-6, msg=name)


def test_the_learning_rate_of_every_step_is_the_schedules(dataset: Dataset, tmp_path: Path) -> None:
    schedule = Schedule(0.06, "linear", epochs=3)
    with RunFolder(tmp_path) as run:
        make_trainer(dataset, run, torch.device("cpu"), schedule).fit()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    rates = [line["lr"] for line in lines if line["kind"] == "train"]
    assert rates == [schedule.lr(epoch, step / 3) for epoch in range(3) for step in range(3)]


def test_pretraining_lowers_the_loss_and_learns_the_rotations(tmp_path: Path) -> None:
    config = tiny_config(tmp_path / "run", epochs=12, width=0.1, checkpoint_every_steps=None)
    results = pretrain(config)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if line["kind"] == "train_epoch"]
    assert losses[-1] < 0.6 * losses[0]
    assert results["rotation_accuracy"] > 40.0  # chance is 25


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_every_precision_trains(
    precision: str, dataset: Dataset, device: torch.device, tmp_path: Path
) -> None:
    if precision == "fp16" and device.type == "cpu":
        pytest.skip("fp16 is refused on the CPU")
    with RunFolder(tmp_path) as run:
        trainer = make_trainer(dataset, run, device, Schedule(0.05), precision, epochs=8)
        trainer.fit()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if line["kind"] == "train_epoch"]
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.long
@pytest.mark.parametrize("mode", ["default", "max"])
def test_a_compiled_network_trains_alike(
    mode: str, dataset: Dataset, device: torch.device, tmp_path: Path
) -> None:
    if mode == "max" and device.type == "cpu":
        pytest.skip("on the CPU, the longer search for kernels only takes longer")
    metrics = []
    for compile in ("none", mode):
        with RunFolder(tmp_path / compile) as run:
            trainer = make_trainer(dataset, run, device, Schedule(0.01), compile=compile)
            trainer.fit()
            metrics.append(trainer.progress.metrics["train"]["loss"])
    assert metrics[0] == pytest.approx(metrics[1], rel=0.02)


def test_evaluation_counts_every_view_of_every_image_once(
    dataset: Dataset, device: torch.device, tmp_path: Path
) -> None:
    with RunFolder(tmp_path) as run:
        trainer = make_trainer(dataset, run, device, Schedule(0.05), epochs=4)
        trainer.fit()
    network, images = trainer.task.module, dataset.test.images.to(device)
    metrics = trainer.task.evaluate()  # 23 images in batches of 10
    scale = torch.tensor([dataset.mean, dataset.std], device=device)
    upright = ((images.float() / 255 - scale[0]) / scale[1]).permute(0, 3, 1, 2)
    with torch.no_grad():
        for turn in range(4):
            predicted = network(torch.rot90(upright, turn, (2, 3))).argmax(1)
            expected = 100 * (predicted == turn).sum().item() / 23
            assert metrics[f"rotation_accuracy/{90 * turn}"] == pytest.approx(expected)
    of_each = [metrics[f"rotation_accuracy/{degrees}"] for degrees in (0, 90, 180, 270)]
    assert metrics["rotation_accuracy"] == pytest.approx(sum(of_each) / 4)


def test_evaluation_changes_no_state(dataset: Dataset, device: torch.device, tmp_path: Path) -> None:
    with RunFolder(tmp_path) as run:
        trainer = make_trainer(dataset, run, device, Schedule(0.05), epochs=1)
        trainer.fit()
        before = trainer.state_hash()
        trainer.task.evaluate()
        assert trainer.state_hash() == before


def test_the_last_three_epochs_and_the_best_are_kept(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    accuracies = iter([30.0, 50.0, 40.0, 50.0, 20.0])
    monkeypatch.setattr(RotationTask, "evaluate", lambda self: {"rotation_accuracy": next(accuracies)})
    for epochs in (3, 5):  # what was best is known after a resume, too
        with RunFolder(tmp_path, resume=True) as run:
            trainer = make_trainer(dataset, run, torch.device("cpu"), Schedule(0.01), epochs=epochs)
            trainer.resume()
            trainer.fit()
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["best.pt", "epoch-0003.pt", "epoch-0004.pt", "epoch-0005.pt", "last.pt"]
    best = checkpoint.load(tmp_path / "checkpoints" / "best.pt")
    assert (best["epoch"], best["metrics"]["test"]) == (2, {"rotation_accuracy": 50.0})


def test_evaluation_happens_when_asked_for_and_after_the_last_epoch(dataset: Dataset, tmp_path: Path) -> None:
    with RunFolder(tmp_path) as run:
        make_trainer(dataset, run, torch.device("cpu"), Schedule(0.01), epochs=5, eval_every=2).fit()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines if line["kind"] == "test_epoch"] == [1, 3, 4]


def test_what_was_reported_before_the_first_checkpoint_is_not_reported_twice(
    dataset: Dataset, tmp_path: Path
) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"kind": "train", "epoch": 0, "step": 1}\n')
    with RunFolder(tmp_path) as run:
        trainer = make_trainer(dataset, run, torch.device("cpu"), Schedule(0.01), epochs=1)
        trainer.resume()
        trainer.fit()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["kind"] == "train"] == [1, 2, 3]


def test_the_last_three_epochs_are_kept_beyond_the_ten_thousandth(dataset: Dataset, tmp_path: Path) -> None:
    with RunFolder(tmp_path) as run:
        trainer = make_trainer(dataset, run, torch.device("cpu"), Schedule(0.05), epochs=10_002)
        trainer.progress.epoch = 9_997
        trainer.fit()
    kept = [epoch for epoch, _ in epoch_checkpoints(tmp_path / "checkpoints")]
    assert kept == [10_000, 10_001, 10_002]
    for path in checkpoint.candidates(tmp_path)[1:]:
        path.unlink()
    assert checkpoint.load_newest(tmp_path)[1]["epoch"] == 10_002


def test_what_an_epoch_has_just_written_is_never_removed(dataset: Dataset, tmp_path: Path) -> None:
    with RunFolder(tmp_path) as run:
        for later in (7, 8, 9):  # left by a run that was resumed from an older checkpoint
            (run.checkpoints / f"epoch-000{later}.pt").touch()
        make_trainer(dataset, run, torch.device("cpu"), Schedule(0.05), epochs=1).fit()
    assert [epoch for epoch, _ in epoch_checkpoints(tmp_path / "checkpoints")] == [1, 7, 8, 9]

"""Captured steps train as ordinary ones do: fresh draws, current learning rates, to the last bit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from recorded_graph import RecordingCapture, record
from test_engine_trainer import dataset as dataset  # a fixture
from test_engine_trainer import make_trainer
from torch import nn

from rotnet_fast.data.datasets import Dataset
from rotnet_fast.data.loader import Batch
from rotnet_fast.engine.distributed import ALONE
from rotnet_fast.engine.precision import Precision
from rotnet_fast.engine.replay import STEPS_BEFORE_CAPTURE, ReplayedStep, use_graph
from rotnet_fast.engine.rotation_task import RotationTask
from rotnet_fast.engine.run_folder import RunFolder
from rotnet_fast.engine.schedule import Schedule
from rotnet_fast.engine.task import StepOutput
from rotnet_fast.errors import ArgumentError, CaptureError
from rotnet_fast.models.nin import NetworkInNetwork
from rotnet_fast.ops.library import LIBRARIES
from rotnet_fast.protocols.ablations import FlipAfterRotation, OneRotation

CPU = torch.device("cpu")
BF16 = Precision("bf16", "cuda")


def batch(*values: int, is_gathered: bool = False) -> Batch:
    rows = torch.tensor(values)
    images = rows[:, None, None, None].to(torch.uint8) if is_gathered else torch.zeros(9, 1, 1, 1)
    return Batch(images, rows, rows + 100, rows + 200, is_gathered, len(values))


@pytest.mark.parametrize("task_class", [RotationTask, FlipAfterRotation, OneRotation])
def test_replayed_steps_train_as_ordinary_ones(
    task_class: type[RotationTask], dataset: Dataset, tmp_path: Path
) -> None:
    # 8 epochs of batches of 16, 16 and 8: both sizes are captured, and replayed under other learning rates.
    found = []
    for capture in (None, RecordingCapture()):
        with RunFolder(tmp_path / str(capture is None)) as run:
            trainer = make_trainer(
                dataset, run, CPU, Schedule(0.05, "cosine", epochs=8), epochs=8,
                task_class=task_class, capture=capture,
            )  # fmt: skip
            trainer.fit()
            metrics = (run.path / "metrics.jsonl").read_text().splitlines()
            found.append((trainer.state_hash(), len(metrics), trainer.progress.metrics))
            assert trainer.training_step.is_replayed == (capture is not None)
    assert found[0] == found[1]


def test_replayed_steps_of_muon_train_as_ordinary_ones(dataset: Dataset, tmp_path: Path) -> None:
    schedule = Schedule(0.05, "linear", epochs=8, warmup=1.0)
    hashes = []
    for capture in (None, RecordingCapture()):
        with RunFolder(tmp_path / str(capture is None)) as run:
            trainer = make_trainer(dataset, run, CPU, schedule, epochs=8, capture=capture, muon=schedule)
            trainer.fit()
            hashes.append(trainer.state_hash())
    assert hashes[0] == hashes[1]


class EpochOfTheHost(RotationTask):
    """Its augmentation depends on a number of the host, which a graph does not see change."""

    def begin_epoch(self, epoch: int) -> None:
        super().begin_epoch(0)
        self.epoch = epoch

    def views(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        shifted = replace(batch, sample_ids=batch.sample_ids + 1000 * self.epoch)
        return super().views(shifted)


def test_the_recorder_has_what_the_host_decides_fixed_as_a_graph_has(
    dataset: Dataset, tmp_path: Path
) -> None:
    hashes = []
    for capture in (None, RecordingCapture()):
        with RunFolder(tmp_path / str(capture is None)) as run:
            trainer = make_trainer(
                dataset, run, CPU, Schedule(0.05), epochs=8, task_class=EpochOfTheHost, capture=capture
            )
            trainer.fit()
            hashes.append(trainer.state_hash())
    assert hashes[0] != hashes[1]


def test_the_recorder_refuses_work_that_waits_for_the_device() -> None:
    with pytest.raises(AssertionError, match="reads a number off the device"):
        record(lambda: print(torch.ones(()).item()))


def test_a_replayed_run_can_be_resumed_by_ordinary_steps_and_vice_versa(
    dataset: Dataset, tmp_path: Path
) -> None:
    def fit(name: str, epochs: int, capture: Any) -> str:
        with RunFolder(tmp_path / name, resume=True) as run:
            trainer = make_trainer(dataset, run, CPU, Schedule(0.05), epochs=epochs, capture=capture)
            trainer.resume()
            trainer.fit()
            return trainer.state_hash()

    whole = fit("whole", 9, None)
    fit("first replayed", 5, RecordingCapture())
    assert fit("first replayed", 9, None) == whole
    fit("then replayed", 3, None)
    assert fit("then replayed", 9, RecordingCapture()) == whole


class WatchedCapture:
    """Notes after how many steps it captured, and which ones ran on its stream."""

    def __init__(self) -> None:
        self.seen: list[list[int]] = []
        self.captured: list[int] = []
        self.on_its_stream: list[list[int]] = []

    @contextmanager
    def stream(self) -> Iterator[None]:
        yield
        self.on_its_stream.append(self.seen[-1])

    def __call__(self, work: Any) -> Any:
        self.captured.append(len(self.seen))
        return work

    def step(self, batch: Batch) -> None:
        self.seen.append(batch.indices.tolist())


def test_each_number_of_images_is_captured_once_after_ordinary_steps_on_the_same_stream() -> None:
    capture = WatchedCapture()
    step = ReplayedStep(capture.step, capture)
    expected = []
    for number in range(STEPS_BEFORE_CAPTURE + 3):
        for values in ([number, number + 1], [number + 2]):
            step(batch(*values))
            expected.append(values)
    assert capture.seen == expected
    assert capture.captured == [2 * STEPS_BEFORE_CAPTURE, 2 * STEPS_BEFORE_CAPTURE + 1]
    assert capture.on_its_stream == expected[: 2 * STEPS_BEFORE_CAPTURE]


class FailingCapture(WatchedCapture):
    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def __call__(self, work: Any) -> Any:
        try:
            raise self.error
        finally:  # as torch ends a capture, whatever happened in it
            raise RuntimeError("operation failed due to a previous error during capture")


def test_a_failed_capture_is_one_sentence_that_names_the_remedy() -> None:
    capture = FailingCapture(ValueError("cannot be captured\nat this line"))
    step = ReplayedStep(capture.step, capture)
    for _ in range(STEPS_BEFORE_CAPTURE):
        step(batch(1))
    with pytest.raises(
        CaptureError, match=r"in a CUDA graph \(cannot be captured\); use --graph off$"
    ) as found:
        step(batch(1))
    assert found.value.exit_code == 9


class Marking(RotationTask):
    """Marks the nodes at which autograd adds up gradients, while the graph of a step is alive."""

    kept: StepOutput | None = None

    def loss(self, logits: dict[str, torch.Tensor], labels: torch.Tensor) -> StepOutput:
        output = super().loss(logits, labels)
        for node in accumulators(self.module):
            node.metadata["mark"] = True
        self.kept = output if self.keeps else None
        return output

    keeps = False


class MarkingAndKeeping(Marking):
    keeps = True


def accumulators(module: nn.Module) -> list[Any]:
    """The node of each parameter: the living one, or a new one where nothing holds it any more."""
    return [torch.autograd.graph.get_gradient_edge(parameter).node for parameter in module.parameters()]


@pytest.mark.parametrize("task_class", [Marking, MarkingAndKeeping])
def test_no_node_of_autograd_outlives_a_step(
    task_class: type[Marking], dataset: Dataset, tmp_path: Path
) -> None:
    # It would remember the stream of an ordinary step, for which a captured backward pass would then wait.
    with RunFolder(tmp_path) as run:
        trainer = make_trainer(dataset, run, CPU, Schedule(0.05), epochs=1, task_class=task_class)
        trainer.fit()
        alive = [node for node in accumulators(trainer.task.module) if "mark" in node.metadata]
        assert len(alive) == (29 if task_class.keeps else 0)


@pytest.mark.parametrize("is_gathered", [False, True])
def test_a_captured_batch_takes_all_of_the_next_one(is_gathered: bool) -> None:
    first, second = batch(1, 2, is_gathered=is_gathered), batch(3, 4, is_gathered=is_gathered)
    static = first.copy()
    static.take(second)
    for name in ("images", "indices", "labels", "sample_ids"):
        assert torch.equal(getattr(static, name), getattr(second, name))
    assert first.indices.tolist() == [1, 2]
    assert (static.images is first.images) == (not is_gathered)


class Drawing(NetworkInNetwork):
    uses_rng = True


@pytest.mark.parametrize(
    ("device", "precision", "network", "message"),
    [
        (CPU, Precision("bf16", "cpu"), NetworkInNetwork, "which needs a GPU.*omit --graph"),
        (
            torch.device("cuda", 0),
            Precision("fp16", "cuda"),
            NetworkInNetwork,
            "but .*loss scaling.*--graph auto or off",
        ),
        (torch.device("cuda", 0), BF16, Drawing, "but .*draws random numbers.*--graph auto or off"),
    ],
)
def test_a_graph_is_refused_where_it_cannot_work_and_auto_does_without(
    device: torch.device,
    precision: Precision,
    network: type[NetworkInNetwork],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(LIBRARIES, "cuda", replace(LIBRARIES["cuda"], loaded=True))
    module = network(width=0.05)
    with pytest.raises(ArgumentError, match=f"graph is on, {message}"):
        use_graph("on", device, precision, module, ALONE)
    assert not use_graph("auto", device, precision, module, ALONE)
    assert not use_graph("off", device, precision, module, ALONE)


def test_auto_takes_graphs_for_the_papers_network_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.device("cuda", 0)
    monkeypatch.setitem(LIBRARIES, "cuda", replace(LIBRARIES["cuda"], loaded=False))
    assert not use_graph("auto", device, BF16, NetworkInNetwork(width=0.05), ALONE)
    with pytest.raises(ArgumentError, match="graph is on, but the op runs as plain torch"):
        use_graph("on", device, BF16, NetworkInNetwork(width=0.05), ALONE)
    monkeypatch.setitem(LIBRARIES, "cuda", replace(LIBRARIES["cuda"], loaded=True))
    assert use_graph("auto", device, BF16, NetworkInNetwork(width=0.05), ALONE)
    assert use_graph("on", device, BF16, NetworkInNetwork(width=0.05), ALONE)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
def test_a_step_that_cannot_be_captured_is_refused_and_leaves_the_stream(
    dataset: Dataset, tmp_path: Path
) -> None:
    device = torch.device("cuda", 0)
    before = torch.cuda.current_stream(device)
    with RunFolder(tmp_path) as run:
        trainer = make_trainer(
            dataset, run, device, Schedule(0.01), epochs=2, graph="on", task_class=ReadsTheDevice
        )
        with pytest.raises(CaptureError, match="use --graph off"):
            trainer.fit()
    assert torch.cuda.current_stream(device) == before


class ReadsTheDevice(RotationTask):
    def loss(self, logits: dict[str, torch.Tensor], labels: torch.Tensor) -> StepOutput:
        output = super().loss(logits, labels)
        output.loss.item()
        return output


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
@pytest.mark.parametrize("muon", [None, Schedule(0.01)], ids=["sgd", "muon"])
def test_a_cuda_graph_trains_as_ordinary_steps(
    muon: Schedule | None, dataset: Dataset, tmp_path: Path
) -> None:
    device = torch.device("cuda")
    losses = []
    for graph in ("off", "on"):
        with RunFolder(tmp_path / graph) as run:
            trainer = make_trainer(dataset, run, device, Schedule(0.01), epochs=8, graph=graph, muon=muon)
            trainer.fit()
            losses.append(trainer.progress.metrics["train"]["loss"])
            assert trainer.training_step.is_replayed == (graph == "on")
    # cuDNN chooses its algorithms by timing, and their sums differ in order. Measured on an H200: 0.2 %.
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)

"""Loader, model step and whole pretraining step: images per second of each stage."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional

from rotnet_fast.data.resident import ResidentLoader
from rotnet_fast.data.split import Split
from rotnet_fast.engine.precision import resolve_precision
from rotnet_fast.engine.rotation_task import RotationTask
from rotnet_fast.engine.schedule import Schedule
from rotnet_fast.models.nin import KERNELS, NetworkInNetwork

STORED = 10_000


def _split() -> Split:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (STORED, 32, 32, 3), dtype=torch.uint8, generator=generator)
    return Split(images, torch.arange(STORED) % 10)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


@pytest.mark.parametrize("batch", [128, 1024])
def test_resident_loader(benchmark: Any, record: Any, device: torch.device, batch: int) -> None:
    """Order and index batches of one epoch."""
    loader = ResidentLoader(_split(), device, batch, seed=0)

    def epoch() -> int:
        seen = sum(len(batch) for batch in loader.epoch(0))
        _wait(device)
        return seen

    benchmark.group = f"{device.type} resident loader, one epoch of {STORED} images"
    assert benchmark(epoch) == STORED
    record(what="loader", device=device.type, batch=batch, images=STORED)


class _Step:
    """A pretraining step in parts."""

    def __init__(self, device: torch.device, width: float, batch: int, precision: str) -> None:
        self.device = device
        self.precision = resolve_precision(precision, device)
        torch.manual_seed(0)
        network = NetworkInNetwork(num_classes=4, blocks=4, width=width).to(device)
        split = _split()
        self.loader = ResidentLoader(split, device, batch, seed=0)
        self.task = RotationTask(
            network,
            Schedule(0.1, "step", (30, 60, 80), 0.2, 100),
            self.loader,
            rotations=(0, 90, 180, 270),
            seed=0,
            pad=4,
            flip_prob=0.5,
            mean=(0.49, 0.48, 0.45),
            std=(0.25, 0.24, 0.26),
            dtype=self.precision.dtype,
        )
        self.task.set_train_mode()
        self.optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, nesterov=True)
        self.batch = next(self.loader.epoch(0))
        self.number = 0

    def data(self) -> None:
        """The share of the data path: order, gather, augmentation, rotations."""
        self.number += 1
        self.task.views(self.batch, self.number)
        _wait(self.device)

    def whole(self) -> None:
        self.number += 1
        with self.precision.autocast():
            output = self.task.train_step(self.batch, self.number)
        self.optimizer.zero_grad(set_to_none=True)
        output.loss.backward()
        self.optimizer.step()
        _wait(self.device)


# On the CPU a full-width step of 128 images takes seconds; 32 tell the same.
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(("width", "cpu_batch"), [(0.25, 32), (0.5, 32), (1.0, 32)])
@pytest.mark.parametrize("part", ["data", "whole step"])
def test_pretraining_step(
    benchmark: Any,
    record: Any,
    device: torch.device,
    part: str,
    width: float,
    cpu_batch: int,
    precision: str,
) -> None:
    batch = cpu_batch if device.type == "cpu" else 128
    step = _Step(device, width, batch, precision)
    run = step.data if part == "data" else step.whole
    benchmark.group = f"{device.type} NIN-4 x{width}, {batch} images, {precision}"
    benchmark.pedantic(run, rounds=50 if part == "data" else 8, iterations=1, warmup_rounds=2)
    record(what=part, device=device.type, batch=batch, width=width, precision=precision)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
@pytest.mark.parametrize("kernels", KERNELS)
def test_forward_and_backward_in_a_graph(benchmark: Any, record: Any, kernels: str) -> None:
    """512 views through NIN-4 and back, without the cost of launching: what its kernels take."""
    if kernels != "torch":
        pytest.importorskip("triton", reason="Triton is not installed on this machine")
    torch.manual_seed(0)
    network = NetworkInNetwork(num_classes=4, blocks=4).cuda()
    network.use_kernels(kernels)
    views = torch.randn(512, 3, 32, 32, device="cuda").to(torch.bfloat16, memory_format=torch.channels_last)
    labels = torch.arange(4, device="cuda").repeat(128)

    def step() -> None:
        # Without autocast's cache, which would keep copies of weights from before the capture.
        with torch.autocast("cuda", torch.bfloat16, cache_enabled=False):
            loss = functional.cross_entropy(network(views), labels)
        loss.backward()

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):  # compiles the kernels, and lets cuDNN choose its own
            step()
    torch.cuda.synchronize()
    network.zero_grad(set_to_none=True)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()

    def replay() -> None:
        graph.replay()
        torch.cuda.synchronize()

    benchmark.group = "cuda NIN-4, forward and backward of 512 views in a graph, bf16"
    benchmark(replay)
    record(what="forward and backward", device="cuda", views=512, kernels=kernels, precision="bf16")

"""Steps that are captured in a CUDA graph once and replayed from then on.

Launching the some 200 kernels of a training step one by one takes the host about a millisecond; replaying
them takes it a tenth of that, so that a fast GPU need not wait for it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from rotnet_fast.data.loader import Batch
from rotnet_fast.engine.distributed import Processes
from rotnet_fast.engine.precision import Precision
from rotnet_fast.errors import ArgumentError
from rotnet_fast.models.network import FeatureNetwork, may_draw
from rotnet_fast.models.nin import NetworkInNetwork

Capture = Callable[[Callable[[], None]], Callable[[], None]]
"""Takes work, which may or may not be done on the way, and gives what does the same work again."""

STEPS_BEFORE_CAPTURE = 3
"""Ordinary steps first: libraries choose their algorithms and allocate in them, the compiler compiles."""


class ReplayedStep:
    """Does a step on one batch after another: as it is at first, then by replaying what was captured of it.

    A graph remembers addresses and forgets the host, so that the step must depend on nothing but the batch
    and tensors that stay where they are. Each batch is copied to where the captured one was: its small
    tensors in one kernel, and the images only where they are the batch's own. (A counter on the device that
    indexes the epoch's order would take more kernels than that, and would not serve streamed batches.)

    The first steps on each number of images are ordinary ones and count like all others: nothing is
    computed twice, and nothing has to be undone.

    Args:
        step: what to do with a batch.
        capture: see :func:`cuda_capture`.
    """

    def __init__(self, step: Callable[[Batch], None], capture: Capture) -> None:
        self._step = step
        self._capture = capture
        self._done: dict[int, int] = {}  # by number of images: ordinary steps so far
        self._captured: dict[int, tuple[Batch, Callable[[], None]]] = {}

    def __call__(self, batch: Batch) -> None:
        """Do the step."""
        size = len(batch)
        if size not in self._captured:
            done = self._done.get(size, 0)
            if done < STEPS_BEFORE_CAPTURE:
                self._done[size] = done + 1
                self._step(batch)
                return
            static = batch.copy()
            self._captured[size] = static, self._capture(lambda: self._step(static))
        static, replay = self._captured[size]
        static.take(batch)
        replay()


def cuda_capture(device: torch.device) -> Capture:
    """Capture in CUDA graphs that share their memory; they are replayed one after the other."""
    pool = torch.cuda.graph_pool_handle()

    def capture(work: Callable[[], None]) -> Callable[[], None]:
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize(device)
        # Threads of a loader may use the device meanwhile.
        with torch.cuda.device(device), torch.cuda.graph(graph, pool, capture_error_mode="thread_local"):
            work()
        replay: Callable[[], None] = graph.replay
        return replay

    return capture


def use_graph(
    setting: str, device: torch.device, precision: Precision, module: nn.Module, processes: Processes
) -> bool:
    """Whether training steps are replayed from a CUDA graph.

    Args:
        setting: ``on``, ``off``, or ``auto``: on, where the device is a GPU and it is known to work, which is
            for the paper's network and heads on it.

    Raises:
        ArgumentError: ``on``, where it cannot work.
    """
    if setting == "off":
        return False
    obstacle = _obstacle(device, precision, module, processes)
    if setting == "on" and obstacle is not None:
        raise ArgumentError(f"graph is on, but {obstacle}; use --graph auto or off")
    if setting == "on":
        return True
    networks = [part for part in module.modules() if isinstance(part, FeatureNetwork)]
    return obstacle is None and all(isinstance(network, NetworkInNetwork) for network in networks)


def _obstacle(
    device: torch.device, precision: Precision, module: nn.Module, processes: Processes
) -> str | None:
    """Why steps cannot be captured; None where they can."""
    if device.type != "cuda":
        return f"the device is {device}, and CUDA graphs need a GPU"
    if processes.world > 1:
        return f"{processes.world} processes train together, whose messages cannot be captured"
    if precision.name == "fp16":
        return "the precision is fp16, whose loss scaling is decided on the host"
    if may_draw(module):
        return "this network draws random numbers as it trains, which the host seeds at every step"
    return None

"""Capture of training steps in a CUDA graph, which is then replayed.

Launching the roughly 200 kernels of a training step one by one takes the host about a millisecond. Replaying
them takes it a tenth of that, so that a fast GPU need not wait for the host.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

import torch
from torch import nn

from rotnet_fast.checks import check_needs_gpu
from rotnet_fast.data.loader import Batch
from rotnet_fast.engine.distributed import Processes
from rotnet_fast.engine.precision import Precision
from rotnet_fast.errors import ArgumentError, CaptureError, RotnetError
from rotnet_fast.memory import is_out_of_memory
from rotnet_fast.models.network import FeatureNetwork, uses_rng
from rotnet_fast.ops.library import LIBRARIES

Work = Callable[[], None]


class Capture(Protocol):
    """Records work once and repeats it cheaply."""

    def stream(self) -> AbstractContextManager[None]:
        """Context in which uncaptured work runs on the stream of the capture."""
        ...

    def __call__(self, work: Work) -> Work:
        """Record work, executing it or not, and return a function that does the same work again."""
        ...


STEPS_BEFORE_CAPTURE = 3
"""Uncaptured steps come first: in them, libraries choose algorithms and allocate, and code is compiled."""


class ReplayedStep:
    """Runs a step directly at first, then captures it and replays the capture.

    A graph remembers addresses and ignores the host. Therefore the step must depend on nothing but the batch
    and on tensors that stay in place. Each batch is copied to where the captured one was: its small tensors
    in one kernel, and the images only if they belong to this batch alone. (A counter on the device that
    indexes the epoch's order would take more kernels, and would not serve streamed batches.)

    The first steps on each batch size are uncaptured and count like all others: nothing is computed twice,
    and nothing has to be undone.

    Args:
        step: runs one step on a batch.
        capture: how steps are captured, see :class:`CudaCapture`.
    """

    def __init__(self, step: Callable[[Batch], None], capture: Capture) -> None:
        self._step = step
        self._capture = capture
        self._done: dict[int, int] = {}  # batch size -> uncaptured steps so far
        self._captured: dict[int, tuple[Batch, Work]] = {}

    def __call__(self, batch: Batch) -> None:
        """Run the step on a batch.

        Raises:
            CaptureError: the step cannot be captured.
        """
        size = len(batch)
        if size not in self._captured:
            done = self._done.get(size, 0)
            if done < STEPS_BEFORE_CAPTURE:
                self._done[size] = done + 1
                with self._capture.stream():
                    self._step(batch)
                return
            self._captured[size] = self._capture_step(batch.copy())
        static, replay = self._captured[size]
        static.take(batch)
        replay()

    def _capture_step(self, static: Batch) -> tuple[Batch, Work]:
        """Capture the step on a batch whose tensors stay in place; returns this batch and the replay."""
        try:
            return static, self._capture(lambda: self._step(static))
        except Exception as error:
            if isinstance(error, RotnetError) or is_out_of_memory(error):
                raise
            # The step's own error says more than the failed end of the capture that it caused.
            cause = error.__context__ or error
            said = (str(cause).strip() or type(cause).__name__).splitlines()[0]
            raise CaptureError(
                f"a training step could not be captured in a CUDA graph ({said}); use --graph off"
            ) from error


class CudaCapture:
    """Captures work in CUDA graphs that share their memory, as they are replayed one after the other.

    Uncaptured steps run on the stream of the capture. Autograd remembers the stream on which it first
    accumulated a gradient for as long as anything holds that node. If it remembered another stream, the
    captured backward pass would wait for a stream outside the graph, which makes the capture fail.

    Args:
        device: CUDA device of the work.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream(device)

    @contextmanager
    def stream(self) -> Iterator[None]:
        """Context on the capture's stream, ordered with the current one."""
        with torch.cuda.device(self._device):
            outside = torch.cuda.current_stream()
            self._stream.wait_stream(outside)
            # Needed if a capture fails: torch's own context would then leave its stream the current one.
            with torch.cuda.stream(self._stream):
                yield
            outside.wait_stream(self._stream)

    def __call__(self, work: Work) -> Work:
        """Capture the work without executing it."""
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize(self._device)
        # thread_local, because threads of a loader may use the device meanwhile.
        with (
            self.stream(),
            torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode="thread_local"),
        ):
            work()
        replay: Work = graph.replay
        return replay


def use_graph(
    setting: str, device: torch.device, precision: Precision, module: nn.Module, processes: Processes
) -> bool:
    """Decide whether training steps are replayed from a CUDA graph.

    Args:
        setting: ``on``, ``off``, or ``auto``: on if the device is a GPU and capture is known to work, as it
            is for the paper's network and heads on it.
        device, precision, module, processes: of the training.

    Raises:
        ArgumentError: the setting is ``on``, and steps cannot be captured.
    """
    check_needs_gpu("graph", setting, setting == "on", device.type)
    if setting == "off" or device.type != "cuda":
        return False
    obstacle = _obstacle(precision, module, processes)
    if setting == "on" and obstacle is not None:
        raise ArgumentError(f"graph is on, but {obstacle}; use --graph auto or off")
    if setting == "on":
        return True
    networks = [part for part in module.modules() if isinstance(part, FeatureNetwork)]
    return obstacle is None and all(network.is_capturable for network in networks)


def _obstacle(precision: Precision, module: nn.Module, processes: Processes) -> str | None:
    """The reason why steps cannot be captured on a GPU; None if they can."""
    if processes.world > 1:
        return f"{processes.world} processes train together, whose communication cannot be captured"
    if precision.name == "fp16":
        return "the precision is fp16, whose loss scaling is decided on the host"
    if not LIBRARIES["cuda"].loaded:
        return "the op runs as plain torch, which waits for the GPU: its CUDA kernels are not in use"
    if uses_rng(module):
        return "this network draws random numbers in training, which the host seeds at every step"
    return None

"""Steps that are captured in a CUDA graph once and replayed from then on.

Launching the some 200 kernels of a training step one by one takes the host about a millisecond; replaying
them takes it a tenth of that, so that a fast GPU need not wait for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

import torch
from torch import nn

from rotnet_fast.data.loader import Batch
from rotnet_fast.engine.distributed import Processes
from rotnet_fast.engine.memory import is_out_of_memory
from rotnet_fast.engine.precision import Precision
from rotnet_fast.errors import ArgumentError, CaptureError, RotnetError
from rotnet_fast.models.network import FeatureNetwork, uses_rng

Work = Callable[[], None]


class Capture(Protocol):
    """A way to record work once and to repeat it cheaply."""

    def stream(self) -> AbstractContextManager[None]:
        """Context in which ordinary work runs where captured work will run, too."""
        ...

    def __call__(self, work: Work) -> Work:
        """Record work, which may or may not be done on the way; returns what does the same work again."""
        ...


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
        capture: how steps are captured, see :class:`CudaCapture`.
    """

    def __init__(self, step: Callable[[Batch], None], capture: Capture) -> None:
        self._step = step
        self._capture = capture
        self._done: dict[int, int] = {}  # by number of images: ordinary steps so far
        self._captured: dict[int, tuple[Batch, Work]] = {}

    def __call__(self, batch: Batch) -> None:
        """Do the step.

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
        """The step on a batch whose tensors stay where they are, and what repeats it."""
        try:
            return static, self._capture(lambda: self._step(static))
        except Exception as error:
            if isinstance(error, RotnetError) or is_out_of_memory(error):
                raise
            # What the step itself met says more than the end of the capture that failed because of it.
            cause = error.__context__ or error
            said = (str(cause).strip() or type(cause).__name__).splitlines()[0]
            raise CaptureError(
                f"a training step could not be captured in a CUDA graph ({said}); use --graph off"
            ) from error


class CudaCapture:
    """Capture in CUDA graphs that share their memory; they are replayed one after the other.

    Ordinary steps run on the stream of the capture. Autograd keeps the stream on which it first accumulated a
    gradient for as long as anything holds that node; one that remembered another stream would make the
    captured backward pass wait for a stream outside of the graph, which fails the capture.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream(device)

    @contextmanager
    def stream(self) -> Iterator[None]:
        """The capture's stream, in order with the one outside."""
        with torch.cuda.device(self._device):
            outside = torch.cuda.current_stream()
            self._stream.wait_stream(outside)
            # Also where a capture fails: torch's own context would then leave its stream the current one.
            with torch.cuda.stream(self._stream):
                yield
            outside.wait_stream(self._stream)

    def __call__(self, work: Work) -> Work:
        """Capture the work, which is not done on the way."""
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize(self._device)
        # Threads of a loader may use the device meanwhile.
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
    return obstacle is None and all(network.is_capturable for network in networks)


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
    if uses_rng(module):
        return "this network draws random numbers as it trains, which the host seeds at every step"
    return None

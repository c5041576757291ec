"""Keeps the caller's global torch settings, and other threads' draws, out of loading and training.

Importing this module does not import torch.
"""

from __future__ import annotations

# The last hook to be registered is the first that a fork calls. These register hooks that take locks, which
# the fork would hold while it waits for ours, and whoever holds ours may need them: so they come first.
import concurrent.futures.thread  # noqa: F401
import logging  # noqa: F401
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


TORCH = threading.RLock()
"""Held by whoever uses what all threads of a process share in torch: its generator, its default type, and the
tracing of modules. A fork waits for it, because a forked process lacks the thread that would release it. It
is one lock, because a fork would wait for several in another order than threads do."""

if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=TORCH.acquire, after_in_child=TORCH.release, after_in_parent=TORCH.release)


def seed_generators(seed: int, device: torch.device) -> None:
    """Seed torch's generators of the CPU and of a device; `torch.manual_seed` seeds those of all devices."""
    import torch

    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)


@contextmanager
def own_draws(seed: int | None = None) -> Iterator[None]:
    """Context whose draws from torch's generator of the CPU are undone at its end, and are no other thread's.

    Args:
        seed: the draws begin at it; None lets them begin wherever the generator is.
    """
    import torch

    with TORCH, torch.random.fork_rng(devices=[]):
        if seed is not None:
            seed_generators(seed, torch.device("cpu"))
        yield


@contextmanager
def kept_generators(devices: Sequence[torch.device]) -> Iterator[None]:
    """Context at whose end the generators of the CPU and of CUDA devices are as at its beginning.

    Other threads may draw meanwhile, but neither while the states are read nor while they are restored.
    """
    import torch

    with ExitStack() as stack:
        with TORCH:
            stack.enter_context(torch.random.fork_rng(devices))
        try:
            yield
        finally:
            with TORCH:
                stack.close()


class _DefaultType:
    """The default type of all threads: float32 until the last of those that want it so has ended."""

    def __init__(self) -> None:
        self._users = 0
        self._before: torch.dtype

    @contextmanager
    def is_float32(self) -> Iterator[None]:
        import torch

        with TORCH:
            if self._users == 0:
                self._before = torch.get_default_dtype()
            self._users += 1
            torch.set_default_dtype(torch.float32)
        try:
            yield
        finally:
            with TORCH:
                self._users -= 1
                if self._users == 0:
                    torch.set_default_dtype(self._before)


_default_type = _DefaultType()


@contextmanager
def plain_torch() -> Iterator[None]:
    """Context and decorator in which torch behaves as in a fresh process.

    New tensors are float32 on the CPU by default, gradients are recorded, and autocast is off. A default
    dtype of bfloat16 would round loaded weights, the default device ``meta`` would discard them, and tensors
    made in inference mode can never be trained. All settings are restored at the end. Those that do not
    change our results, such as deterministic algorithms, stay in force.
    """
    import torch

    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
                # Casts of weights are kept until the outermost autocast ends: longer than the weights.
                stack.callback(torch.set_autocast_cache_enabled, torch.is_autocast_cache_enabled())
                torch.set_autocast_cache_enabled(False)
        if torch.get_default_device() != torch.device("cpu"):
            stack.enter_context(torch.device("cpu"))  # only if needed, because it slows every call down
        stack.enter_context(_default_type.is_float32())
        # Set by `rotnet_fast.engine.precision.working_device`.
        stack.callback(torch.set_num_threads, torch.get_num_threads())
        for name in ("benchmark", "deterministic"):
            stack.callback(setattr, torch.backends.cudnn, name, getattr(torch.backends.cudnn, name))
        yield

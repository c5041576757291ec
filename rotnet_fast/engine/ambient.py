"""Keeps the caller's global torch settings out of loading and training.

Importing this module does not import torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager


@contextmanager
def plain_torch() -> Iterator[None]:
    """Context and decorator in which torch behaves as in a fresh process.

    New tensors are float32 on the CPU by default, gradients are recorded, and autocast is off. A default
    dtype of bfloat16 would round loaded weights, the default device ``meta`` would discard them, and tensors
    made in inference mode can never be trained. All settings are restored at the end. Those that do not
    change our results, such as deterministic algorithms, stay in force.
    """
    import torch

    dtype = torch.get_default_dtype()
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
        torch.set_default_dtype(torch.float32)
        try:
            yield
        finally:
            torch.set_default_dtype(dtype)

"""What a caller has set up in torch for itself, kept out of what is loaded and trained here.

Importing this module does not import torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager


@contextmanager
def plain_torch() -> Iterator[None]:
    """Context, and decorator, in which torch is as in a fresh process.

    New tensors are float32 on the CPU unless told otherwise, gradients are recorded, nothing is cast by
    itself. A default type of bfloat16 would round weights that are loaded, a default device ``meta`` would
    leave none, and what inference mode makes can never be trained. All is restored at the end. Requests that
    change no result of ours, such as deterministic algorithms, stay in force.
    """
    import torch

    dtype = torch.get_default_dtype()
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        if torch.get_default_device() != torch.device("cpu"):
            stack.enter_context(torch.device("cpu"))  # only where it is needed: each call takes longer in it
        torch.set_default_dtype(torch.float32)
        try:
            yield
        finally:
            torch.set_default_dtype(dtype)

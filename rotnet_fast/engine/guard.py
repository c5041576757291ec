"""Steps that are not finite change nothing: neither weights nor momentum nor BatchNorm's statistics."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import nn

MOST_IN_A_ROW = 3
"""So many steps without a finite loss stop a run: this is no longer about one bad batch."""


class Findings(NamedTuple):
    """What was found so far.

    Attributes:
        skipped: steps that were not applied, loss scaling's own included.
        in_a_row: most steps in a row without a finite loss.
    """

    skipped: int
    in_a_row: int


class StepGuard:
    """Judges every step on the device, without a wait, and takes back what a bad one did to the module.

    The forward pass of a bad step has already moved BatchNorm's running averages, which no later step would
    mend: once NaN, they stay NaN. So buffers are remembered before a step and put back after a bad one;
    weights and momentum are left alone by the optimiser, which is told of the finding.

    The order of calls is that of the methods. All of them may be captured in a CUDA graph.

    Args:
        module: with the buffers; its parameters lie on ``device``.
        is_scaled: whether gradients come from a scaled loss. They overflow now and then while the scaler
            looks for a scale; such steps are not applied, but only those without a finite loss count.
    """

    def __init__(self, module: nn.Module, device: torch.device, is_scaled: bool) -> None:
        saved = module.state_dict().keys()
        by_dtype: dict[torch.dtype, list[torch.Tensor]] = defaultdict(list)
        for name, buffer in module.named_buffers():
            if name in saved and buffer.numel() > 0:
                by_dtype[buffer.dtype].append(buffer)
        self._buffers = list(by_dtype.values())
        self._remembered: list[torch.Tensor] = []
        self._moved: list[torch.Tensor] = []
        self._is_scaled = is_scaled
        self._healthy = torch.ones((), dtype=torch.bool, device=device)
        self._counts = torch.zeros(3, dtype=torch.int64, device=device)  # skipped, in a row now, and at most

    def remember(self) -> None:
        """Before the forward pass: keep a copy of the buffers."""
        self._remembered = [_joined(buffers) for buffers in self._buffers]

    def watched(self, loss: torch.Tensor, images: int) -> torch.Tensor:
        """After the forward pass: the same loss, whose gradients are all NaN where something is wrong.

        So a loss or a statistic that is not finite in one process shows in the gradients of all of them,
        once these are averaged.

        Args:
            loss: fp32 [].
            images: that it is about. The mean loss of none is NaN, which is no fault.
        """
        self._moved = [_joined(buffers) for buffers in self._buffers]
        healthy = loss.detach().isfinite() if images > 0 else torch.ones_like(self._healthy)
        for values in self._moved:
            if values.is_floating_point():
                healthy = healthy & values.sum().isfinite()
        self._healthy = healthy
        return loss * torch.where(healthy, 1.0, float("nan"))

    def judge(self, gradients: Sequence[torch.Tensor]) -> torch.Tensor:
        """After the backward pass: 1 where the step must not be applied, else 0; fp32 [].

        Args:
            gradients: of all parameters, averaged over processes and without a loss scale.
        """
        is_bad = ~torch.nn.utils.get_total_norm(gradients).isfinite()
        counts_in_a_row = ~self._healthy if self._is_scaled else is_bad
        skipped, in_a_row, at_most = self._counts.unbind()
        skipped += is_bad
        in_a_row += 1
        in_a_row *= counts_in_a_row
        torch.maximum(at_most, in_a_row, out=at_most)
        return is_bad.float()

    def put_back(self, found: torch.Tensor) -> None:
        """After the update: buffers are as they were before a step that was not applied."""
        for buffers, before, after in zip(self._buffers, self._remembered, self._moved, strict=True):
            chosen = torch.where(found.bool(), before, after).split([buffer.numel() for buffer in buffers])
            parts = [part.view(buffer.shape) for part, buffer in zip(chosen, buffers, strict=True)]
            torch._foreach_copy_(buffers, parts)

    def read(self) -> Findings:
        """The findings in this process; waits for the device."""
        skipped, _, in_a_row = self._counts.tolist()
        return Findings(skipped, in_a_row)

    def state_dict(self) -> dict[str, int]:
        """All that later steps depend on; waits for the device."""
        return dict(zip(("skipped", "in_a_row", "most_in_a_row"), self._counts.tolist(), strict=True))

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on from a saved state."""
        counts = [state["skipped"], state["in_a_row"], state["most_in_a_row"]]
        self._counts.copy_(torch.tensor(counts))


def _joined(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors])

"""Sums over training steps that stay on the device until they are reported."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from rotnet_fast.engine.distributed import ALONE, Processes


class MetricSums:
    """Running sums since the start of an epoch, with a mark at the last report.

    A report is the one place where the host waits for the device. The sums are float64, so that
    counts are exact and the order of additions does not depend on when they are read. Each process adds up
    its own steps; what is read is the sum over all. That sum is exact, too, so that it does not depend on
    how many they are or on where a run was resumed: in float64, the fp32 losses of an epoch leave no
    remainders that could be rounded.

    Args:
        processes: that train together; all have to read, save and load at the same steps.
    """

    def __init__(self, processes: Processes = ALONE) -> None:
        self._processes = processes
        self._sums: dict[str, torch.Tensor] = {}
        self._marked: dict[str, float] = {}

    def add(self, sums: Mapping[str, torch.Tensor], skipped: torch.Tensor) -> None:
        """Add the scalars of one step, unless it was not applied.

        Args:
            skipped: fp32 [], 1 where it was not, else 0.
        """
        for name, value in sums.items():
            if name not in self._sums:
                self._sums[name] = torch.zeros((), dtype=torch.float64, device=value.device)
            self._sums[name].add_(torch.where(skipped.bool(), 0, value.detach()))

    def reset(self) -> None:
        """Begin anew, in the same memory: captured steps add to it."""
        for total in self._sums.values():
            total.zero_()
        self._marked = {}

    def read(self) -> dict[str, float]:
        """The sums of all processes as numbers, in one transfer from the device."""
        if not self._sums:
            return {}
        totals = self._processes.sum(torch.stack(list(self._sums.values())))
        return dict(zip(self._sums, totals.tolist(), strict=True))

    def read_interval(self) -> dict[str, float]:
        """The sums since this was last called, or since the epoch began."""
        epoch = self.read()
        interval = {name: value - self._marked.get(name, 0.0) for name, value in epoch.items()}
        self._marked = epoch
        return interval

    def state_dict(self) -> dict[str, dict[str, float]]:
        """Everything needed to go on in the middle of an epoch."""
        return {"sums": self.read(), "marked": dict(self._marked)}

    def load_state_dict(self, state: Mapping[str, Mapping[str, float]], device: torch.device) -> None:
        """Continue from a saved state: the sums of all processes, which the main one keeps."""
        self._sums = {
            name: torch.tensor(value if self._processes.is_main else 0.0, dtype=torch.float64, device=device)
            for name, value in state["sums"].items()
        }
        self._marked = dict(state["marked"])


def means(sums: Mapping[str, float]) -> dict[str, float]:
    """Each sum divided by ``sums["count"]``, which is left out; accuracies in percent.

    A name that ends in ``accuracy`` is the sum of correct views. Sums over nothing have no means.
    """
    if sums.get("count", 1) == 0:
        return {}
    return {
        name: value / sums["count"] * (100.0 if name.endswith("accuracy") else 1.0)
        for name, value in sums.items()
        if name != "count"
    }

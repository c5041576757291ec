"""Metric sums over training steps, which stay on the device until they are reported."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from rotnet_fast.engine.distributed import ALONE, Processes


class MetricSums:
    """Sums since the beginning of an epoch, and their values at the last report.

    Reports are the only place where the host waits for the device. The sums are float64: counts are exact,
    and the order of additions does not depend on when sums are read. Each process adds up its own steps, and
    a read returns the sum over all processes. That sum is exact, too, because in float64 the fp32 losses of
    an epoch leave no remainders to round. It therefore depends neither on the number of processes nor on
    where a run was resumed.

    Args:
        processes: the processes that train together; all must read, save and load at the same steps.
    """

    def __init__(self, processes: Processes = ALONE) -> None:
        self._processes = processes
        self._sums: dict[str, torch.Tensor] = {}
        self._marked: dict[str, float] = {}

    def add(self, sums: Mapping[str, torch.Tensor], skipped: torch.Tensor) -> None:
        """Add the sums of one step, unless it was skipped.

        Args:
            sums: name -> fp32 or int64 [] on the device.
            skipped: fp32 [], 1 if the step was skipped, else 0.
        """
        for name, value in sums.items():
            if name not in self._sums:
                self._sums[name] = torch.zeros((), dtype=sum_type(value.device), device=value.device)
            self._sums[name].add_(torch.where(skipped.bool(), 0, value.detach()))

    def reset(self) -> None:
        """Set the sums to zero in place, because captured steps add to this memory."""
        for total in self._sums.values():
            total.zero_()
        self._marked = {}

    def read(self) -> dict[str, float]:
        """Read the sums over all processes, in one transfer from the device."""
        if not self._sums:
            return {}
        totals = self._processes.sum(torch.stack(list(self._sums.values())))
        return dict(zip(self._sums, totals.tolist(), strict=True))

    def read_interval(self) -> dict[str, float]:
        """Read the sums since the last call, or since the epoch began."""
        epoch = self.read()
        interval = {name: value - self._marked.get(name, 0.0) for name, value in epoch.items()}
        self._marked = epoch
        return interval

    def state_dict(self) -> dict[str, dict[str, float]]:
        """Everything that a resume within an epoch needs."""
        return {"sums": self.read(), "marked": dict(self._marked)}

    def load_state_dict(self, state: Mapping[str, Mapping[str, float]], device: torch.device) -> None:
        """Load a saved state. It holds the sums over all processes, which rank 0 keeps."""
        self._sums = {
            name: torch.tensor(
                value if self._processes.is_main else 0.0, dtype=sum_type(device), device=device
            )
            for name, value in state["sums"].items()
        }
        self._marked = dict(state["marked"])


def sum_type(device: torch.device) -> torch.dtype:
    """Return the dtype of sums, in which counts are exact: float64, which Apple's GPUs lack."""
    return torch.float32 if device.type == "mps" else torch.float64


def means(sums: Mapping[str, float]) -> dict[str, float]:
    """Divide each sum by ``sums["count"]``, which is dropped; accuracies become percent.

    A sum whose name ends in ``accuracy`` counts correct views. If the count is 0, there are no means.
    """
    if sums.get("count", 1) == 0:
        return {}
    return {
        name: value / sums["count"] * (100.0 if name.endswith("accuracy") else 1.0)
        for name, value in sums.items()
        if name != "count"
    }

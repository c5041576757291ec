"""Several processes that work together, as torchrun starts them.

Code knows the other processes only through the `Processes` that it is given. What is given none, such as the
trainings of an evaluation whose cells are spread over the processes, works alone.

There are two kinds of traffic. Control traffic (flags, metric sums, results, errors) is small, lies on the
CPU and goes over gloo. Gradients and BatchNorm statistics go over NCCL if every process has a GPU of its own,
and over gloo otherwise.

Importing this module does not import torch.
"""

from __future__ import annotations

import datetime
import math
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar, cast

from rotnet_fast.errors import ArgumentError, ElsewhereError, PeerLostError, RotnetError
from rotnet_fast.plain import counted

if TYPE_CHECKING:
    import torch
    from torch.distributed import ProcessGroup

T = TypeVar("T")

_TIMEOUT = datetime.timedelta(days=7)
"""How long control traffic waits for a process, which may be decoding a data set or training a network. A
process that ended is noticed at once, by its closed connection."""

_START_TIMEOUT = datetime.timedelta(minutes=15)
"""How long rank 0 waits for all other processes to start."""

_SECONDS_TO_LEAVE = 10.0

_SECONDS_APART = 5.0
"""Time between two meetings of processes on GPUs."""


@dataclass(frozen=True)
class Processes:
    """The processes of a job, and the place of this one among them. The defaults describe a single process.

    Methods marked "collective" wait for the other processes: all must call them, in the same order.

    Attributes:
        rank: number of this process, in [0, world).
        world: number of processes.
        local_rank, local_world: the same among the processes of this machine.
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1

    @classmethod
    def of_environment(cls) -> Processes:
        """Read torchrun's environment variables; without them, there is a single process.

        Raises:
            ArgumentError: they are incomplete or contradict each other.
        """
        world = _number("WORLD_SIZE", 1)
        if world == 1:
            return cls()
        rank = _number("RANK", None)
        found = cls(rank, world, _number("LOCAL_RANK", rank), _number("LOCAL_WORLD_SIZE", world))
        if not (0 <= found.rank < world and 0 <= found.local_rank < found.local_world <= world):
            raise ArgumentError(f"the environment describes {found}, which is impossible; use torchrun")
        return found

    @property
    def is_main(self) -> bool:
        """Whether this process is rank 0, the one that writes and prints."""
        return self.rank == 0

    def gather(self, value: T) -> list[T]:
        """Collective: the values of all processes, by rank. They are pickled; tensors must be on the CPU."""
        if self.world == 1:
            return [value]
        import torch.distributed as dist

        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value)
        return values

    def on_main(self, function: Callable[[], T]) -> T | None:
        """Collective: call ``function`` in rank 0, which alone gets the result.

        Raises:
            RotnetError: in rank 0, what ``function`` raised.
            ElsewhereError: in the other processes, with the same exit code.
        """
        return self.everywhere(function if self.is_main else lambda: None)

    def from_main(self, function: Callable[[], T]) -> T:
        """Collective: call ``function`` in rank 0, and return its result or raise its error everywhere.

        Raises:
            RotnetError, ElsewhereError: see :meth:`on_main`.
        """
        result = self.on_main(function)
        if self.world > 1:
            import torch.distributed as dist

            box = [result]
            dist.broadcast_object_list(box, src=0)
            result = box[0]
        return result  # type: ignore[return-value]  # in rank 0 it is the function's

    def everywhere(self, function: Callable[[], T]) -> T:
        """Collective: call ``function`` in every process; if it fails in one, it fails in all.

        Raises:
            RotnetError: in the lowest rank in which ``function`` failed, what it raised.
            ElsewhereError: in the other processes, with the same exit code.
        """
        if self.world == 1:
            return function()
        error: RotnetError | None = None
        result: T
        try:
            result = function()
        except RotnetError as raised:
            error = raised
        codes = self.gather(None if error is None else error.exit_code)
        failed = [rank for rank, code in enumerate(codes) if code is not None]
        if not failed:
            return result
        if error is not None and failed[0] == self.rank:
            raise error
        raise ElsewhereError(codes[failed[0]] or 1) from error

    def local_main_first(self, function: Callable[[], T]) -> T:
        """Collective: call ``function`` in every process, in local rank 0 of each machine before the others.

        A file is then downloaded and a cache written only once.

        Raises:
            RotnetError, ElsewhereError: see :meth:`everywhere`.
        """
        is_first = self.local_rank == 0
        result = self.everywhere(function if is_first else lambda: None)
        later = self.everywhere((lambda: None) if is_first else function) if self.world > 1 else None
        return result if is_first else later  # type: ignore[return-value]  # one of the two is the function's

    def shared(self, error: RotnetError) -> RotnetError:
        """Return the error in rank 0, which reports it, and an ElsewhereError in the others.

        This is for errors that all processes find at the same place.
        """
        return error if self.is_main else ElsewhereError(error.exit_code)

    def check_same(self, values: Mapping[str, Any]) -> None:
        """Collective: check that all processes were given the same values.

        Raises:
            ArgumentError, ElsewhereError: a value differs from rank 0's.
        """
        if self.world == 1:
            return
        expected = self.from_main(lambda: dict(values))

        def compare() -> None:
            for name, value in values.items():
                if value != expected.get(name):
                    raise ArgumentError(
                        f"{name} is {value!r} in rank {self.rank} and {expected.get(name)!r} in rank 0; "
                        f"start all processes with the same flags, data and kind of device"
                    )

        self.everywhere(compare)

    def maximum(self, *numbers: int) -> tuple[int, ...]:
        """Collective: the largest value of each number over all processes."""
        if self.world == 1:
            return numbers
        import torch
        import torch.distributed as dist

        largest = torch.tensor(numbers, dtype=torch.int64)
        dist.all_reduce(largest, op=dist.ReduceOp.MAX)
        return tuple(largest.tolist())

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Collective: the sum over all processes, on the CPU. int64 and float64 keep counts exact."""
        if self.world == 1:
            return values
        import torch.distributed as dist

        total = values.to("cpu", copy=True)
        dist.all_reduce(total)
        return total

    def copy_from_main(self, tensors: Iterable[torch.Tensor]) -> None:
        """Collective: overwrite small tensors on any device with those of rank 0."""
        if self.world == 1:
            return
        mine = list(tensors)
        with_values = self.from_main(lambda: [tensor.to("cpu") for tensor in mine])
        for tensor, value in zip(mine, with_values, strict=True):
            tensor.copy_(value)

    def device(self, name: str) -> torch.device:
        """Find the device of this process.

        Args:
            name: see `rotnet_fast.engine.precision.working_device`; ``auto`` and ``cuda`` give each
                process of a machine a GPU of its own. If there are more processes than GPUs, they share them.

        Raises:
            ArgumentError: there is no such device.
        """
        from rotnet_fast.engine.precision import working_device

        if self.world == 1:
            return working_device(name)
        import torch

        count = torch.cuda.device_count()
        if name in ("auto", "cuda") and count > 0:
            name = f"cuda:{self.local_rank % count}"
        device = working_device(name)
        if device.type == "cuda":
            torch.cuda.set_device(device)  # collectives allocate on the current device
        return device

    def tensor_group(self, device: torch.device) -> ProcessGroup | None:
        """Collective: make the group for traffic between devices; None for a single process.

        NCCL needs a different GPU for each process. If processes share GPUs, rank 0 prints a warning.
        """
        if self.world == 1:
            return None
        import torch
        import torch.distributed as dist

        # Identified by UUID: if each process sees only one GPU, all call theirs cuda:0.
        gpu = str(torch.cuda.get_device_properties(device).uuid) if device.type == "cuda" else None
        gpus = {place for place in self.gather((socket.gethostname(), gpu)) if place[1] is not None}
        if len(gpus) == self.world:
            return cast("ProcessGroup", dist.new_group(backend="nccl"))
        if gpus and self.is_main:
            print(
                f"WARNING: {counted(self.world, 'process')} share {len(gpus)} CUDA devices and therefore "
                f"communicate over gloo, which is slower than NCCL; start one process per device with "
                f"--nproc-per-node",
                file=sys.stderr,
            )
        return dist.group.WORLD


ALONE = Processes()
"""A process that works alone."""


class Meetings:
    """The steps after which processes compare what each has found, such as a signal.

    On a CPU, processes wait for each other within every step, and can as well meet after it. On GPUs, the
    host runs ahead of the device, and waiting would cost time; but torchrun kills what has not ended half a
    minute after its signal. There, processes meet every few seconds, and tell each other how long their steps
    take.

    Args:
        processes: the processes that meet.
        runs_ahead: whether the host does not wait for its device.
    """

    def __init__(self, processes: Processes, runs_ahead: bool) -> None:
        self._processes = processes
        self._runs_ahead = runs_ahead
        self._every = 1
        self._last, self._met_at = 0, time.monotonic()

    def is_due(self, step: int) -> bool:
        """Whether the processes meet after so many steps of the run; all of them say the same."""
        return not self._runs_ahead or step - self._last >= self._every

    def maximum(self, step: int, *numbers: int) -> tuple[int, ...]:
        """Collective: the largest value of each number over all processes.

        Args:
            step: number of finished steps of the run.
            numbers: what this process has found.
        """
        now = time.monotonic()
        microseconds = math.ceil(1e6 * (now - self._met_at) / max(1, step - self._last))
        *largest, slowest = self._processes.maximum(*numbers, microseconds)
        # Twice at most: the first steps fill the device's queue, which takes the host hardly any time.
        self._every = max(1, min(2 * self._every, int(1e6 * _SECONDS_APART / max(1, slowest))))
        self._last, self._met_at = step, now
        return tuple(largest)


@contextmanager
def join() -> Iterator[Processes]:
    """Context in which the processes that torchrun started are connected; a single process connects nothing.

    Yields:
        The processes.

    Raises:
        ArgumentError: see `Processes.of_environment`; or the program has a process group of its own.
        PeerLostError: another process ended while this one was waiting for it.
    """
    processes = Processes.of_environment()
    if processes.world == 1:
        yield processes
        return
    import torch.distributed as dist

    if dist.is_initialized():
        raise ArgumentError(
            "a process group of torch.distributed exists already; rotnet_fast makes its own from torchrun's "
            "environment variables: call torch.distributed.destroy_process_group() first"
        )
    try:
        _meet(processes)
        yield processes
    except RuntimeError as error:
        # gloo has no exception type of its own, but puts its name into every message.
        if isinstance(error, dist.DistError) or "gloo" in str(error):
            raise PeerLostError(
                f"rank {processes.rank} lost its connection to another process of this job "
                f"({_reason(error)}); if that process ended, its own message says why; --resume auto resumes "
                f"from the last checkpoint"
            ) from error
        raise
    finally:
        _leave()


def _meet(processes: Processes) -> None:
    """Connect the processes.

    Raises:
        PeerLostError: they cannot be connected.
    """
    import torch.distributed as dist

    # Imported first, as torch.compile imports it later: its functions keep the group of that moment as a
    # default argument, and with it gloo's threads, which can end an interpreter that is shutting down with
    # "terminate called without an active exception".
    import torch.distributed.nn.functional  # noqa: F401
    from torch.distributed import PrefixStore  # type: ignore[attr-defined]
    from torch.distributed.rendezvous import rendezvous

    try:
        store, rank, world = next(rendezvous("env://", timeout=_START_TIMEOUT))
        if processes.local_world == world:
            # torchrun's agent keeps one store for all attempts, in which restarted workers would find those
            # of the attempt before. (Agents of several machines count their attempts separately.)
            attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
            store = PrefixStore(f"attempt {attempt}", store)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=world, timeout=_TIMEOUT)
    except RuntimeError as error:
        raise PeerLostError(
            f"rank {processes.rank} could not connect to the "
            f"{counted(processes.world - 1, 'other process')} of this "
            f"job ({_reason(error)}); check that all of them were started, and that GLOO_SOCKET_IFNAME, if "
            f"set, names a network interface of this machine"
        ) from error


def _reason(error: RuntimeError) -> str:
    """The reason that a library gives, without its source location and advice."""
    first_line = str(error).strip().partition("\n")[0]
    return re.sub(r"^\[[^\]]*\] ", "", first_line).partition(". ")[0]


def _leave() -> None:
    """Disconnect within seconds: NCCL waits for the others, which may be waiting for this process."""
    import torch.distributed as dist

    if dist.is_initialized():
        leaving = threading.Thread(target=dist.destroy_process_group, daemon=True)
        leaving.start()
        leaving.join(_SECONDS_TO_LEAVE)


def is_main() -> bool:
    """Whether this process is rank 0, before the processes are connected."""
    return os.environ.get("WORLD_SIZE", "1") == "1" or os.environ.get("RANK", "0") == "0"


def is_under_torchrun() -> bool:
    """Whether torchrun started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def job() -> str | None:
    """Identify the torchrun command, for all of its workers and their restarts; None without torchrun."""
    if not is_under_torchrun():
        return None
    name = os.environ["TORCHELASTIC_RUN_ID"]
    # All jobs of a static rendezvous are called none; the parent, torchrun's agent, tells them apart.
    return name if name != "none" else f"{name} agent {os.getppid()}"


def is_restart() -> bool:
    """Whether torchrun has restarted the workers because one of them ended (``--max-restarts``)."""
    return _number("TORCHELASTIC_RESTART_COUNT", 0) > 0


def _number(name: str, default: int | None) -> int:
    """Read an integer from an environment variable."""
    text = os.environ.get(name)
    if text is None and default is not None:
        return default
    try:
        return int(text or "")
    except ValueError:
        raise ArgumentError(
            f"environment variable {name} is {text!r}; it must be an integer: start with torchrun"
        ) from None

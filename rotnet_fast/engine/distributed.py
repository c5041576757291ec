"""Several processes that work on one thing, as torchrun starts them.

A process knows the others only through the `Processes` that it was given: what gets none, such as the
trainings of an evaluation whose cells are spread over the processes, works alone.

Two kinds of traffic. Control (flags, sums of metrics, results, errors) is small, lies on the CPU and goes
over gloo. Gradients and BatchNorm statistics go over NCCL where every process has a GPU of its own, else over
gloo, too.

Importing this module does not import torch.
"""

from __future__ import annotations

import datetime
import os
import re
import socket
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar, cast

from rotnet_fast.errors import ArgumentError, ElsewhereError, PeerLostError, RotnetError

if TYPE_CHECKING:
    import torch
    from torch.distributed import ProcessGroup

T = TypeVar("T")

_PATIENCE = datetime.timedelta(days=7)
"""How long control traffic waits for a process that decodes a data set or trains a network. One that ended is
noticed at once, by its closed connection."""

_PATIENCE_AT_START = datetime.timedelta(minutes=15)
"""How long the first process waits for all others to start."""

_SECONDS_TO_LEAVE = 10.0


@dataclass(frozen=True)
class Processes:
    """The processes of a job and this one's place among them; the defaults are those of a single process.

    Methods marked "together" wait for each other: every process has to call them, in the same order.

    Attributes:
        rank: number of this process, 0 .. world - 1.
        world: how many there are.
        local_rank, local_world: the same among those of this machine.
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1

    @classmethod
    def of_environment(cls) -> Processes:
        """What torchrun's environment variables say; a single process where there are none.

        Raises:
            ArgumentError: they are incomplete or make no sense.
        """
        world = _number("WORLD_SIZE", 1)
        if world == 1:
            return cls()
        rank = _number("RANK", None)
        found = cls(rank, world, _number("LOCAL_RANK", rank), _number("LOCAL_WORLD_SIZE", world))
        if not (0 <= found.rank < world and 0 <= found.local_rank < found.local_world <= world):
            raise ArgumentError(f"the environment describes {found}, which cannot be; start with torchrun")
        return found

    @property
    def is_main(self) -> bool:
        """Whether this process is the one that writes and prints."""
        return self.rank == 0

    def gather(self, value: T) -> list[T]:
        """Together: the values of all processes, by rank. They are pickled, tensors on the CPU included."""
        if self.world == 1:
            return [value]
        import torch.distributed as dist

        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value)
        return values

    def on_main(self, function: Callable[[], T]) -> T | None:
        """Together: call ``function`` in the main process, which alone gets the result.

        Raises:
            RotnetError: what it raised, in the main process.
            ElsewhereError: the same, in the others.
        """
        return self.everywhere(function if self.is_main else lambda: None)

    def from_main(self, function: Callable[[], T]) -> T:
        """Together: call ``function`` in the main process; all get what it returned, or end like it.

        Raises:
            RotnetError, ElsewhereError: as :meth:`on_main`.
        """
        result = self.on_main(function)
        if self.world > 1:
            import torch.distributed as dist

            box = [result]
            dist.broadcast_object_list(box, src=0)
            result = box[0]
        return result  # type: ignore[return-value]  # in the main process it is the function's

    def everywhere(self, function: Callable[[], T]) -> T:
        """Together: call ``function`` in every process; where it fails in one, it fails in all.

        Raises:
            RotnetError: what it raised, in the first process in which it did.
            ElsewhereError: the same, in the others.
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
        """Together: call ``function`` in every process, in the first of each machine before the others.

        So that a file is downloaded and a cache written once.

        Raises:
            RotnetError, ElsewhereError: as :meth:`everywhere`.
        """
        is_first = self.local_rank == 0
        result = self.everywhere(function if is_first else lambda: None)
        later = self.everywhere((lambda: None) if is_first else function) if self.world > 1 else None
        return result if is_first else later  # type: ignore[return-value]  # one of the two is the function's

    def shared(self, error: RotnetError) -> RotnetError:
        """For an error that all processes find at the same place: the main one's to report."""
        return error if self.is_main else ElsewhereError(error.exit_code)

    def check_same(self, values: Mapping[str, Any]) -> None:
        """Together: see that the processes agree about what they are to do.

        Raises:
            ArgumentError, ElsewhereError: a value is another one than in the main process.
        """
        if self.world == 1:
            return
        expected = self.from_main(lambda: dict(values))

        def compare() -> None:
            for name, value in values.items():
                if value != expected.get(name):
                    raise ArgumentError(
                        f"{name} is {value!r} in process {self.rank} and {expected.get(name)!r} in the "
                        f"first; start all with the same flags, data and kind of device"
                    )

        self.everywhere(compare)

    def maximum(self, *numbers: int) -> tuple[int, ...]:
        """Together: the largest of each number over all processes."""
        if self.world == 1:
            return numbers
        import torch
        import torch.distributed as dist

        largest = torch.tensor(numbers, dtype=torch.int64)
        dist.all_reduce(largest, op=dist.ReduceOp.MAX)
        return tuple(largest.tolist())

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Together: the sum over all processes, on the CPU; of int64 or float64, so that counts are exact."""
        if self.world == 1:
            return values
        import torch.distributed as dist

        total = values.to("cpu", copy=True)
        dist.all_reduce(total)
        return total

    def copy_from_main(self, tensors: Iterable[torch.Tensor]) -> None:
        """Together: overwrite small tensors of any device with those of the main process."""
        if self.world == 1:
            return
        mine = list(tensors)
        with_values = self.from_main(lambda: [tensor.to("cpu") for tensor in mine])
        for tensor, value in zip(mine, with_values, strict=True):
            tensor.copy_(value)

    def device(self, name: str) -> torch.device:
        """The device of this process.

        Args:
            name: as for `resolve_device`; ``auto`` and ``cuda`` give each process of a machine a GPU of its
                own. Where there are more processes than GPUs they share them.

        Raises:
            ArgumentError: there is no such device.
        """
        from rotnet_fast.engine.precision import resolve_device

        if self.world == 1:
            return resolve_device(name)
        import torch

        count = torch.cuda.device_count()
        if name in ("auto", "cuda") and count > 0:
            name = f"cuda:{self.local_rank % count}"
        device = resolve_device(name)
        if device.type == "cuda":
            torch.cuda.set_device(device)  # collectives allocate on the current device
        return device

    def tensor_group(self, device: torch.device) -> ProcessGroup | None:
        """Together: the group for traffic between the processes' devices; None where there is one process.

        NCCL needs GPUs, and a different one for each process. Where processes share GPUs, that is said once.
        """
        if self.world == 1:
            return None
        import torch
        import torch.distributed as dist

        # By its own name: where each process sees one GPU alone, all call theirs cuda:0.
        gpu = str(torch.cuda.get_device_properties(device).uuid) if device.type == "cuda" else None
        gpus = {place for place in self.gather((socket.gethostname(), gpu)) if place[1] is not None}
        if len(gpus) == self.world:
            return cast("ProcessGroup", dist.new_group(backend="nccl"))
        if gpus and self.is_main:
            print(
                f"{self.world} processes share {len(gpus)} CUDA devices, and so talk over gloo, which is "
                f"slower than NCCL; start as many processes as there are devices with --nproc-per-node",
                file=sys.stderr,
            )
        return dist.group.WORLD


ALONE = Processes()
"""A process that works for itself."""


@contextmanager
def join() -> Iterator[Processes]:
    """Context in which the processes that torchrun started know each other; nothing happens in a single one.

    Yields:
        This process's place.

    Raises:
        ArgumentError: see `Processes.of_environment`.
        PeerLostError: another process ended while this one waited for it.
    """
    processes = Processes.of_environment()
    if processes.world == 1:
        yield processes
        return
    import torch.distributed as dist

    try:
        _meet(processes)
        yield processes
    except RuntimeError as error:
        # gloo has no exception type of its own, but puts its name into every message.
        if isinstance(error, dist.DistError) or "gloo" in str(error):
            raise PeerLostError(
                f"process {processes.rank} lost contact with another process of this job "
                f"({_reason(error)}); where that one ended, its own message says why, and --resume auto goes "
                f"on from the last checkpoint"
            ) from error
        raise
    finally:
        _leave()


def _meet(processes: Processes) -> None:
    """Connect the processes.

    Raises:
        PeerLostError: that is not possible.
    """
    import torch.distributed as dist
    from torch.distributed import PrefixStore  # type: ignore[attr-defined]
    from torch.distributed.rendezvous import rendezvous

    try:
        store, rank, world = next(rendezvous("env://", timeout=_PATIENCE_AT_START))
        if processes.local_world == world:
            # torchrun's agent keeps one store for all attempts: restarted workers would look there for
            # those of the attempt before. (Agents of several machines count their attempts apart.)
            attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
            store = PrefixStore(f"attempt {attempt}", store)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=world, timeout=_PATIENCE)
    except RuntimeError as error:
        raise PeerLostError(
            f"process {processes.rank} could not connect to the {processes.world - 1} others of this job "
            f"({_reason(error)}); see that all were started, and that GLOO_SOCKET_IFNAME, where it is set, "
            f"names a network interface of this machine"
        ) from error


def _reason(error: RuntimeError) -> str:
    """What a library says happened, without the place in its source and its advice."""
    first_line = str(error).strip().partition("\n")[0]
    return re.sub(r"^\[[^\]]*\] ", "", first_line).partition(". ")[0]


def _leave() -> None:
    """End what :func:`join` began, soon: NCCL waits for the others, which may be waiting for this process."""
    import torch.distributed as dist

    if dist.is_initialized():
        leaving = threading.Thread(target=dist.destroy_process_group, daemon=True)
        leaving.start()
        leaving.join(_SECONDS_TO_LEAVE)


def is_main() -> bool:
    """Whether this process speaks for its job before the processes know each other."""
    return os.environ.get("WORLD_SIZE", "1") == "1" or os.environ.get("RANK", "0") == "0"


def is_under_torchrun() -> bool:
    """Whether torchrun watches over this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def job() -> str | None:
    """What the workers of one torchrun command have in common, restarted ones included; None without it."""
    if not is_under_torchrun():
        return None
    name = os.environ["TORCHELASTIC_RUN_ID"]
    # All jobs of a static rendezvous are called none; there the parent, torchrun's agent, tells them apart.
    return name if name != "none" else f"{name} agent {os.getppid()}"


def is_restart() -> bool:
    """Whether torchrun starts the workers anew because one of them ended (``--max-restarts``)."""
    return _number("TORCHELASTIC_RESTART_COUNT", 0) > 0


def _number(name: str, default: int | None) -> int:
    """Integer in an environment variable."""
    text = os.environ.get(name)
    if text is None and default is not None:
        return default
    try:
        return int(text or "")
    except ValueError:
        raise ArgumentError(
            f"environment variable {name} is {text!r}; it must be an integer: start with torchrun"
        ) from None

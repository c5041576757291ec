"""Functions called in several processes that know each other as those of torchrun do.

All are forked from one server, which has imported what is slow to import but computed nothing: a group of
processes starts in milliseconds.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import socket
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

FORKS = multiprocessing.get_context("forkserver")
# torch._dynamo is imported by DistributedDataParallel, and takes three seconds.
FORKS.set_forkserver_preload(
    ["pytest", "sklearn.datasets", "torch._dynamo", "torch.distributed", "rotnet_fast.study.run"]
)


def on_ranks(world: int, function: Callable[..., Any], *arguments: Any, timeout: float = 60) -> list[Any]:
    """Call a function of a test module in so many processes; what each returned, by rank.

    An exception in one fails the test, with its traceback.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pipes = [FORKS.Pipe(duplex=False) for _ in range(world)]
    processes = [
        FORKS.Process(target=_call, args=(rank, world, port, sender, function, arguments), daemon=True)
        for rank, (_, sender) in enumerate(pipes)
    ]
    for process in processes:
        process.start()
    for _, sender in pipes:
        sender.close()
    results, failures = [], []
    for rank, (receiver, _) in enumerate(pipes):
        if not receiver.poll(timeout):
            failures.append(f"process {rank} of {world} hangs")
            timeout = 0
            continue
        try:
            succeeded, result = pickle.loads(receiver.recv_bytes())
            (results if succeeded else failures).append(result)
        except EOFError:
            failures.append(f"process {rank} of {world} ended without a result")
    for process in processes:
        process.join(timeout)
        process.kill()
    if failures:
        pytest.fail("\n".join(failures))
    return results


def _call(
    rank: int, world: int, port: int, sender: Any, function: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    import torch

    torch.set_num_threads(1)
    os.environ.update(
        RANK=str(rank),
        WORLD_SIZE=str(world),
        LOCAL_RANK=str(rank),
        LOCAL_WORLD_SIZE=str(world),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    try:
        result = function(*arguments)
    except BaseException:
        sender.send_bytes(pickle.dumps((False, f"process {rank} of {world}:\n{traceback.format_exc()}")))
        sys.exit(1)
    # By plain pickle: the pipe alone would share the tensors, with a process that ends.
    sender.send_bytes(pickle.dumps((True, result)))


def torchrun(world: int, *arguments: str, restarts: int = 0) -> tuple[list[str], dict[str, str]]:
    """Command and environment of a pretraining in so many processes, as users start it."""
    command = [
        *[sys.executable, "-m", "torch.distributed.run", "--standalone"],
        *["--nproc-per-node", str(world), "--max-restarts", str(restarts)],
        *["-m", "rotnet_fast.pretrain", *arguments],
    ]
    return command, {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}

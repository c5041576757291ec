"""Trains the tiny run once undisturbed and several times under SIGKILL; prints all final hashes as JSON.

A script of its own, because every run is a forked child: one import of torch serves them all, and a
single thread, set before torch computes anything, makes forking safe.

    python kill_repeatedly.py FOLDER
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import threading
import time
from pathlib import Path

import torch
from tiny import tiny_config
from tqdm import tqdm

from rotnet_fast.config import PretrainConfig
from rotnet_fast.engine import atomic
from rotnet_fast.pretrain import pretrain

KILLED = -signal.SIGKILL


def start(config: PretrainConfig, kill_at_fsync: int | None = None) -> int:
    """Fork a child that runs ``config`` and, if asked to, kills itself at its n-th flush to the disk."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    try:
        if kill_at_fsync is not None:
            die_at(kill_at_fsync)
        pretrain(config)
        os._exit(0)
    finally:
        os._exit(1)


def die_at(number: int) -> None:
    """Die at the n-th fsync: a temporary file is written and not yet renamed, or renamed a moment ago."""
    fsync, calls = os.fsync, 0

    def deadly_fsync(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls == number:
            os.kill(os.getpid(), signal.SIGKILL)
        fsync(descriptor)

    atomic.os.fsync = deadly_fsync  # type: ignore[attr-defined]


def end_of(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def final_hash(config: PretrainConfig) -> str:
    assert config.output is not None
    return str(json.loads((config.output / "results.json").read_text())["state_hash"])


def killed_at_random(folder: Path, choices: random.Random, seconds: float) -> str:
    """Kill ten times, each time a random while after the start, then let the run end; its hash."""
    config = tiny_config(folder, resume="auto")
    for _ in range(10):
        child = start(config)
        time.sleep(choices.uniform(0, seconds))
        os.kill(child, signal.SIGKILL)
        assert end_of(child) in (KILLED, 0)
    assert end_of(start(config)) == 0
    return final_hash(config)


def main() -> None:
    torch.set_num_threads(1)
    # By default, a progress bar's lock is shared with forked processes: one that is killed while it holds it
    # would stop all after it for good. Nor may a thread of the bars hold it at the moment of a fork.
    tqdm.set_lock(threading.RLock())
    tqdm.monitor_interval = 0
    folder = Path(sys.argv[1])
    outcome = {"undisturbed": pretrain(tiny_config(folder / "undisturbed"))["state_hash"]}
    began = time.monotonic()
    outcome["again"] = pretrain(tiny_config(folder / "again"))["state_hash"]
    seconds = time.monotonic() - began  # without the imports of the first run

    choices = random.Random(0)
    for number in range(2):
        outcome[f"random-{number}"] = killed_at_random(folder / f"random-{number}", choices, seconds)
    number, died = 1, True
    while died:
        config = tiny_config(folder / f"fsync-{number}", resume="auto")
        died = end_of(start(config, kill_at_fsync=number)) == KILLED
        if died:
            assert end_of(start(config)) == 0
            outcome[f"fsync-{number}"] = final_hash(config)
        number += 2  # every other one: half the time, and all kinds still
    print(json.dumps(outcome))


if __name__ == "__main__":
    main()

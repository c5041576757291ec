"""Kills a tiny run again and again with SIGKILL, and counts what was lost by it: nothing, hopefully.

    python tests/support/kill_repeatedly.py FOLDER --kills 300

kills 300 times at random moments, in fp32 and bf16, with images in memory and from DALI, with SGD and Muon in
turn, and once at every operation on a file of the first of these runs. After every kill all checkpoints have
to be readable; every run has to end with the hash, the metrics and the files of one that was never disturbed.
The exit code is 1 where one did not. A test does the same with fewer kills.

A script of its own, because every run is a forked child: one import of torch serves them all, and a
single thread, set before torch computes anything, makes forking safe.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import itertools
import json
import os
import random
import resource
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from image_files import write_jpegs
from tiny import folder_config
from tqdm import tqdm

from rotnet_fast.config import PretrainConfig
from rotnet_fast.engine import checkpoint
from rotnet_fast.errors import CheckpointError
from rotnet_fast.pretrain import pretrain

SETTINGS = [
    " ".join(words) for words in itertools.product(("fp32", "bf16"), ("resident", "dali"), ("sgd", "muon"))
]
FILE_EVENTS = {"open", "os.rename", "os.link", "os.remove", "os.truncate"}


def start(config: PretrainConfig, prepare: Callable[[], None] = lambda: None) -> int:
    """Fork a child that runs ``config``."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what it prints is no part of the report
        prepare()
        pretrain(config)
        os._exit(0)
    finally:
        os._exit(1)


def die_at_operation(folder: Path, number: int) -> None:
    """Die at the n-th operation on a file of the folder: before it is flushed, renamed, removed and so on, or
    after it was opened, with ten bytes of the new ones written."""
    fsync, count = os.fsync, itertools.count(1)
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # what comes to a file that is longer than allowed
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        # A name without a folder is one inside a folder that was opened before, as run folders are.
        if event not in FILE_EVENTS or not (folder / str(arguments[0])).is_relative_to(folder):
            return
        if event != "open":
            die_if(next(count) == number)
            return
        path, (mode, flags) = folder / str(arguments[0]), arguments[1:]
        writes = set(mode) & set("wax") if mode else flags & (os.O_WRONLY | os.O_RDWR)
        if writes and next(count) == number:
            length = path.stat().st_size if path.exists() else 0
            resource.setrlimit(resource.RLIMIT_FSIZE, (length + 10, resource.RLIM_INFINITY))

    def die_if(is_time: bool) -> None:
        if is_time:
            os.kill(os.getpid(), signal.SIGKILL)

    def deadly_fsync(descriptor: int) -> None:
        die_if(next(count) == number)
        fsync(descriptor)

    os.fsync = deadly_fsync
    sys.addaudithook(audit)


def end_of(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def outcome(run: Path) -> tuple[Any, ...]:
    """What must not depend on kills: the final state, the metrics, all files, and what checkpoints hold."""
    state_hash = json.loads((run / "results.json").read_text())["state_hash"]
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for line in metrics:
        for timing in ("images_per_second", "data_wait"):
            line.pop(timing, None)
    names = sorted(str(path.relative_to(run)) for path in run.rglob("*"))
    states = [checkpoint.load(run / name) for name in names if name.endswith(".pt")]
    return state_hash, metrics, names, [checkpoint.state_hash({**state, "log": None}) for state in states]


def folder_of(config: PretrainConfig) -> Path:
    assert config.output is not None
    return config.output


COUNTED = ("kills", "early", "late", "operations", "resumes", "finished", "unreadable", "different")


class Victim:
    """Runs with the same settings, which are killed, and what came of it.

    Attributes:
        counts: random ``kills`` hit a run between its first write and its last; ``early`` and ``late`` ones
            did not. ``operations`` are kills at an operation on a file. ``resumes`` is how often a killed
            run was gone on with, ``unreadable`` how many checkpoints were damaged after a kill, ``finished``
            how many runs came to their end, and ``different`` how many of these to another one than the
            undisturbed run.
        hashes: of final states, that of the undisturbed run among them.
    """

    def __init__(self, settings: str, images: Path, folder: Path) -> None:
        self._settings = settings
        self._images = images
        self._folder = folder
        self._number = 0
        self.counts = Counter(dict.fromkeys(COUNTED, 0))
        undisturbed = self._next()
        assert end_of(start(undisturbed)) == 0
        self._expected = outcome(folder_of(undisturbed))
        self.hashes = {self._expected[0]}
        began = time.monotonic()
        self._finish(self._next())
        self._seconds = time.monotonic() - began  # the first one made the cache of the images, too

    def kill_at_random(self, kills: int, choices: random.Random) -> None:
        """Kill so many times, wherever the runs are; those that come to their end are followed by others."""
        config = self._next()
        while self.counts["kills"] < kills:
            if self._survives(config, seconds=choices.uniform(0, self._seconds)):
                config = self._next()
        self._finish(config)

    def kill_at_operations(self, every: int) -> None:
        """Kill a new run at its first operation on a file, the next at another one, and so on."""
        for number in itertools.count(1, every):
            config = self._next()
            if self._survives(config, lambda: die_at_operation(folder_of(config), number)):  # noqa: B023
                return
            self._finish(config)

    def _next(self) -> PretrainConfig:
        self._number += 1
        return folder_config(self._folder / str(self._number), self._images, self._settings)

    def _survives(
        self, config: PretrainConfig, prepare: Callable[[], None] = lambda: None, seconds: float | None = None
    ) -> bool:
        """Run or go on, be killed after some time or by oneself; whether the end came before that."""
        run = folder_of(config)
        before = version(run / "config.json")
        child = start(config, prepare)
        if seconds is not None:
            time.sleep(seconds)
            os.kill(child, signal.SIGKILL)
        code = end_of(child)
        for path in checkpoint.candidates(run):
            try:
                checkpoint.load(path)
            except CheckpointError as error:
                print(error)
                self.counts["unreadable"] += 1
        if code not in (-signal.SIGKILL, -signal.SIGXFSZ):
            self._compare(run, code)
            return True
        # Whoever begins or goes on replaces config.json, and writes results.json at the end.
        is_late = (run / "results.json").exists()
        is_early = version(run / "config.json") == before
        when = "late" if is_late else "early" if is_early else "kills"
        self.counts["operations" if seconds is None else when] += 1
        self.counts["resumes"] += 1  # whoever calls this goes on
        return False

    def _finish(self, config: PretrainConfig) -> None:
        self._compare(folder_of(config), end_of(start(config)))

    def _compare(self, run: Path, code: int) -> None:
        """Count a run that has ended."""
        found = outcome(run) if code == 0 else (f"exit code {code}",)
        self.hashes.add(found[0])
        self.counts["finished"] += 1
        self.counts["different"] += found != self._expected


def version(path: Path) -> tuple[int, int] | None:
    """What changes when a file is replaced."""
    return (path.stat().st_ino, path.stat().st_mtime_ns) if path.exists() else None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path, help="for the runs; new or empty")
    parser.add_argument("--kills", type=int, default=300, help="in all, at random moments")
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=SETTINGS, help="in turn")
    parser.add_argument("--every", type=int, default=1, help="n for every n-th operation on a file")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    # By default, a progress bar's lock is shared with forked processes: one that is killed while it holds it
    # would stop all after it for good. Nor may a thread of the bars hold it at the moment of a fork.
    tqdm.set_lock(threading.RLock())
    tqdm.monitor_interval = 0
    images = write_jpegs(arguments.folder / "images")
    # What a run imports is imported once for all children. DALI's threads would not live on in them.
    for name in ("nvidia.dali.fn", "nvidia.dali.types", "nvidia.dali.pipeline"):
        importlib.import_module(name)
    with contextlib.redirect_stdout(io.StringIO()):
        pretrain(folder_config(arguments.folder / "imports", images, "bf16 resident muon"))
    choices = random.Random(0)
    totals = Counter(dict.fromkeys(("settings", *COUNTED), 0))
    for number, settings in enumerate(arguments.settings):
        victim = Victim(settings, images, arguments.folder / settings.replace(" ", "-"))
        before, after = (arguments.kills * n // len(arguments.settings) for n in (number, number + 1))
        victim.kill_at_random(after - before, choices)
        if number == 0:
            victim.kill_at_operations(arguments.every)
        counts = {"distinct hashes": len(victim.hashes), **victim.counts}
        totals.update({"settings": 1, **counts})
        print(f"{settings}: {json.dumps(counts)}", flush=True)
    print(json.dumps(totals))
    is_same = totals["distinct hashes"] == totals["settings"] and totals["different"] == 0
    return 0 if is_same and totals["unreadable"] == 0 else 1


if __name__ == "__main__":
    sys.exit(main())

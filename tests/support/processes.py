"""Commands in processes of their own, which may be starved, signalled and killed; pretraining unless said.

They are forked from a server that has imported what is slow to import, see `ranks.py`.
"""

from __future__ import annotations

import contextlib
import io
import os
import resource
import shlex
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from ranks import FORKS

TINY = shlex.split(
    "--preset quickstart --image-size 16 --limit-train 40 --limit-test 20 --blocks 3 --width 0.05 --epochs 2 "
    "--batch-size 16 --lr 0.05 --device cpu --precision fp32 --no-tensorboard --checkpoint-every-steps 1 "
    "--log-every 1"
)
"""Six steps in two epochs, each of which is saved and reported."""

PRETRAIN = "rotnet_fast.pretrain"

Prepare = Callable[[pytest.MonkeyPatch], None]


class Ended(NamedTuple):
    """Exit code of a command, and what it printed."""

    code: int
    out: str
    err: str


def run_command(arguments: list[str], *prepare: Prepare, module: str = PRETRAIN) -> Ended:
    """Run the command in this process, after the functions that prepare it."""
    main = import_module(module).main
    out, err = io.StringIO(), io.StringIO()
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        pytest.MonkeyPatch.context() as patch,
    ):
        for function in prepare:
            function(patch)
        code = main(arguments)
    return Ended(code, out.getvalue(), err.getvalue())


def before_step(patch: pytest.MonkeyPatch, number: int, action: Callable[[], None]) -> None:
    """Call ``action`` at the beginning of training step ``number`` (from 0) of the next run."""
    from rotnet_fast.engine.rotation_task import RotationTask

    views, calls = RotationTask.views, 0

    def counting(self: RotationTask, *batch: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == number + 1:
            action()
        return views(self, *batch)

    patch.setattr(RotationTask, "views", counting)


def limit_memory(megabytes: int, patch: pytest.MonkeyPatch) -> None:
    """Let the process take so much more memory than it has now."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + megabytes * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))


def stop_before(step: int, number: int, patch: pytest.MonkeyPatch) -> None:
    """Send the process a signal at the beginning of a training step."""
    before_step(patch, step, lambda: os.kill(os.getpid(), number))


class Command:
    """A command that has been started.

    Args:
        arguments: of the command.
        prepare: functions of a test module (or partials of them) that are called first in the new process.
        module: that has the command.
    """

    def __init__(self, arguments: list[str], *prepare: Prepare, module: str = PRETRAIN) -> None:
        self._pipe, sender = FORKS.Pipe(duplex=False)
        self.process = FORKS.Process(target=_call, args=(sender, module, arguments, prepare), daemon=True)
        self.process.start()
        sender.close()

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    def end(self, timeout: float = 60) -> Ended:
        """Wait for the end. A process that dies, instead of ending, has printed nothing."""
        printed: tuple[str, str] = ("", "")
        try:
            if self._pipe.poll(timeout):
                with contextlib.suppress(EOFError):
                    printed = self._pipe.recv()
            self.process.join(timeout)
            assert self.process.exitcode is not None, "the command hangs"
        finally:
            self.process.kill()
        return Ended(self.process.exitcode, *printed)

    def wait_for(self, is_so: Callable[[], bool]) -> None:
        """Wait for the command to get somewhere, but not for ever."""
        deadline = time.monotonic() + 60
        while not is_so():
            assert self.process.is_alive(), "the command has ended"
            assert time.monotonic() < deadline, "the command hangs"
            time.sleep(0.01)


def in_a_process(arguments: list[str], *prepare: Prepare, module: str = PRETRAIN) -> Ended:
    """Run the command in a process of its own."""
    return Command(arguments, *prepare, module=module).end()


def _call(sender: Any, module: str, arguments: list[str], prepare: tuple[Prepare, ...]) -> None:
    import torch

    torch.set_num_threads(1)
    ended = run_command(arguments, *prepare, module=module)
    sender.send((ended.out, ended.err))
    sys.exit(ended.code)


def lines(path: Path) -> int:
    return path.read_text().count("\n") if path.exists() else 0

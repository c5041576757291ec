"""Divide work on many encoded images over processes.

The worker processes import this module, so it does not import torch, which takes seconds.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

import numpy as np

from rotnet_fast.data.source import ImageSource
from rotnet_fast.errors import DataError
from rotnet_fast.progress import CountingLine
from rotnet_fast.system import available_cores

_IMAGES_PER_CHUNK = 128
_CHUNKS_AHEAD = 4  # per worker
_IMAGES_PER_WORKER = 512  # fewer images take less time than starting another process

Result = TypeVar("Result")


def in_chunks(
    work: Callable[[ImageSource], Result],
    source: ImageSource,
    description: str,
    progress: bool,
    images_per_chunk: int | None = None,
) -> Iterator[tuple[slice, Result]]:
    """Yield the results of ``work`` on consecutive parts of the source, computed on all available cores.

    It uses processes instead of threads: for small images, nearly all the time is spent in Python code, and
    two threads were slower than one. Processes are spawned instead of forked, because torch's threads do not
    survive a fork; so a script that calls this for more than a thousand images needs the
    ``if __name__ == "__main__":`` guard.

    Args:
        work: a function that can be pickled.
        description: what the status line says of it.
        progress: show the status line.
        images_per_chunk: images of a part; the last part may be smaller. None: 128.

    Yields:
        Positions of a part and its result, in the order of the source.

    Raises:
        DataError: ``work`` raised it (the first one is re-raised), or a worker process was killed.
    """
    size = images_per_chunk or _IMAGES_PER_CHUNK
    places = [slice(start, min(start + size, len(source))) for start in range(0, len(source), size)]
    # Parts are made lazily, because a part of shards keeps them open for as long as it lives.
    parts = (source.take(np.arange(place.start, place.stop)) for place in places)
    workers = min(available_cores(), len(source) // _IMAGES_PER_WORKER)
    with CountingLine(description, len(source), "images", progress) as line:
        if workers < 2:
            for place, part in zip(places, parts, strict=True):
                yield place, work(part)
                line.count(len(part))
            return
        context = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker)
        try:
            waiting: deque[tuple[slice, Future[Result]]] = deque()
            for place, part in zip(places, parts, strict=True):
                waiting.append((place, pool.submit(work, part)))
                # No more than these are decoded and kept, however slowly the results are used.
                if len(waiting) > _CHUNKS_AHEAD * workers:
                    yield from _oldest(waiting, line)
            while waiting:
                yield from _oldest(waiting, line)
        except BrokenProcessPool as error:
            raise DataError(
                "a worker process died: it ran out of memory, or was started from a script without an "
                '`if __name__ == "__main__":` guard'
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _oldest(
    waiting: deque[tuple[slice, Future[Result]]], line: CountingLine
) -> Iterator[tuple[slice, Result]]:
    place, result = waiting.popleft()
    yield place, result.result()
    line.count(place.stop - place.start)


def processes_of_this_machine() -> int:
    """Return how many processes torchrun started on this machine, which share it; 1 without torchrun."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def _start_worker() -> None:
    """Leave Ctrl-C to the parent process, and exit when the parent is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_exit_after_parent, daemon=True).start()


def _exit_after_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None, "only ever called in a worker process"
    parent.join()
    os._exit(1)

"""Loader that streams encoded images, which NVIDIA DALI decodes, crops and resizes in its own threads.

DALI is only imported when a loader is created.
"""

from __future__ import annotations

import functools
import os
import sys
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.dlpack import from_dlpack

from rotnet_fast.data.crop import Boxes, Decoder, RandomResizedCrop, centre_boxes, resize_into
from rotnet_fast.data.decode import FIND_ALL, decode_image, decode_rgb, encode_ppm
from rotnet_fast.data.loader import Batch
from rotnet_fast.data.sampling import WHOLE, BatchShare, Order
from rotnet_fast.data.split import EncodedSplit
from rotnet_fast.data.workers import processes_of_this_machine
from rotnet_fast.errors import ArgumentError, DataError
from rotnet_fast.memory import is_out_of_memory
from rotnet_fast.plain import counted
from rotnet_fast.system import available_cores

_PREFETCHED = 2
"""Number of batches that DALI prefetches."""

_READ_AHEAD = 4
"""Number of batches whose files are read ahead of DALI."""


class DaliLoader:
    """Read, decode, crop and resize images as batches need them.

    The order does not come from DALI: it and random crops are pure functions of (seed, epoch). So a resumed
    run continues with exactly the batch that would have come next, and if the set fits into a
    `ResidentLoader`, both loaders yield the same batches: on the CPU, DALI decodes to the same pixels as
    Pillow (the tests compare every kind of image). Pillow, in the reader threads and at Pillow's speed,
    converts the images that DALI would decode differently (see :mod:`rotnet_fast.data.scan`) and, without
    crops, those of another size than ``image_size``.

    Args:
        split: encoded images and their labels.
        device: device of the batches.
        batch_size: images per batch over all processes, at least 1; the last, incomplete batch of an epoch
            is kept.
        seed: seed of the order and of the crops.
        crop: random crops, resized (bilinear, with antialiasing) to ``image_size``; None shows whole images
            as `rotnet_fast.data.decode.decode_image` makes them.
        is_test: if there is a crop, use the centre crop of `rotnet_fast.data.crop.centre_boxes` instead.
        epoch_size: visits per epoch, at least N; None means N.
        shuffle: False keeps the order of the set.
        share: the share of every batch that this process yields.
        decoder: ``gpu`` decodes JPEGs on the CUDA device, where rounding makes pixels differ from the CPU's;
            ``auto`` does so if ``device`` is a CUDA device.

    Raises:
        ArgumentError: DALI is not installed or was built for another CUDA version, or decoder is ``gpu`` and
            device is not a CUDA device.
        ValueError: batch_size is below 1, the split is empty, or epoch_size is below N.
    """

    def __init__(
        self,
        split: EncodedSplit,
        device: torch.device | str,
        batch_size: int,
        seed: int,
        *,
        crop: RandomResizedCrop | None = None,
        is_test: bool = False,
        epoch_size: int | None = None,
        shuffle: bool = True,
        share: BatchShare = WHOLE,
        decoder: Decoder = "auto",
    ) -> None:
        self.order = Order(len(split), batch_size, seed, epoch_size, shuffle, share)
        self.split = split
        self.device = torch.device(device)
        require_dali(self.device)
        if decoder == "gpu" and self.device.type != "cuda":
            raise ArgumentError(f"decoder is gpu, but the device is {self.device}; use --decoder cpu")
        self.labels = split.labels.to(self.device)
        self.batch_size = batch_size
        self.seed = seed
        self.crop = crop
        self.is_test = is_test
        self.epoch_size = self.order.visits
        self._on_gpu = self.device.type == "cuda" and decoder != "cpu"
        # On the CPU, torch resizes uint8 images three times as fast as DALI, and with Pillow's results.
        self._resizes = crop is not None and self.device.type == "cpu"
        self._convert = split.convert
        if crop is None:
            self._convert = split.convert | (split.sizes != split.image_size).any(axis=1)
        self._pipeline: Any = None
        self._process = 0  # id of the process that built the pipeline
        self._running: _Feed | None = None

    def __len__(self) -> int:
        """Return the number of batches per epoch, including an incomplete last one."""
        return len(self.order)

    def epoch(self, epoch: int, start_batch: int = 0) -> Iterator[Batch]:
        """Yield the batches of one epoch in order; a loader runs only one epoch at a time.

        Args:
            epoch: number of the epoch; each has its own order and crops.
            start_batch: first batch to yield, 0 .. len(self), to resume within an epoch.

        Raises:
            ValueError: start_batch is out of range (raised with the first batch).
            DataError: an image, which the message names, cannot be read or decoded.
            RuntimeError: another epoch of this loader was started in the meantime, or this process was forked
                from the one in which the loader started.
        """
        parts = self.order.parts(start_batch)
        indices, sample_ids = self.order.epoch(epoch)
        shares = deque(part for part, _ in parts if part.start < part.stop)
        feed = _Feed(self, epoch, indices, sample_ids, shares)
        self._start(feed)
        side = self.split.image_size
        # One transfer for the whole epoch.
        here = [values.to(self.device) for values in (indices, self.split.labels[indices], sample_ids)]
        in_use: deque[tuple[torch.cuda.Event, torch.Tensor]] = deque()
        try:
            for part, size in parts:
                if part.start < part.stop:
                    images = self._next(feed, part, indices)
                else:
                    images = torch.empty((0, side, side, 3), dtype=torch.uint8, device=self.device)
                shown, labels, ids = (values[part] for values in here)
                try:
                    yield Batch(images, shown, labels, ids, True, size)
                finally:
                    if self.device.type == "cuda":
                        # DALI reuses the memory as soon as nobody holds it, without waiting for the kernels
                        # that torch has launched on it, so the batch is held until they are done.
                        event = torch.cuda.Event()
                        event.record(torch.cuda.current_stream(self.device))
                        in_use.append((event, images))
                        while in_use and in_use[0][0].query():
                            in_use.popleft()
        finally:
            for event, _ in in_use:
                event.synchronize()

    def _start(self, feed: _Feed) -> None:
        """Start feeding the pipeline, or a new one if an unfinished epoch left batches in the old one."""
        self._check_process()
        if self._pipeline is not None and self._running is not None and self._running.left == 0:
            try:
                self._pipeline.run()
            except StopIteration:  # DALI signals the end of an epoch
                self._pipeline.reset()
        else:
            self._pipeline = self._build(self._give, -(-self.batch_size // self.order.share.world))
            self._process = os.getpid()
        self._running = feed

    def _check_process(self) -> None:
        if self._pipeline is not None and self._process != os.getpid():
            raise RuntimeError(
                f"this loader belongs to process {self._process}, but process {os.getpid()} was forked from "
                f"it without DALI's threads and would wait forever; create a loader in the new process, or "
                f"start it with the method spawn or forkserver"
            )

    def _next(self, feed: _Feed, part: slice, indices: torch.Tensor) -> torch.Tensor:
        """Return the pipeline's next batch without copying it: uint8 [B,S,S,3] on the device."""
        self._check_process()
        if feed is not self._running:
            raise RuntimeError("another epoch of this loader was started; finish one before the next")
        try:
            images = self._run()
        except Exception as error:  # RuntimeError mostly, but other types, too
            # A pipeline that failed would silently continue with the batch after this one.
            self._pipeline = self._running = None
            if isinstance(error, DataError) or is_out_of_memory(error):
                raise
            raise self._name_damaged(feed, part, error) from error
        feed.left -= 1
        return images

    def _run(self) -> torch.Tensor:
        """Run the pipeline and return its output, ready on torch's stream."""
        if self.device.type == "cuda":
            with torch.cuda.device(self.device):
                (images,) = self._pipeline.run(torch.cuda.current_stream(self.device))
                return from_dlpack(images.as_tensor())
        (images,) = self._pipeline.run()
        if self._resizes:
            return self._resized([from_dlpack(images[position]) for position in range(len(images))])
        return from_dlpack(images.as_tensor())

    def _resized(self, crops: list[torch.Tensor]) -> torch.Tensor:
        """Resize crops uint8 [h,w,3] of any size to one batch uint8 [B,S,S,3]."""
        side = self.split.image_size
        batch = torch.empty((len(crops), side, side, 3), dtype=torch.uint8)

        def resize(part: range) -> None:
            for position in part:
                resize_into(batch[position], crops[position])

        workers = available_cores()
        list(_pool("resizer").map(resize, [range(first, len(crops), workers) for first in range(workers)]))
        return batch

    def _build(self, give: Callable[[], Any], batch_size: int) -> Any:
        """Build a pipeline that decodes the batches returned by ``give``."""
        from nvidia.dali import Pipeline, fn, types

        is_cuda = self.device.type == "cuda"
        pipeline = Pipeline(
            batch_size=batch_size,
            num_threads=max(1, available_cores() // processes_of_this_machine()),
            device_id=self.device.index or 0 if is_cuda else None,
            prefetch_queue_depth=_PREFETCHED,
        )
        decoding: dict[str, Any] = {"device": "cpu", "output_type": types.RGB}
        if self._on_gpu:  # upsample the colour planes as on the CPU, which is not the default on the GPU
            decoding |= {"device": "mixed", "jpeg_fancy_upsampling": True}
        side = self.split.image_size
        with pipeline:
            if self.crop is None:
                encoded = fn.external_source(give, batch=True, dtype=types.UINT8, ndim=1)
                images = fn.decoders.image(encoded, **decoding)
            else:
                encoded, corners, shapes = fn.external_source(
                    give,
                    num_outputs=3,
                    batch=True,
                    dtype=[types.UINT8, types.INT32, types.INT32],
                    ndim=1,
                )
                images = fn.decoders.image_slice(encoded, corners, shapes, axes=(0, 1), **decoding)
                if not self._resizes:
                    images = fn.resize(
                        images, size=(side, side), interp_type=types.INTERP_LINEAR, antialias=True
                    )
            pipeline.set_outputs(images.gpu() if is_cuda and not self._on_gpu else images)
        pipeline.build()
        _pipelines.add(pipeline)
        return pipeline

    def _give(self) -> Any:
        """Return the encoded images of DALI's next batch, and their crops."""
        assert self._running is not None, "an epoch was started"
        encoded, boxes = self._running.next()
        return encoded if boxes is None else (encoded, *boxes)

    def read(self, index: int) -> NDArray[np.uint8]:
        """Return one image as DALI gets it: the file's bytes, or Pillow's conversion of it.

        Raises:
            DataError: the file cannot be read, or Pillow cannot decode it.
        """
        source = self.split.source
        content = source.read(index)
        if self._convert[index]:
            name = source.names[index]
            if self.crop is None:
                content = encode_ppm(decode_image(content, self.split.image_size, name))
            else:
                content = encode_ppm(decode_rgb(content, name))
        return np.frombuffer(content, dtype=np.uint8)

    def boxes(self, indices: torch.Tensor, sample_ids: torch.Tensor, epoch: int) -> Boxes | None:
        """Return the crops of a batch, or None if images are shown whole."""
        if self.crop is None:
            return None
        sizes = self.split.sizes[indices.numpy()]
        return centre_boxes(sizes) if self.is_test else self.crop.boxes(sizes, sample_ids, self.seed, epoch)

    def _name_damaged(self, feed: _Feed, part: slice, error: Exception) -> DataError:
        """Return the error to raise after DALI failed to decode a batch, with the name of the image."""
        indices = feed.indices[part].tolist()
        names = [self.split.source.names[index] for index in indices]
        for index, name in zip(indices, names, strict=True):
            try:
                decode_rgb(self.split.source.read(index), name)
            except DataError as found:
                return DataError(f"{found}. {FIND_ALL}")
        what = f"one of {counted(len(names), 'image')}, {names[0]} to {names[-1]}"
        for position, name in enumerate(names, part.start):
            if (alone := self._failure(feed, slice(position, position + 1))) is not None:
                what, error = name, alone
                break
        reason = (str(error).partition("encountered:")[2] or str(error)).strip().partition("\n")[0]
        return DataError(
            f"DALI cannot decode {what} ({reason}), although Pillow can; save the image again, or use "
            f"--loader resident"
        )

    def _failure(self, feed: _Feed, part: slice) -> Exception | None:
        """Return DALI's error for a single image, or None if DALI decodes it."""
        encoded, boxes = feed.read(part)
        batches = iter([encoded if boxes is None else (encoded, *boxes)])
        try:
            self._build(lambda: next(batches), 1).run()
        except Exception as error:
            return error
        return None


class _Feed:
    """Read the files of upcoming batches in threads."""

    def __init__(
        self,
        loader: DaliLoader,
        epoch: int,
        indices: torch.Tensor,
        sample_ids: torch.Tensor,
        shares: deque[slice],
    ) -> None:
        self.loader = loader
        self.epoch = epoch
        self.indices = indices
        self.sample_ids = sample_ids
        self.shares = shares
        self.left = len(shares)  # batches that DALI has not returned yet
        self.ahead: deque[Future[tuple[list[NDArray[np.uint8]], Boxes | None]]] = deque()

    def next(self) -> tuple[list[NDArray[np.uint8]], Boxes | None]:
        """Return the encoded images of the next batch and their crops.

        Raises:
            StopIteration: the epoch is over.
        """
        while self.shares and len(self.ahead) < _READ_AHEAD:
            self.ahead.append(_pool("reader").submit(self.read, self.shares.popleft()))
        if not self.ahead:
            raise StopIteration
        return self.ahead.popleft().result()

    def read(self, part: slice) -> tuple[list[NDArray[np.uint8]], Boxes | None]:
        """Return the encoded images of a part of the epoch and their crops."""
        indices = self.indices[part]
        boxes = self.loader.boxes(indices, self.sample_ids[part], self.epoch)
        return [self.loader.read(index) for index in indices.tolist()], boxes


_pipelines: weakref.WeakSet[Any] = weakref.WeakSet()
_inherited: list[Any] = []


def _after_fork() -> None:
    """Drop the threads that a forked process lacks, and keep alive objects whose deletion waits for them."""
    _pool.cache_clear()
    _inherited.extend(_pipelines)


@functools.cache
def _pool(purpose: str) -> ThreadPoolExecutor:
    """Return the thread pool that serves one purpose for all loaders of this process."""
    # At least two threads, because readers mostly wait for disks.
    return ThreadPoolExecutor(max(2, available_cores()), thread_name_prefix=f"rotnet_fast-{purpose}")


if hasattr(os, "register_at_fork"):  # this module must be importable on systems without fork and DALI
    os.register_at_fork(after_in_child=_after_fork)


def require_dali(device: torch.device) -> None:
    """Check that DALI can be used with a device.

    Raises:
        ArgumentError: DALI is not installed, or was built for another CUDA version than torch.
    """
    if sys.platform != "linux":
        raise ArgumentError("loader is dali, which only runs on Linux; use --loader resident --crop pad")
    if device.type == "cuda" and torch.version.hip is not None:
        raise ArgumentError("loader is dali, which has no AMD GPUs; use --loader resident --crop pad")
    cuda = (torch.version.cuda or "13").split(".")[0]
    package = f"nvidia-dali-cuda{cuda}0"
    try:
        from nvidia.dali import backend
    except ImportError as error:
        raise ArgumentError(
            f"loader is dali, which cannot be imported ({error}): pip install {package}, or use --loader "
            f"resident (with --crop pad)"
        ) from error
    found = backend.__cuda_version__ // 1000
    if device.type == "cuda" and found != int(cuda):
        raise ArgumentError(
            f"loader is dali, but the installed DALI is built for CUDA {found} and torch for CUDA {cuda}: "
            f"pip uninstall nvidia-dali-cuda{found}0, then pip install {package}"
        )

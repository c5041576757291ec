"""A loader that streams encoded images: NVIDIA DALI decodes, crops and resizes them in its own threads.

DALI is imported when a loader is made, not before.
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

from rotnet_fast.data.crop import Boxes, Decoder, RandomResizedCrop, centre_boxes
from rotnet_fast.data.decode import decode_image, decode_rgb, encode_ppm
from rotnet_fast.data.loader import Batch
from rotnet_fast.data.sampling import WHOLE, BatchShare, Order
from rotnet_fast.data.split import EncodedSplit
from rotnet_fast.data.workers import available_cores, processes_of_this_machine
from rotnet_fast.errors import ArgumentError, DataError

_PREFETCHED = 2
"""Batches that DALI makes ahead of the training step."""

_READ_AHEAD = 4
"""Batches whose files are read ahead of DALI."""


class DaliLoader:
    """Batches of images that are read, decoded, cropped and resized as they are needed.

    The order is our own, a pure function of (seed, epoch), and so are crops of random size. So a resumed run
    continues with the very batch that would have come next, and where a `ResidentLoader` can hold the set,
    both give the same batches: on the CPU, DALI decodes to the very pixels that Pillow decodes to (the tests
    compare every kind of image). What it would decode otherwise (see
    :mod:`rotnet_fast.data.scan`) and, where images are shown whole, what has another size than
    ``image_size`` is converted by Pillow in the reading threads, at Pillow's speed.

    Args:
        split: encoded images and their labels.
        device: where batches live.
        batch_size: images per batch over all processes, at least 1; the last, incomplete batch of an epoch
            is kept.
        seed: of the order and of the crops.
        crop: None shows whole images as `rotnet_fast.data.decode.decode_image` makes them. Else images are
            crops, resized (bilinear, with antialiasing) to ``image_size``.
        is_test: where there is a crop, the central one of `rotnet_fast.data.crop.centre_boxes`.
        epoch_size: visits per epoch, at least N; None means N.
        shuffle: False keeps the set's own order.
        share: the share of every batch that this process gives.
        decoder: ``gpu`` decodes JPEGs on the CUDA device, whose pixels differ from the CPU's in rounding;
            ``auto`` does so where ``device`` is one.

    Raises:
        ArgumentError: DALI is not installed, or is one of another CUDA; or decoder is ``gpu`` without one.
        ValueError: batch_size below 1, an empty split, or epoch_size below N.
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
            raise ArgumentError(f"decoder is gpu, but this run uses {self.device}; use --decoder cpu")
        self.labels = split.labels.to(self.device)
        self.batch_size = batch_size
        self.seed = seed
        self.crop = crop
        self.is_test = is_test
        self.epoch_size = self.order.visits
        self._on_gpu = self.device.type == "cuda" and decoder != "cpu"
        # On the CPU, torch resizes bytes three times as fast as DALI, and as Pillow does.
        self._resizes = crop is not None and self.device.type == "cpu"
        self._convert = split.convert
        if crop is None:
            self._convert = split.convert | (split.sizes != split.image_size).any(axis=1)
        self._pipeline: Any = None
        self._process = 0  # that built it
        self._running: _Feed | None = None

    def __len__(self) -> int:
        """Batches per epoch, the incomplete last one included."""
        return len(self.order)

    def epoch(self, epoch: int, start_batch: int = 0) -> Iterator[Batch]:
        """Batches of one epoch, in order; one epoch of a loader at a time.

        Args:
            epoch: number of the epoch; each has its own order and crops.
            start_batch: first batch to give, 0 .. len(self); how a run resumes in mid-epoch.

        Raises:
            ValueError: start_batch out of range (when the first batch is asked for).
            DataError: an image cannot be read or decoded; the error names it.
            RuntimeError: another epoch of this loader was begun meanwhile, or this process was forked from
                the one that the loader began to work in.
        """
        parts = self.order.parts(start_batch)
        indices, sample_ids = self.order.epoch(epoch)
        shares = deque(part for part, _ in parts if part.start < part.stop)
        feed = _Feed(self, epoch, indices, sample_ids, shares)
        self._start(feed)
        side = self.split.image_size
        # The whole epoch's in one transfer.
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
                        # DALI reuses the memory once nobody holds it, without asking whether what torch has
                        # launched there is done: so the batch is held until it is.
                        event = torch.cuda.Event()
                        event.record(torch.cuda.current_stream(self.device))
                        in_use.append((event, images))
                        while in_use and in_use[0][0].query():
                            in_use.popleft()
        finally:
            for event, _ in in_use:
                event.synchronize()

    def _start(self, feed: _Feed) -> None:
        """Begin to feed the pipeline; a new one where an unfinished epoch has left batches in the old."""
        self._check_process()
        if self._pipeline is not None and self._running is not None and self._running.left == 0:
            try:
                self._pipeline.run()
            except StopIteration:  # DALI's word for the end of an epoch
                self._pipeline.reset()
        else:
            self._pipeline = self._build(self._give, -(-self.batch_size // self.order.share.world))
            self._process = os.getpid()
        self._running = feed

    def _check_process(self) -> None:
        if self._pipeline is not None and self._process != os.getpid():
            raise RuntimeError(
                f"this loader works in process {self._process}, and process {os.getpid()} was forked from "
                f"it, without DALI's threads, so that it would wait forever; make a loader in the new "
                f"process, or start that with the method spawn or forkserver"
            )

    def _next(self, feed: _Feed, part: slice, indices: torch.Tensor) -> torch.Tensor:
        """The next batch that the pipeline has made: uint8 [B,S,S,3] on the device, not copied."""
        self._check_process()
        if feed is not self._running:
            raise RuntimeError("another epoch of this loader was begun; finish one before the next")
        try:
            images = self._run()
        except Exception as error:  # RuntimeError mostly, but other types, too
            # A pipeline that failed would go on with the next batch, as if this one had not been.
            self._pipeline = self._running = None
            if isinstance(error, (DataError, MemoryError)):
                raise
            raise self._name_damaged(feed, part, error) from error
        feed.left -= 1
        return images

    def _run(self) -> torch.Tensor:
        """Output of the pipeline, ready on torch's stream."""
        if self.device.type == "cuda":
            with torch.cuda.device(self.device):
                (images,) = self._pipeline.run(torch.cuda.current_stream(self.device))
                return from_dlpack(images.as_tensor())
        (images,) = self._pipeline.run()
        if self._resizes:
            return self._resized([from_dlpack(images[position]) for position in range(len(images))])
        return from_dlpack(images.as_tensor())

    def _resized(self, crops: list[torch.Tensor]) -> torch.Tensor:
        """Crops uint8 [h,w,3] of any size as one batch uint8 [B,S,S,3]."""
        side = self.split.image_size
        batch = torch.empty((len(crops), side, side, 3), dtype=torch.uint8)

        views = batch.permute(0, 3, 1, 2)  # [B,3,S,S], channels_last

        def resize(part: range) -> None:
            for position in part:
                crop, view = crops[position].permute(2, 0, 1)[None], views[position : position + 1]
                # What interpolate(crop, mode="bilinear", antialias=True) calls, but into memory that is
                # there: a fresh result for each image and the copy of it take longer than the work.
                torch.ops.aten._upsample_bilinear2d_aa.out(crop, [side, side], False, None, None, out=view)

        workers = available_cores()
        list(_pool("resizer").map(resize, [range(first, len(crops), workers) for first in range(workers)]))
        return batch

    def _build(self, give: Callable[[], Any], batch_size: int) -> Any:
        """A pipeline that decodes what ``give`` gives, batch by batch."""
        from nvidia.dali import Pipeline, fn, types

        is_cuda = self.device.type == "cuda"
        pipeline = Pipeline(
            batch_size=batch_size,
            num_threads=max(1, available_cores() // processes_of_this_machine()),
            device_id=self.device.index or 0 if is_cuda else None,
            prefetch_queue_depth=_PREFETCHED,
        )
        decoding: dict[str, Any] = {"device": "cpu", "output_type": types.RGB}
        if self._on_gpu:  # with the CPU's way to enlarge the colour planes, which is not the default there
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
        """What DALI asks for: the encoded images of its next batch, and their crops."""
        assert self._running is not None, "an epoch was begun"
        encoded, boxes = self._running.next()
        return encoded if boxes is None else (encoded, *boxes)

    def read(self, index: int) -> NDArray[np.uint8]:
        """One image as DALI gets it: the file's bytes, or what Pillow makes of it.

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
        """Crops of a batch; None where images are shown whole."""
        if self.crop is None:
            return None
        sizes = self.split.sizes[indices.numpy()]
        return centre_boxes(sizes) if self.is_test else self.crop.boxes(sizes, sample_ids, self.seed, epoch)

    def _name_damaged(self, feed: _Feed, part: slice, error: Exception) -> DataError:
        """The error to raise where DALI could not decode a batch."""
        indices = feed.indices[part].tolist()
        names = [self.split.source.names[index] for index in indices]
        for index, name in zip(indices, names, strict=True):
            try:
                decode_rgb(self.split.source.read(index), name)
            except DataError as found:
                return DataError(f"{found}. With --check-images decode all such images are found beforehand")
        what = f"one of {len(names)} images, {names[0]} to {names[-1]}"
        for position, name in enumerate(names, part.start):
            if (alone := self._failure(feed, slice(position, position + 1))) is not None:
                what, error = name, alone
                break
        reason = (str(error).partition("encountered:")[2] or str(error)).strip().partition("\n")[0]
        return DataError(
            f"DALI cannot decode {what} ({reason}), although Pillow can; save the image anew, or use "
            f"--loader resident"
        )

    def _failure(self, feed: _Feed, part: slice) -> Exception | None:
        """What DALI says of one image alone; None where it decodes it."""
        encoded, boxes = feed.read(part)
        batches = iter([encoded if boxes is None else (encoded, *boxes)])
        try:
            self._build(lambda: next(batches), 1).run()
        except Exception as error:
            return error
        return None


class _Feed:
    """Reads the files of coming batches in threads."""

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
        self.left = len(shares)  # batches that DALI has not given back yet
        self.ahead: deque[Future[tuple[list[NDArray[np.uint8]], Boxes | None]]] = deque()

    def next(self) -> tuple[list[NDArray[np.uint8]], Boxes | None]:
        """Encoded images of the next batch and their crops.

        Raises:
            StopIteration: the epoch is over.
        """
        while self.shares and len(self.ahead) < _READ_AHEAD:
            self.ahead.append(_pool("reader").submit(self.read, self.shares.popleft()))
        if not self.ahead:
            raise StopIteration
        return self.ahead.popleft().result()

    def read(self, part: slice) -> tuple[list[NDArray[np.uint8]], Boxes | None]:
        """Encoded images of a part of the epoch and their crops."""
        indices = self.indices[part]
        boxes = self.loader.boxes(indices, self.sample_ids[part], self.epoch)
        return [self.loader.read(index) for index in indices.tolist()], boxes


_pipelines: weakref.WeakSet[Any] = weakref.WeakSet()
_inherited: list[Any] = []


def _after_fork() -> None:
    """In a forked process: forget threads that are not there, and do not free what waits for their end."""
    _pool.cache_clear()
    _inherited.extend(_pipelines)


@functools.cache
def _pool(purpose: str) -> ThreadPoolExecutor:
    """The threads that do one thing for all loaders of this process."""
    # Two at least: readers wait for disks more than they compute.
    return ThreadPoolExecutor(max(2, available_cores()), thread_name_prefix=f"rotnet_fast-{purpose}")


if hasattr(os, "register_at_fork"):  # this module can be imported where there are no forks, and no DALI
    os.register_at_fork(after_in_child=_after_fork)


def require_dali(device: torch.device) -> None:
    """Make sure that DALI can be used with a device.

    Raises:
        ArgumentError: it is not installed, or was built for another CUDA than torch.
    """
    if sys.platform != "linux":
        raise ArgumentError("loader is dali, which runs on Linux alone; use --loader resident")
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
            f"loader is dali, but the installed DALI is one for CUDA {found} and torch one for CUDA {cuda}: "
            f"pip uninstall nvidia-dali-cuda{found}0, then pip install {package}"
        )

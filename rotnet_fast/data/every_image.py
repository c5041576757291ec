"""Every image under a folder, for commands that hold nothing out: checked, and decoded batch by batch."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from rotnet_fast.data.cache import cache_places
from rotnet_fast.data.crop import RandomResizedCrop
from rotnet_fast.data.dali import DaliLoader
from rotnet_fast.data.decode import UndecodableError, decode_chunk
from rotnet_fast.data.folder import encoded_split
from rotnet_fast.data.ignored import IgnoredFiles
from rotnet_fast.data.layout import list_images, readable
from rotnet_fast.data.scan import GOOD, Scanner, check_images
from rotnet_fast.data.source import ImageSource
from rotnet_fast.data.split import EncodedSplit
from rotnet_fast.data.workers import in_chunks
from rotnet_fast.errors import DataError
from rotnet_fast.plain import counted


@dataclass(frozen=True)
class EveryImage:
    """Hold all usable images under a folder, in the order of :func:`rotnet_fast.data.layout.list_images`.

    Attributes:
        files: the images, encoded. ``files.labels`` is -1 where only some images have a class.
        classes: class names, indexed by label; empty if the images lie in no class folders.
        skipped: names, relative to the folder, of damaged images that were skipped.
        ignored: what else the folder contains.
    """

    files: EncodedSplit
    classes: tuple[str, ...]
    skipped: tuple[str, ...]
    ignored: IgnoredFiles

    def __len__(self) -> int:
        return len(self.files)

    def name(self, index: int) -> str:
        """Return an image's path relative to the folder, with / and as printable text."""
        return readable(self.files.source.relative_name(index))

    def summary(self) -> str:
        """Describe in one line the images, their classes, and what was skipped and ignored."""
        line = counted(len(self), "image")
        if self.classes:
            line += f" of {counted(len(self.classes), 'class')}"
        if self.skipped:
            line += f"; skipped as damaged: {len(self.skipped):,}"
        return f"{line}; ignored: {self.ignored}" if self.ignored else line


def open_every_image(
    folder: Path,
    image_size: int,
    *,
    bad_images: str = "fail",
    check: str = "structure",
    progress: bool = True,
) -> EveryImage:
    """List and check every image under a folder, without decoding them yet.

    Args:
        folder: the folder, see :func:`rotnet_fast.data.layout.list_images`.
        image_size: H = W in pixels that the images are to be decoded to.
        bad_images: how to treat damaged images, see :func:`rotnet_fast.data.scan.check_images`.
        check: how thoroughly to check them, see :class:`rotnet_fast.data.scan.Scanner`.
        progress: show progress bars.

    Raises:
        DataError: the folder cannot be read, holds no images, or holds damaged ones that may not be skipped.
    """
    listing = list_images(folder, progress)
    places = cache_places(folder)
    scanner = Scanner(listing.source, places, progress, check)
    scanner.check(np.arange(len(listing.source)))
    is_good = scanner.scan.verdicts == GOOD
    kept, bad = np.flatnonzero(is_good), np.flatnonzero(~is_good)
    check_images(listing.source, scanner.scan, bad, bad_images, places)
    if len(kept) == 0:
        raise DataError(f"{folder} has no usable images; add some")
    return EveryImage(
        files=encoded_split(listing, scanner.scan, kept, image_size),
        classes=listing.classes,
        skipped=tuple(readable(listing.source.relative_name(position)) for position in bad.tolist()),
        ignored=listing.ignored,
    )


def decoded_batches(
    files: EncodedSplit,
    batch_size: int,
    loader: Literal["resident", "dali"] = "resident",
    *,
    is_cropped: bool = False,
    start_batch: int = 0,
) -> Iterator[torch.Tensor]:
    """Decode images in their order, on the CPU, a few batches ahead of their use.

    Both loaders give the same pixels, those of :func:`rotnet_fast.data.decode.decode_image`.

    Args:
        files: the images.
        batch_size: images per batch; the last one may be smaller.
        loader: ``resident`` to decode with Pillow, ``dali`` to decode with DALI.
        is_cropped: see :func:`rotnet_fast.data.decode.fit_image`.
        start_batch: first batch to yield.

    Yields:
        uint8 [B,S,S,3] on the CPU.

    Raises:
        ArgumentError: the loader is dali, which cannot be used here.
        DataError: an image, which the message names, cannot be read or decoded (with ``resident`` an
            `UndecodableError` in the latter case).
    """
    if loader == "dali":
        crop = RandomResizedCrop() if is_cropped else None  # of which is_test shows the centre
        reader = DaliLoader(
            files, "cpu", batch_size, seed=0, crop=crop, is_test=True, shuffle=False, decoder="cpu"
        )
        for batch in reader.epoch(0, start_batch):
            yield batch.images
        return
    yield from pillow_batches(
        files.source, files.image_size, batch_size, is_cropped=is_cropped, start_batch=start_batch
    )


def pillow_batches(
    source: ImageSource,
    image_size: int,
    batch_size: int,
    *,
    is_cropped: bool = False,
    start_batch: int = 0,
    are_turned: bool = False,
) -> Iterator[torch.Tensor]:
    """Decode images in their order with Pillow, on all cores, a few batches ahead of their use.

    Arguments, results and errors are those of :func:`decoded_batches`, except that batches are uint8
    [B,4,S,S,3] for ``are_turned``, see `rotnet_fast.data.decode.decode_turned`.
    """
    rest = source.take(np.arange(start_batch * batch_size, len(source)))
    work = functools.partial(
        decode_chunk, image_size=image_size, is_cropped=is_cropped, are_turned=are_turned
    )
    for place, (images, failed) in in_chunks(work, rest, "decoding", False, batch_size):
        if failed:
            start = start_batch * batch_size + place.start
            raise UndecodableError(failed[0][1], [start + position for position, _ in failed])
        yield torch.from_numpy(images)

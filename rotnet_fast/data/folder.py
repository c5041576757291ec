"""A data set of one's own: JPEG or PNG files in a folder, or in tar shards."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from rotnet_fast.data.cache import cache_places, read_cache, write_cache
from rotnet_fast.data.decode import decode_images
from rotnet_fast.data.layout import Listing, list_folder, readable
from rotnet_fast.data.scan import Scan, check_images, scan_images
from rotnet_fast.data.split import EncodedSplit, RawDataset, Split
from rotnet_fast.errors import ArgumentError, DataError


def load(
    data_dir: Path | None, image_size: int, progress: bool, bad_images: str = "fail"
) -> RawDataset[Split]:
    """Images of a folder in memory: uint8 [N,H,W,3] for each half, in the order of the listing.

    The first run looks at all files and decodes them (see :func:`rotnet_fast.data.decode.decode_image` for
    what becomes of other sizes, greys and transparency) and keeps the result (see
    :mod:`rotnet_fast.data.cache`).

    Args:
        data_dir: see :mod:`rotnet_fast.data.layout`.
        image_size: H = W of the result in pixels.
        progress: show progress bars.
        bad_images: see :func:`rotnet_fast.data.scan.check_images`.

    Raises:
        ArgumentError: data_dir is None.
        DataError: the layout is none that is known, or an image cannot be used.
    """
    checked = _check(data_dir, progress, bad_images)
    source = checked.listing.source.take(checked.kept)
    name = f"{image_size}px"
    shape = (len(source), image_size, image_size, 3)
    array = read_cache(checked.places, name, checked.digest, np.uint8, shape)
    if array is None:
        array = decode_images(source, image_size, progress)
        write_cache(checked.places, name, checked.digest, array, "the decoded images")
    images, labels = torch.from_numpy(array), checked.labels
    count = checked.train_count
    return RawDataset(
        display_name=checked.display_name,
        classes=checked.listing.classes,
        train=Split(images[:count], labels[:count]),
        test=Split(images[count:], labels[count:]),
        skipped=checked.skipped,
    )


def open_encoded(
    data_dir: Path | None, image_size: int, progress: bool, bad_images: str = "fail"
) -> RawDataset[EncodedSplit]:
    """The same images as :func:`load` gives, left as they are, for a loader that decodes them itself.

    Args and errors: as for :func:`load`; nothing is decoded to ``image_size`` here.
    """
    checked = _check(data_dir, progress, bad_images)

    def half(kept: npt.NDArray[np.int64], labels: torch.Tensor) -> EncodedSplit:
        return EncodedSplit(
            source=checked.listing.source.take(kept),
            labels=labels,
            sizes=checked.scan.sizes[kept],
            convert=checked.scan.convert[kept],
            image_size=image_size,
            contents=checked.scan.contents[kept],
        )

    count = checked.train_count
    return RawDataset(
        display_name=checked.display_name,
        classes=checked.listing.classes,
        train=half(checked.kept[:count], checked.labels[:count]),
        test=half(checked.kept[count:], checked.labels[count:]),
        skipped=checked.skipped,
    )


@dataclass(frozen=True)
class _Checked:
    """A listing and which of its images are used.

    Attributes:
        kept: int64 [N], positions in the listing.
        labels: int64 [N].
        train_count: how many of them are of the training half.
        skipped: names of the others, relative to the data folder.
        digest: of the listing, and of what is skipped.
        places: of the cache.
    """

    display_name: str
    listing: Listing
    scan: Scan
    kept: npt.NDArray[np.int64]
    labels: torch.Tensor
    train_count: int
    skipped: tuple[str, ...]
    digest: str
    places: list[Path]


def _check(data_dir: Path | None, progress: bool, bad_images: str) -> _Checked:
    if data_dir is None:
        raise ArgumentError("--dataset folder needs --data-dir, the folder that holds the images")
    listing = list_folder(data_dir, progress)
    places = cache_places(data_dir)
    scan = scan_images(listing.source, listing.digest, places, progress)
    kept = check_images(listing.source, scan, bad_images)
    train_count = int((kept < listing.train_count).sum())
    if not 0 < train_count < len(kept):
        raise DataError(f"{data_dir} has no good image in one of its halves; add some")
    left_out = np.setdiff1d(np.arange(len(listing.source)), kept)
    skipped = tuple(listing.source.relative_name(i) for i in left_out.tolist())
    digest = listing.digest
    if skipped:
        digest = hashlib.sha256(os.fsencode("\0".join((digest, *skipped)))).hexdigest()
    return _Checked(
        display_name=f"folder {readable(data_dir.resolve().name)}",
        listing=listing,
        scan=scan,
        kept=kept,
        labels=torch.from_numpy(listing.labels[kept]),
        train_count=train_count,
        skipped=skipped,
        digest=digest,
        places=places,
    )

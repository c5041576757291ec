"""Reader of custom data sets: image files in a folder, or in tar shards."""

from __future__ import annotations

import hashlib
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch

from rotnet_fast.data.cache import cache_places, read_cache, write_cache
from rotnet_fast.data.decode import UndecodableError, decode_images
from rotnet_fast.data.layout import Listing, list_folder, readable
from rotnet_fast.data.scan import GOOD, Scan, Scanner, check_images, find_rows
from rotnet_fast.data.split import AnySplit, EncodedSplit, RawDataset, Split, limit_rows, validation_rows
from rotnet_fast.errors import ArgumentError, DataError, printable
from rotnet_fast.plain import counted

SplitT = TypeVar("SplitT", bound=AnySplit)


@dataclass(frozen=True)
class Choice:
    """Select the images of a folder.

    Attributes:
        validation: hold out this many training images, see `rotnet_fast.data.split.validation_rows`; they
            take the place of the test images. None uses the test images.
        limit_train, limit_test: maximum number of images to keep from each split, see
            `rotnet_fast.data.split.limit_rows`; None keeps all. Images beyond a limit are not even checked.
        bad_images: how to treat damaged images, see :func:`rotnet_fast.data.scan.check_images`.
        check: how thoroughly to check them, see :class:`rotnet_fast.data.scan.Scanner`.
    """

    limit_train: int | None = None
    limit_test: int | None = None
    validation: int | None = None
    bad_images: str = "fail"
    check: str = "structure"


class OpenFolder:
    """Select and check the images of a folder without decoding them yet.

    Args:
        data_dir: the folder, in one of the layouts of :mod:`rotnet_fast.data.layout`.
        choice: which images to use.
        progress: show progress bars.

    Attributes:
        kept: int64 [N], positions of the images in the listing, the training split first.

    Raises:
        ArgumentError: data_dir is None, or a limit exceeds the number of images.
        DataError: the layout is unknown, or an image is unusable.
    """

    def __init__(self, data_dir: Path | None, choice: Choice, progress: bool) -> None:
        if data_dir is None:
            raise ArgumentError("--dataset folder needs --data-dir, the folder that holds the images")
        self._root = data_dir
        self._choice = choice
        self._progress = progress
        self._listing = list_folder(data_dir, progress)
        self._places = cache_places(data_dir)
        self._scanner = Scanner(self._listing.source, self._places, progress, choice.check)
        self.kept = self._choose()
        self._warn_of_common_images()

    def _choose(self) -> npt.NDArray[np.int64]:
        """Return the positions of the images to use, all of them good.

        A bad image within a limit is replaced by the next one of its class, so that the result equals the
        limit applied to the good images only.
        """
        # Only those met within the limits, whatever an earlier run has seen.
        self._bad = np.empty(0, np.int64)
        while True:
            kept = self._within_limits()
            self._scanner.check(kept)
            found = kept[self._scanner.scan.verdicts[kept] != GOOD]
            self._bad = np.union1d(self._bad, found)
            if len(found) == 0 or self._choice.bad_images != "skip":
                break
        check_images(
            self._listing.source, self._scanner.scan, self._bad, self._choice.bad_images, self._places
        )
        return kept

    def _warn_of_common_images(self) -> None:
        """Warn on stderr if test images are also training images."""
        train, test = (self.kept[half] for half in self._halves())
        contents = np.ascontiguousarray(self._scanner.scan.contents).view(np.int64)
        found = find_rows(contents[test], contents[train])
        common = np.flatnonzero(found >= 0)
        if len(common) and os.environ.get("LOCAL_RANK", "0") == "0":  # all processes find the same
            one, other = int(test[common[0]]), int(train[found[common[0]]])
            name = self._listing.source.relative_name
            message = (
                f"{len(common)} of {counted(len(test), 'test image')} are also training images, "
                f"such as {name(one)}, "
                f"which equals {name(other)}; remove the duplicates, or accuracies will be too high"
            )
            print(f"WARNING: {printable(message)}", file=sys.stderr)

    def _within_limits(self) -> npt.NDArray[np.int64]:
        """Apply the limits to the images that have not been found to be bad."""
        usable = np.setdiff1d(np.arange(len(self._listing.source)), self._bad)
        is_train = usable < self._listing.train_count
        if is_train.all() or not is_train.any():
            raise DataError(f"one split of {self._root} has no usable images; add some")
        train, test = usable[is_train], usable[~is_train]
        if self._choice.validation is not None:
            is_held_out = np.zeros(len(train), dtype=bool)
            is_held_out[validation_rows(self._listing.labels[train], self._choice.validation)] = True
            train, test = train[~is_held_out], train[is_held_out]
        halves = []
        for half, argument in ((train, "limit_train"), (test, "limit_test")):
            limit = getattr(self._choice, argument)
            rows = slice(None) if limit is None else limit_rows(self._listing.labels[half], limit, argument)
            halves.append(half[rows])
        self._train_count = len(halves[0])
        return np.concatenate(halves)

    def encoded(self, image_size: int) -> RawDataset[EncodedSplit]:
        """Return the images in encoded form, for a loader that decodes them itself.

        Args:
            image_size: H = W in pixels that the loader resizes them to.
        """
        train, test = self._files(image_size)
        return self._dataset(train, test, (train, test))

    def decoded(self, image_size: int) -> RawDataset[Split]:
        """Return the images in memory: uint8 [N,H,W,C] for each split, in the order of the listing.

        The first run decodes them (:func:`rotnet_fast.data.decode.decode_image` describes how other sizes,
        grey images and transparency are handled) and caches the result (see :mod:`rotnet_fast.data.cache`).

        Args:
            image_size: H = W of the result in pixels.

        Raises:
            DataError: an image cannot be decoded.
        """
        array = None
        while array is None:
            try:
                array = self._decode(image_size)
            except UndecodableError as error:
                self._scanner.mark_undecodable(self.kept[error.positions])
                self.kept = self._choose()  # raises unless they may be skipped
        images, labels = torch.from_numpy(array), torch.from_numpy(self._listing.labels[self.kept])
        train, test = (Split(images[half], labels[half]) for half in self._halves())
        return self._dataset(train, test, self._files(image_size))

    def _decode(self, image_size: int) -> npt.NDArray[np.uint8]:
        listing, choice = self._listing, self._choice
        is_limited = (choice.limit_train, choice.limit_test, choice.validation) != (None, None, None)
        name = f"{image_size}px-limited" if is_limited else f"{image_size}px"
        digest = listing.digest
        if len(self.kept) < len(listing.source):
            digest = hashlib.sha256(digest.encode() + self.kept.tobytes()).hexdigest()
        shape = (len(self.kept), image_size, image_size, 3)
        array = read_cache(self._places, name, digest, np.uint8, shape)
        if array is None:
            array = decode_images(listing.source.take(self.kept), image_size, self._progress)
            write_cache(self._places, name, digest, array, "the decoded images")
        return array

    def _halves(self) -> tuple[slice, slice]:
        return slice(self._train_count), slice(self._train_count, None)

    def _files(self, image_size: int) -> tuple[EncodedSplit, EncodedSplit]:
        listing, scan = self._listing, self._scanner.scan
        train, test = (encoded_split(listing, scan, self.kept[half], image_size) for half in self._halves())
        return train, test

    def _dataset(
        self, train: SplitT, test: SplitT, files: tuple[EncodedSplit, EncodedSplit]
    ) -> RawDataset[SplitT]:
        listing = self._listing
        return RawDataset(
            display_name=f"folder {readable(self._root.resolve().name)}",
            classes=listing.classes,
            train=train,
            test=test,
            skipped=tuple(listing.source.relative_name(i) for i in self._bad.tolist()),
            files=files,
            ignored=listing.ignored,
            held_out=listing.held_out,
            is_validation=self._choice.validation is not None,
        )


def encoded_split(listing: Listing, scan: Scan, kept: npt.NDArray[np.int64], image_size: int) -> EncodedSplit:
    """Return those of the listed images that stand at the given positions, encoded.

    Args:
        listing: the images.
        scan: the results of checking them.
        kept: int64 [N], positions of the images to use.
        image_size: H = W in pixels that a decoder must produce.
    """
    return EncodedSplit(
        source=listing.source.take(kept),
        labels=torch.from_numpy(listing.labels[kept]),
        sizes=scan.sizes[kept],
        convert=scan.convert[kept],
        image_size=image_size,
        contents=scan.contents[kept],
    )

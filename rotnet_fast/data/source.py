"""Sources of encoded images: one file per image, or members of tar shards.

Worker processes import this module, so it does not import torch, which takes seconds.
"""

from __future__ import annotations

import functools
import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from rotnet_fast.errors import DataError
from rotnet_fast.files import cannot_read, is_out_of_descriptors, open_plain
from rotnet_fast.system import PLAIN_FILE, most_open_files, read_at, read_once

_OPEN_SHARDS = 256  # at most, because a large set has more shards than a process may open files
_SHARE_OF_SHARDS = 8  # a source opens at most 1/8 of the allowed files, as there are other sources and files


class ImageSource(ABC):
    """Read N encoded images by number, from any thread.

    A source can be pickled; the copy opens its own files. Parts of a source (see :meth:`take`) are cheap to
    send to other processes.

    Attributes:
        root: the data folder; every name is a path that begins with it.
        names: name of each image in errors and reports: its path, or SHARD.tar/member.
        byte_sizes: int64 [N], lengths of the encoded images in bytes.

    Files that change while they are in use (because they are still being copied or repaired) are refused,
    based on their length and modification time.
    """

    def __init__(self, root: str, names: Sequence[str], byte_sizes: npt.NDArray[np.int64]) -> None:
        self.root = root
        self.names = names
        self.byte_sizes = byte_sizes

    def __len__(self) -> int:
        return len(self.names)

    def relative_name(self, index: int) -> str:
        """Return the name relative to the data folder, which does not depend on where the folder lies."""
        return self.names[index][len(os.path.join(self.root, "")) :]

    def keys(self) -> npt.NDArray[np.int64] | None:
        """Return int64 [N,2], a digest of the name, size and modification time of each image.

        The result is None if the modification times are not known.
        """
        states = self._states()
        if states is None:
            return None
        start = len(os.path.join(self.root, ""))
        keys = bytearray()
        for name, size, state in zip(self.names, self.byte_sizes.tolist(), states, strict=True):
            known = os.fsencode(f"{name[start:]}\0{size} {state}")
            keys += hashlib.blake2b(known, digest_size=16).digest()
        return np.frombuffer(bytes(keys), dtype=np.int64).reshape(-1, 2)

    @abstractmethod
    def _states(self) -> Iterable[object] | None:
        """Return a value per image that changes when the image does, or None if there is none."""

    @abstractmethod
    def read(self, index: int) -> bytes:
        """Read one encoded image.

        Raises:
            DataError: the image cannot be read, or has changed since the folder was listed.
        """

    @abstractmethod
    def take(self, indices: npt.NDArray[np.int64]) -> ImageSource:
        """Return a source of only the given images, in the given order."""


class FileSource(ImageSource):
    """Read images from one file each; ``names`` are the paths.

    Args:
        times: int64 [N], modification times in ns; None disables their check.
    """

    def __init__(
        self,
        root: str,
        names: Sequence[str],
        byte_sizes: npt.NDArray[np.int64],
        times: npt.NDArray[np.int64] | None = None,
    ) -> None:
        super().__init__(root, names, byte_sizes)
        self.times = times

    def read(self, index: int) -> bytes:
        path, size = self.names[index], int(self.byte_sizes[index])
        try:
            # Not open(), whose objects cost as much as reading a small image. O_NONBLOCK, because a file that
            # was replaced by a FIFO must not block.
            descriptor = os.open(path, os.O_RDONLY | PLAIN_FILE)
            try:
                # One request for one byte more than expected, to notice a file that has grown.
                content = read_once(descriptor, size + 1, 0)
                if len(content) < size:
                    content = read_at(descriptor, size, 0)
                if self.times is not None:
                    _check_time(descriptor, int(self.times[index]), path)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise DataError(cannot_read(path, error, "repair or remove it")) from error
        return _of_size(content, size, path)

    def _states(self) -> Iterable[object] | None:
        return None if self.times is None else self.times.tolist()

    def take(self, indices: npt.NDArray[np.int64]) -> FileSource:
        times = None if self.times is None else self.times[indices]
        names = [self.names[i] for i in indices.tolist()]
        return FileSource(self.root, names, self.byte_sizes[indices], times)


class TarSource(ImageSource):
    """Read images inside uncompressed tar files at known offsets; a member's name never becomes a path.

    Args:
        shards: paths of the tar files.
        shard_numbers: int64 [N], positions in ``shards``.
        offsets: int64 [N], offset in bytes of each image in its shard.
        shard_times: modification times of the shards in ns; None disables their check.
    """

    def __init__(
        self,
        root: str,
        names: Sequence[str],
        byte_sizes: npt.NDArray[np.int64],
        shards: Sequence[str],
        shard_numbers: npt.NDArray[np.int64],
        offsets: npt.NDArray[np.int64],
        shard_times: Sequence[int] | None = None,
    ) -> None:
        super().__init__(root, names, byte_sizes)
        self.shards = shards
        self.shard_numbers = shard_numbers
        self.offsets = offsets
        self.shard_times = shard_times
        # One descriptor per shard serves all threads, because `read_at` takes the position as an argument. A
        # descriptor that is evicted from the cache is closed when the last thread releases it.
        most = most_open_files()[0] // _SHARE_OF_SHARDS
        self._open = functools.lru_cache(max(1, min(_OPEN_SHARDS, most)))(_Descriptor)

    def __reduce__(self) -> tuple[object, ...]:
        places = (self.shards, self.shard_numbers, self.offsets, self.shard_times)
        return TarSource, (self.root, self.names, self.byte_sizes, *places)

    def read(self, index: int) -> bytes:
        size, shard = int(self.byte_sizes[index]), int(self.shard_numbers[index])
        try:
            descriptor = self._descriptor(self.shards[shard])
            content = read_at(descriptor.number, size, int(self.offsets[index]))
            if self.shard_times is not None:
                _check_time(descriptor.number, self.shard_times[shard], self.names[index])
        except OSError as error:
            raise DataError(cannot_read(self.names[index], error, "repair the shard")) from error
        return _of_size(content, size, self.names[index])

    def _descriptor(self, shard: str) -> _Descriptor:
        try:
            return self._open(shard)
        except OSError as error:
            if not is_out_of_descriptors(error):
                raise
            self._open.cache_clear()  # the limit is lower than expected: close all shards and retry
            return self._open(shard)

    def _states(self) -> Iterable[object] | None:
        if self.shard_times is None:
            return None
        times = [self.shard_times[shard] for shard in self.shard_numbers.tolist()]
        return zip(times, self.offsets.tolist(), strict=True)

    def take(self, indices: npt.NDArray[np.int64]) -> TarSource:
        used, shard_numbers = np.unique(self.shard_numbers[indices], return_inverse=True)
        return TarSource(
            self.root,
            [self.names[i] for i in indices.tolist()],
            self.byte_sizes[indices],
            [self.shards[i] for i in used.tolist()],
            shard_numbers.astype(np.int64),
            self.offsets[indices],
            None if self.shard_times is None else [self.shard_times[i] for i in used.tolist()],
        )


class _Descriptor:
    """Keep a file open for as long as this object is referenced."""

    def __init__(self, path: str) -> None:
        self.number = -1
        self.number = open_plain(path)

    def __del__(self) -> None:
        if self.number >= 0:
            os.close(self.number)


def _check_time(descriptor: int, time: int, name: str) -> None:
    """Check the modification time; called after reading, so that a change during the read is noticed, too."""
    if os.fstat(descriptor).st_mtime_ns != time:
        raise DataError(f"{name} was modified after the folder was listed; start again")


def _of_size(content: bytes, size: int, name: str) -> bytes:
    if len(content) != size:
        raise DataError(
            f"{name} no longer has the {size} bytes that it had when the folder was listed; start again"
        )
    return content

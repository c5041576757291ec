"""What a data folder holds: the one place that decides which files are the images, halves and classes.

Layouts of DATA_DIR:

====================================  ===================================================================
train/<class>/  and  test/<class>/    JPEG or PNG files; a label is the class's position in sorted order
train/  and  test/                    JPEG or PNG files without classes
train/*.tar  and  test/*.tar          WebDataset shards, see :mod:`rotnet_fast.data.shards`
files or *.tar in DATA_DIR itself     as above; the first and then every 20th image is a test image
====================================  ===================================================================

Instead of test/ the second half may be called val/ or validation/ (the first of the three that exists is
taken). Folders and files whose name starts with a dot are passed over, and so are other files, folders
within class folders and, where there is train/, whatever else lies in DATA_DIR. Links are followed; what is
named like an image or a shard and is a broken link, a FIFO or a device is an error. Files are sorted by name,
by code point, so that 10.jpg comes before 2.jpg.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from rotnet_fast.data.cache import cache_places
from rotnet_fast.data.shards import IMAGE_SUFFIXES, index_shards
from rotnet_fast.data.source import FileSource, ImageSource
from rotnet_fast.errors import DataError

HOLD_OUT_EVERY = 20
TEST_NAMES = ("test", "val", "validation")
EXPECTED = (
    "it must hold train/ and test/ (or val/), each with class folders of JPEG or PNG files, with such files, "
    "or with .tar shards; or such files or shards directly"
)
_FORMAT = "1"  # raise it when the same files would be decoded to other pixels


@dataclass(frozen=True)
class Listing:
    """The images of a data folder, without their contents.

    Attributes:
        classes: names of the classes; a label is a position in it. Empty: the images have no labels.
        source: the images, those of the training half first.
        labels: int64 [N]; all 0 where there are no classes.
        train_count: images of the training half.
        digest: SHA-256 (hexadecimal) over each file's place, size and time of change.
    """

    classes: tuple[str, ...]
    source: ImageSource
    labels: npt.NDArray[np.int64]
    train_count: int
    digest: str


def list_folder(data_dir: Path, progress: bool = False) -> Listing:
    """Find the images of a data folder.

    Args:
        data_dir: see the layouts above.
        progress: show a progress bar while tar shards are indexed.

    Raises:
        DataError: none of the layouts, a mixture of several, or a damaged tar shard.
    """
    root = os.fspath(data_dir)
    try:
        top = _look(root, "")
        if "train" not in top.folders and not top.images and not top.shards:
            raise DataError(f"{root} has no train/: {EXPECTED}. Found: {_found(top)}")
        if "train" not in top.folders:
            _check_readable(top)
            return _list_undivided(root, top, progress)
        second = next((name for name in TEST_NAMES if name in top.folders), None)
        if second is None:
            raise DataError(f"{root} has train/ but no test/, val/ or validation/: {EXPECTED}")
        return _list_halves(root, _look(root, "train"), _look(root, second), progress)
    except OSError as error:
        raise DataError(f"{root} cannot be read as a folder of images ({error}); {EXPECTED}") from error


@dataclass
class _Folder:
    """What lies in one folder: its place below the data folder ("" for itself), and sorted names.

    ``unreadable`` are paths of what is named like an image or a shard but is a broken link or no plain file.
    """

    place: str
    folders: list[str] = field(default_factory=list)
    images: list[str] = field(default_factory=list)
    shards: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)

    def within(self, names: Sequence[str]) -> list[str]:
        """Places of these files."""
        return [f"{self.place}/{name}" if self.place else name for name in names]


def _look(root: str, place: str) -> _Folder:
    folder = _Folder(place)
    with os.scandir(os.path.join(root, place)) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            lower = entry.name.lower()
            if entry.is_dir():
                folder.folders.append(entry.name)
            elif lower.endswith((*IMAGE_SUFFIXES, ".tar")):
                if not entry.is_file():  # of which the system knows without opening it
                    folder.unreadable.append(entry.path)
                (folder.shards if lower.endswith(".tar") else folder.images).append(entry.name)
    for names in (folder.folders, folder.images, folder.shards):
        names.sort()
    return folder


def _check_readable(folder: _Folder) -> None:
    for path in sorted(folder.unreadable):
        raise DataError(f"{path} is a broken link or no plain file; repair or remove it")


def _form(root: str, folder: _Folder) -> str:
    """``classes``, ``images`` or ``shards``: the one kind of thing that the folder holds."""
    _check_readable(folder)
    kinds = {"classes": folder.folders, "images": folder.images, "shards": folder.shards}
    present = [kind for kind, names in kinds.items() if names]
    if len(present) == 1:
        return present[0]
    path = os.path.join(root, folder.place)
    if not present:
        raise DataError(f"{path} holds no class folders, no JPEG or PNG files and no .tar shards; add some")
    raise DataError(f"{path} mixes {_found(folder)}; keep one of these kinds")


def _found(folder: _Folder) -> str:
    kinds = (("folders", folder.folders), ("image files", folder.images), (".tar shards", folder.shards))
    return ", ".join(f"{kind} (such as {names[0]})" for kind, names in kinds if names) or "nothing"


def _list_halves(root: str, train: _Folder, test: _Folder, progress: bool) -> Listing:
    form = _form(root, train)
    if _form(root, test) != form:
        raise DataError(
            f"train/ of {root} holds {_found(train)}, but {test.place}/ {_found(test)}; both halves "
            f"must be of one kind"
        )
    if form == "shards":
        return _list_shards(root, train.within(train.shards), test.within(test.shards), progress)
    if form == "images":
        files = [train.within(train.images), test.within(test.images)]
        return _list_files(root, (), [[files[0]], [files[1]]])
    if train.folders != test.folders:
        different = sorted(set(train.folders) ^ set(test.folders))
        raise DataError(
            f"train/ and {test.place}/ of {root} must hold the same classes; only one has "
            f"{', '.join(different)}"
        )
    by_class = [
        [_class_files(root, f"{half.place}/{name}") for name in half.folders] for half in (train, test)
    ]
    return _list_files(root, tuple(train.folders), by_class)


def _class_files(root: str, place: str) -> list[str]:
    folder = _look(root, place)
    _check_readable(folder)
    if not folder.images:
        raise DataError(
            f"{os.path.join(root, place)} holds no .jpg, .jpeg or .png files; add some or remove the folder"
        )
    return folder.within(folder.images)


def _list_files(root: str, classes: tuple[str, ...], by_class: list[list[list[str]]]) -> Listing:
    """From the places of the files of each class of each half."""
    places = [place for half in by_class for files in half for place in files]
    digest, sizes, times = _digest(root, places)
    labels = np.concatenate(
        [np.repeat(np.arange(len(half)), [len(files) for files in half]) for half in by_class]
    )
    return Listing(
        classes=tuple(map(readable, classes)),
        source=FileSource(root, [os.path.join(root, place) for place in places], sizes, times),
        labels=labels,
        train_count=sum(len(files) for files in by_class[0]),
        digest=digest,
    )


def _list_shards(root: str, train: list[str], test: list[str], progress: bool) -> Listing:
    """From the places of the shards of both halves; without test shards, images are not yet divided."""
    shards = train + test
    digest, _, times = _digest(root, shards)
    paths = [os.path.join(root, shard) for shard in shards]
    source, labels = index_shards(root, paths, digest, cache_places(Path(root)), progress, times.tolist())
    classes = () if labels is None else tuple(str(label) for label in range(int(labels.max()) + 1))
    return Listing(
        classes=classes,
        source=source,
        labels=np.zeros(len(source), np.int64) if labels is None else labels,
        train_count=int((source.shard_numbers < len(train)).sum()),
        digest=digest,
    )


def _list_undivided(root: str, top: _Folder, progress: bool) -> Listing:
    """Hold out the first image and every 20th after it: evenly spaced, and the same on every machine."""
    if _form(root, top) == "shards":
        whole = _list_shards(root, top.shards, [], progress)
    else:
        whole = _list_files(root, (), [[top.images], []])
    if len(whole.source) < 2:
        raise DataError(f"{root} holds one image; it needs at least two, one of them for the test")
    numbers = np.arange(len(whole.source))
    is_test = numbers % HOLD_OUT_EVERY == 0
    order = np.concatenate([numbers[~is_test], numbers[is_test]])
    return Listing(
        classes=whole.classes,
        source=whole.source.take(order),
        labels=whole.labels[order],
        train_count=int((~is_test).sum()),
        digest=whole.digest,
    )


def readable(name: str) -> str:
    """A name from the disk as text that can be printed: bytes that are no UTF-8 are replaced."""
    return os.fsencode(name).decode("utf-8", errors="replace")


def _digest(root: str, places: list[str]) -> tuple[str, npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """SHA-256 over places, sizes and times of change, the sizes, and the times."""
    digest = hashlib.sha256(_FORMAT.encode())
    sizes, times = np.empty((2, len(places)), dtype=np.int64)
    for number, place in enumerate(places):
        found = os.stat(os.path.join(root, place))
        sizes[number], times[number] = found.st_size, found.st_mtime_ns
        # A zero byte ends the name: no file name can hold one.
        digest.update(os.fsencode(f"{place}\0{found.st_size} {found.st_mtime_ns}\n"))
    return digest.hexdigest(), sizes, times

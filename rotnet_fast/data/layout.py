"""Layouts of data folders: decides which files are images, which split they belong to, and their classes.

Layouts of DATA_DIR:

====================================  ===================================================================
train/<class>/  and  test/<class>/    images, also in subfolders; a label is the class's position in
                                      sorted order
train/  and  test/                    images without classes
train/*.tar  and  test/*.tar          WebDataset shards, see :mod:`rotnet_fast.data.webdataset`
*.tar in DATA_DIR itself              shards whose names tell their split, such as x-train-0.tar
only train/, of any of these kinds    the first and then every 20th image of a class is a test image
images or *.tar in DATA_DIR itself    likewise
====================================  ===================================================================

The test split may also be called val/, valid/ or validation/; if there are several, the first of the four
with the same kind of content as train/ is used. If a split contains only the folder images/, the contents of
that folder are used. If the file val_annotations.txt lies next to this folder, as in Tiny ImageNet, each of
its lines gives the class of an image: name and class, separated by a tab.

Images are files with a suffix of :mod:`rotnet_fast.data.kinds`; their contents decide their format. Folders
and files whose name starts with a dot, other files and, if there is a train/, everything else in DATA_DIR are
ignored and counted in `Listing.ignored`. Links are followed; a broken link, FIFO or device that is named
like an image or a shard is an error. Files are sorted by name, by code point, so 10.jpg comes before 2.jpg.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from rotnet_fast.data.cache import FOLDER_NAME, cache_places
from rotnet_fast.data.ignored import IgnoredFiles
from rotnet_fast.data.kinds import IMAGE_SUFFIXES, SUFFIXES_TEXT
from rotnet_fast.data.source import FileSource, ImageSource
from rotnet_fast.data.webdataset import index_shards
from rotnet_fast.errors import DataError
from rotnet_fast.files import cannot_read, is_archive, open_plain, unpacking
from rotnet_fast.plain import counted

HOLD_OUT_EVERY = 20
TEST_NAMES = ("test", "val", "valid", "validation")
_HALVES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("test", "testing"), "test"),
    "val": "val",
    **dict.fromkeys(("valid", "validation", "dev", "eval"), "validation"),
}
"""Map a word in the name of a shard or folder to the split that it stands for."""
_HALF_IN_NAME = re.compile(f"(?<![a-z])({'|'.join(_HALVES)})(?![a-z])")
EXPECTED = (
    "it must hold train/ and test/ (or val/, valid/, validation/), or only train/, each with class folders "
    "of images, with images, or with .tar shards; or directly images or shards"
)
_MOST_ANNOTATIONS = 1 << 28  # bytes
_SHOWN = 8
_FORMAT = "1"  # raise it when the same files would be decoded to other pixels


@dataclass(frozen=True)
class Listing:
    """List the images of a data folder, without their contents.

    Attributes:
        classes: class names, indexed by label; empty if the images have no labels.
        source: the images, the training split first.
        labels: int64 [N]; all 0 if there are no classes, and -1 where only some images have one.
        train_count: number of training images.
        digest: SHA-256 (hexadecimal) over each file's relative path, size and modification time.
        ignored: what else the folder contains.
        held_out: True if the test split was held out from the only split that the folder has.
    """

    classes: tuple[str, ...]
    source: ImageSource
    labels: npt.NDArray[np.int64]
    train_count: int
    digest: str
    ignored: IgnoredFiles
    held_out: bool = False


def list_folder(data_dir: Path, progress: bool = False) -> Listing:
    """Find the images of a data folder.

    Args:
        data_dir: the folder, in one of the layouts above.
        progress: show a progress bar while tar shards are indexed.

    Raises:
        DataError: the folder has none of the layouts or mixes several, or a tar shard is damaged.
    """
    root = os.fspath(data_dir)
    try:
        top = _scan(root, "")
        if "train" not in top.folders:
            if not top.images and not top.shards:
                raise DataError(f"{root} has no train/: {_hint(root, top) or EXPECTED}. Found: {_found(top)}")
            return _list_undivided(root, top, top.others, progress)
        train = _scan_split(root, "train")
        present = [name for name in TEST_NAMES if name in top.folders]
        seconds = [_scan_split(root, name) for name in present]
        # ImageNet, for example, has class folders in val/ and files without labels in test/.
        second = next((half for half in seconds if half.kinds() == train.kinds()), None)
        second = seconds[0] if second is None and seconds else second
        used = ["train/"] if second is None else ["train/", f"{second.half}/"]
        ignored = top.others
        for name in [*top.images, *top.shards, *(f"{name}/" for name in top.folders)]:
            if name not in used:
                ignored.add("next to train/", name)
        if second is not None:
            return _list_halves(root, train, second, ignored, progress)
        misnamed = {name: half for name, half in _misnamed_splits(top).items() if half != "train"}
        misnamed = {
            name: half for name, half in misnamed.items() if _scan(root, name).kinds() == train.kinds()
        }
        if misnamed:
            raise DataError(f"{root} has train/, but no test split; {_renaming(root, misnamed)}")
        ignored.update(train.others)
        return _list_undivided(root, train, ignored, progress)
    except OSError as error:
        raise DataError(cannot_read(root, error, EXPECTED)) from error


def list_images(folder: Path, progress: bool = False) -> Listing:
    """Find every image under a folder, in all of its subfolders; nothing is held out.

    Images are sorted by their paths, by code point. If there are no image files, the members of all .tar
    shards are listed, shard by shard; beside image files, shards are ignored.

    A folder may have the layouts above, or any other. Its splits are the folders called train, test, val,
    valid and validation or, if there are none, the folder itself. An image has a class if all images of its
    split lie in class folders (their names are the classes, whatever further subfolders they have), or if an
    annotations file gives one. Fewer than two classes are none.

    Args:
        folder: the folder.
        progress: show a progress bar while tar shards are indexed.

    Returns:
        A listing whose images all count as training images. Its labels are -1 for images without a class.

    Raises:
        DataError: the folder cannot be read or holds no images, or a tar shard is damaged.
    """
    root = os.fspath(folder)
    ignored = IgnoredFiles()
    try:
        shards: list[str] = []
        places = sorted(_files_within(root, "", (), ignored, shards))
        if not places and shards:
            return _list_shards(root, sorted(shards), [], ignored, progress)
        for shard in shards:
            ignored.add_file(shard)
        if not places:
            raise DataError(f"{root} {_without_images(root, ignored)}")
        class_of = _classes_by_place(root, places)
        classes = sorted(set(class_of.values()))
        numbers = {name: number for number, name in enumerate(classes)} if len(classes) > 1 else {}
        listing = _list_files(root, tuple(numbers), [[places], []], ignored)
        labels = [numbers.get(class_of.get(place, ""), -1) for place in places]
        return replace(listing, labels=np.array(labels if numbers else np.zeros(len(places)), dtype=np.int64))
    except OSError as error:
        raise DataError(cannot_read(root, error, "pass a folder of images")) from error


def _classes_by_place(root: str, places: Sequence[str]) -> dict[str, str]:
    """Map the paths of those images that have a class to its name, see :func:`list_images`."""
    top = _scan(root, "")
    splits = [_scan_split(root, name) for name in ("train", *TEST_NAMES) if name in top.folders] or [top]
    class_of: dict[str, str] = {}
    for split in splits:
        if split.annotated:
            for name, images in split.annotated.items():
                class_of |= dict.fromkeys(split.within(images), name)
        elif split.kinds() == ["classes"]:
            start = f"{split.place}/" if split.place else ""
            inner = (place for place in places if place.startswith(start))
            class_of |= {place: place[len(start) :].partition("/")[0] for place in inner}
    return class_of


def _without_images(root: str, ignored: IgnoredFiles) -> str:
    but = f", but {ignored}" if ignored else ""
    return f"holds no images ({SUFFIXES_TEXT}){but}; pass a folder of images"


def _packed(path: str, folder: _Folder) -> str:
    count, first = len(folder.archives), folder.archives[0]
    held = f"{count} archives such as {first}" if count > 1 else f"the archive {first}"
    return f"holds {held}, and packed images are not read; {unpacking(path, folder.archives)}"


def _misnamed_splits(top: _Folder) -> dict[str, str]:
    """Map each folder whose name is nearly that of a split to the right name."""
    found = {name: _HALVES[name.lower()] for name in top.folders if name.lower() in _HALVES}
    return {name: half for name, half in found.items() if name not in ("train", *TEST_NAMES)}


def _renaming(root: str, misnamed: dict[str, str]) -> str:
    moves = (f"{shlex.quote(os.path.join(root, name))} to {half}" for name, half in misnamed.items())
    return f"rename {', '.join(moves)}"


def _hint(root: str, top: _Folder) -> str:
    """Return the remedy for a folder without train/, images and shards, or "" if none can be guessed."""
    real = os.path.realpath(root)
    above, name = os.path.split(real)
    if top.archives:
        return f"it {_packed(root, top)}"
    for inner in top.folders:
        if os.path.isdir(os.path.join(root, inner, "train")):
            return f"train/ is in {inner}/; pass --data-dir {os.path.join(root, inner)}"
    if name in ("train", *TEST_NAMES) and os.path.isdir(os.path.join(above, "train")):
        return f"it is one split of a data set; pass --data-dir {above}"
    for path, data_dir in ((root, above), (os.path.join(root, "cifar-10-batches-bin"), real)):
        if os.path.exists(os.path.join(path, "data_batch_1.bin")):
            return f"it is CIFAR-10; use --dataset cifar10 --data-dir {data_dir}"
    if misnamed := _misnamed_splits(top):
        return _renaming(root, misnamed)
    if top.folders and not any(half in top.folders for half in TEST_NAMES):
        return (
            f"if these folders are classes, move them into {os.path.join(root, 'train')}, and every "
            f"{HOLD_OUT_EVERY}th image is held out as the test split; otherwise {EXPECTED}"
        )
    return ""


@dataclass
class _Folder:
    """Hold the contents of one folder: its path below the data folder ("" for itself), and sorted names.

    ``unreadable`` are the paths of entries that are named like an image or a shard but are broken links or
    not regular files; ``archives`` are the other files that are packed. ``annotated`` maps classes that are
    not folders to their images; then ``folders`` are these classes, and ``images`` is empty.
    """

    place: str
    folders: list[str] = field(default_factory=list)
    images: list[str] = field(default_factory=list)
    shards: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    others: IgnoredFiles = field(default_factory=IgnoredFiles)
    archives: list[str] = field(default_factory=list)
    annotated: dict[str, list[str]] = field(default_factory=dict)

    @property
    def half(self) -> str:
        """Return the name of the split that this folder is, or lies in."""
        return self.place.partition("/")[0]

    def within(self, names: Sequence[str]) -> list[str]:
        """Return the paths of these files below the data folder."""
        return [f"{self.place}/{name}" if self.place else name for name in names]

    def kinds(self) -> list[str]:
        """Return which of ``classes``, ``images`` and ``shards`` the folder contains."""
        kinds = {"classes": self.folders, "images": self.images, "shards": self.shards}
        return [kind for kind, names in kinds.items() if names]


def _scan(root: str, place: str) -> _Folder:
    folder = _Folder(place)
    with os.scandir(os.path.join(root, place)) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            lower = entry.name.lower()
            is_hidden = entry.name.startswith(".")
            if not is_hidden and entry.is_dir():
                folder.folders.append(entry.name)
            elif not is_hidden and lower.endswith((*IMAGE_SUFFIXES, ".tar")):
                if not entry.is_file():  # known without opening it
                    folder.unreadable.append(entry.path)
                (folder.shards if lower.endswith(".tar") else folder.images).append(entry.name)
            elif entry.name != FOLDER_NAME:
                folder.others.add_file(*folder.within([entry.name]))
                if not is_hidden and is_archive(entry.name):
                    folder.archives.append(entry.name)
    return folder


def _scan_split(root: str, half: str) -> _Folder:
    """Scan a split, whose images may lie in images/ with their classes in a file next to that folder."""
    folder = _scan(root, half)
    if folder.kinds() != ["classes"] or folder.folders != ["images"]:
        return folder
    inner = _scan(root, f"{half}/images")
    annotations = f"{half}_annotations.txt"
    if inner.images and not inner.folders and os.path.lexists(os.path.join(root, half, annotations)):
        inner.annotated = _annotated(os.path.join(root, half, annotations), inner)
        inner.folders, inner.images = sorted(inner.annotated), []
    inner.others.update(folder.others)
    return inner


def _annotated(path: str, folder: _Folder) -> dict[str, list[str]]:
    """Map each class to its images in sorted order, as listed in an annotations file."""
    with open(path, "rb", opener=lambda name, _: open_plain(name)) as file:
        content = file.read(_MOST_ANNOTATIONS)
    class_of: dict[str, str] = {}
    for number, line in enumerate(os.fsdecode(content).splitlines(), 1):
        if not line.strip():
            continue
        name, tab, rest = line.partition("\t")
        label = rest.partition("\t")[0].strip()
        if not tab or not label or class_of.setdefault(name, label) != label:
            raise DataError(
                f"line {number} of {path} does not assign one class to one image; it must be the name of an "
                f"image, a tab and its class"
            )
    for problem, names in (
        ("gives no class for", sorted(set(folder.images) - class_of.keys())),
        ("lists images that are not in images/:", sorted(class_of.keys() - set(folder.images))),
    ):
        if names:
            raise DataError(
                f"{path} {problem} {_listed(names)}; unpack the data set again, or replace this file with "
                f"class folders in {folder.half}/"
            )
    by_class: dict[str, list[str]] = {}
    for name in folder.images:
        by_class.setdefault(class_of[name], []).append(name)
    return by_class


def _listed(names: Sequence[str]) -> str:
    more = f" and {counted(len(names) - _SHOWN, 'other')}" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _check_readable(folder: _Folder) -> None:
    for path in sorted(folder.unreadable):
        raise DataError(f"{path} is a broken link or not a regular file; repair or remove it")


def _form(root: str, folder: _Folder) -> str:
    """Return the one kind of content that the folder has: ``classes``, ``images`` or ``shards``."""
    _check_readable(folder)
    present = folder.kinds()
    path = os.path.join(root, folder.place)
    if folder.archives and present in ([], ["shards"]):  # most of the shards may be packed
        raise DataError(f"{path} {_packed(path, folder)}")
    if len(present) == 1:
        return present[0]
    if not present:
        raise DataError(
            f"{path} holds no class folders, images ({SUFFIXES_TEXT}) or .tar shards{_ignored_note(folder)}; "
            f"add some"
        )
    raise DataError(f"{path} mixes {_found(folder)}; keep only one of these kinds")


def _found(folder: _Folder) -> str:
    kinds = (("folders", folder.folders), ("image files", folder.images), (".tar shards", folder.shards))
    found = [f"{kind} (such as {names[0]})" for kind, names in kinds if names]
    return ", ".join(found) or str(folder.others) or "nothing"


def _ignored_note(folder: _Folder) -> str:
    return f", but {folder.others}" if folder.others else ""


def _list_halves(root: str, train: _Folder, test: _Folder, ignored: IgnoredFiles, progress: bool) -> Listing:
    form = _form(root, train)
    if _form(root, test) != form:
        raise DataError(
            f"{train.place}/ of {root} holds {_found(train)}, but {test.place}/ holds {_found(test)}; "
            f"give both splits the same kind of content, or move {test.half}/ away to hold out every "
            f"{HOLD_OUT_EVERY}th image of train/ as the test split"
        )
    for half in (train, test):
        ignored.update(half.others)
    if form == "shards":
        for half in (train, test):
            _check_unmixed(os.path.join(root, half.place), half.shards)
        shards = (train.within(train.shards), test.within(test.shards))
        return _list_shards(root, *shards, ignored, progress)
    if form == "images":
        files = [train.within(train.images), test.within(test.images)]
        return _list_files(root, (), [[files[0]], [files[1]]], ignored)
    different = sorted(set(train.folders) ^ set(test.folders))
    if different:
        names = _listed(different)
        if len({unicodedata.normalize("NFC", name) for name in different}) < len(different):
            names = f"{', '.join(map(ascii, different))} (some differ only in how accents are encoded)"
        raise DataError(
            f"{train.place}/ and {test.place}/ of {root} must have the same classes; only one has {names}"
        )
    by_class = [_files_by_class(root, half, ignored) for half in (train, test)]
    return _list_files(root, tuple(train.folders), by_class, ignored)


def _files_by_class(root: str, half: _Folder, ignored: IgnoredFiles) -> list[list[str]]:
    """Return the paths of the images of each class."""
    if half.annotated:
        return [half.within(half.annotated[name]) for name in half.folders]
    return [_class_files(root, place, ignored) for place in half.within(half.folders)]


def _class_files(root: str, place: str, ignored: IgnoredFiles) -> list[str]:
    """Return the paths of a class's images, in its folder and all subfolders."""
    others, shards = IgnoredFiles(), list[str]()
    files = sorted(_files_within(root, place, (), others, shards))
    for shard in shards:
        others.add_file(shard)
    if not files:
        but = f", but {others}; convert or unpack them, or" if others else "; add some or"
        raise DataError(
            f"{os.path.join(root, place)} holds no images ({SUFFIXES_TEXT}){but} remove the folder"
        )
    ignored.update(others)
    return files


def _files_within(
    root: str, place: str, above: tuple[tuple[int, int], ...], ignored: IgnoredFiles, shards: list[str]
) -> Iterator[str]:
    """Yield the paths of all images in a folder and its subfolders, and add those of shards to ``shards``."""
    path = os.path.join(root, place)
    found = os.stat(path)
    here = (found.st_dev, found.st_ino)
    if here in above:
        raise DataError(f"{path} is a link to one of its parent folders; remove it")
    folder = _scan(root, place)
    _check_readable(folder)
    shards += folder.within(folder.shards)
    ignored.update(folder.others)
    yield from folder.within(folder.images)
    for inner in folder.within(folder.folders):
        yield from _files_within(root, inner, (*above, here), ignored, shards)


def _list_files(
    root: str, classes: tuple[str, ...], by_class: list[list[list[str]]], ignored: IgnoredFiles
) -> Listing:
    """Make the listing from the paths of the files, by split and class."""
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
        ignored=ignored,
    )


def _list_shards(
    root: str, train: list[str], test: list[str], ignored: IgnoredFiles, progress: bool
) -> Listing:
    """Make the listing from the paths of the shards; without test shards, images are not split yet."""
    shards = train + test
    digest, _, times = _digest(root, shards)
    paths = [os.path.join(root, shard) for shard in shards]
    index = index_shards(root, paths, digest, cache_places(Path(root)), progress, times.tolist())
    source, labels = index.source, index.labels
    classes: tuple[str, ...] = ()
    if labels is not None:  # counted from 0 or 1, or with gaps
        values, labels = np.unique(labels, return_inverse=True)
        classes = tuple(map(str, values.tolist())) if len(values) > 1 else ()
    ignored.update(index.ignored)
    return Listing(
        classes=classes,
        source=source,
        labels=np.zeros(len(source), np.int64) if labels is None else labels,
        train_count=int((source.shard_numbers < len(train)).sum()),
        digest=digest,
        ignored=ignored,
    )


def _half_of(shard: str) -> str | None:
    """Return the split in a shard's name, ``train`` or one of ``TEST_NAMES``, or None if it has none."""
    found = _HALF_IN_NAME.findall(shard.lower())
    return None if not found else _HALVES[found[-1]]


def _check_unmixed(path: str, shards: list[str]) -> None:
    """Refuse shards of both splits in the folder of one split."""
    halves = {_half_of(name): name for name in reversed(shards)}
    tests = [halves[name] for name in TEST_NAMES if name in halves]
    if "train" in halves and tests:
        raise DataError(
            f"{path} holds shards of both splits, such as {halves['train']} and {tests[0]}; move those of "
            f"the other split into its own folder"
        )


def _divide(root: str, shards: list[str]) -> dict[str, list[str]] | None:
    """Group shards by the split in their names; return None unless the names tell several splits."""
    by_half: dict[str | None, list[str]] = {}
    for name in shards:
        by_half.setdefault(_half_of(name), []).append(name)
    tests = [name for name in TEST_NAMES if name in by_half]
    if not tests or len(by_half) == 1:
        return None
    if "train" not in by_half or None in by_half:
        unclear = by_half.get(None, by_half[tests[-1]])[0]
        raise DataError(
            f"{root} holds shards of several splits, such as {by_half[tests[0]][0]} and {unclear}, but "
            f"not every name contains train, test, val or validation; move them into train/ and test/"
        )
    return {half: names for half, names in by_half.items() if half is not None}


def held_out(labels: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Choose test images: the first of each class and every 20th after it, identical on every machine.

    A class of a single image is only trained on.

    Args:
        labels: int64 [N]; all the same where there are no classes.
    """
    order = np.argsort(labels, kind="stable")
    _, starts, sizes = np.unique(labels[order], return_index=True, return_counts=True)
    is_test = np.zeros(len(labels), dtype=np.bool_)
    for start, size in zip(starts.tolist(), sizes.tolist(), strict=True):
        if size > 1:
            is_test[order[start : start + size : HOLD_OUT_EVERY]] = True
    if not is_test.any():  # no class has two images
        is_test[::HOLD_OUT_EVERY] = True
    return is_test


def _list_undivided(root: str, folder: _Folder, ignored: IgnoredFiles, progress: bool) -> Listing:
    """List images of which some are held out for testing, see :func:`held_out`."""
    form = _form(root, folder)
    if form == "shards":
        halves = _divide(os.path.join(root, folder.place), folder.shards)
        if halves is not None:
            second, *rest = (name for name in TEST_NAMES if name in halves)
            for name in rest:
                ignored.add(f"shards of {name}", halves[name][0], len(halves[name]))
            shards = (folder.within(halves["train"]), folder.within(halves[second]))
            return _list_shards(root, *shards, ignored, progress)
        whole = _list_shards(root, folder.within(folder.shards), [], ignored, progress)
    elif form == "images":
        whole = _list_files(root, (), [[folder.within(folder.images)], []], ignored)
    else:
        by_class = _files_by_class(root, folder, ignored)
        whole = _list_files(root, tuple(folder.folders), [by_class, []], ignored)
    if len(whole.source) < 2:
        path = os.path.join(root, folder.place)
        raise DataError(f"{path} holds one image; at least two are needed, one of them as the test split")
    numbers = np.arange(len(whole.source))
    is_test = held_out(whole.labels)
    order = np.concatenate([numbers[~is_test], numbers[is_test]])
    return replace(
        whole,
        source=whole.source.take(order),
        labels=whole.labels[order],
        train_count=int((~is_test).sum()),
        held_out=True,
    )


def readable(name: str) -> str:
    """Return a file name as printable text, with bytes that are not UTF-8 replaced."""
    return os.fsencode(name).decode("utf-8", errors="replace")


def _digest(root: str, places: list[str]) -> tuple[str, npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the SHA-256 over paths, sizes and modification times, the sizes, and the times."""
    digest = hashlib.sha256(_FORMAT.encode())
    sizes, times = np.empty((2, len(places)), dtype=np.int64)
    for number, place in enumerate(places):
        found = os.stat(os.path.join(root, place))
        sizes[number], times[number] = found.st_size, found.st_mtime_ns
        # A zero byte ends the name: no file name can hold one.
        digest.update(os.fsencode(f"{place}\0{found.st_size} {found.st_mtime_ns}\n"))
    return digest.hexdigest(), sizes, times

"""What a data folder holds: the one place that decides which files are the images, halves and classes.

Layouts of DATA_DIR:

====================================  ===================================================================
train/<class>/  and  test/<class>/    images, also in folders within; a label is the class's position in
                                      sorted order
train/  and  test/                    images without classes
train/*.tar  and  test/*.tar          WebDataset shards, see :mod:`rotnet_fast.data.webdataset`
*.tar in DATA_DIR itself              shards whose names say which half they are of, such as x-train-0.tar
train/  alone, of any of these kinds  the first and then every 20th image is a test image
images or *.tar in DATA_DIR itself    likewise
====================================  ===================================================================

Instead of test/ the second half may be called val/, valid/ or validation/; of several, the first of the four
that holds what train/ does is taken. A half that holds nothing but the folder images/ is what that folder
holds. Where the file val_annotations.txt lies beside this folder, as in Tiny ImageNet, its lines give the
classes of the images: name and class with a tab between them.

Images are files with a suffix of :mod:`rotnet_fast.data.kinds`; what they are is decided by their contents.
Passed over, and counted in `Listing.passed_over`, are folders and files whose name starts with a dot, other
files and, where there is train/, whatever else lies in DATA_DIR. Links are followed; what is named like an
image or a shard and is a broken link, a FIFO or a device is an error. Files are sorted by name, by code
point, so that 10.jpg comes before 2.jpg.
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
from rotnet_fast.data.kinds import IMAGE_SUFFIXES, SUFFIXES_SAID
from rotnet_fast.data.passed import PassedOver
from rotnet_fast.data.source import FileSource, ImageSource
from rotnet_fast.data.webdataset import index_shards
from rotnet_fast.errors import DataError
from rotnet_fast.files import cannot_read, is_archive, open_plain, unpacking

HOLD_OUT_EVERY = 20
TEST_NAMES = ("test", "val", "valid", "validation")
_HALVES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("test", "testing"), "test"),
    "val": "val",
    **dict.fromkeys(("valid", "validation", "dev", "eval"), "validation"),
}
"""Words in the names of shards -> the half that they say."""
_HALF_IN_NAME = re.compile(f"(?<![a-z])({'|'.join(_HALVES)})(?![a-z])")
EXPECTED = (
    "it must hold train/ and test/ (or val/, valid/, validation/), or train/ alone, with class folders of "
    "images, with images, or with .tar shards; or images or shards directly"
)
_MOST_ANNOTATIONS = 1 << 28  # bytes
_SHOWN = 8
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
        passed_over: what else there is.
        held_out: there is no second half, so that images of the first are test images.
    """

    classes: tuple[str, ...]
    source: ImageSource
    labels: npt.NDArray[np.int64]
    train_count: int
    digest: str
    passed_over: PassedOver
    held_out: bool = False


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
        if "train" not in top.folders:
            if not top.images and not top.shards:
                raise DataError(f"{root} has no train/: {_hint(root, top) or EXPECTED}. Found: {_found(top)}")
            return _list_undivided(root, top, top.others, progress)
        train = _look_half(root, "train")
        present = [name for name in TEST_NAMES if name in top.folders]
        seconds = [_look_half(root, name) for name in present]
        # ImageNet, for one, has class folders in val/ and files without labels in test/.
        second = next((half for half in seconds if half.kinds() == train.kinds()), None)
        second = seconds[0] if second is None and seconds else second
        used = ["train/"] if second is None else ["train/", f"{second.half}/"]
        passed_over = top.others
        for name in [*top.images, *top.shards, *(f"{name}/" for name in top.folders)]:
            if name not in used:
                passed_over.add("beside train/", name)
        if second is not None:
            return _list_halves(root, train, second, passed_over, progress)
        alike = {name: half for name, half in _called_like_halves(top).items() if half != "train"}
        alike = {name: half for name, half in alike.items() if _look(root, name).kinds() == train.kinds()}
        if alike:
            raise DataError(f"{root} has train/, but no second half: {_renaming(root, alike)}")
        passed_over.update(train.others)
        return _list_undivided(root, train, passed_over, progress)
    except OSError as error:
        raise DataError(cannot_read(root, error, EXPECTED)) from error


def _packed(path: str, folder: _Folder) -> str:
    count, first = len(folder.archives), folder.archives[0]
    held = f"{count} archives such as {first}" if count > 1 else f"the archive {first}"
    return f"holds {held}, and nothing is read where it is packed; {unpacking(path, folder.archives)}"


def _called_like_halves(top: _Folder) -> dict[str, str]:
    """Folders that are not called as halves must be, but nearly so -> the right name."""
    found = {name: _HALVES[name.lower()] for name in top.folders if name.lower() in _HALVES}
    return {name: half for name, half in found.items() if name not in ("train", *TEST_NAMES)}


def _renaming(root: str, alike: dict[str, str]) -> str:
    moves = (f"{shlex.quote(os.path.join(root, name))} as {half}" for name, half in alike.items())
    return f"rename {', '.join(moves)}"


def _hint(root: str, top: _Folder) -> str:
    """What to do about a folder without train/, images and shards, where that can be told."""
    real = os.path.realpath(root)
    above, name = os.path.split(real)
    if top.archives:
        return f"it {_packed(root, top)}"
    for inner in top.folders:
        if os.path.isdir(os.path.join(root, inner, "train")):
            return f"train/ lies in {inner}/; give --data-dir {os.path.join(root, inner)}"
    if name in ("train", *TEST_NAMES) and os.path.isdir(os.path.join(above, "train")):
        return f"it is a half of a data set; give --data-dir {above}"
    for path, data_dir in ((root, above), (os.path.join(root, "cifar-10-batches-bin"), real)):
        if os.path.exists(os.path.join(path, "data_batch_1.bin")):
            return f"it is the CIFAR-10 of --dataset cifar10; give that with --data-dir {data_dir}"
    if alike := _called_like_halves(top):
        return _renaming(root, alike)
    if top.folders and not any(half in top.folders for half in TEST_NAMES):
        return (
            f"if these folders are classes, move them into {os.path.join(root, 'train')}, of which every "
            f"{HOLD_OUT_EVERY}th image is then held out for the test; else {EXPECTED}"
        )
    return ""


@dataclass
class _Folder:
    """What lies in one folder: its place below the data folder ("" for itself), and sorted names.

    ``unreadable`` are paths of what is named like an image or a shard but is a broken link or no plain file;
    ``archives`` are those of the others that are packed. ``annotated`` are the images of classes that are no
    folders, by class; then ``folders`` are these classes, and ``images`` is empty.
    """

    place: str
    folders: list[str] = field(default_factory=list)
    images: list[str] = field(default_factory=list)
    shards: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    others: PassedOver = field(default_factory=PassedOver)
    archives: list[str] = field(default_factory=list)
    annotated: dict[str, list[str]] = field(default_factory=dict)

    @property
    def half(self) -> str:
        """Name of the half that it is, or lies in."""
        return self.place.partition("/")[0]

    def within(self, names: Sequence[str]) -> list[str]:
        """Places of these files."""
        return [f"{self.place}/{name}" if self.place else name for name in names]

    def kinds(self) -> list[str]:
        """Of ``classes``, ``images`` and ``shards``, those that it holds."""
        kinds = {"classes": self.folders, "images": self.images, "shards": self.shards}
        return [kind for kind, names in kinds.items() if names]


def _look(root: str, place: str) -> _Folder:
    folder = _Folder(place)
    with os.scandir(os.path.join(root, place)) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            lower = entry.name.lower()
            is_hidden = entry.name.startswith(".")
            if not is_hidden and entry.is_dir():
                folder.folders.append(entry.name)
            elif not is_hidden and lower.endswith((*IMAGE_SUFFIXES, ".tar")):
                if not entry.is_file():  # of which the system knows without opening it
                    folder.unreadable.append(entry.path)
                (folder.shards if lower.endswith(".tar") else folder.images).append(entry.name)
            elif entry.name != FOLDER_NAME:
                folder.others.add_file(*folder.within([entry.name]))
                if not is_hidden and is_archive(entry.name):
                    folder.archives.append(entry.name)
    return folder


def _look_half(root: str, half: str) -> _Folder:
    """A half, which may lie in its folder images/ with its classes in a file beside that."""
    folder = _look(root, half)
    if folder.kinds() != ["classes"] or folder.folders != ["images"]:
        return folder
    inner = _look(root, f"{half}/images")
    annotations = f"{half}_annotations.txt"
    if inner.images and not inner.folders and os.path.lexists(os.path.join(root, half, annotations)):
        inner.annotated = _annotated(os.path.join(root, half, annotations), inner)
        inner.folders, inner.images = sorted(inner.annotated), []
    inner.others.update(folder.others)
    return inner


def _annotated(path: str, folder: _Folder) -> dict[str, list[str]]:
    """Class -> images of the folder, in sorted order, as the lines of a file have them."""
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
                f"line {number} of {path} does not give one class of one image; it must be the name of an "
                f"image, a tab and its class"
            )
    for said, names in (
        ("names no class for", sorted(set(folder.images) - class_of.keys())),
        ("names, but the folder beside it does not hold,", sorted(class_of.keys() - set(folder.images))),
    ):
        if names:
            raise DataError(
                f"{path} {said} {_listed(names)}; unpack the data set again, or give {folder.half}/ class "
                f"folders in place of this file"
            )
    by_class: dict[str, list[str]] = {}
    for name in folder.images:
        by_class.setdefault(class_of[name], []).append(name)
    return by_class


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} others" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _check_readable(folder: _Folder) -> None:
    for path in sorted(folder.unreadable):
        raise DataError(f"{path} is a broken link or no plain file; repair or remove it")


def _form(root: str, folder: _Folder) -> str:
    """``classes``, ``images`` or ``shards``: the one kind of thing that the folder holds."""
    _check_readable(folder)
    present = folder.kinds()
    path = os.path.join(root, folder.place)
    if folder.archives and present in ([], ["shards"]):  # of shards they may be the larger part
        raise DataError(f"{path} {_packed(path, folder)}")
    if len(present) == 1:
        return present[0]
    if not present:
        raise DataError(
            f"{path} holds no class folders, no images ({SUFFIXES_SAID}) and no .tar shards{_but(folder)}; "
            f"add some"
        )
    raise DataError(f"{path} mixes {_found(folder)}; keep one of these kinds")


def _found(folder: _Folder) -> str:
    kinds = (("folders", folder.folders), ("image files", folder.images), (".tar shards", folder.shards))
    found = [f"{kind} (such as {names[0]})" for kind, names in kinds if names]
    return ", ".join(found) or str(folder.others) or "nothing"


def _but(folder: _Folder) -> str:
    return f", but {folder.others}" if folder.others else ""


def _list_halves(
    root: str, train: _Folder, test: _Folder, passed_over: PassedOver, progress: bool
) -> Listing:
    form = _form(root, train)
    if _form(root, test) != form:
        raise DataError(
            f"{train.place}/ of {root} holds {_found(train)}, but {test.place}/ {_found(test)}; make both "
            f"halves of one kind, or move {test.half}/ away: without it, every {HOLD_OUT_EVERY}th image of "
            f"train/ is a test image"
        )
    for half in (train, test):
        passed_over.update(half.others)
    if form == "shards":
        for half in (train, test):
            _check_unmixed(os.path.join(root, half.place), half.shards)
        shards = (train.within(train.shards), test.within(test.shards))
        return _list_shards(root, *shards, passed_over, progress)
    if form == "images":
        files = [train.within(train.images), test.within(test.images)]
        return _list_files(root, (), [[files[0]], [files[1]]], passed_over)
    different = sorted(set(train.folders) ^ set(test.folders))
    if different:
        names = _listed(different)
        if len({unicodedata.normalize("NFC", name) for name in different}) < len(different):
            names = f"{', '.join(map(ascii, different))}: some differ in how their accents are written alone"
        raise DataError(
            f"{train.place}/ and {test.place}/ of {root} must hold the same classes; only one has {names}"
        )
    by_class = [_files_by_class(root, half, passed_over) for half in (train, test)]
    return _list_files(root, tuple(train.folders), by_class, passed_over)


def _files_by_class(root: str, half: _Folder, passed_over: PassedOver) -> list[list[str]]:
    """Places of the images of each class."""
    if half.annotated:
        return [half.within(half.annotated[name]) for name in half.folders]
    return [_class_files(root, place, passed_over) for place in half.within(half.folders)]


def _class_files(root: str, place: str, passed_over: PassedOver) -> list[str]:
    """Places of the images of a class, in its folder and in all folders within."""
    others = PassedOver()
    files = sorted(_files_within(root, place, (), others))
    if not files:
        but = f", but {others}: convert or unpack them, or" if others else "; add some or"
        raise DataError(
            f"{os.path.join(root, place)} holds no images ({SUFFIXES_SAID}){but} remove the folder"
        )
    passed_over.update(others)
    return files


def _files_within(
    root: str, place: str, above: tuple[tuple[int, int], ...], passed_over: PassedOver
) -> Iterator[str]:
    path = os.path.join(root, place)
    found = os.stat(path)
    here = (found.st_dev, found.st_ino)
    if here in above:
        raise DataError(f"{path} is a link to a folder that it lies in; remove it")
    folder = _look(root, place)
    _check_readable(folder)
    for name in folder.within(folder.shards):
        passed_over.add_file(name)
    passed_over.update(folder.others)
    yield from folder.within(folder.images)
    for inner in folder.within(folder.folders):
        yield from _files_within(root, inner, (*above, here), passed_over)


def _list_files(
    root: str, classes: tuple[str, ...], by_class: list[list[list[str]]], passed_over: PassedOver
) -> Listing:
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
        passed_over=passed_over,
    )


def _list_shards(
    root: str, train: list[str], test: list[str], passed_over: PassedOver, progress: bool
) -> Listing:
    """From the places of the shards of both halves; without test shards, images are not yet divided."""
    shards = train + test
    digest, _, times = _digest(root, shards)
    paths = [os.path.join(root, shard) for shard in shards]
    index = index_shards(root, paths, digest, cache_places(Path(root)), progress, times.tolist())
    source, labels = index.source, index.labels
    classes = () if labels is None else tuple(str(label) for label in range(int(labels.max()) + 1))
    passed_over.update(index.passed_over)
    return Listing(
        classes=classes,
        source=source,
        labels=np.zeros(len(source), np.int64) if labels is None else labels,
        train_count=int((source.shard_numbers < len(train)).sum()),
        digest=digest,
        passed_over=passed_over,
    )


def _half_of(shard: str) -> str | None:
    """``train``, or the one of ``TEST_NAMES``, that the name of a shard says; None where it says none."""
    found = _HALF_IN_NAME.findall(shard.lower())
    return None if not found else _HALVES[found[-1]]


def _check_unmixed(path: str, shards: list[str]) -> None:
    """Refuse shards of both halves in a folder of one."""
    halves = {_half_of(name): name for name in reversed(shards)}
    tests = [halves[name] for name in TEST_NAMES if name in halves]
    if "train" in halves and tests:
        raise DataError(
            f"{path} holds shards of both halves, such as {halves['train']} and {tests[0]}; move those of "
            f"the other half into its folder"
        )


def _divide(root: str, shards: list[str]) -> dict[str, list[str]] | None:
    """Shards by the halves that their names say; None where they do not say that there are several."""
    by_half: dict[str | None, list[str]] = {}
    for name in shards:
        by_half.setdefault(_half_of(name), []).append(name)
    tests = [name for name in TEST_NAMES if name in by_half]
    if not tests or len(by_half) == 1:
        return None
    if "train" not in by_half or None in by_half:
        unclear = by_half.get(None, by_half[tests[-1]])[0]
        raise DataError(
            f"{root} holds shards of several halves, such as {by_half[tests[0]][0]} and {unclear}, and not "
            f"all names say train or one of test, val and validation; move them into train/ and test/"
        )
    return {half: names for half, names in by_half.items() if half is not None}


def _list_undivided(root: str, folder: _Folder, passed_over: PassedOver, progress: bool) -> Listing:
    """Hold out the first image and every 20th after it: evenly spaced, and the same on every machine."""
    form = _form(root, folder)
    if form == "shards":
        halves = _divide(os.path.join(root, folder.place), folder.shards)
        if halves is not None:
            second, *rest = (name for name in TEST_NAMES if name in halves)
            for name in rest:
                passed_over.add(f"shards of {name}", halves[name][0], len(halves[name]))
            shards = (folder.within(halves["train"]), folder.within(halves[second]))
            return _list_shards(root, *shards, passed_over, progress)
        whole = _list_shards(root, folder.within(folder.shards), [], passed_over, progress)
    elif form == "images":
        whole = _list_files(root, (), [[folder.within(folder.images)], []], passed_over)
    else:
        by_class = _files_by_class(root, folder, passed_over)
        whole = _list_files(root, tuple(folder.folders), [by_class, []], passed_over)
    if len(whole.source) < 2:
        path = os.path.join(root, folder.place)
        raise DataError(f"{path} holds one image; it needs at least two, one of them for the test")
    numbers = np.arange(len(whole.source))
    is_test = numbers % HOLD_OUT_EVERY == 0
    order = np.concatenate([numbers[~is_test], numbers[is_test]])
    return replace(
        whole,
        source=whole.source.take(order),
        labels=whole.labels[order],
        train_count=int((~is_test).sum()),
        held_out=True,
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

"""A data set of one's own: JPEG or PNG files in train/<class>/ and test/<class>/ of one folder."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import torch

from rotnet_fast.data.cache import cache_places, read_cache, write_cache
from rotnet_fast.data.decode import decode_images
from rotnet_fast.data.split import RawDataset, Split
from rotnet_fast.errors import ArgumentError, DataError

SUFFIXES = (".jpg", ".jpeg", ".png")
_LISTING_FORMAT = "1"  # raise it when the same files would be decoded to other pixels


@dataclass(frozen=True)
class Listing:
    """The image files of a data folder, without their contents.

    Attributes:
        classes: class folders in sorted order (by code point); a label is a position in it.
        train, test: per class, the paths of its files in sorted order (by code point, so 10.jpg comes
            before 2.jpg).
        digest: SHA-256 (hexadecimal) over each file's split, class, name, size and time of change.
    """

    classes: tuple[str, ...]
    train: list[list[str]]
    test: list[list[str]]
    digest: str


def load(data_dir: Path | None, image_size: int, progress: bool) -> RawDataset:
    """Images of a folder: uint8 [N,H,W,3] for each half, class after class, files in sorted order.

    The first run decodes all files (see :func:`rotnet_fast.data.decode.decode_image` for what becomes of
    other sizes, greys and transparency) and keeps the result (see :mod:`rotnet_fast.data.cache`).

    Args:
        data_dir: the parent of train/ and test/.
        image_size: H = W of the result in pixels.
        progress: show a progress bar while decoding.

    Raises:
        ArgumentError: data_dir is None.
        DataError: a part of the layout is missing, or a file cannot be decoded.
    """
    if data_dir is None:
        raise ArgumentError("--dataset folder needs --data-dir, the folder that holds train/ and test/")
    listing = list_folder(data_dir)
    places = cache_places(data_dir)
    array = read_cache(places, image_size, listing.digest)
    if array is None:
        paths = [path for split in (listing.train, listing.test) for files in split for path in files]
        array = decode_images(paths, image_size, progress)
        write_cache(places, image_size, listing.digest, array)
    images = torch.from_numpy(array)
    train_labels = _labels(listing.train)
    train_count = len(train_labels)
    return RawDataset(
        display_name=f"folder {data_dir.resolve().name}",
        classes=listing.classes,
        train=Split(images[:train_count], train_labels),
        test=Split(images[train_count:], _labels(listing.test)),
    )


def list_folder(data_dir: Path) -> Listing:
    """Find the class folders and their image files.

    Folders and files whose name starts with a dot, and files that end in neither .jpg, .jpeg nor
    .png (in any case), are passed over, and so are folders within class folders. Links are followed.

    Raises:
        DataError: train/ or test/ is missing, has no class folders or not the same ones, or a class
            has no images.
    """
    digest = hashlib.sha256(_LISTING_FORMAT.encode())
    classes: dict[str, list[str]] = {}
    files: dict[str, list[list[str]]] = {}
    for split in ("train", "test"):
        try:
            classes[split] = sorted(entry.name for entry in _visible(data_dir / split) if entry.is_dir())
            files[split] = []
            for name in classes[split]:
                entries = _image_entries(data_dir / split / name)
                files[split].append([entry.path for entry in entries])
                for entry in entries:
                    found = entry.stat()
                    # A zero byte ends the name: no file name can hold one.
                    line = f"{split}/{name}/{entry.name}\0{found.st_size} {found.st_mtime_ns}\n"
                    digest.update(os.fsencode(line))
        except OSError as error:
            raise DataError(
                f"{data_dir} cannot be read as a folder of images ({error}); it must hold train/<class>/ and "
                f"test/<class>/ with JPEG or PNG files"
            ) from error
        if not classes[split]:
            raise DataError(f"{data_dir / split} holds no class folders; make one for each class")
    if classes["train"] != classes["test"]:
        different = sorted(set(classes["train"]) ^ set(classes["test"]))
        raise DataError(
            f"train/ and test/ of {data_dir} must hold the same classes; only one has {', '.join(different)}"
        )
    return Listing(tuple(classes["train"]), files["train"], files["test"], digest.hexdigest())


def _visible(folder: Path) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return [entry for entry in entries if not entry.name.startswith(".")]


def _image_entries(folder: Path) -> list[os.DirEntry[str]]:
    """The image files of one class folder, sorted by name."""
    entries = [
        entry for entry in _visible(folder) if entry.name.lower().endswith(SUFFIXES) and entry.is_file()
    ]
    if not entries:
        raise DataError(f"{folder} holds no .jpg, .jpeg or .png files; add some or remove the folder")
    return sorted(entries, key=lambda entry: entry.name)


def _labels(files: list[list[str]]) -> torch.Tensor:
    counts = torch.tensor([len(of_class) for of_class in files])
    return torch.arange(len(files)).repeat_interleave(counts)  # int64 [N]

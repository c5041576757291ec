"""Reader of CIFAR-10 (Krizhevsky, 2009) from its official archive.

Only the binary version is supported: its files are raw bytes of a fixed size, while those of the Python
version are pickles, which can run arbitrary code. The archive's pinned SHA-256 is checked before anything in
it is parsed, and its members are read straight into memory, so no name inside it ever becomes a path on disk.
"""

from __future__ import annotations

import glob
import hashlib
import http.client
import io
import os
import tarfile
import urllib.request
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch

from rotnet_fast.checks import CIFAR10_SIDE
from rotnet_fast.data.split import RawDataset, Split
from rotnet_fast.errors import ArgumentError, DataError
from rotnet_fast.files import cannot_read, make_folder, replacing, resolve_path
from rotnet_fast.progress import CountingLine

URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
ARCHIVE_NAME = "cifar-10-binary.tar.gz"
ARCHIVE_BYTES = 170_052_171
# The official page lists only an MD5, c32a1d4ab5d03f1284b67883e8d87530, and MD5 no longer protects against
# forgery. This is the SHA-256 of the same file, as data-set libraries (such as MLDatasets.jl) pin it.
ARCHIVE_SHA256 = "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
FOLDER_NAME = "cifar-10-batches-bin"
TRAIN_FILES = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
TEST_FILE = "test_batch.bin"
IMAGES_PER_FILE = 10_000
DEFAULT_DATA_DIR = Path("data")
TIMEOUT_SECONDS = 10.0
"""Timeout for connecting, and for each wait for the next bytes."""

CLASSES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)

_RECORD_BYTES = 1 + 3 * CIFAR10_SIDE**2  # the label, then the red, green and blue planes
_CHUNK_BYTES = 1 << 18
_PYTHON_FILE = "data_batch_1"


def load(data_dir: Path | None, image_size: int, progress: bool, bad_images: str = "fail") -> RawDataset:
    """Read CIFAR-10 in file order: uint8 [50000,32,32,3] for training, [10000,32,32,3] for testing.

    If ``data_dir`` contains the archive, it is read. Otherwise the unpacked folder is read, which lies in
    ``data_dir`` or is ``data_dir`` itself and whose files must have the exact size. If there is neither, the
    archive is downloaded to ``data_dir``.

    Args:
        data_dir: where to search and to download to; None means ./data.
        image_size: must be 32.
        progress: show the download's progress bar.
        bad_images: ignored; a damaged archive is always refused.

    Raises:
        ArgumentError: image_size is not 32.
        DataError: the archive is damaged or incomplete or cannot be downloaded, or data_dir contains another
            data set.
    """
    if image_size != CIFAR10_SIDE:
        raise ArgumentError(
            f"image_size is {image_size}; CIFAR-10 only has images of {CIFAR10_SIDE} pixels: "
            f"use --dataset folder for other sizes"
        )
    directory = DEFAULT_DATA_DIR if data_dir is None else data_dir
    archive, unpacked = directory / ARCHIVE_NAME, _unpacked(directory)
    if unpacked != directory:
        _check_place(directory, is_named=data_dir is not None)
    # os.path, because pathlib's methods raise if a folder may not be entered; the download then reports why.
    if not os.path.exists(archive) and os.path.isdir(unpacked):
        contents = read_unpacked(unpacked)
    else:
        if not os.path.exists(archive):
            download(archive, progress)
        contents = read_archive(archive)
    parts = [_parse_records(name, contents[name]) for name in TRAIN_FILES]
    return RawDataset(
        display_name="CIFAR-10",
        classes=CLASSES,
        train=Split(torch.cat([part.images for part in parts]), torch.cat([part.labels for part in parts])),
        test=_parse_records(TEST_FILE, contents[TEST_FILE]),
    )


def _check_place(data_dir: Path, is_named: bool) -> None:
    """Refuse a folder that contains something else, so that nothing is downloaded next to it.

    Args:
        is_named: True if the user gave the folder, False if it is the default.

    Raises:
        DataError: it is a file or another data set, or the archive lies in one of its subfolders.
    """
    if os.path.isfile(data_dir):
        raise DataError(f"data-dir is {data_dir}, a file; pass the folder that contains {ARCHIVE_NAME}")
    if any(os.path.lexists(data_dir / name) for name in (ARCHIVE_NAME, FOLDER_NAME)):
        return
    if os.path.exists(data_dir / _PYTHON_FILE):
        above = data_dir.resolve().parent
        raise DataError(
            f"data-dir is {data_dir}, the Python version of CIFAR-10, which is not supported because pickles "
            f"can run arbitrary code; pass --data-dir {above} to download the binary version, or put "
            f"{URL} there"
        )
    if is_named and os.path.isdir(data_dir / "train"):
        raise DataError(
            f"data-dir is {data_dir}, which contains train/ instead of the CIFAR-10 archive; read its images "
            f"with --dataset folder, or pass another folder to download the archive to"
        )
    for inner in sorted(glob.glob(os.path.join(glob.escape(os.fspath(data_dir)), "*"))):
        if any(os.path.lexists(os.path.join(inner, name)) for name in (ARCHIVE_NAME, FOLDER_NAME)):
            raise DataError(f"data-dir is {data_dir}, but CIFAR-10 is in {inner}; pass --data-dir {inner}")


def _unpacked(data_dir: Path) -> Path:
    """Return the folder of the six files: data_dir itself, or the usual subfolder."""
    is_itself = data_dir.resolve().name == FOLDER_NAME or any(
        os.path.lexists(data_dir / name) for name in (*TRAIN_FILES, TEST_FILE)
    )
    return data_dir if is_itself and os.path.isdir(data_dir) else data_dir / FOLDER_NAME


def read_archive(archive: Path) -> dict[str, bytes]:
    """Read the six data files of the official archive, by file name, and check their sizes.

    Raises:
        DataError: the archive is not the official one, or a member is missing or malformed.
    """
    remedy = f"delete it to download it again, or put the file from {URL} there"
    try:
        found = archive.stat().st_size
        if found != ARCHIVE_BYTES:
            raise DataError(
                f"{archive} has {found} bytes, but the official archive has {ARCHIVE_BYTES}: {remedy}"
            )
        # The same bytes in memory are hashed and parsed, so that the file cannot be swapped in between.
        packed = archive.read_bytes()
    except OSError as error:
        raise DataError(cannot_read(str(archive), error, remedy)) from error
    digest = hashlib.sha256(packed).hexdigest()
    if digest != ARCHIVE_SHA256:
        raise DataError(f"{archive} is damaged: its SHA-256 is {digest}, not {ARCHIVE_SHA256}: {remedy}")
    wanted = {f"{FOLDER_NAME}/{name}": name for name in (*TRAIN_FILES, TEST_FILE)}
    contents: dict[str, bytes] = {}
    with tarfile.open(fileobj=io.BytesIO(packed), mode="r:gz") as tar:
        for member in tar:
            if member.name not in wanted:
                continue
            file = tar.extractfile(member) if member.isreg() else None  # a link would be followed
            if file is None:
                raise DataError(f"{archive}: member {member.name} is not a regular file")
            _check_size(f"{archive}: member {member.name}", member.size)
            contents[wanted[member.name]] = file.read()
    missing = sorted(set(wanted.values()) - contents.keys())
    if missing:
        raise DataError(f"{archive} lacks {', '.join(missing)}")
    return contents


def read_unpacked(folder: Path) -> dict[str, bytes]:
    """Read the six data files of an unpacked archive, by file name, and check their sizes.

    Raises:
        DataError: a file is missing, cannot be read or has the wrong size.
    """
    contents = {}
    remedy = f"unpack {ARCHIVE_NAME} again, or remove {folder} to have it downloaded"
    missing = [name for name in (*TRAIN_FILES, TEST_FILE) if not os.path.lexists(folder / name)]
    if missing:
        raise DataError(f"{folder} lacks {', '.join(missing)}; {remedy}")
    for name in (*TRAIN_FILES, TEST_FILE):
        try:
            _check_size(str(folder / name), (folder / name).stat().st_size, f"; {remedy}")
            contents[name] = (folder / name).read_bytes()
        except OSError as error:
            raise DataError(cannot_read(str(folder / name), error, remedy)) from error
    return contents


def download(archive: Path, progress: bool) -> None:
    """Download the official archive, which gets its final name only after its hash was verified.

    Raises:
        DataError: there is no connection or no disk space, the transfer breaks off, or the hash is wrong.
    """
    place = resolve_path(archive)
    try:
        with urllib.request.urlopen(URL, timeout=TIMEOUT_SECONDS) as response:
            make_folder(place.parent)
            _receive(response, place, progress)
    except (OSError, http.client.HTTPException) as error:
        raise DataError(
            f"CIFAR-10 is not in {archive.parent} and could not be downloaded from {URL} ({error}). "
            f"Put {ARCHIVE_NAME} from there into {archive.parent} (the Python version is not supported "
            f"because pickles can run arbitrary code), pass its folder with --data-dir, or use --dataset "
            f"digits, which needs no network"
        ) from error


def _receive(response: BinaryIO, archive: Path, progress: bool) -> None:
    with (
        replacing(archive, is_shared=True) as file,
        CountingLine(f"downloading {ARCHIVE_NAME}", ARCHIVE_BYTES, "MB", progress, scale=1e6) as line,
    ):
        digest = hashlib.sha256()
        received = 0
        # Stop at the first byte too many, so that a server cannot fill the disk.
        while received <= ARCHIVE_BYTES and (chunk := response.read(_CHUNK_BYTES)):
            file.write(chunk)
            digest.update(chunk)
            received += len(chunk)
            line.count(len(chunk))
        if digest.hexdigest() != ARCHIVE_SHA256:
            raise DataError(
                f"the download from {URL} is not the official archive ({received} bytes of {ARCHIVE_BYTES}, "
                f"SHA-256 {digest.hexdigest()}): try again, or put {ARCHIVE_NAME} into {archive.parent}"
            )


def _check_size(what: str, found: int, remedy: str = "") -> None:
    expected = IMAGES_PER_FILE * _RECORD_BYTES
    if found != expected:
        raise DataError(f"{what} has {found} bytes, not {expected}{remedy}")


def _parse_records(name: str, content: bytes) -> Split:
    """Convert records of a label and colour planes to images uint8 [N,32,32,3] and labels int64 [N]."""
    records = np.frombuffer(content, dtype=np.uint8).reshape(-1, _RECORD_BYTES)
    labels = records[:, 0].astype(np.int64)
    if labels.max() >= len(CLASSES):
        raise DataError(f"{name} is damaged: it has label {labels.max()}; CIFAR-10 has labels 0 to 9")
    planes = records[:, 1:].reshape(-1, 3, CIFAR10_SIDE, CIFAR10_SIDE)
    images = np.ascontiguousarray(planes.transpose(0, 2, 3, 1))  # [N,H,W,C]
    return Split(torch.from_numpy(images), torch.from_numpy(labels))

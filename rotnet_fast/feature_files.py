"""Files with the features of images, .npz or .csv, and the parts of one that is being computed.

A table has a row per image: its vector [D], then the probability of each of the K rotations, of which a
network with another pretext task has none. Its parts lie in a folder beside the output until all are there,
so that an interrupted run can be resumed, and neither writing nor resuming holds more than one part in
memory.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import shutil
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from rotnet_fast.data.cache import read_array
from rotnet_fast.data.image_list import changes, pack, told
from rotnet_fast.data.split import EncodedSplit
from rotnet_fast.engine.run_folder import FileLock, write_json
from rotnet_fast.errors import ArgumentError, DataError
from rotnet_fast.files import cannot_write, ensure_folder, replacing, write_atomically
from rotnet_fast.json_files import read_object

_NOT_COMPARED = ("model", "images", "classes")
"""Metadata that may differ between a run and its resumption: the digest tells models apart, the list of
images tells images apart."""

_NAMES_AT_ONCE = 65536


@dataclass(frozen=True)
class Description:
    """What a table says beside its numbers.

    Attributes:
        metadata: plain values by name, see `rotnet_fast.embed`.
        names: N names.
        classes: class names, indexed by label; empty if there are none.
        labels: int64 [N], -1 for images without a class.
    """

    metadata: Mapping[str, Any]
    names: Sequence[str]
    classes: Sequence[str]
    labels: NDArray[np.int64]


class Parts:
    """The folder OUTPUT.parts: the finished parts of a table, and what they were computed from.

    Args:
        output: file that is being made.
        metadata: its metadata, see `Description`.

    Raises:
        ArgumentError: the folder belongs to a run with other settings, or is none of this program.
    """

    def __init__(self, output: Path, metadata: Mapping[str, Any]) -> None:
        self.folder = output.with_name(f"{output.name}.parts")
        self._output = output
        self._metadata = metadata
        self._settings = self.folder / "settings.json"
        self._list = self.folder / "images.json.gz"
        self._lock: FileLock | None = None
        if not self._settings.exists():
            # Where a run was killed at its very beginning, there may be hidden, temporary files.
            found = {path.name for path in self.folder.iterdir()} if self.folder.is_dir() else set()
            if {name for name in found if not name.startswith(".")} - {"lock", self._list.name}:
                raise ArgumentError(
                    f"{self.folder} is not the folder of an interrupted run, but its name is needed; move it "
                    f"away, or choose another file with --output"
                )
            return
        before = read_object(self._settings, "settings", {}, f"remove {self.folder} to start again")
        if differing := differences(before, metadata):
            raise ArgumentError(
                f"{self.folder} belongs to an interrupted run with other settings: {differing}; give its "
                f"settings to resume it, remove the folder, or choose another file with --output"
            )

    def claim(self, files: EncodedSplit) -> None:
        """Take possession of the folder, which is created if it is missing.

        Args:
            files: the images of the table.

        Raises:
            ArgumentError: another process is writing to the folder.
            DataError: the interrupted run had other images.
            CannotWriteError: the folder cannot be created or written to.
        """
        ensure_folder(self.folder)
        self._lock = FileLock(self.folder / "lock")
        if not self._lock.take():
            raise ArgumentError(
                f"output {self._output} is being written by another process ({self._lock.holder()}); wait "
                f"for it to end, or choose another file with --output"
            )
        if self._settings.exists():
            try:
                found = changes(self._list.read_bytes(), [files])
            except (OSError, ValueError) as error:
                raise DataError(f"{self._list} is damaged; remove {self.folder} to start again") from error
            if found:
                raise DataError(
                    f"the images have changed since the interrupted run in {self.folder}: {told(found)}; "
                    f"restore them to resume it, or remove the folder to start again"
                )
            return
        write_atomically(self._list, pack([files]))
        write_json(self._settings, self._metadata)  # last, because it says that the folder is complete

    def finished(self) -> int:
        """Number of parts, from the first one on, that are there and intact."""
        number = 0
        while self._path(number).exists():
            try:
                self.read(number)
            except (OSError, ValueError):  # a damaged disk; it is computed again
                break
            number += 1
        return number

    def write(self, number: int, rows: NDArray[np.float32]) -> None:
        """Write a part atomically.

        Raises:
            CannotWriteError: the disk is full, ...
        """
        content = io.BytesIO()
        _write_array(content, rows.dtype, rows.shape, [rows])
        write_atomically(self._path(number), content.getbuffer())

    def read(self, number: int) -> NDArray[np.float32]:
        """Read a part: float32 [n,D+K].

        Raises:
            OSError, ValueError: the file is missing or damaged.
        """
        with open(self._path(number), "rb") as file:
            return read_array(file, np.dtype(np.float32), (None, None))

    def remove(self) -> None:
        """Remove the folder, and release it."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.close()

    def close(self) -> None:
        """Release the folder."""
        if self._lock is not None:
            self._lock.close()

    def _path(self, number: int) -> Path:
        return self.folder / f"part-{number:06d}.npy"


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Describe the settings that differ, as in ``layer was conv2 and is conv3``; empty if none do."""
    names = [name for name in now if name not in _NOT_COMPARED and before.get(name) != now[name]]
    return ", ".join(f"{name} was {before.get(name)} and is {now[name]}" for name in names)


def images_digest(files: EncodedSplit) -> str:
    """SHA-256 (hexadecimal) over the names, labels and contents of images."""
    return hashlib.sha256(pack([files])).hexdigest()


def read_metadata(output: Path) -> dict[str, Any] | None:
    """Read the metadata of a finished output; None if there is no such file.

    Raises:
        ArgumentError: the file, or the one beside it with the metadata, was not written by this program.
    """
    beside = metadata_path(output)
    if not output.exists() and not (output.suffix == ".csv" and beside.exists()):
        return None
    try:
        if output.suffix == ".csv":
            text = beside.read_text(encoding="utf-8")
        else:
            with np.load(output, allow_pickle=False) as arrays:
                text = str(arrays["metadata"])
        metadata = json.loads(text)
        if isinstance(metadata, dict) and {"layer", "rotations"} <= metadata.keys():
            return metadata if output.exists() else None  # what was written beside it comes first
    except (OSError, ValueError, KeyError, zipfile.BadZipFile, EOFError):
        pass
    found = output if output.exists() else beside
    raise ArgumentError(
        f"output {found} exists, but was not written by python -m rotnet_fast.embed; remove it, or choose "
        f"another file with --output"
    )


def metadata_path(output: Path) -> Path:
    """File with the metadata of a .csv file."""
    return output.with_name(f"{output.name}.json")


def write_table(output: Path, description: Description, parts: Parts, count: int) -> None:
    """Write a table from its parts, atomically and with the same bytes whenever it is written.

    Args:
        output: a .npz or .csv file.
        description: everything but the numbers.
        parts: the numbers.
        count: number of parts.

    Raises:
        CannotWriteError: a file cannot be written.
    """
    try:
        if output.suffix == ".csv":
            write_json(metadata_path(output), description.metadata)
        with replacing(output) as file:
            (_write_csv if output.suffix == ".csv" else _write_npz)(file, description, parts, count)
    except OSError as error:
        raise cannot_write(output, error) from error


def _write_npz(file: BinaryIO, description: Description, parts: Parts, count: int) -> None:
    number, rotations = len(description.names), description.metadata["rotations"]
    width = parts.read(0).shape[1]
    start = width - len(rotations)
    with zipfile.ZipFile(file, "w") as archive:
        arrays = {
            "layer": np.array(description.metadata["layer"]),
            "metadata": np.array(json.dumps(description.metadata)),
        }
        if rotations:
            arrays["rotations"] = np.array(rotations, dtype=np.int64)
        if description.classes:
            arrays |= {"labels": description.labels, "classes": np.array(description.classes)}
        for name, array in arrays.items():
            _write_member(archive, name, array.dtype, array.shape, [array])
        letters = np.dtype(f"<U{max(1, *map(len, description.names))}")
        _write_member(archive, "names", letters, (number,), _in_slices(description.names, letters))
        members = [("vectors", 0, start)]
        if rotations:
            members.append(("rotation_probabilities", start, width))
        for name, first, last in members:
            found = (parts.read(part)[:, first:last] for part in range(count))
            _write_member(archive, name, np.dtype(np.float32), (number, last - first), found)


def _in_slices(names: Sequence[str], dtype: np.dtype[Any]) -> Iterator[NDArray[Any]]:
    for start in range(0, len(names), _NAMES_AT_ONCE):
        yield np.array(names[start : start + _NAMES_AT_ONCE], dtype=dtype)


def _write_member(
    archive: zipfile.ZipFile, name: str, dtype: Any, shape: tuple[int, ...], pieces: Iterable[NDArray[Any]]
) -> None:
    with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:  # without a date
        _write_array(member, dtype, shape, pieces)


def _write_array(
    file: IO[bytes], dtype: np.dtype[Any], shape: tuple[int, ...], pieces: Iterable[NDArray[Any]]
) -> None:
    """Write an array that is the concatenation of its pieces as a .npy file."""
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    for piece in pieces:
        file.write(piece.tobytes())


def _write_csv(file: BinaryIO, description: Description, parts: Parts, count: int) -> None:
    rotations, layer = description.metadata["rotations"], description.metadata["layer"]
    features = parts.read(0).shape[1] - len(rotations)
    text = io.TextIOWrapper(file, encoding="utf-8", newline="")
    writer = csv.writer(text)
    writer.writerow(
        [
            "name",
            *(["label", "class"] if description.classes else []),
            *(f"{layer}_{number}" for number in range(features)),
            *(f"rotation_{degrees}" for degrees in rotations),
        ]
    )
    labelled = zip(description.names, description.labels.tolist(), strict=True)
    for part in range(count):
        for row in parts.read(part):
            name, label = next(labelled)
            known = [label, description.classes[label] if label >= 0 else ""] if description.classes else []
            writer.writerow([name, *known, *map(str, row)])  # the shortest digits that give a float32 back
    text.detach()  # flushed, but open

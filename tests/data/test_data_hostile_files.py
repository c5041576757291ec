"""Images, names and caches made to do harm, or damaged in any way: an error that names them, or no harm."""

from __future__ import annotations

import functools
import hashlib
import io
import json
import os
import pickle
import random
import struct
import subprocess
import sys
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from image_files import chunk, encoded, good_images, pixels, png_header, save, write_tar

from rotnet_fast.command import run_command
from rotnet_fast.data.cache import read_cache
from rotnet_fast.data.datasets import load_dataset
from rotnet_fast.data.decode import decode_image, decode_rgb
from rotnet_fast.data.layout import list_folder
from rotnet_fast.data.scan import GOOD, REASONS, examine
from rotnet_fast.errors import DataError

MUTANTS = 12  # of each of three dozen kinds of image
HUGE = 64 << 20


@pytest.fixture(autouse=True)
def _user_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def mutated(content: bytes, choices: random.Random) -> bytes:
    """Bits flipped, bytes replaced, pieces doubled, moved or cut; chunks of a PNG get right checksums."""
    changed = bytearray(content)
    for _ in range(choices.randint(1, 6)):
        at = choices.randrange(len(changed))
        kind = choices.randrange(6)
        if kind < 2:
            changed[at] ^= 1 << choices.randrange(8)
        elif kind == 2:
            changed[at] = choices.choice([0, 1, 127, 128, 254, 255])
        elif kind == 3:
            changed[at:at] = changed[at : at + choices.randint(1, 50)]
        elif kind == 4:
            del changed[at : at + choices.randint(1, 50)]
        elif choices.randrange(4) == 0:
            del changed[at:]
        changed = changed or bytearray(1)
    at = 8
    while changed[:8] == content[:8] == b"\x89PNG\r\n\x1a\n" and at + 12 <= len(changed):
        end = at + 8 + struct.unpack_from(">I", changed, at)[0]
        if end + 4 > len(changed):
            break
        changed[end : end + 4] = zlib.crc32(changed[at + 4 : end]).to_bytes(4, "big")
        at = end + 4
    return bytes(changed)


def test_a_mutated_image_is_decoded_or_refused_by_name() -> None:
    choices = random.Random(0)
    refused = decoded = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, of damaged EXIF data
        for name, (content, _, _) in good_images().items():
            for _ in range(MUTANTS):
                spoilt = mutated(content, choices)
                height, width, _, verdict = examine(spoilt)
                assert 0 <= verdict < len(REASONS)
                found = outcome(spoilt, name)
                if isinstance(found, str):
                    assert name in found
                    refused += 1
                else:
                    # What the scan lets pass has the size that it says.
                    assert verdict != GOOD or found == (height, width, 3)
                    assert decode_image(spoilt, 8).shape == (8, 8, 3)
                    decoded += 1
    assert min(refused, decoded) > 50


def outcome(content: bytes, name: str) -> tuple[int, ...] | str:
    """Shape of the decoded image, or what is said instead."""
    try:
        return decode_rgb(content, name).shape
    except DataError as error:
        return str(error)


def bomb(kind: bytes, head: bytes) -> bytes:
    """A PNG of one pixel with a chunk that unpacks to more than may be taken."""
    packed = zlib.compress(bytes(2 * HUGE), 1)
    pixel = chunk(b"IDAT", zlib.compress(b"\0\0\0\0"))
    return png_header(1, 1) + chunk(kind, head + packed) + pixel + chunk(b"IEND", b"")


@functools.cache
def bombs() -> dict[str, bytes]:
    jpeg = encoded(pixels(0), "JPEG")
    frame = jpeg.index(b"\xff\xc0") + 5
    return {
        "pixels.png": png_header(60_000, 60_000) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b""),
        "pixels.jpg": jpeg[:frame] + b"\xff\xff\xff\xff" + jpeg[frame + 4 :],
        "profile.png": bomb(b"iCCP", b"profile\0\0"),
        "text.png": bomb(b"zTXt", b"Comment\0\0"),
        "international.png": bomb(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0"),
        "orientation.png": bomb(b"zTXt", b"Raw profile type exif\0\0"),
    }


def test_a_decompression_bomb_takes_no_memory(tmp_path: Path) -> None:
    # Pillow's memory is not Python's to measure: a process of its own may not take more than some.
    for name, content in bombs().items():
        (tmp_path / name).write_bytes(content)
    save(tmp_path / "good.png", pixels(0, 64, 64))  # what can be imported is imported with it
    script = f"""
import resource, sys
from rotnet_fast.data.decode import decode_rgb
from rotnet_fast.data.scan import examine
from rotnet_fast.errors import DataError

def look(path):
    try:
        examine(open(path, "rb").read())
        print(path.rpartition("/")[2], decode_rgb(path).shape)
    except DataError as error:
        print(error, type(error.__cause__).__name__)

look(sys.argv[1])
pages = int(open("/proc/self/statm").read().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + {HUGE},) * 2)
for path in sys.argv[2:]:
    look(path)
"""
    paths = [tmp_path / "good.png", *(tmp_path / name for name in bombs())]
    done = subprocess.run([sys.executable, "-c", script, *paths], capture_output=True, text=True, check=False)
    lines = done.stdout.splitlines()
    assert (done.returncode, len(lines)) == (0, len(paths)), done.stderr
    for path, line in zip(paths, lines, strict=True):
        assert path.name in line
        assert "MemoryError" not in line


def name_of(raw: bytes) -> str:
    return os.fsdecode(raw)


ODD_NAMES = [b"\xff\xfe", b"a\nb", b"\x1b[2J", b"a b'\"$(x)", b"-rf", b"\xc3\xa4" * 120]


def test_images_and_classes_of_any_name_are_read(tmp_path: Path) -> None:
    for half in ("train", "test"):
        for number, name in enumerate(ODD_NAMES):
            save(tmp_path / half / name_of(b"cl\xffss\n") / name_of(name + b".png"), pixels(number))
    dataset = load_dataset("folder", tmp_path, 8, progress=False)
    assert len(dataset.train) == len(ODD_NAMES)
    assert dataset.classes == ("cl\N{REPLACEMENT CHARACTER}ss\n",)
    names = load_dataset("folder", tmp_path, 8, progress=False, encoded=True).train.source.names  # type: ignore[attr-defined]
    assert {os.fsencode(Path(name).stem) for name in names} == set(ODD_NAMES)


def test_no_name_steers_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for half in ("train", "test"):
        save(tmp_path / half / "0.png", pixels(0))
    (tmp_path / "train" / "\x1b[2J\x9b1m.png").write_bytes(b"damaged")
    (tmp_path / "train" / name_of(b"\xff.png")).write_bytes(b"damaged")
    for ways in ("fail", "skip"):
        code = run_command(
            functools.partial(load_dataset, "folder", tmp_path, 8, bad_images=ways, progress=False)
        )
        said = capsys.readouterr().err
        assert code == 3
        assert "\\x1b[2J\\x9b1m.png is a text file" in said
        assert said.replace("\n", "").isprintable()


def link_to_itself(path: Path) -> None:
    path.symlink_to(path)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        pytest.param(os.mkfifo, "is a broken link or no", id="FIFO"),
        pytest.param(lambda path: path.symlink_to("/dev/zero"), "is a broken link or no", id="device"),
        pytest.param(lambda path: path.symlink_to("gone"), "is a broken link or no", id="broken"),
        pytest.param(link_to_itself, "symbolic links", id="loop"),
    ],
)
@pytest.mark.parametrize("name", ["1.png", "1.tar"])
def test_what_is_no_file_is_never_opened(
    make: Callable[[Path], None], said: str, name: str, tmp_path: Path
) -> None:
    for half in ("train", "test"):
        save(tmp_path / half / "0.png", pixels(0))
    make(tmp_path / "train" / name)
    with pytest.raises(DataError, match=said) as caught:
        list_folder(tmp_path)
    assert str(tmp_path / "train" / name) in str(caught.value)


class Bomb:
    """Whoever unpickles it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.path,))


def npy(array: npt.NDArray[np.generic], **options: bool) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, **options)
    return stream.getvalue()


def npz(array: npt.NDArray[np.generic]) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, array)
    return stream.getvalue()


TABLE = np.arange(12, dtype=np.int32).reshape(3, 4)


def with_header(text: str) -> bytes:
    header = text.encode().ljust(118) + b"\n"
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header + TABLE.tobytes()


HEADER = "{'descr': '<i4', 'fortran_order': False, 'shape': (3, 4)}"


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="empty"),
        pytest.param(npy(TABLE)[:-1], id="cut off"),
        pytest.param(npy(TABLE) + b"x", id="longer"),
        pytest.param(npy(TABLE.astype(np.int64)), id="another type"),
        pytest.param(npy(TABLE[:, :3]), id="another width"),
        pytest.param(npy(TABLE.ravel()), id="another shape"),
        pytest.param(npy(np.asfortranarray(TABLE)), id="another order"),
        pytest.param(npz(TABLE), id="several arrays"),
        pytest.param(with_header(HEADER.replace("(3, 4)", f"({1 << 40}, 4)")), id="claims terabytes"),
        pytest.param(with_header(HEADER.replace("(3, 4)", "(-3, 4)")), id="negative"),
        pytest.param(with_header("(" * 100), id="nested"),
        pytest.param(with_header(HEADER.replace("'<i4'", "'|O'")), id="claims objects"),
        pytest.param(with_header(HEADER.replace("'<i4'", "'|V4'")), id="claims bytes"),
        pytest.param(with_header("__import__('os')"), id="no header"),
    ],
)
def test_a_cache_that_is_not_what_it_should_be_is_as_good_as_none(content: bytes, tmp_path: Path) -> None:
    write_cached(tmp_path, content)
    assert read_cache([tmp_path], "scan", "listing", np.int32, (None, 4)) is None
    write_cached(tmp_path, npy(TABLE))
    found = read_cache([tmp_path], "scan", "listing", np.int32, (None, 4))
    assert found is not None
    assert np.array_equal(found, TABLE)


def write_cached(place: Path, content: bytes, listing: str = "listing", name: str = "scan") -> None:
    """As a data set that comes from anywhere may bring it: with the right hash."""
    (place / f"{name}.npy").write_bytes(content)
    manifest = {"listing": listing, "sha256": hashlib.sha256(content).hexdigest()}
    (place / f"{name}.json").write_text(json.dumps(manifest))


def test_no_object_of_a_cache_is_ever_made(tmp_path: Path) -> None:
    objects = np.empty((3, 4), dtype=object)
    objects[:] = Bomb(tmp_path / "made")
    for content in (npy(objects, allow_pickle=True), pickle.dumps(Bomb(tmp_path / "made"))):
        write_cached(tmp_path, content)
        for dtype in (np.int32, object):
            assert read_cache([tmp_path], "scan", "listing", dtype, (3, 4)) is None
    assert not (tmp_path / "made").exists()
    pickle.loads(content)
    assert (tmp_path / "made").exists()  # it would have


@pytest.mark.parametrize("name", ["scan.npy", "scan.json"])
def test_a_cache_that_is_no_file_is_not_waited_for(name: str, tmp_path: Path) -> None:
    write_cached(tmp_path, npy(TABLE))
    (tmp_path / name).unlink()
    os.mkfifo(tmp_path / name)
    done = subprocess.run(
        [sys.executable, "-c", READ_CACHE, tmp_path], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "None\n"


READ_CACHE = """
import sys
from pathlib import Path
from rotnet_fast.data.cache import read_cache
print(read_cache([Path(sys.argv[1])], "scan", "listing", "int32", (None, 4)))
"""


def test_a_manifest_is_not_believed_to_be_one(tmp_path: Path) -> None:
    write_cached(tmp_path, npy(TABLE))
    long = (tmp_path / "scan.json").read_text().replace("{", "{" + " " * 10**5)
    for text in (long, "[" * 4000, "null", '{"listing": ["listing"]}', '{"listing": "listing"}'):
        (tmp_path / "scan.json").write_text(text)
        assert read_cache([tmp_path], "scan", "listing", np.int32, (None, 4)) is None


@pytest.mark.parametrize("column", range(8))
@pytest.mark.parametrize("value", [-5, 10**9])
def test_rows_that_cannot_be_are_found_out_again(column: int, value: int, tmp_path: Path) -> None:
    for half in ("train", "test"):
        write_tar(tmp_path / half / "0.tar", {"0.png": encoded(pixels(0)), "0.cls": b"0"})
    whole = load_dataset("folder", tmp_path, 8, progress=False)
    place = tmp_path / ".rotnet_fast_cache"
    for name in ("index", "scan"):
        manifest = json.loads((place / f"{name}.json").read_text())
        table = np.load(place / f"{name}.npy")
        if name == "index" and (column > 3 or (column in (1, 2) and value > 0)):
            continue  # a place in a file, which may be large
        table[0, column] = value
        write_cached(place, npy(table), manifest["listing"], name)
    (place / "8px.json").unlink()
    assert load_dataset("folder", tmp_path, 8, progress=False).fingerprint == whole.fingerprint


def test_a_cache_is_not_written_through_a_link(tmp_path: Path) -> None:
    images, elsewhere = tmp_path / "images", tmp_path / "elsewhere"
    elsewhere.mkdir()
    for half in ("train", "test"):
        save(images / half / "0.png", pixels(0))
    (images / ".rotnet_fast_cache").symlink_to(elsewhere)
    load_dataset("folder", images, 8, progress=False)
    assert list(elsewhere.iterdir()) == []
    assert len(list((tmp_path / "cache" / "rotnet_fast").iterdir())) == 1  # but where the user keeps such

"""The official CIFAR-10 archive, with a small stand-in of the same layout. No test leaves this machine."""

from __future__ import annotations

import errno
import hashlib
import io
import socket
import tarfile
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from rotnet_fast.data import cifar10
from rotnet_fast.data.datasets import load_dataset
from rotnet_fast.errors import ArgumentError, DataError

PER_FILE = 10
FILES = ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch")
Contents = dict[str, bytes]


@pytest.fixture
def contents(monkeypatch: pytest.MonkeyPatch) -> Contents:
    """Six files of ten random records each, one of every class."""
    monkeypatch.setattr(cifar10, "IMAGES_PER_FILE", PER_FILE)
    generator = np.random.default_rng(0)
    files = {}
    for name in FILES:
        records = generator.integers(0, 256, (PER_FILE, 3073), dtype=np.uint8)
        records[:, 0] = generator.permutation(PER_FILE)
        files[f"{name}.bin"] = records.tobytes()
    return files


def pack(contents: Contents, change: Callable[[tarfile.TarInfo], None] = lambda member: None) -> bytes:
    """A .tar.gz like the official one, with its other files too; ``change`` may spoil a member's header."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for name, content in {
            "batches.meta.txt": b"airplane\n",
            **contents,
            "readme.html": b"<html>",
        }.items():
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            member.size = len(content)
            change(member)
            tar.addfile(member, io.BytesIO(content))
    return packed.getvalue()


def pin(monkeypatch: pytest.MonkeyPatch, packed: bytes) -> bytes:
    """Take ``packed`` for the official archive."""
    monkeypatch.setattr(cifar10, "ARCHIVE_BYTES", len(packed))
    monkeypatch.setattr(cifar10, "ARCHIVE_SHA256", hashlib.sha256(packed).hexdigest())
    return packed


def store(folder: Path, packed: bytes) -> None:
    (folder / "cifar-10-binary.tar.gz").write_bytes(packed)


def unpack(folder: Path, contents: Contents) -> Path:
    unpacked = folder / "cifar-10-batches-bin"
    unpacked.mkdir()
    for name, content in contents.items():
        (unpacked / name).write_bytes(content)
    return unpacked


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> str:
    """No test reaches the real server: the address is a port of this machine where nobody listens."""
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        port = reserved.getsockname()[1]
    url = f"http://127.0.0.1:{port}/cifar-10-binary.tar.gz"
    monkeypatch.setattr(cifar10, "URL", url)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return url


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Start a server on this machine that answers with the given bytes."""
    servers = []

    def start(body: bytes, status: int = 200, announced: int | None = None) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(status)
                if announced is not None:
                    self.send_header("Content-Length", str(announced))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args: object) -> None:
                """Keep the test output clean."""

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}/cifar-10-binary.tar.gz"
        monkeypatch.setattr(cifar10, "URL", url)

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def records_of(contents: Contents, names: tuple[str, ...]) -> npt.NDArray[np.uint8]:
    joined = b"".join(contents[f"{name}.bin"] for name in names)
    return np.frombuffer(joined, np.uint8).reshape(-1, 3073)


def test_records_become_images_in_file_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, contents: Contents
) -> None:
    store(tmp_path, pin(monkeypatch, pack(contents)))
    dataset = load_dataset("cifar10", tmp_path, progress=False)
    assert dataset.display_name == "CIFAR-10"
    assert dataset.classes[:3] == ("airplane", "automobile", "bird")
    for split, names in ((dataset.train, FILES[:5]), (dataset.test, FILES[5:])):
        records = records_of(contents, names)
        assert split.images.dtype == torch.uint8
        assert split.images.is_contiguous()
        assert split.labels.tolist() == records[:, 0].tolist()
        for row, column, channel in ((0, 0, 0), (0, 31, 1), (31, 0, 2), (5, 7, 1)):
            expected = records[:, 1 + channel * 1024 + row * 32 + column]
            assert split.images[:, row, column, channel].tolist() == expected.tolist()


def test_an_unpacked_folder_gives_the_same_data_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, contents: Contents
) -> None:
    (tmp_path / "packed").mkdir()
    store(tmp_path / "packed", pin(monkeypatch, pack(contents)))
    unpack(tmp_path, contents)
    from_archive = load_dataset("cifar10", tmp_path / "packed", progress=False)
    assert load_dataset("cifar10", tmp_path, progress=False).fingerprint == from_archive.fingerprint


def test_an_unpacked_file_of_another_size_is_refused(tmp_path: Path, contents: Contents) -> None:
    contents["data_batch_3.bin"] += b"\0"
    unpack(tmp_path, contents)
    with pytest.raises(DataError, match=r"data_batch_3\.bin has 30731 bytes, not 30730"):
        load_dataset("cifar10", tmp_path, progress=False)


def test_a_label_that_cifar10_does_not_have_is_refused(tmp_path: Path, contents: Contents) -> None:
    contents["data_batch_2.bin"] = b"\x0a" + contents["data_batch_2.bin"][1:]
    unpack(tmp_path, contents)
    with pytest.raises(DataError, match=r"data_batch_2\.bin is damaged: it has label 10"):
        load_dataset("cifar10", tmp_path, progress=False)


@pytest.mark.parametrize("position", [0, 1000, -1])
def test_a_damaged_archive_is_refused_before_it_is_parsed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, contents: Contents, position: int
) -> None:
    damaged = bytearray(pin(monkeypatch, pack(contents)))
    damaged[position] ^= 1
    store(tmp_path, bytes(damaged))
    monkeypatch.setattr(tarfile, "open", lambda *args, **kwargs: pytest.fail("the archive was parsed"))
    with pytest.raises(DataError, match=r"is damaged: its SHA-256 is .* delete it to download it again"):
        load_dataset("cifar10", tmp_path, progress=False)


def test_a_truncated_archive_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, contents: Contents
) -> None:
    packed = pin(monkeypatch, pack(contents))
    store(tmp_path, packed[:-1])
    monkeypatch.setattr(Path, "read_bytes", lambda self: pytest.fail("the archive was read"))
    with pytest.raises(
        DataError, match=f"has {len(packed) - 1} bytes, but the official archive has {len(packed)}"
    ):
        load_dataset("cifar10", tmp_path, progress=False)


def test_a_member_of_another_size_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, contents: Contents
) -> None:
    contents["data_batch_4.bin"] = contents["data_batch_4.bin"][:-1]
    store(tmp_path, pin(monkeypatch, pack(contents)))
    with pytest.raises(DataError, match=r"member .*/data_batch_4\.bin has 30729 bytes, not 30730"):
        load_dataset("cifar10", tmp_path, progress=False)


def test_a_missing_member_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, contents: Contents
) -> None:
    del contents["data_batch_1.bin"]
    store(tmp_path, pin(monkeypatch, pack(contents)))
    with pytest.raises(DataError, match=r"lacks data_batch_1\.bin"):
        load_dataset("cifar10", tmp_path, progress=False)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE])
def test_a_member_that_is_not_a_plain_file_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, contents: Contents, kind: bytes
) -> None:
    def make_link(member: tarfile.TarInfo) -> None:
        if member.name.endswith("/test_batch.bin"):
            member.type, member.size = kind, 0
            member.linkname = "cifar-10-batches-bin/data_batch_1.bin"

    store(tmp_path, pin(monkeypatch, pack(contents, make_link)))
    with pytest.raises(DataError, match=r"test_batch\.bin is not a regular file"):
        load_dataset("cifar10", tmp_path, progress=False)


def test_members_with_dangerous_names_are_not_written_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, contents: Contents
) -> None:
    data_dir = tmp_path / "data"
    data_dir.mkdir()
    store(data_dir, pin(monkeypatch, pack({**contents, "../../escaped": b"x"})))
    load_dataset("cifar10", data_dir, progress=False)
    assert [path.name for path in tmp_path.rglob("*")] == ["data", "cifar-10-binary.tar.gz"]


def test_only_images_of_32_pixels_exist(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="image_size is 64; CIFAR-10 only has images of 32 pixels"):
        load_dataset("cifar10", tmp_path, image_size=64)


def test_a_download_is_checked_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, contents: Contents, serve: Callable[..., None]
) -> None:
    packed = pin(monkeypatch, pack(contents))
    serve(packed, announced=len(packed))
    first = load_dataset("cifar10", tmp_path / "new", progress=False)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["cifar-10-binary.tar.gz"]
    assert (tmp_path / "new" / "cifar-10-binary.tar.gz").read_bytes() == packed
    serve(b"gone", status=404)
    assert load_dataset("cifar10", tmp_path / "new", progress=False).fingerprint == first.fingerprint


def test_without_a_data_dir_the_archive_is_kept_under_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, contents: Contents, serve: Callable[..., None]
) -> None:
    monkeypatch.chdir(tmp_path)
    serve(pin(monkeypatch, pack(contents)))
    load_dataset("cifar10", progress=False)
    assert (tmp_path / "data" / "cifar-10-binary.tar.gz").is_file()


def test_being_offline_is_answered_with_what_to_do(tmp_path: Path, offline: str) -> None:
    with pytest.raises(DataError, match="could not be downloaded") as caught:
        load_dataset("cifar10", tmp_path / "nowhere", progress=False)
    message = str(caught.value)
    assert offline in message
    assert f"Put cifar-10-binary.tar.gz from there into {tmp_path / 'nowhere'}" in message
    assert "--dataset digits" in message
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize(
    ("spoil", "announce"),
    [
        pytest.param(lambda packed: packed[:-1] + b"?", True, id="other bytes"),
        pytest.param(lambda packed: packed[: len(packed) // 2], True, id="connection cut"),
        pytest.param(lambda packed: packed[: len(packed) // 2], False, id="too short"),
        pytest.param(lambda packed: packed + b"more", True, id="too long"),
        pytest.param(lambda packed: b"<html>please log in</html>", False, id="a web page"),
    ],
)
def test_a_bad_download_is_refused_and_leaves_no_file(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    contents: Contents,
    serve: Callable[..., None],
    spoil: Callable[[bytes], bytes],
    announce: bool,
) -> None:
    packed = pin(monkeypatch, pack(contents))
    serve(spoil(packed), announced=max(len(packed), len(spoil(packed))) if announce else None)
    with pytest.raises(DataError, match=r"not the official archive|could not be downloaded"):
        load_dataset("cifar10", tmp_path, progress=False)
    assert list(tmp_path.iterdir()) == []


def test_a_server_error_is_reported_with_its_reason(tmp_path: Path, serve: Callable[..., None]) -> None:
    serve(b"", status=503)
    with pytest.raises(DataError, match="HTTP Error 503"):
        load_dataset("cifar10", tmp_path, progress=False)


def test_a_server_that_stops_answering_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offline: str
) -> None:
    monkeypatch.setattr(cifar10, "TIMEOUT_SECONDS", 0.2)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setattr(cifar10, "URL", f"http://127.0.0.1:{silent.getsockname()[1]}/x.tar.gz")
        with pytest.raises(DataError, match="timed out"):
            load_dataset("cifar10", tmp_path, progress=False)
    assert list(tmp_path.iterdir()) == []


def test_the_python_edition_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(b"pickles")
    with pytest.raises(DataError, match="the Python version is not supported because pickles"):
        load_dataset("cifar10", tmp_path, progress=False)


def test_the_unpacked_folder_itself_may_be_given(tmp_path: Path, contents: Contents) -> None:
    unpacked = unpack(tmp_path, contents)
    above = load_dataset("cifar10", tmp_path, progress=False)
    assert load_dataset("cifar10", unpacked, progress=False).fingerprint == above.fingerprint
    renamed = unpacked.rename(tmp_path / "cifar")
    assert load_dataset("cifar10", renamed, progress=False).fingerprint == above.fingerprint


def test_a_half_unpacked_folder_is_answered_with_all_that_is_missing(
    tmp_path: Path, contents: Contents
) -> None:
    unpacked = unpack(tmp_path, contents)
    for name in ("data_batch_2.bin", "test_batch.bin"):
        (unpacked / name).unlink()
    for data_dir in (tmp_path, unpacked):
        with pytest.raises(
            DataError, match=r"bin lacks data_batch_2\.bin, test_batch\.bin; unpack cifar-10-binary"
        ):
            load_dataset("cifar10", data_dir, progress=False)
    for name in contents:
        (unpacked / name).unlink(missing_ok=True)
    with pytest.raises(DataError, match=r"bin lacks data_batch_1\.bin, .*; unpack cifar-10-binary"):
        load_dataset("cifar10", unpacked, progress=False)


def test_a_file_of_another_length_is_answered_with_what_to_do(tmp_path: Path, contents: Contents) -> None:
    unpacked = unpack(tmp_path, contents)
    (unpacked / "data_batch_3.bin").write_bytes(contents["data_batch_3.bin"][:-1])
    with pytest.raises(DataError, match=r"data_batch_3\.bin has 30729 bytes, not 30730; unpack cifar-10"):
        load_dataset("cifar10", tmp_path, progress=False)


def test_a_folder_above_is_answered_with_the_one_to_give(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, contents: Contents
) -> None:
    (tmp_path / "sets" / "cifar").mkdir(parents=True)
    store(tmp_path / "sets" / "cifar", pin(monkeypatch, pack(contents)))
    with pytest.raises(DataError, match=r"CIFAR-10 is in .*/cifar; pass --data-dir .*sets/cifar$"):
        load_dataset("cifar10", tmp_path / "sets", progress=False)
    load_dataset("cifar10", tmp_path / "sets" / "cifar", progress=False)


def test_the_folder_of_the_python_edition_is_answered_with_the_one_to_give(tmp_path: Path) -> None:
    (tmp_path / "cifar-10-batches-py").mkdir()
    (tmp_path / "cifar-10-batches-py" / "data_batch_1").write_bytes(b"pickles")
    with pytest.raises(DataError, match=r"the Python version of CIFAR-10, .*; pass --data-dir") as caught:
        load_dataset("cifar10", tmp_path / "cifar-10-batches-py", progress=False)
    assert f"pass --data-dir {tmp_path} to download" in str(caught.value)


def test_a_file_or_another_data_set_is_not_downloaded_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, contents: Contents, serve: Callable[..., None]
) -> None:
    serve(pin(monkeypatch, pack(contents)))
    (tmp_path / "photos" / "train").mkdir(parents=True)
    with pytest.raises(DataError, match=r"which contains train/ instead of the CIFAR-10 archive; .* folder"):
        load_dataset("cifar10", tmp_path / "photos", progress=False)
    (tmp_path / "cifar.bin").touch()
    with pytest.raises(DataError, match="a file; pass the folder that contains cifar-10-binary"):
        load_dataset("cifar10", tmp_path / "cifar.bin", progress=False)
    assert list(tmp_path.rglob("*.tar.gz")) == []
    (tmp_path / "data" / "train").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert len(load_dataset("cifar10", progress=False).train) == 5 * PER_FILE  # to where nobody named it


def test_where_too_many_files_are_open_the_limit_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, contents: Contents
) -> None:
    def refuse(path: Path) -> bytes:
        raise OSError(errno.EMFILE, "Too many open files", str(path))

    unpack(tmp_path, contents)
    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(DataError, match=r"data_batch_1\.bin cannot be opened, as this process has \d+ files"):
        load_dataset("cifar10", tmp_path, progress=False)

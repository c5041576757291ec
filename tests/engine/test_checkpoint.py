"""Checkpoints: exact, refused when damaged, never half written."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import random
import resource
from pathlib import Path
from typing import Any

import pytest
import torch

from rotnet_fast.engine import checkpoint
from rotnet_fast.errors import CannotWriteError, CheckpointError
from rotnet_fast.files import link_atomically, temporary_path, write_atomically


def make_state() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    return {
        "weights": {f"layer{i}": torch.randn(8, 3, 5, 5, generator=generator) for i in range(6)},
        "half": torch.randn(7, generator=generator).bfloat16(),
        "count": torch.tensor(3),
        "empty": torch.empty(0, 4),
        "plain": {"epoch": 3, "rate": 0.1, "names": ["a", "b"], "sizes": (1, 2), "none": None, 7: True},
    }


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "last.pt"
    checkpoint.save(path, make_state())
    return path


def test_a_state_survives_saving_and_loading_bit_for_bit(saved: Path) -> None:
    assert checkpoint.state_hash(checkpoint.load(saved)) == checkpoint.state_hash(make_state())


def test_plain_torch_load_opens_a_checkpoint(saved: Path) -> None:
    state = torch.load(saved, weights_only=True)
    assert torch.equal(state["half"], make_state()["half"])


def test_nothing_but_the_checkpoint_is_left_in_the_folder(saved: Path) -> None:
    assert list(saved.parent.iterdir()) == [saved]


def test_every_flipped_bit_is_noticed(saved: Path) -> None:
    content = saved.read_bytes()
    choices = random.Random(0)
    positions = [choices.randrange(8 * len(content)) for _ in range(500)]
    positions += range(8 * len(content) - 8 * 100, 8 * len(content))  # every bit of the trailer
    for position in positions:
        damaged = bytearray(content)
        damaged[position // 8] ^= 1 << position % 8
        saved.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"last\.pt"):
            checkpoint.load(saved)


def test_every_truncation_is_noticed(saved: Path) -> None:
    content = saved.read_bytes()
    for length in [0, 1, *range(100, len(content), 997), len(content) - 1]:
        saved.write_bytes(content[:length])
        with pytest.raises(CheckpointError, match="truncated"):
            checkpoint.load(saved)


def test_appended_bytes_are_noticed(saved: Path) -> None:
    saved.write_bytes(saved.read_bytes() + b"\0")
    with pytest.raises(CheckpointError):
        checkpoint.load(saved)


@pytest.mark.parametrize("page", [512, 4096])
def test_every_zeroed_page_is_noticed(saved: Path, page: int) -> None:
    content = saved.read_bytes()
    for start in range(0, len(content), page):
        damaged = bytearray(content)
        damaged[start : start + page] = bytes(len(damaged[start : start + page]))
        if damaged == content:
            continue  # zip headers are padded with zeros
        saved.write_bytes(damaged)
        with pytest.raises(CheckpointError):
            checkpoint.load(saved)


def with_trailer(body: bytes, version: int = 1) -> bytes:
    digest = hashlib.sha256(body).hexdigest()
    return body + f"\nrotnet_fast checkpoint {version} sha256 {digest}\n".encode()


class Dangerous:
    """Unpickling this touches a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_a_checkpoint_cannot_run_code(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    torch.save({"weights": Dangerous(tmp_path / "executed")}, buffer)
    path = tmp_path / "evil.pt"
    path.write_bytes(with_trailer(buffer.getvalue()))
    with pytest.raises(CheckpointError, match="other than tensors"):
        checkpoint.load(path)
    assert not (tmp_path / "executed").exists()


@pytest.mark.faults("out of memory")
@pytest.mark.parametrize(
    "error",
    [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")],
    ids=["python", "torch"],
)
def test_a_lack_of_memory_is_not_taken_for_damage(
    error: Exception, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def starve(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(torch, "load", starve)
    with pytest.raises(type(error)):
        checkpoint.load(saved)


def test_another_format_version_is_named(tmp_path: Path) -> None:
    path = tmp_path / "future.pt"
    path.write_bytes(with_trailer(b"anything", version=2))
    with pytest.raises(CheckpointError, match="format 2"):
        checkpoint.load(path)


def test_a_missing_checkpoint_is_a_plain_sentence(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no checkpoint at"):
        checkpoint.load(tmp_path / "no.pt")


@pytest.mark.faults("disk full")
def test_a_full_disk_keeps_the_old_checkpoint(saved: Path) -> None:
    before = saved.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, hard))
    try:
        with pytest.raises(CannotWriteError, match=r"cannot write .*last\.pt.*--output"):
            checkpoint.save(saved, make_state())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]


def test_a_missing_folder_is_a_plain_sentence(tmp_path: Path) -> None:
    with pytest.raises(CannotWriteError, match="No such file or directory"):
        write_atomically(tmp_path / "no" / "file", b"content")


def test_what_a_killed_process_left_behind_is_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    temporary_path(path).write_bytes(b"half a fi")
    write_atomically(path, b"whole")
    assert [(entry.name, entry.read_bytes()) for entry in tmp_path.iterdir()] == [("results.json", b"whole")]


@pytest.mark.faults("killed while a file gets a second name")
def test_a_name_that_a_killed_process_was_about_to_give_a_file_does_not_cost_the_file(tmp_path: Path) -> None:
    source, name = tmp_path / "epoch-0001.pt", tmp_path / "last.pt"
    source.write_bytes(b"whole")
    temporary_path(name).hardlink_to(source)  # killed there, `link_atomically` would have renamed it next
    write_atomically(name, b"newer")
    assert (source.read_bytes(), name.read_bytes()) == (b"whole", b"newer")


def test_a_second_name_is_the_same_content_and_replaces_what_had_it(tmp_path: Path) -> None:
    source, name = tmp_path / "epoch-0001.pt", tmp_path / "last.pt"
    source.write_bytes(b"new")
    name.write_bytes(b"old")
    for _ in range(2):  # the second time, both are one file already
        link_atomically(source, name)
        assert name.read_bytes() == b"new"
        assert sorted(entry.name for entry in tmp_path.iterdir()) == ["epoch-0001.pt", "last.pt"]
    write_atomically(name, b"newer")
    assert source.read_bytes() == b"new"


def test_a_second_name_is_a_copy_where_the_file_system_has_no_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*names: str, **options: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    source = tmp_path / "epoch-0001.pt"
    source.write_bytes(b"new")
    monkeypatch.setattr(os, "link", refuse)
    link_atomically(source, tmp_path / "last.pt")
    assert (tmp_path / "last.pt").read_bytes() == b"new"
    assert not (tmp_path / "last.pt").samefile(source)


def fill_run(folder: Path) -> None:
    (folder / "checkpoints").mkdir()
    for name, epoch in (("epoch-0009.pt", 9), ("epoch-0010.pt", 10), ("last.pt", 11)):
        checkpoint.save(folder / "checkpoints" / name, {"epoch": epoch})


def test_the_newest_whole_checkpoint_of_a_run_is_found(tmp_path: Path) -> None:
    fill_run(tmp_path)
    path, state = checkpoint.load_newest(tmp_path)
    assert (path.name, state["epoch"]) == ("last.pt", 11)


@pytest.mark.faults("damaged newest checkpoint")
def test_damaged_checkpoints_are_passed_over_and_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fill_run(tmp_path)
    for name in ("last.pt", "epoch-0010.pt"):
        path = tmp_path / "checkpoints" / name
        path.write_bytes(path.read_bytes()[:-200])
    path, state = checkpoint.load_newest(tmp_path)
    assert (path.name, state["epoch"]) == ("epoch-0009.pt", 9)
    first, second = (record.getMessage() for record in caplog.records)
    assert ("last.pt" in first, "epoch-0010.pt" in second) == (True, True)
    assert first.endswith("using an older one")


def test_a_run_with_only_damaged_checkpoints_is_refused(tmp_path: Path) -> None:
    fill_run(tmp_path)
    for path in (tmp_path / "checkpoints").iterdir():
        path.write_bytes(b"")
    with pytest.raises(CheckpointError, match="has 3 checkpoints, but none"):
        checkpoint.load_newest(tmp_path)


def test_a_run_without_checkpoints_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no checkpoint in"):
        checkpoint.load_newest(tmp_path)


BASE = {"a": torch.zeros(2, 3), "b": [1, 2.0, "x", None]}


@pytest.mark.parametrize(
    "other",
    [
        {"a": torch.zeros(3, 2), "b": [1, 2.0, "x", None]},
        {"a": torch.zeros(2, 3, dtype=torch.int32), "b": [1, 2.0, "x", None]},
        {"a": -torch.zeros(2, 3), "b": [1, 2.0, "x", None]},
        {"a": torch.zeros(2, 3), "b": (1, 2.0, "x", None)},
        {"a": torch.zeros(2, 3), "b": [True, 2.0, "x", None]},
        {"a": torch.zeros(2, 3), "b": [1, 2, "x", None]},
        {"a": torch.zeros(2, 3), "b": [1, 2.0, "x", "None"]},
        {"a": torch.zeros(2, 3), "c": [1, 2.0, "x", None]},
        {"a": torch.zeros(2, 3), "b": [1, 2.0, "x"]},
        {"a": torch.zeros(2, 3), "b": [1, 2.0, "x", None], "d": {}},
    ],
)
def test_states_that_differ_in_anything_have_different_hashes(other: dict[str, Any]) -> None:
    assert checkpoint.state_hash(other) != checkpoint.state_hash(BASE)


def test_the_hash_ignores_key_order_and_memory_format() -> None:
    images = torch.randn(2, 3, 4, 4)
    assert checkpoint.state_hash({"x": 1, "y": images}) == checkpoint.state_hash(
        {"y": images.contiguous(memory_format=torch.channels_last), "x": 1}
    )


def test_the_hash_refuses_what_it_does_not_know() -> None:
    with pytest.raises(TypeError, match="set"):
        checkpoint.state_hash({"x": {1, 2}})

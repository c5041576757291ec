"""Damaged and odd images: both loaders show the same pixels, or refuse and leave out the same files."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from image_files import bad_images, encoded, few_scans, odd_images, write_jpegs
from test_data_dali import SIDE, as_file, jpegs, kinds, picture
from test_data_dali import encoded as encoded_split
from test_data_hostile_files import mutated

from rotnet_fast.data import decode, scan
from rotnet_fast.data.crop import RandomResizedCrop
from rotnet_fast.data.dali import DaliLoader
from rotnet_fast.data.datasets import Dataset, load_dataset
from rotnet_fast.data.decode import decode_image, decode_rgb
from rotnet_fast.data.jpeg import is_plain
from rotnet_fast.data.scan import GOOD, examine
from rotnet_fast.data.split import EncodedSplit
from rotnet_fast.errors import DataError

pytestmark = pytest.mark.needs_dali

BAD_IMAGES = bad_images()
MUTANTS = 15  # of each of five dozen kinds of image


@pytest.fixture(autouse=True)
def _user_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


class Boxes(RandomResizedCrop):
    """Squares of SIDE at a place that depends on the image, so that nothing is resized."""

    def boxes(self, sizes: Any, sample_ids: Any, seed: int, epoch: int) -> Any:
        corners = (sizes - SIDE) * (sample_ids.numpy()[:, None] % 4) // 3
        return corners.astype(np.int32), np.full_like(sizes, SIDE)


def test_what_passes_of_mutated_images_has_the_pixels_of_pillow_in_both_loaders(tmp_path: Path) -> None:
    choices = random.Random(1)
    whole = {
        f"{size}-{name}": content for size in (24, 40) for name, content in kinds(size, size, 40).items()
    }
    whole |= {
        f"restarts{n}.jpg": encoded(picture(n, 40, 40), "JPEG", restart_marker_blocks=n) for n in (1, 5)
    }
    passed, refused = {}, 0
    for name, content in whole.items():
        for number in range(MUTANTS):
            spoilt = mutated(content, choices)
            height, width, _, verdict = examine(spoilt)
            if verdict != GOOD:
                refused += 1
            elif min(height, width) >= SIDE:
                passed[f"{number:02d}-{name}"] = spoilt
    assert min(len(passed), refused) > 100
    split = encoded_split(tmp_path / "images", passed, image_size=40)
    expected = [decode_rgb(split.source.read(index)) for index in range(len(split))]
    for batch in DaliLoader(split, "cpu", batch_size=16, seed=0).epoch(0):
        for index, image in zip(batch.indices.tolist(), batch.images, strict=True):
            resident = decode_image(split.source.read(index), 40)
            assert np.array_equal(image.numpy(), resident), split.source.names[index]
    cropped = replace(split, image_size=SIDE)
    for batch in DaliLoader(cropped, "cpu", batch_size=16, seed=0, crop=Boxes(), shuffle=False).epoch(0):
        corners, _ = Boxes().boxes(split.sizes[batch.indices.numpy()], batch.sample_ids, 0, 0)
        for index, image, (top, left) in zip(batch.indices.tolist(), batch.images, corners, strict=True):
            shown = expected[index][top : top + SIDE, left : left + SIDE]
            assert np.array_equal(image.numpy(), shown), split.source.names[index]


@pytest.mark.parametrize("name", odd_images())
def test_the_pixels_of_an_odd_image_are_those_of_pillow(name: str, tmp_path: Path) -> None:
    content, (height, width) = odd_images()[name]
    split = encoded_split(tmp_path / "images", {name: content}, image_size=min(height, width))
    assert split.convert.tolist() == [True]
    (batch,) = DaliLoader(split, "cpu", batch_size=1, seed=0).epoch(0)
    assert np.array_equal(batch.images[0].numpy(), decode_image(content, min(height, width)))


def test_a_hidden_image_of_an_animation_is_what_is_seen() -> None:
    assert decode_rgb(odd_images()["hidden.png"][0])[0, 0].tolist() == [255, 0, 0]


def test_a_jpeg_is_plain_with_all_of_its_scans_alone() -> None:
    image = picture(0, 40, 40)
    assert is_plain(as_file(image, "JPEG", progressive=True))
    assert not is_plain(few_scans(image))


def load(data_dir: Path, encoded_too: bool, ways: str, check: str = "structure") -> Dataset[Any]:
    return load_dataset(
        "folder",
        data_dir,
        SIDE,
        progress=False,
        bad_images=ways,
        encoded=encoded_too,
        check_images=check,
    )


@pytest.mark.parametrize("name", BAD_IMAGES)
def test_both_loaders_refuse_and_leave_out_the_same_files(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content, reason = BAD_IMAGES[name]
    images = write_jpegs(tmp_path / "images")
    (images / "train" / "dark" / name).write_bytes(content)
    said, kept = [], []
    for streams in (False, True):
        with pytest.raises(DataError, match=f"^1 of 53 images .*{name} {reason[:30]}") as caught:
            load(images, streams, "fail")
        said.append(str(caught.value))
        dataset = load(images, streams, "skip")
        assert dataset.skipped == (f"train/dark/{name}",)
        kept.append([list(half.source.names) for half in dataset.files or ()])
    assert said[0] == said[1]
    assert kept[0] == kept[1]
    assert sum(map(len, kept[0])) == 52


def refuse(content: bytes, monkeypatch: pytest.MonkeyPatch, module: Any, function: str) -> None:
    """Stand for a decoder that cannot decode a file whose structure is right."""
    decodes = getattr(module, function)

    def refusing(file: bytes, *others: Any) -> Any:
        if file == content:
            raise DataError("an image cannot be read as an image: for a test")
        return decodes(file, *others)

    monkeypatch.setattr(module, function, refusing)


def test_what_only_decoding_finds_is_left_out_and_known_from_then_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    images = write_jpegs(tmp_path / "images")
    victim = images / "train" / "light" / "07.jpg"
    refuse(victim.read_bytes(), monkeypatch, decode, "decode_image")
    assert load(images, True, "fail").skipped == ()  # nobody has decoded it yet
    with pytest.raises(DataError, match=r"^1 of 52 .*light/07\.jpg is damaged: it cannot be decoded\."):
        load(images, False, "fail")
    resident = load(images, False, "skip")
    assert resident.skipped == ("train/light/07.jpg",)
    assert len(resident.train) == 39
    streamed = load(images, True, "skip")
    assert streamed.skipped == resident.skipped
    assert "light/07.jpg is damaged: it cannot be decoded" in capsys.readouterr().err


def test_a_check_on_request_decodes_every_image_before_any_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = write_jpegs(tmp_path / "images")
    victim = images / "train" / "light" / "15.jpg"
    refuse(victim.read_bytes(), monkeypatch, scan, "decode_rgb")
    for streams in (False, True):
        assert load(images, streams, "fail").skipped == ()
    for streams in (True, False):
        with pytest.raises(DataError, match=r"^1 of 52 .*light/15\.jpg is damaged: it cannot be decoded"):
            load(images, streams, "fail", "decode")
        assert load(images, streams, "skip", "decode").skipped == ("train/light/15.jpg",)


def test_an_image_that_dali_alone_cannot_decode_is_named(tmp_path: Path) -> None:
    """As long as the scan knows what DALI refuses, nothing comes to this."""
    files = jpegs(12)
    content, _ = odd_images()["zeros-4.jpg"]
    split = encoded_split(tmp_path / "images", {**files, "007.jpg": content})
    for crop in (None, RandomResizedCrop()):
        unknowing = replace(split, convert=np.zeros(12, np.bool_), sizes=np.full((12, 2), SIDE, np.int32))
        loader = DaliLoader(unknowing, "cpu", batch_size=5, seed=0, shuffle=False, crop=crop)
        with pytest.raises(DataError, match=r"^DALI cannot decode \S*/007\.jpg \(.*use --loader resident"):
            list(loader.epoch(0))


def in_a_fork(work: Callable[[], object]) -> int:
    """Exit status of a forked process that does some work; that of SIGALRM where it waits for ever."""
    process = os.fork()
    if process == 0:
        try:
            signal.alarm(20)
            work()
            os._exit(0)
        except RuntimeError as error:
            os._exit(3 if "create a loader in the new process" in str(error) else 4)
        finally:
            os._exit(5)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def forked(case: str, folder: Path) -> int:
    split: EncodedSplit = encoded_split(folder, jpegs(9))
    loader = DaliLoader(split, "cpu", batch_size=2, seed=0)
    if case == "before it worked":
        return in_a_fork(lambda: list(loader.epoch(0)))
    begun = loader.epoch(0)
    next(begun)
    if case == "another loader":
        return in_a_fork(lambda: list(DaliLoader(split, "cpu", batch_size=2, seed=0).epoch(0)))
    if case == "in mid-epoch":
        return in_a_fork(lambda: next(begun))
    list(begun)
    return in_a_fork(lambda: list(loader.epoch(1)))


@pytest.mark.parametrize(
    ("case", "code"),
    [("after an epoch", 3), ("in mid-epoch", 3), ("another loader", 0), ("before it worked", 0)],
)
def test_in_a_forked_process_a_loader_works_or_says_that_it_cannot(
    case: str, code: int, tmp_path: Path
) -> None:
    # In a process of its own, which has no threads of other tests.
    lines = ("from pathlib import Path", "from test_data_damage import forked")
    script = "\n".join([*lines, f"print(forked({case!r}, Path('images')))"])
    path = os.pathsep.join(
        [
            str(Path(__file__).parent),
            str(Path(__file__).parents[1] / "support"),
            str(Path(__file__).parents[2]),
        ]
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == f"{code}\n", done.stderr

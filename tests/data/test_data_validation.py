"""Settings are chosen on training images that are held out; the test images are not touched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from image_files import pixels, save
from tiny import tiny_config

from rotnet_fast import evaluate
from rotnet_fast.data.datasets import load_dataset
from rotnet_fast.data.decode import decode_images
from rotnet_fast.data.loaders import Streaming, open_dataset
from rotnet_fast.data.split import Split, validation_rows
from rotnet_fast.errors import ArgumentError
from rotnet_fast.pretrain import pretrain, summary
from rotnet_fast.protocols.result import load_results


@pytest.fixture(autouse=True)
def _user_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@given(st.lists(st.integers(0, 4), min_size=2, max_size=60), st.data())
def test_as_many_as_asked_for_are_held_out_in_proportion_the_last_of_each_class(
    classes: list[int], data: Any
) -> None:
    labels = np.array(classes)
    most = min(len(labels) // 2, len(labels) - len(set(classes)))
    if most < 1:
        with pytest.raises(ArgumentError, match="validation is 1"):
            validation_rows(labels, 1)
        return
    count = data.draw(st.integers(1, most))
    rows = validation_rows(labels, count)
    assert len(set(rows.tolist())) == count
    assert rows.tolist() == sorted(rows.tolist())
    for label in set(classes):
        members = np.flatnonzero(labels == label)
        held_out = np.intersect1d(members, rows)
        assert held_out.tolist() == members[len(members) - len(held_out) :].tolist()
        # Within one image, and one more where another class has only one image and keeps it.
        assert abs(len(held_out) - count * len(members) / len(labels)) <= 2
        assert len(held_out) < len(members)  # every class is still trained on


@pytest.mark.parametrize("count", [0, 4])
def test_more_than_half_or_none_is_refused(count: int) -> None:
    with pytest.raises(ArgumentError, match=rf"validation is {count}; it must lie in \[1, 3\]"):
        validation_rows(np.zeros(7, dtype=np.int64), count)


def make_folder(place: Path) -> Path:
    for half, first in (("train", 0), ("test", 500)):
        for label, name in enumerate("abc"):
            for number in range(4 + 2 * label):
                save(place / half / name / f"{number}.png", pixels(first + 100 * label + number))
    return place


def test_held_out_images_leave_training_and_take_the_place_of_the_test_images(tmp_path: Path) -> None:
    place = make_folder(tmp_path / "images")
    whole = load_dataset("folder", place, 8, progress=False)
    rows = torch.from_numpy(validation_rows(whole.train.labels.numpy(), 6))
    others = torch.ones(len(whole.train), dtype=torch.bool)
    others[rows] = False
    for limits in ((None, None), (7, 3)):
        held = load_dataset("folder", place, 8, *limits, progress=False, validation=6)
        if limits == (None, None):
            assert torch.equal(held.test.images, whole.train.images[rows])
            assert torch.equal(held.train.images, whole.train.images[others])
        assert (len(held.train), len(held.test)) == (limits[0] or 12, limits[1] or 6)
        streamed = load_dataset("folder", place, 8, *limits, progress=False, validation=6, encoded=True)
        for mine, theirs in ((held.train, streamed.train), (held.test, streamed.test)):
            assert np.array_equal(decode_images(theirs.source, 8, False), mine.images.numpy())
            assert torch.equal(theirs.labels, mine.labels)
        assert held.fingerprint != whole.fingerprint
    assert load_dataset("folder", place, 8, progress=False).fingerprint == whole.fingerprint


def test_test_images_are_not_even_looked_at(tmp_path: Path) -> None:
    place = make_folder(tmp_path / "images")
    (place / "test" / "a" / "0.png").write_bytes(b"damaged")
    assert len(load_dataset("folder", place, 8, progress=False, validation=6).test) == 6


def test_data_in_memory_are_held_out_alike(capsys: pytest.CaptureFixture[str]) -> None:
    whole = load_dataset("digits", image_size=8, progress=False)
    held = load_dataset("digits", image_size=8, validation=200)
    assert (
        "1,237 training images of 10 classes, 200 validation images of 10 classes" in capsys.readouterr().out
    )
    rows = torch.from_numpy(validation_rows(whole.train.labels.numpy(), 200))
    assert torch.equal(held.test.images, whole.train.images[rows])
    assert len(held.train) + len(held.test) == len(whole.train)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"limit_train": 7},
        {"limit_test": 3},
        {"validation": 6},
        {"limit_train": 7, "limit_test": 3, "validation": 6},
        {"display_name": "mine", "bad_images": "skip", "check_images": "decode"},
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["digits", "folder"])
def test_commands_and_the_interface_get_the_same_images(
    name: str, options: dict[str, Any], tmp_path: Path
) -> None:
    place = make_folder(tmp_path / "images") if name == "folder" else None
    limits = {"limit_train": None, "limit_test": None, **options}
    expected = load_dataset(name, place, 8, progress=False, **options)
    found = open_dataset(
        name, place, 8, streaming=Streaming(torch.device("cpu"), "resident"), progress=False, **limits
    )
    assert (found.fingerprint, found.display_name) == (expected.fingerprint, expected.display_name)
    for mine, theirs in ((found.train, expected.train), (found.test, expected.test)):
        assert isinstance(mine, Split)
        assert torch.equal(mine.images, theirs.images)
        assert torch.equal(mine.labels, theirs.labels)


def test_a_pretraining_on_data_in_memory_tests_on_what_it_held_out(tmp_path: Path) -> None:
    config = tiny_config(tmp_path / "run", limit_train=60, limit_test=None, validation=50)
    results = pretrain(config)
    assert (results["test_images"], results["tested_on"]) == (50, "validation")
    assert " on the 50 validation images of " in summary(config, results)


def test_an_evaluation_tests_on_what_its_pretraining_held_out(tmp_path: Path) -> None:
    place = make_folder(tmp_path / "images")
    config = tiny_config(
        tmp_path / "run", dataset="folder", data_dir=place, limit_train=None, limit_test=None, validation=6
    )
    assert pretrain(config)["test_images"] == 6
    for path in (place / "test").rglob("*.png"):
        path.write_bytes(b"damaged")
    flags = ["--checkpoint", str(tmp_path / "run"), "--epochs", "1", "--heads", "conv", "--device", "cpu"]
    assert evaluate.main(flags) == 0
    found = load_results(tmp_path / "run" / "evaluate-001")
    assert (found["dataset"]["train_images"], found["dataset"]["test_images"]) == (12, 6)
    assert found["pretraining"]["is_limited"]

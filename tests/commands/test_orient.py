"""Photos are judged as they are shown, copied upright without loss, and never written over."""

from __future__ import annotations

import csv
import io
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from image_files import chunk, deep_png, encoded, exif, pixels, scan_start, write_tar
from PIL import Image
from tiny import tiny_config

from rotnet_fast import load_backbone, orient
from rotnet_fast.analysis.orientation import Point, advised, coverage_points, orientation_probabilities
from rotnet_fast.backbone import Backbone
from rotnet_fast.data.decode import decode_image, decode_rgb
from rotnet_fast.data.upright import turn_upright
from rotnet_fast.errors import CannotWriteError
from rotnet_fast.orient import COLUMNS, OrientConfig
from rotnet_fast.pretrain import pretrain
from rotnet_fast.pretrained import read_pretrained
from rotnet_fast.rotations import FOUR_ROTATIONS

MODEL = "nin4-cifar10-jpeg"
SIDE = 32
TURNED = (0, 90, 180, 270, 90, 0)


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory; the user's own cache folder is left alone."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user_cache"))
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def oracle(monkeypatch: pytest.MonkeyPatch) -> None:
    """A network that knows which way is up: where an image is blue. It is unsure about grey images."""

    def probabilities(_backbone: Any, images: torch.Tensor, _average: bool) -> torch.Tensor:
        half = SIDE // 2
        blue = images[..., 2].double() - images[..., 0].double()  # [B,S,S]
        places = (blue[:, :half], blue[:, :, :half], blue[:, half:], blue[:, :, half:])  # where up is
        found = torch.stack([place.mean(dim=(1, 2)) for place in places], dim=1)
        return (found / 20).softmax(dim=1)

    monkeypatch.setattr("rotnet_fast.analysis.orientation.orientation_probabilities", probabilities)


def landscape(seed: int, height: int = 40, width: int = 56) -> np.ndarray[Any, Any]:
    """A blue sky above red ground, uint8 [H,W,3]."""
    image = pixels(seed, height, width) // 4
    image[: height // 2, :, 2] += 180
    image[height // 2 :, :, 0] += 180
    return image


def make_photos(folder: Path) -> dict[str, int]:
    """Photos of all kinds, in subfolders; returns by how much each is shown turned."""
    folder.mkdir()
    turned = {}
    for number, degrees in enumerate(TURNED):
        stored = Image.fromarray(np.rot90(landscape(number), degrees // 90))
        for suffix, kind, options in (
            ("jpg", "JPEG", {}),
            ("png", "PNG", {}),
            ("bmp", "BMP", {}),
            ("tif", "TIFF", {}),
            ("webp", "WEBP", {"lossless": True}),
        ):
            name = f"{'deeper/and deeper' if number % 2 else 'first'}/{number}.{suffix}"
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(encoded(stored, kind, **options))
            turned[name] = degrees
    # As cameras do: shown turned by its tag alone, and stored turned, but shown upright.
    (folder / "tagged.jpg").write_bytes(encoded(landscape(50), "JPEG", exif=exif(8)))
    (folder / "upright by its tag.jpg").write_bytes(encoded(np.rot90(landscape(51)), "JPEG", exif=exif(6)))
    return turned | {"tagged.jpg": 90, "upright by its tag.jpg": 0}


def rows(path: Path = Path("orientations.csv")) -> dict[str, dict[str, str]]:
    """Lines of a CSV file by the name of the photo, in their order."""
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        assert tuple(reader.fieldnames or ()) == COLUMNS
        return {row["file"]: row for row in reader}


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Contents and modification times of all files except the cache, by relative path."""
    return {
        str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and ".rotnet_fast_cache" not in path.parts
    }


def call(*flags: str) -> int:
    return orient.main([MODEL, "--data-dir", "photos", "--device", "cpu", *flags])


@pytest.mark.usefixtures("oracle")
def test_photos_are_judged_as_they_are_shown_and_listed_by_path(capsys: pytest.CaptureFixture[str]) -> None:
    turned = make_photos(Path("photos"))
    before = contents(Path("photos"))
    assert call() == 0
    found = rows()
    assert list(found) == sorted(turned)
    assert {name: int(row["degrees_counter_clockwise"]) for name, row in found.items()} == turned
    assert {row["decision"] for row in found.values()} == {"upright", "turned"}
    assert {row["copy"] for row in found.values()} == {""}
    assert all(0.9 < float(row["confidence"]) <= 1 for row in found.values())
    printed = capsys.readouterr().out
    assert "32 images: 11 upright, 21 turned, 0 doubtful" in printed
    step = printed.rpartition("\nnext:\n")[2].strip()
    assert step.startswith("python -m rotnet_fast.orient nin4-cifar10-jpeg --data-dir photos --device cpu")
    assert step.endswith(f"--apply {Path('photos-upright').resolve()}")
    assert contents(Path("photos")) == before


@pytest.mark.usefixtures("oracle")
def test_copies_are_upright_to_the_bit_with_names_times_and_rights_kept() -> None:
    turned = make_photos(Path("photos"))
    old = 1_000_000_000_123_456_789
    for name in turned:
        os.utime(Path("photos", name), ns=(old, old))
    Path("photos/tagged.jpg").chmod(0o640)
    before = contents(Path("photos"))
    assert call("--apply", "upright") == 0
    assert contents(Path("photos")) == before
    after = contents(Path("upright"))
    assert after.keys() == turned.keys()
    for name, degrees in turned.items():
        copy = Path("upright", name)
        assert copy.stat().st_mtime_ns == old
        assert copy.stat().st_mode == Path("photos", name).stat().st_mode
        assert rows()[name]["copy"] == ("turned" if degrees else "identical")
        if degrees == 0:
            assert after[name] == before[name]
        expected = np.rot90(decode_rgb(f"photos/{name}"), -degrees // 90)
        assert np.array_equal(decode_rgb(str(copy)), expected)
        blue = decode_rgb(str(copy)).astype(int)[..., 2]
        assert blue[:20].mean() > blue[20:].mean() + 100
    jpeg, copy_of_it = before["first/2.jpg"][0], after["first/2.jpg"][0]
    assert copy_of_it[scan_start(copy_of_it) :] == jpeg[scan_start(jpeg) :]


@pytest.mark.usefixtures("oracle")
def test_the_same_command_resumes_and_replaces_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    make_photos(Path("photos"))
    assert call("--apply", "upright") == 0
    whole, table = contents(Path("upright")), Path("orientations.csv").read_bytes()
    inodes = {path: path.stat().st_ino for path in Path("upright").rglob("*.*")}
    Path("upright/first/0.jpg").unlink()
    Path("upright/first/.4.png.tmp").write_bytes(b"of a killed process")
    Path("upright/first/4.png").unlink()
    assert call("--apply", "upright") == 0
    assert contents(Path("upright")) == whole
    assert Path("orientations.csv").read_bytes() == table
    rewritten = [path.name for path, number in inodes.items() if path.stat().st_ino != number]
    assert set(rewritten) <= {"0.jpg", "4.png"}

    other = Path("upright/first/2.jpg")
    other.write_bytes(b"of the user")
    capsys.readouterr()
    assert call("--apply", "upright") == 2
    assert "already holds another first/2.jpg; remove it, or choose" in capsys.readouterr().err
    assert other.read_bytes() == b"of the user"
    other.unlink()
    original = Path("photos/first/2.jpg").resolve()
    kept = original.read_bytes(), original.stat().st_mtime_ns
    other.symlink_to(original)  # writing there, or setting its times, would change the original
    assert call("--apply", "upright") == 2
    assert (original.read_bytes(), original.stat().st_mtime_ns) == kept


@pytest.mark.usefixtures("oracle")
def test_doubtful_photos_are_left_alone() -> None:
    photos = Path("photos")
    photos.mkdir()
    faint = landscape(0) // 16 + 100
    for name, image in (("sure", landscape(1)), ("faint", faint)):
        (photos / f"{name}.png").write_bytes(encoded(np.ascontiguousarray(np.rot90(image))))
    assert call("--apply", "upright", "--min-confidence", "0.95") == 0
    found = rows()
    assert [(found[name]["decision"], found[name]["copy"]) for name in ("faint.png", "sure.png")] == [
        ("doubtful", "identical"),
        ("turned", "turned"),
    ]
    assert found["faint.png"]["degrees_counter_clockwise"] == "90"
    assert float(found["faint.png"]["confidence"]) < 0.95
    assert Path("upright/faint.png").read_bytes() == (photos / "faint.png").read_bytes()
    assert call("--apply", "all") == 0
    assert Path("all/faint.png").read_bytes() != (photos / "faint.png").read_bytes()


@pytest.mark.usefixtures("oracle")
def test_what_cannot_be_turned_without_loss_is_copied_and_said(capsys: pytest.CaptureFixture[str]) -> None:
    photos = Path("photos")
    photos.mkdir()
    turned = np.ascontiguousarray(np.rot90(landscape(0)))
    deep = np.kron(turned.astype(np.uint16), np.full((1, 1, 1), 257, np.uint16))
    for name, content in (
        ("a.webp", encoded(turned, "WEBP", quality=95)),
        ("b.webp", encoded(turned, "WEBP", quality=90)),
        ("c.png", deep_png(deep, 2)),
    ):
        (photos / name).write_bytes(content)
    assert call("--apply", "upright") == 0
    for name, row in rows().items():
        assert row["decision"] == "turned"
        assert row["copy"].startswith("unchanged: it is a ")
        assert Path("upright", name).read_bytes() == (photos / name).read_bytes()
    printed = capsys.readouterr().out
    assert "2 turned images could only be copied: each is a lossy WebP" in printed
    assert "1 turned image could only be copied: each is a PNG of 16 bits per channel" in printed


@pytest.mark.usefixtures("oracle")
def test_names_of_any_bytes_are_kept_in_the_table() -> None:
    name = os.fsdecode(b'caf\xe9, "new"\nline.png')
    Path("photos").mkdir()
    Path("photos", name).write_bytes(encoded(landscape(0)))
    assert call("--apply", "upright") == 0
    with Path("orientations.csv").open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        (_, row) = csv.reader(file)
    assert row[0] == name
    assert Path("upright", row[0]).exists()


@pytest.mark.usefixtures("oracle")
@pytest.mark.parametrize(
    ("apply", "said"),
    [
        ("photos", "which is data-dir"),
        ("link", "which is data-dir"),
        ("photos/../photos/first/new", "which lies inside data-dir"),
        ("link/new", "which lies inside data-dir"),
        (".", "which contains data-dir"),
        ("..", "which contains data-dir"),
        ("around", "which contains data-dir"),
        ("target", "to which a link in data-dir leads"),
        ("a-file", "it is a file"),
    ],
)
def test_copies_never_come_near_the_photos(
    apply: str, said: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_photos(place / "photos")
    (place / "link").symlink_to("photos")
    (place / "around").symlink_to(".")
    (place / "target").mkdir()
    (place / "target" / "x.png").write_bytes(encoded(landscape(0)))
    if apply == "target":
        (place / "photos" / "elsewhere").symlink_to("../target")
    (place / "a-file").touch()
    before = contents(place)
    assert call("--apply", apply) == (7 if apply == "a-file" else 2)
    assert said in capsys.readouterr().err
    assert contents(place) == before


@pytest.mark.usefixtures("oracle")
def test_links_to_photos_elsewhere_are_copied_as_files() -> None:
    Path("photos").mkdir()
    Path("elsewhere.png").write_bytes(encoded(np.ascontiguousarray(np.rot90(landscape(0)))))
    Path("photos/linked.png").symlink_to("../elsewhere.png")
    before = Path("elsewhere.png").read_bytes()
    assert call("--apply", "upright") == 0
    assert not Path("upright/linked.png").is_symlink()
    assert Path("upright/linked.png").read_bytes() == turn_upright(before, 90)
    assert Path("elsewhere.png").read_bytes() == before


@pytest.mark.usefixtures("oracle")
def test_damaged_photos_stop_the_command_or_are_skipped(capsys: pytest.CaptureFixture[str]) -> None:
    make_photos(Path("photos"))
    Path("photos/first/broken.jpg").write_bytes(encoded(landscape(0), "JPEG")[:-100])
    assert call("--apply", "upright") == 3
    assert "photos/first/broken.jpg is truncated" in capsys.readouterr().err
    assert not Path("upright").exists()
    assert not Path("orientations.csv").exists()
    assert call("--apply", "upright", "--bad-images", "skip") == 0
    assert "first/broken.jpg" not in rows()
    assert not Path("upright/first/broken.jpg").exists()


@pytest.mark.usefixtures("oracle")
def test_files_of_others_are_not_replaced_by_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    make_photos(Path("photos"))
    Path("letters.csv").write_text("dear,reader\n")
    assert call("--output", "letters.csv") == 2
    assert "letters.csv is there and is no such result" in capsys.readouterr().err
    assert call("--output", "photos/first/0.jpg") == 2
    assert "must end in .csv" in capsys.readouterr().err
    Path("0.png").write_bytes(b"a photo")
    assert call("--output", "0.csv", "--evaluate") == 2
    assert "0.png is there and is no such result" in capsys.readouterr().err
    assert call("--output", "0.csv") == 0
    assert call("--output", "0.csv", "--evaluate") == 2  # the orientations and the photo would be lost
    assert Path("0.png").read_bytes() == b"a photo"


def test_shards_are_judged_and_not_copied(capsys: pytest.CaptureFixture[str]) -> None:
    Path("photos").mkdir()
    write_tar(Path("photos/some.tar"), {"a.png": encoded(landscape(0)), "b.png": encoded(landscape(1))})
    assert call() == 0
    assert list(rows()) == ["some.tar/a.png", "some.tar/b.png"]
    assert call("--apply", "upright") == 2
    assert "the images are in tar shards such as photos/some.tar; unpack them" in capsys.readouterr().err


@pytest.mark.usefixtures("oracle")
def test_a_full_disk_is_reported_with_the_flag_that_helps(monkeypatch: pytest.MonkeyPatch) -> None:
    make_photos(Path("photos"))

    def full(*_: Any) -> Iterator[Any]:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(orient, "replacing", full)
    with pytest.raises(CannotWriteError, match=r"No space left on device; .* with --apply"):
        orient.orient(OrientConfig(MODEL, Path("photos"), apply=Path("upright"), device="cpu"))


@pytest.fixture(scope="module")
def network() -> Backbone:
    return load_backbone(MODEL, "cpu")


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    found = [decode_image(encoded(landscape(seed, 30 + seed, 36)), SIDE) for seed in range(5)]
    return torch.from_numpy(np.stack([*found, pixels(0, SIDE, SIDE)]))


def test_averaged_probabilities_turn_with_the_image_to_the_bit(
    network: Backbone, images: torch.Tensor
) -> None:
    found = orientation_probabilities(network, images, is_averaged=True)  # [B,4]
    for turns in range(4):
        turned = torch.rot90(images, turns, (1, 2)).contiguous()
        again = orientation_probabilities(network, turned, is_averaged=True)
        assert torch.equal(again, found.roll(turns, dims=1))
    assert found.sum(dim=1) == pytest.approx(1)


def test_without_averaging_a_copy_gets_the_networks_own_answer(
    network: Backbone, images: torch.Tensor
) -> None:
    expected = network.rotation_logits(images).double().softmax(dim=2)
    one = orientation_probabilities(network, images, is_averaged=False)
    torch.testing.assert_close(one, expected[:, 0], atol=1e-5, rtol=0)
    averaged = orientation_probabilities(network, images, is_averaged=True)
    by_hand = torch.stack([expected[:, k].roll(-k, dims=1) for k in range(4)]).mean(dim=0)
    torch.testing.assert_close(averaged, by_hand, atol=1e-5, rtol=0)


def test_the_order_of_a_networks_rotations_does_not_matter(network: Backbone, images: torch.Tensor) -> None:
    """A network of the rotations 270 0 180 90, whose answers are those of the shipped one in that order."""
    order = (270, 0, 180, 90)

    class Reordered(torch.nn.Module):
        in_channels, num_classes, layers = 3, 4, network.layers

        def __init__(self) -> None:
            super().__init__()
            self.inner = network.network

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.inner(x)[:, [FOUR_ROTATIONS.index(angle) for angle in order]]
            return logits

    reordered: Any = Reordered()
    other = Backbone(reordered, rotations=order, mean=network.mean, std=network.std)
    for is_averaged in (False, True):
        expected = orientation_probabilities(network, images, is_averaged)
        assert torch.equal(orientation_probabilities(other, images, is_averaged), expected)


def test_coverage_and_error_are_counted_at_each_threshold() -> None:
    confidences = torch.tensor([0.4, 0.6, 0.8, 0.95, 1.0], dtype=torch.float64)
    is_right = torch.tensor([False, True, False, True, True])
    points = coverage_points(confidences, is_right, (0.0, 0.6, 0.9, 1.0))
    assert [(point.decided, point.wrong) for point in points] == [(5, 2), (4, 1), (2, 0), (1, 0)]
    assert [point.coverage for point in points] == [1, 0.8, 0.4, 0.2]
    assert [point.error for point in points] == [0.4, 0.25, 0, 0]
    best = advised(points)
    assert best is not None
    assert best.min_confidence == 0.9
    assert best.error_bound == pytest.approx(79.35, abs=0.01)  # Wilson's interval of 0 of 1 image
    assert advised([Point(0.5, 100, 2, 100), Point(1.0, 0, 0, 100)]) is None


def stored_turned(kind: str, seed: int, turns: int) -> bytes:
    """A photo as it would have been stored: a JPEG file was compressed as it lies."""
    upright = encoded(landscape(seed, 40, 56), kind)
    if turns == 0:
        return upright
    with Image.open(io.BytesIO(upright)) as image:
        return encoded(np.ascontiguousarray(np.rot90(np.array(image), turns)), kind)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("flags", [[], ["--no-average"]])
def test_an_evaluation_measures_what_a_model_does_to_photos_that_were_stored_turned(
    flags: list[str], kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = Path("photos")
    photos.mkdir()
    for seed in range(6):
        (photos / f"{seed}.{kind.lower()}").write_bytes(stored_turned(kind, seed, 0))
    assert call("--evaluate", "--min-confidence", "0.3", *flags) == 0
    printed = capsys.readouterr().out
    with Path("orientation-coverage.csv").open() as file:
        measured = {float(row["min_confidence"]): row for row in csv.DictReader(file)}
    assert 0.3 in measured
    wrong = confident = 0
    for turns in range(4):  # the same, by the command itself
        shutil.rmtree("photos")
        photos.mkdir()
        for seed in range(6):
            (photos / f"{seed}.{kind.lower()}").write_bytes(stored_turned(kind, seed, turns))
        Path("orientations.csv").unlink(missing_ok=True)
        assert call(*flags) == 0
        for row in rows().values():
            wrong += int(row["degrees_counter_clockwise"]) != 90 * turns
            confident += float(row["confidence"]) >= 0.9
    assert int(measured[0.0]["wrong"]) == wrong
    assert int(measured[0.9]["decided"]) == confident
    assert int(measured[0.0]["judged"]) == 24
    assert " % at 90, " in printed.partition("error rate by true rotation: ")[2]
    assert "min-confidence  coverage, %  error, %  wrong / decided" in printed
    assert ("advised: --min-confidence" in printed) != ("no threshold brings the error" in printed)
    for suffix in (".png", ".svg"):
        assert Path("orientation-coverage").with_suffix(suffix).stat().st_size > 1000
    assert call("--evaluate", *flags) == 0  # its own files are replaced


def test_models_of_other_rotations_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    make_photos(Path("photos"))
    pretrain(tiny_config(Path("run"), epochs=1, rotations=(0, 180), pad=0))
    capsys.readouterr()
    assert orient.main(["run", "--data-dir", "photos", "--device", "cpu"]) == 4
    error = capsys.readouterr().err
    assert error.startswith("error: checkpoint run was trained on the rotations 0 180; pass a model of the ")
    assert len(error.splitlines()) == 1
    assert not Path("orientations.csv").exists()


def test_images_with_a_tag_are_shown_to_the_network_as_they_are_shown_to_people(network: Backbone) -> None:
    """The same judgement of a photo, however its file says that it is turned."""
    Path("photos").mkdir()
    upright, turned = landscape(3, SIDE, SIDE), landscape(3, SIDE, SIDE)
    plain = encoded(upright)
    for orientation in range(1, 9):
        tag = chunk(b"eXIf", exif(orientation)[6:])
        Path("photos", f"{orientation}.png").write_bytes(plain[:33] + tag + plain[33:])
    assert call() == 0
    for orientation, turns in ((1, 0), (8, 1), (3, 2), (6, 3)):
        shown = torch.from_numpy(np.rot90(turned, turns).copy())[None]
        expected = orientation_probabilities(network, shown, is_averaged=True)[0].max(dim=0)
        row = rows()[f"{orientation}.png"]
        assert int(row["degrees_counter_clockwise"]) == 90 * int(expected.indices)
        assert float(row["confidence"]) == pytest.approx(float(expected.values), abs=1e-6)


def test_the_network_sees_the_crop_that_it_was_tested_on(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("photos").mkdir()
    content = encoded(landscape(0, 50, 70))
    Path("photos/a.png").write_bytes(content)
    seen = []

    def probabilities(_backbone: Any, images: torch.Tensor, _average: bool) -> torch.Tensor:
        seen.append(images[0].numpy())
        return torch.tensor([[1.0, 0, 0, 0]], dtype=torch.float64)

    monkeypatch.setattr("rotnet_fast.analysis.orientation.orientation_probabilities", probabilities)
    shipped = read_pretrained(MODEL)
    for crop in ("pad", "resized"):
        model = replace(shipped, config=replace(shipped.config, dataset="folder", crop=crop))
        monkeypatch.setattr(orient, "read_pretrained", lambda _, model=model: model)
        assert call() == 0
        assert np.array_equal(seen.pop(), decode_image(content, SIDE, is_cropped=crop == "resized"))
    assert not np.array_equal(decode_image(content, SIDE), decode_image(content, SIDE, is_cropped=True))

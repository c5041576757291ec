"""The embed command: what its files hold, that nothing disturbs them, and what is refused."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from image_files import encoded, exif, pixels, save
from tiny import folder_config, read_digits_once, tiny_config

from rotnet_fast import embed, load_backbone
from rotnet_fast.data.decode import decode_image
from rotnet_fast.export import ExportConfig, export
from rotnet_fast.feature_files import Parts
from rotnet_fast.pretrain import pretrain

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny pretrained network, exported."""
    folder = tmp_path_factory.mktemp("model")
    with read_digits_once():
        pretrain(tiny_config(folder / "run", epochs=1))
    return export(ExportConfig(str(folder / "run"), folder / "exported"))


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory; the user's own cache folder is left alone."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user_cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def photos(place: Path) -> Path:
    """Eleven photos of two classes, one of them with a name that CSV has to quote."""
    folder = place / "photos"
    for number in range(9):
        save(folder / ("cat", 'dog, "old"')[number % 2] / f"{number}.png", pixels(number, 12 + number, 30))
    (folder / "cat" / "turned é.jpg").write_bytes(encoded(pixels(9, 20, 30), "JPEG", exif=exif(6)))
    save(folder / "cat" / "deep" / "fitting.png", pixels(10, 16, 16))
    return folder


def names_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*.*g"))


def run(model: Path, photos: Path, output: str, *flags: str) -> int:
    arguments = [str(model), "--data-dir", str(photos), "--output", output, "--device", "cpu", *flags]
    return embed.main(arguments)


def expected(model: Path, photos: Path, layer: str = "conv2") -> tuple[torch.Tensor, torch.Tensor]:
    """What load_backbone makes of the decoded images, in batches of 256."""
    backbone = load_backbone(model, "cpu")
    images = torch.from_numpy(np.stack([decode_image(str(photos / name), 16) for name in names_in(photos)]))
    probabilities = backbone.network(backbone._normalised(images)).softmax(dim=1)
    turned = backbone.rotation_logits(images).softmax(dim=2)  # of four times as many images, and so rounded
    torch.testing.assert_close(probabilities, turned[:, 0])
    return backbone(images, layer), probabilities


def table(path: str) -> dict[str, Any]:
    with np.load(path) as arrays:
        return dict(arrays)


@pytest.mark.parametrize("loader", ["resident", pytest.param("dali", marks=pytest.mark.needs_dali)])
@pytest.mark.parametrize("layer", ["conv2", "conv3"])
def test_npz_holds_what_the_backbone_makes_of_the_decoded_images(
    model: Path, photos: Path, loader: str, layer: str
) -> None:
    assert run(model, photos, "x.npz", "--layer", layer, "--loader", loader) == 0
    found, (vectors, probabilities) = table("x.npz"), expected(model, photos, layer)
    assert found.keys() == {
        *("names", "vectors", "rotation_probabilities", "rotations"),
        *("labels", "classes", "layer", "metadata"),
    }
    assert found["names"].tolist() == names_in(photos)
    assert (found["vectors"].dtype, found["rotation_probabilities"].dtype) == (np.float32, np.float32)
    assert np.array_equal(found["vectors"], vectors.numpy())
    assert np.array_equal(found["rotation_probabilities"], probabilities.numpy())
    assert found["rotations"].tolist() == [0, 90, 180, 270]
    assert found["classes"].tolist() == ["cat", 'dog, "old"']
    assert [found["classes"][label] for label in found["labels"]] == [
        name.partition("/")[0] for name in names_in(photos)
    ]
    metadata = json.loads(str(found["metadata"]))
    assert str(found["layer"]) == metadata["layer"] == layer
    assert metadata["digest"] == load_backbone(model, "cpu").metadata["state_hash"]
    assert (metadata["model"], metadata["image_size"], metadata["rotnet_fast"]) == (str(model), 16, "0.1.0")
    assert not Path("x.npz.parts").exists()


def test_csv_gives_every_float_back_exactly(model: Path, photos: Path) -> None:
    assert run(model, photos, "x.csv") == 0
    with open("x.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    vectors, probabilities = expected(model, photos)
    assert [row["name"] for row in rows] == names_in(photos)
    for kind, values in (("conv2_{}", vectors), ("rotation_{}", probabilities)):
        columns = [kind.format(n if kind.startswith("conv2") else 90 * n) for n in range(values.shape[1])]
        found = np.array([[np.float32(row[column]) for column in columns] for row in rows])
        assert np.array_equal(found, values.numpy())
    assert {row["class"] for row in rows} == {"cat", 'dog, "old"'}
    assert [int(row["label"]) for row in rows] == [int(row["class"] != "cat") for row in rows]
    assert json.loads(Path("x.csv.json").read_text())["layer"] == "conv2"


def test_csv_can_be_read_by_programs_that_know_nothing_of_it(model: Path, photos: Path) -> None:
    assert run(model, photos, "x.csv") == 0
    text = Path("x.csv").read_bytes()
    assert text.startswith(b"name,label,class,conv2_0,")
    assert b'\r\n"dog, ""old""/1.png",1,"dog, ""old""",' in text
    floats = np.genfromtxt(["1", *text.decode().splitlines()[1].split(",")[-4:]], dtype=np.float64)
    assert floats[1:].sum() == pytest.approx(1)


def test_images_without_classes_have_no_labels(model: Path, place: Path) -> None:
    save(place / "flat" / "a.png", pixels(0))
    save(place / "flat" / "b.png", pixels(1))
    assert run(model, place / "flat", "x.npz") == 0
    assert table("x.npz").keys().isdisjoint({"labels", "classes"})
    assert run(model, place / "flat", "x.csv") == 0
    assert Path("x.csv").read_text().startswith("name,conv2_0,")


def test_a_split_without_labels_has_empty_classes(model: Path, place: Path) -> None:
    for number, name in enumerate(["train/a/1.png", "train/b/1.png", "test/1.png"]):
        save(place / "data" / name, pixels(number))
    assert run(model, place / "data", "x.csv") == 0
    with open("x.csv", newline="", encoding="utf-8") as file:
        rows = [(row["name"], row["label"], row["class"]) for row in csv.DictReader(file)]
    assert rows == [("test/1.png", "-1", ""), ("train/a/1.png", "0", "a"), ("train/b/1.png", "1", "b")]


@pytest.mark.needs_dali
def test_networks_of_resized_crops_see_centres_by_either_loader(place: Path, photos: Path) -> None:
    for half in ("train", "test"):
        shutil.copytree(photos, place / "data" / half)
    pretrain(
        folder_config(
            place / "run", place / "data", "fp32 dali sgd", crop="resized", epochs=1, limit_test=None
        )
    )
    assert load_backbone("run", "cpu").is_cropped
    for loader in ("resident", "dali", "auto"):
        assert run(Path("run"), photos, f"{loader}.npz", "--loader", loader) == 0
    paths = [str(photos / name) for name in names_in(photos)]
    images = torch.from_numpy(np.stack([decode_image(path, 16, is_cropped=True) for path in paths]))
    backbone = load_backbone("run", "cpu")
    for loader in ("resident", "dali", "auto"):
        assert np.array_equal(table(f"{loader}.npz")["vectors"], backbone(images).numpy())
    assert torch.equal(backbone.embed(photos), backbone(images))


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of one batch each."""
    monkeypatch.setattr(embed, "PART_BYTES", 1)


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("suffix", [".npz", ".csv"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.faults("embedding that a signal stopped")
def test_a_stopped_command_goes_on_where_it_was(
    model: Path,
    photos: Path,
    suffix: str,
    number: signal.Signals,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(model, photos, f"whole{suffix}", "--batch-size", "4") == 0
    written: list[int] = []
    write = Parts.write

    def stop_after_two(parts: Parts, part: int, rows: Any) -> None:
        write(parts, part, rows)
        written.append(part)
        if len(written) == 2:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(Parts, "write", stop_after_two)
    capsys.readouterr()
    assert run(model, photos, f"x{suffix}", "--batch-size", "4") == 128 + number
    said = capsys.readouterr().err
    assert f"saved; resume with: python -m rotnet_fast.embed {model} --data-dir" in said
    assert written == [0, 1]
    assert not Path(f"x{suffix}").exists()
    assert run(model, photos, f"x{suffix}", "--batch-size", "4") == 0
    assert "resuming: 8 of 11 images are done" in capsys.readouterr().out
    assert written == [0, 1, 2]
    assert Path(f"x{suffix}").read_bytes() == Path(f"whole{suffix}").read_bytes()
    assert not Path(f"x{suffix}.parts").exists()


KILLED = """
import os, signal, sys
from rotnet_fast import embed, files
embed.PART_BYTES = 1
function, left = os.replace, int(sys.argv[1])
def deadly(*arguments, **options):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    function(*arguments, **options)
os.replace = deadly
sys.exit(embed.main(sys.argv[2:]))
"""
"""Runs the command and kills it before it gives a file its final name for the n-th time."""


@pytest.mark.usefixtures("small_parts")
@pytest.mark.faults("embedding that was killed")
def test_a_killed_command_goes_on_where_it_was(model: Path, photos: Path) -> None:
    assert run(model, photos, "whole.npz", "--batch-size", "4") == 0
    flags = [str(model), "--data-dir", str(photos), "--output", "x.npz", "--device", "cpu"]
    # In this order: the list of images, the settings, three parts, and the output; what is there stays.
    for number in (2, 4, 3, 1):
        killed = subprocess.run(
            [sys.executable, "-c", KILLED, str(number), *flags, "--batch-size", "4"],
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            check=False,
        )
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        assert not Path("x.npz").exists()
    parts = sorted(path.name for path in Path("x.npz.parts").glob("part-*"))
    assert parts == ["part-000000.npy", "part-000001.npy", "part-000002.npy"]
    assert run(model, photos, "x.npz", "--batch-size", "4") == 0
    assert Path("x.npz").read_bytes() == Path("whole.npz").read_bytes()
    assert not Path("x.npz.parts").exists()


@pytest.fixture
def interrupted(model: Path, photos: Path, small_parts: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """x.npz is half done."""
    with monkeypatch.context() as patch:
        write = Parts.write
        patch.setattr(
            Parts, "write", lambda *arguments: (write(*arguments), os.kill(os.getpid(), signal.SIGTERM))
        )
        assert run(model, photos, "x.npz", "--batch-size", "4") == 143


@pytest.mark.usefixtures("interrupted")
def test_other_settings_do_not_resume(model: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert run(model, photos, "x.npz", "--batch-size", "4", "--layer", "conv3") == 2
    said = capsys.readouterr().err
    assert "x.npz.parts belongs to an interrupted run" in said
    assert "layer was conv2 and is conv3" in said
    assert run(model, photos, "x.npz", "--batch-size", "8") == 2
    assert "batch_size was 4 and is 8" in capsys.readouterr().err


@pytest.mark.usefixtures("interrupted")
def test_changed_images_do_not_resume(model: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(photos / "cat" / "new.png", pixels(30))
    save(photos / "cat" / "0.png", pixels(31, 12, 30))
    (photos / "cat" / "2.png").unlink()
    capsys.readouterr()
    assert run(model, photos, "x.npz", "--batch-size", "4") == 3
    said = capsys.readouterr().err
    assert "the images have changed since the interrupted run in x.npz.parts" in said.replace(
        f"{Path.cwd()}/", ""
    )
    for text in ("1 removed (cat/2.png)", "1 added (cat/new.png)", "1 with changed contents (cat/0.png)"):
        assert text in said


@pytest.mark.usefixtures("interrupted")
@pytest.mark.faults("part of an embedding that was damaged")
def test_a_damaged_part_is_computed_again(model: Path, photos: Path) -> None:
    assert run(model, photos, "whole.npz", "--batch-size", "4") == 0
    path = Path("x.npz.parts/part-000000.npy")
    path.write_bytes(path.read_bytes()[:-7])
    assert run(model, photos, "x.npz", "--batch-size", "4") == 0
    assert Path("x.npz").read_bytes() == Path("whole.npz").read_bytes()


@pytest.mark.usefixtures("interrupted")
def test_a_damaged_list_is_named(model: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("x.npz.parts/images.json.gz").write_bytes(b"no list")
    assert run(model, photos, "x.npz", "--batch-size", "4") == 3
    assert "images.json.gz is damaged; remove" in capsys.readouterr().err


def test_a_second_process_is_refused(model: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = Parts(Path.cwd() / "x.npz", {})
    Path("x.npz.parts").mkdir()
    from rotnet_fast.engine.run_folder import FileLock

    lock = FileLock(first.folder / "lock")
    assert lock.take()
    assert run(model, photos, "x.npz") == 2
    assert f"is being written by another process ({os.getpid()})" in capsys.readouterr().err
    lock.close()
    assert run(model, photos, "x.npz") == 0


@pytest.mark.parametrize("suffix", [".npz", ".csv"])
def test_a_finished_output_is_kept(
    model: Path, photos: Path, suffix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    output = f"x{suffix}"
    assert run(model, photos, output) == 0
    content = Path(output).read_bytes()
    capsys.readouterr()
    assert run(model, photos, output) == 0
    assert f"{output} is complete already" in capsys.readouterr().out
    assert run(model, photos, output, "--layer", "conv1") == 2
    assert "holds features of other settings: layer was conv2 and is conv1" in capsys.readouterr().err
    save(photos / "cat" / "new.png", pixels(30))
    assert run(model, photos, output) == 2
    assert "holds features of other images than those in" in capsys.readouterr().err
    assert Path(output).read_bytes() == content
    if output.endswith(".csv"):
        Path(output).unlink()  # as if the program had been killed between the two files
        assert run(model, photos, output) == 0
        Path(output).unlink()
        Path("x.csv.json").write_text('{"mine": 1}')
        assert run(model, photos, output) == 2
        assert "x.csv.json exists, but was not written by" in capsys.readouterr().err
        assert Path("x.csv.json").read_text() == '{"mine": 1}'
    Path(output).write_text("my notes")
    Path("x.csv.json").unlink(missing_ok=True)
    assert run(model, photos, output) == 2
    assert "was not written by python -m rotnet_fast.embed" in capsys.readouterr().err
    assert Path(output).read_text() == "my notes"


def test_a_folder_of_that_name_is_no_parts(
    model: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (Path("x.npz.parts") / "mine").mkdir(parents=True)
    assert run(model, photos, "x.npz") == 2
    assert "is not the folder of an interrupted run" in capsys.readouterr().err
    assert (Path("x.npz.parts") / "mine").exists()


def test_damaged_images_stop_it_or_are_skipped(
    model: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "cat" / "bad.jpg").write_bytes(b"\xff\xd8\xff")
    assert run(model, photos, "x.npz") == 3
    assert "cat/bad.jpg" in capsys.readouterr().err
    assert not Path("x.npz.parts").exists()
    assert run(model, photos, "x.npz", "--bad-images", "skip") == 0
    said = capsys.readouterr()
    assert "skipped as damaged: 1" in said.out
    assert "cat/bad.jpg" in said.err
    (photos / "cat" / "bad.jpg").unlink()
    assert np.array_equal(table("x.npz")["vectors"], expected(model, photos)[0].numpy())


def test_what_only_decoding_finds_is_named_with_the_remedy(
    model: Path, photos: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from rotnet_fast.data import scan

    (photos / "cat" / "bad.jpg").write_bytes(b"\xff\xd8\xff")
    monkeypatch.setattr(scan, "examine", lambda content, decodes=False: (16, 16, 0, scan.GOOD))
    assert run(model, photos, "x.npz") == 3
    said = capsys.readouterr().err
    assert "cat/bad.jpg cannot be read as an image" in said
    assert "Pass --check-images decode" in said


def test_names_that_are_not_text_are_made_readable(model: Path, place: Path) -> None:
    folder = place / "odd"
    folder.mkdir()
    save(folder / "a.png", pixels(0))
    os.rename(os.fsencode(folder / "a.png"), os.fsencode(folder) + b"/caf\xe9\n.png")
    for output in ("x.npz", "x.csv"):
        assert run(model, folder, output) == 0
    assert table("x.npz")["names"].tolist() == ["caf\ufffd\n.png"]
    with open("x.csv", newline="", encoding="utf-8") as file:
        assert [row["name"] for row in csv.DictReader(file)] == ["caf\ufffd\n.png"]


@pytest.mark.parametrize("output", ["it's.npz", "it's.csv"])
@pytest.mark.parametrize("has_classes", [True, False])
def test_the_lines_of_python_at_the_end_run(
    model: Path, photos: Path, output: str, has_classes: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(model, photos if has_classes else photos / "cat" / "deep", output) == 0
    _, found, code = capsys.readouterr().out.partition("\nnext, in Python:\n")
    assert found
    names: dict[str, Any] = {}
    exec(code, names)
    assert max(map(len, code.splitlines())) <= 80
    if output.endswith(".csv"):
        assert capsys.readouterr().out.startswith("11 cat/0.png" if has_classes else "1 fitting.png")
    else:
        assert ("KNeighborsClassifier" in names) is has_classes

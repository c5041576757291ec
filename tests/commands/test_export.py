"""The export command: the weights' file, the model card, and what is refused."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from safetensors import safe_open
from tiny import read_digits_once, tiny_config

from rotnet_fast.engine import checkpoint
from rotnet_fast.errors import CheckpointError
from rotnet_fast.evaluate import main as evaluate
from rotnet_fast.export import main
from rotnet_fast.pretrain import pretrain
from rotnet_fast.protocols.result import Cell


@pytest.fixture(autouse=True, scope="module")
def _digits() -> Iterator[None]:
    with read_digits_once():
        yield


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folder of a tiny pretraining with an evaluation, not to be changed."""
    folder = tmp_path_factory.mktemp("pretrained") / "run"
    pretrain(tiny_config(folder))
    flags = "--layers conv1 --heads conv --knn --random-init --epochs 1 --device cpu --images-per-class 2"
    assert evaluate(["--checkpoint", str(folder), *shlex.split(flags)]) == 0
    return folder


@pytest.fixture
def run(pretrained: Path, tmp_path: Path) -> Path:
    """A copy of the run folder for one test."""
    return Path(shutil.copytree(pretrained, tmp_path / "run"))


def export(checkpoint: Path, *flags: str) -> int:
    return main(["--checkpoint", str(checkpoint), *flags])


def card(folder: Path) -> str:
    return (folder / "README.md").read_text()


def results(run: Path) -> dict[str, Any]:
    return dict(json.loads((run / "results.json").read_text()))


def test_the_file_is_plain_safetensors_with_all_that_rebuilds_the_network(run: Path) -> None:
    assert export(run) == 0
    path = run / "export" / "model.safetensors"
    module = checkpoint.load(run / "checkpoints/last.pt")["module"]
    tensors = safetensors.torch.load_file(path)
    assert tensors.keys() == module.keys()
    for name, tensor in tensors.items():
        assert tensor.dtype == (torch.int64 if name.endswith("num_batches_tracked") else torch.float32)
        assert torch.equal(tensor, module[name])
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    assert metadata["format"] == "pt"
    assert metadata["rotnet_fast_format"] == "1"
    assert metadata["state_hash"] == checkpoint.state_hash(module)
    assert metadata["dataset_name"] == "handwritten digits (scikit-learn)"
    config = json.loads(metadata["config"])
    known = {name: config[name] for name in ("blocks", "width", "in_channels", "rotations")}
    assert known == {"blocks": 3, "width": 0.05, "in_channels": 3, "rotations": [0, 90, 180, 270]}
    assert json.loads(metadata["layers"]) == ["conv1", "conv2", "conv3"]
    assert (len(json.loads(metadata["mean"])), len(json.loads(metadata["std"]))) == (3, 3)


def test_the_same_run_gives_the_same_bytes(run: Path) -> None:
    folders = [run / "export", run / "again", run / "once more"]
    for folder in folders:
        for _ in range(2):
            assert export(run, "--output", str(folder)) == 0
    for name in ("model.safetensors", "README.md"):
        assert len({(folder / name).read_bytes() for folder in folders}) == 1
    assert sorted(path.name for path in folders[0].iterdir()) == ["README.md", "model.safetensors"]


def test_every_flipped_byte_is_noticed(run: Path) -> None:
    assert export(run) == 0
    content = (run / "export/model.safetensors").read_bytes()
    assert checkpoint.unpack_weights(content, run)
    header_end = 8 + int.from_bytes(content[:8], "little")
    positions = [*range(0, header_end), *range(header_end, len(content), 61), len(content) - 1]
    for position in positions:
        damaged = bytearray(content)
        damaged[position] ^= 1 << position % 8
        with pytest.raises(CheckpointError):
            checkpoint.unpack_weights(bytes(damaged), run)
    for cut in (0, 7, 8, header_end, len(content) - 1):
        with pytest.raises(CheckpointError):
            checkpoint.unpack_weights(content[:cut], run)


def test_a_digest_of_other_weights_or_metadata_is_refused() -> None:
    tensors = {"weight": torch.arange(3.0)}
    assert checkpoint.unpack_weights(checkpoint.pack_weights(tensors, {"a": "1"}), Path())[1]["a"] == "1"
    content = checkpoint.pack_weights(tensors, {"a": "1"})
    digest = checkpoint.unpack_weights(content, Path())[1]["sha256"].encode()
    for other, metadata in (({"weight": torch.ones(3)}, {"a": "1"}), (tensors, {"a": "2"})):
        foreign = checkpoint.pack_weights(other, metadata)
        swapped = foreign.replace(checkpoint.unpack_weights(foreign, Path())[1]["sha256"].encode(), digest)
        with pytest.raises(CheckpointError, match="its SHA-256 digest does not match"):
            checkpoint.unpack_weights(swapped, Path("file"))


def test_a_later_format_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "WEIGHTS_FORMAT", "2")
        content = checkpoint.pack_weights({"weight": torch.zeros(1)}, {})
    with pytest.raises(CheckpointError, match="has format 2; this version of rotnet_fast reads format 1"):
        checkpoint.unpack_weights(content, Path("file"))


def test_tensors_are_written_contiguous_in_fp32() -> None:
    strided = torch.randn(4, 3, 5, 5, dtype=torch.float64).to(memory_format=torch.channels_last)
    tensors, _ = checkpoint.unpack_weights(checkpoint.pack_weights({"weight": strided}, {}), Path())
    assert torch.equal(tensors["weight"], strided.float())


def test_the_card_says_what_the_results_say(run: Path) -> None:
    assert export(run) == 0
    text, found = card(run / "export"), results(run)
    assert f"Rotation accuracy: **{found['rotation_accuracy']:.2f} %** on 20 test images" in text
    for degrees, accuracy in found["rotation_accuracy_by_degrees"].items():
        assert f"{degrees}°: {accuracy:.2f} %" in text
    cells = results(run / "evaluate-001")["cells"]
    assert len(cells) == 6
    for cell in cells:
        variant = Cell(**cell).variant or "-"
        row = f" | {cell['layer']} | {cell['head']} | {variant} | {cell['accuracy']:.2f} |\n"
        assert row in text
    assert text.count("these weights, frozen |") == 2
    assert text.count("untrained network, frozen |") == 4
    assert (
        "on 20 test images of handwritten digits (scikit-learn) (`evaluate-001`: 2 labels per class" in text
    )
    for statement in (
        "40 training images of 16 x 16 pixels. No labels were used, except to choose a subset",
        "learning rate 0.05, falling to 0 (linear)",
        "epochs: 2 of 2\n",
        "precision: fp32",
        "seed: 0\n",
        "code: MIT",
        "CC BY 4.0",
        "| conv2 | 8 | 4 x 4 |",
    ):
        assert statement in text


def test_the_card_begins_with_the_usual_front_matter(run: Path) -> None:
    assert export(run) == 0
    head = card(run / "export").split("---\n")[1]
    assert head.startswith(
        "license: mit\nlibrary_name: rotnet_fast\npipeline_tag: image-feature-extraction\n"
    )
    values = [float(value) for value in re.findall(r"^      value: (.*)$", head, re.MULTILINE)]
    cells = [c for c in results(run / "evaluate-001")["cells"] if c["method"] == "frozen"]
    expected = [results(run)["rotation_accuracy"], *[cell["accuracy"] for cell in cells]]
    assert values == [round(value, 2) for value in expected]


def test_the_card_names_the_file_and_its_snippet_runs(run: Path) -> None:
    assert export(run) == 0
    text = card(run / "export")
    assert hashlib.sha256((run / "export/model.safetensors").read_bytes()).hexdigest() in text
    names: dict[str, Any] = {}
    exec(text.partition("```python\n")[2].partition("```")[0].replace("FOLDER", str(run / "export")), names)
    assert names["maps"].shape == (8, 8, 4, 4)
    assert "# [8,8,4,4]" in text
    assert names["vectors"].shape == (8, 8)


def test_numbers_of_other_weights_are_left_out(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert export(run / "checkpoints" / "epoch-0001.pt") == 0
    text = card(run / "export-epoch-0001")
    state = checkpoint.load(run / "checkpoints" / "epoch-0001.pt")
    assert f"**{state['metrics']['test']['rotation_accuracy']:.2f} %** on 20 test images" in text
    assert "Object accuracy: not measured for these weights" in text
    assert "epochs: 1 of 2\n" in text
    assert "The training had not reached its end" in text
    assert "is not about these weights, or does not say so: left out" in capsys.readouterr().err


def test_a_snapshot_far_from_its_run_says_only_what_it_knows(run: Path, tmp_path: Path) -> None:
    state = checkpoint.load(run / "checkpoints" / "last.pt")
    state["config"]["limit_train"] = state["config"]["limit_test"] = None
    snapshot = tmp_path / "elsewhere" / "snapshots" / "epoch-0002.pt"
    snapshot.parent.mkdir(parents=True)
    checkpoint.save(snapshot, {name: state[name] for name in ("config", "epoch", "module", "metrics")})
    assert export(snapshot) == 0
    text = card(tmp_path / "elsewhere" / "export-epoch-0002")
    assert "an unrecorded number of training images" in text
    assert "on an unrecorded number of test images" in text
    assert "hardware" not in text

    checkpoint.save(snapshot, {**state, "step": 2})
    assert export(snapshot) == 0
    text = card(tmp_path / "elsewhere" / "export-epoch-0002")
    assert "Rotation accuracy: not measured for these weights" in text
    assert "and 2 steps of the next" in text


def test_the_number_of_images_of_an_unfinished_run_comes_from_its_checkpoint(run: Path) -> None:
    (run / "results.json").unlink()
    state = checkpoint.load(run / "checkpoints" / "last.pt")
    state["config"]["limit_train"] = None
    checkpoint.save(run / "checkpoints" / "last.pt", state)
    assert export(run) == 0
    assert "40 training images" in card(run / "export")


@pytest.mark.parametrize(
    ("dataset", "flags", "licence"),
    [
        ("cifar10", (), "its authors state no licence.*Krizhevsky.*2009"),
        ("folder", (), "unknown: ask the owner of the images"),
        ("folder", ("--data-licence", "CC0,\nby  us"), "CC0, by us"),
    ],
)
def test_the_licence_of_the_data_is_what_is_known(
    run: Path, dataset: str, flags: tuple[str, ...], licence: str
) -> None:
    for path in (run / "config.json", run / "results.json"):
        path.unlink()
    state = checkpoint.load(run / "checkpoints" / "last.pt")
    state["config"]["dataset"] = dataset
    checkpoint.save(run / "checkpoints" / "last.pt", state)
    assert export(run, *flags) == 0
    text = card(run / "export")
    assert re.search(rf"- data, .*: {licence}", text) or re.search(licence, text)
    assert text.startswith("---\nlicense: mit\n" if dataset == "cifar10" else "---\nlicense: other\n")


def test_the_data_set_is_called_as_in_pretraining(tmp_path: Path) -> None:
    pretrain(tiny_config(tmp_path / "run", epochs=1, dataset_name='Digits: "a" copy'))
    assert export(tmp_path / "run") == 0
    text = card(tmp_path / "run" / "export")
    assert '# RotNet, NIN-3, Digits: "a" copy\n' in text
    assert '- name: "RotNet, NIN-3, Digits: \\"a\\" copy"' in text


def test_the_card_names_the_optimiser_and_the_warm_up(tmp_path: Path) -> None:
    pretrain(tiny_config(tmp_path / "run", epochs=1, optimizer="muon", warmup=0.5))
    assert export(tmp_path / "run") == 0
    text = card(tmp_path / "run" / "export")
    assert "Muon for filters, with learning rate 0.05 on the same schedule; else SGD, Nesterov" in text
    assert "learning rate 0.05 after a warm-up of 0.5 epochs, falling to 0 (linear)" in text


def test_the_card_says_what_labels_were_used_for(tmp_path: Path) -> None:
    pretrain(tiny_config(tmp_path / "run", epochs=1, validation=10, limit_test=None))
    assert export(tmp_path / "run") == 0
    uses = "to choose a subset that is balanced over the classes and to hold out some images of each class"
    text = " ".join(card(tmp_path / "run" / "export").split())
    assert f"No labels were used, except {uses}" in text


def test_files_of_others_are_not_replaced(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "README.md").write_text("mine")
    assert export(run, "--output", str(run)) == 2
    assert "has a README.md that is no model card of rotnet_fast" in capsys.readouterr().err
    assert (run / "README.md").read_text() == "mine"
    assert not (run / "model.safetensors").exists()


def test_what_is_missing_or_damaged_is_one_sentence_and_an_exit_code(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    (run / "file").write_text("")
    for code, sentence, arguments in (
        (4, "nowhere does not exist; pass a run folder", (tmp_path / "nowhere",)),
        (4, "contains neither model.safetensors nor checkpoints/", (tmp_path / "empty",)),
        (4, "is truncated, damaged or not a checkpoint of rotnet_fast", (run / "config.json",)),
        (4, "was not written by pretraining", (run / "evaluate-001" / "frozen",)),
        (2, "data-licence is empty", (run, "--data-licence", " ")),
        (7, "cannot write", (run, "--output", str(run / "file" / "below"))),
    ):
        assert export(*arguments) == code
        lines = capsys.readouterr().err.splitlines()
        assert lines[-1].startswith("error: ")
        assert sentence in lines[-1]
    (run / "results.json").write_text("[")
    assert export(run) == 2
    assert "results.json cannot be read" in capsys.readouterr().err


def test_a_damaged_checkpoint_is_passed_over_for_an_older_one(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / "checkpoints/last.pt").write_bytes(b"")
    assert export(run) == 0
    assert "WARNING: the checkpoint" in capsys.readouterr().err


@pytest.mark.parametrize(
    "flags", ["--help", "--wrong", "", "--checkpoint nowhere", "--checkpoint . --data-licence ''"]
)
def test_help_and_wrong_flags_answer_without_torch(flags: str) -> None:
    program = (
        "import sys; from rotnet_fast.export import main\n"
        "try:\n    code = main(sys.argv[1:])\n"
        "except SystemExit as error:\n    code = error.code\n"
        "assert 'torch' not in sys.modules; sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *shlex.split(flags)], capture_output=True, text=True
    )
    expected = {"--help": 0, "--checkpoint nowhere": 4}.get(flags, 2)
    assert done.returncode == expected, done.stderr


def test_a_model_of_others_is_not_replaced(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "mine"
    output.mkdir()
    (output / "model.safetensors").write_bytes(b"mine")
    assert export(run, "--output", str(output)) == 2
    assert "has a model.safetensors without a model card of rotnet_fast" in capsys.readouterr().err
    assert (output / "model.safetensors").read_bytes() == b"mine"
    (output / "model.safetensors").unlink()
    assert export(run, "--output", str(output)) == 0
    (output / "model.safetensors").unlink()  # as if the export had been killed between its two files
    assert export(run, "--output", str(output)) == 0

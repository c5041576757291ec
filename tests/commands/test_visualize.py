"""The visualize command, from a pretraining's run folder to pictures."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
import torch
from PIL import Image
from plot_inputs import check_legible
from tiny import read_digits_once, tiny_config

from rotnet_fast import evaluate
from rotnet_fast.data import datasets
from rotnet_fast.data.split import RawDataset, Split
from rotnet_fast.engine import checkpoint
from rotnet_fast.pretrain import pretrain
from rotnet_fast.visualize import PICTURES, Analyses, Picture, VisualizeConfig, main

EVERYTHING = [name for name in PICTURES if name != "compression"]
"""What is drawn unless pictures are named."""

FILES = [
    "attention",
    "calibration",
    "confusion-classes",
    "confusion-rotations",
    "embedding",
    "filters",
    "hardest",
    "knn",
    "overview",
    "rotations",
]


@pytest.fixture(autouse=True, scope="module")
def _digits() -> Iterator[None]:
    with read_digits_once():
        yield


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folder of a tiny pretraining with a supervised training in it, not to be changed."""
    folder = tmp_path_factory.mktemp("pretrained") / "run"
    pretrain(tiny_config(folder))
    flags = "--no-frozen --supervised --epochs 1 --device cpu"
    assert evaluate.main(["--checkpoint", str(folder), *flags.split()]) == 0
    return folder


@pytest.fixture
def run(pretrained: Path, tmp_path: Path) -> Path:
    """A copy of the run folder for one test."""
    return Path(shutil.copytree(pretrained, tmp_path / "run"))


def visualize(run: Path, flags: str = "") -> int:
    return main(["--checkpoint", str(run), "--device", "cpu", *shlex.split(flags)])


def test_everything_is_drawn_into_the_run_folder(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    supervised = run / "evaluate-001" / "supervised"
    assert visualize(run, f"--images 2 --supervised {shlex.quote(str(supervised))}") == 0
    files = sorted((run / "figures").iterdir())
    assert [path.name for path in files] == sorted(name + end for name in FILES for end in (".png", ".svg"))
    printed = capsys.readouterr().out.splitlines()
    assert sorted(line for line in printed if line.endswith((".png", ".svg"))) == [
        str(path) for path in files
    ]
    # Each picture is announced before its files.
    announced = [line for line in printed if " of 9: " in line]
    assert announced == [f"{number} of 9: {name}" for number, name in enumerate(EVERYTHING, 1)]
    assert printed.index("1 of 9: overview") + 1 == printed.index(str(run / "figures" / "overview.png"))
    for path in (run / "figures").glob("*.png"):
        with Image.open(path) as image:
            image.load()
    assert set(PICTURES) == set(get_args(Picture))


def test_only_the_pictures_asked_for_are_drawn(run: Path, tmp_path: Path) -> None:
    flags = f"--what hardest filters --output {shlex.quote(str(tmp_path / 'elsewhere'))}"
    assert visualize(run / "checkpoints" / "last.pt", flags) == 0
    files = sorted(path.name for path in (tmp_path / "elsewhere").iterdir())
    assert files == ["filters.png", "filters.svg", "hardest.png", "hardest.svg"]
    assert not (run / "figures").exists()


def test_the_same_seed_gives_the_same_pictures(run: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        assert visualize(run, f"--what rotations embedding --seed {seed} --output {tmp_path / name}") == 0
    a, b, c = ({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in "abc")
    assert a == b
    assert a["rotations.svg"] != c["rotations.svg"]


def test_limits_and_layer_are_heeded(run: Path) -> None:
    config = VisualizeConfig(run, device="cpu", limit_test=15, limit_train=30, layer="conv1", images=5)
    analyses = Analyses(config)
    neighbours = analyses.neighbours
    assert (neighbours["images"], neighbours["bank_images"], neighbours["layer"]) == (15, 30, "conv1")
    assert len(analyses.rotation["shown"]["indices"]) == 5
    assert [len(result["shown"]["indices"]) for _, result in analyses.attention()] == [4]
    assert analyses.embedding()["layer"] == "conv1"


@pytest.mark.usefixtures("unrendered")
@pytest.mark.parametrize("rotations", [(90, 270), (0, 180), (270, 0, 90)])
def test_any_set_of_rotations_is_drawn(tmp_path: Path, rotations: tuple[int, ...]) -> None:
    pretrain(tiny_config(tmp_path / "run", rotations=rotations, epochs=1))
    assert visualize(tmp_path / "run", "--what rotations confusion calibration hardest attention") == 0
    analyses = Analyses(VisualizeConfig(tmp_path / "run", device="cpu"))
    assert analyses.rotation["rotations"] == list(rotations)
    check_legible(PICTURES["rotations"](analyses)["rotations"])


@pytest.mark.usefixtures("unrendered")
def test_grey_images_of_one_channel_are_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = datasets.DATASETS["digits"]

    def grey(data_dir: Path | None, image_size: int, progress: bool, bad_images: str) -> RawDataset:
        raw = read(data_dir, image_size, progress, bad_images)
        halves = [Split(half.images[..., :1].contiguous(), half.labels) for half in (raw.train, raw.test)]
        return RawDataset(raw.display_name, raw.classes, *halves)

    monkeypatch.setitem(datasets.DATASETS, "digits", grey)
    others = datasets.Dataset.__init__.__defaults__[2:]
    monkeypatch.setattr(datasets.Dataset.__init__, "__defaults__", ((0.5,), (0.25,), *others))
    pretrain(tiny_config(tmp_path / "run", epochs=1))
    assert visualize(tmp_path / "run") == 0
    assert len(list((tmp_path / "run" / "figures").iterdir())) == 2 * len(FILES)


def test_damaged_checkpoint_is_passed_over_for_an_older_one(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    last = run / "checkpoints" / "last.pt"
    last.write_bytes(last.read_bytes()[:-100])
    assert visualize(run, "--what filters") == 0
    assert "WARNING: the checkpoint" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "code", "sentence"),
    [
        ("--layer conv4", 2, "layers holds 'conv4', which this network with 3 blocks does not have"),
        ("--images 0", 2, "images is 0; it must be at least 1"),
        ("--batch-size 0", 2, "batch-size is 0; it must be at least 1"),
        ("--limit-test -1", 2, "limit-test is -1; it must be at least 1"),
        ("--limit-test 100000", 2, "limit-test is 100000"),
        ("--seed -1", 2, "seed is -1; it must lie in [0, 2**63)"),
        ("--device gpu", 2, "device is gpu; it must be auto, cpu, cuda, cuda:N or mps"),
        ("--device cuda:99", 2, "device is cuda:99"),
        ("--supervised nowhere", 4, "supervised nowhere does not exist"),
        ("--supervised {run}", 4, "is not one of a supervised training; give the folder"),
    ],
)
def test_wrong_value_is_one_sentence_and_an_exit_code(
    run: Path, capsys: pytest.CaptureFixture[str], flags: str, code: int, sentence: str
) -> None:
    assert visualize(run, flags.format(run=shlex.quote(str(run)))) == code
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert sentence in message
    assert len(message.splitlines()) == 1
    assert not (run / "figures").exists()


@pytest.mark.usefixtures("unrendered")
def test_of_one_test_image_there_is_no_embedding(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert visualize(run, "--what embedding rotations --limit-test 1") == 2
    assert "what holds embedding, which needs two test images or more" in capsys.readouterr().err
    assert visualize(run, "--limit-test 1") == 0
    assert "without the embedding: there is one test image" in capsys.readouterr().out
    assert (run / "figures" / "hardest.png").exists()


def test_filters_that_overflow_are_told(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = run / "checkpoints" / "last.pt"
    state = checkpoint.load(path)
    for name, tensor in state["module"].items():
        if name.endswith("running_var"):
            tensor.fill_(1e-38)
        elif name.endswith("weight"):
            tensor.fill_(3e38)
    checkpoint.save(path, state)
    assert visualize(run, "--what filters") == 5
    assert "not finite, as those of a network that diverged" in capsys.readouterr().err


def test_missing_and_other_checkpoints_are_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert visualize(run / "nowhere") == 4
    assert "nowhere does not exist; pass a run folder" in capsys.readouterr().err
    assert visualize(run / "evaluate-001" / "supervised") == 4
    assert "was not written by pretraining" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_has_its_exit_code(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / "figures").write_text("a file")
    assert visualize(run, "--what filters") == 7
    assert "cannot write" in capsys.readouterr().err


@pytest.mark.parametrize(
    "flags", ["--help", "--what nothing --checkpoint x", "--wrong", "--checkpoint x --images 0"]
)
def test_help_and_wrong_flags_answer_without_torch(flags: str) -> None:
    program = (
        "import sys; from rotnet_fast.visualize import main\n"
        "try:\n    code = main(sys.argv[1:])\n"
        "except SystemExit as error:\n    code = error.code\n"
        "assert not {'torch', 'matplotlib'} & set(sys.modules); sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *shlex.split(flags)], capture_output=True, text=True
    )
    assert done.returncode == (0 if flags == "--help" else 2), done.stderr


def test_pictures_keep_their_order_and_come_once() -> None:
    config = VisualizeConfig(Path("run"), what=("knn", "filters", "knn"))
    assert config.pictures() == ["filters", "knn"]
    assert VisualizeConfig(Path("run")).pictures() == EVERYTHING
    assert VisualizeConfig(Path("run"), what=("compression", "all")).pictures() == list(PICTURES)


def test_networks_are_looked_at_in_eval_mode(run: Path) -> None:
    analyses = Analyses(VisualizeConfig(run, device="cpu"))
    before = {name: value.clone() for name, value in analyses.network.state_dict().items()}
    for draw in PICTURES.values():
        draw(analyses)
    for name, value in analyses.network.state_dict().items():
        assert torch.equal(value, before[name])

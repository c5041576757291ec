"""The evaluate command, from a pretraining's run folder to the printed table."""

from __future__ import annotations

import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny import read_digits_once, tiny_config

from rotnet_fast.engine import checkpoint
from rotnet_fast.engine.trainer import Trainer
from rotnet_fast.evaluate import EvaluateConfig, main
from rotnet_fast.presets import PRESETS
from rotnet_fast.pretrain import pretrain
from rotnet_fast.protocols.result import load_results, render


@pytest.fixture(autouse=True, scope="module")
def _digits() -> Iterator[None]:
    with read_digits_once():
        yield


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folder of a tiny pretraining, not to be changed."""
    folder = tmp_path_factory.mktemp("pretrained") / "run"
    pretrain(tiny_config(folder))
    return folder


@pytest.fixture
def run(pretrained: Path, tmp_path: Path) -> Path:
    """A copy of the run folder for one test."""
    return Path(shutil.copytree(pretrained, tmp_path / "run"))


def evaluate(run: Path, flags: str = "") -> int:
    return main(["--checkpoint", str(run), "--epochs", "1", "--device", "cpu", *shlex.split(flags)])


def test_the_graph_setting_reaches_every_training(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def use_graph(setting: str, *arguments: object) -> bool:
        seen.append(setting)
        return False

    monkeypatch.setattr("rotnet_fast.engine.step.use_graph", use_graph)
    assert evaluate(run, "--graph off --heads conv --fine-tune --supervised --no-random-init") == 0
    assert seen == ["off"] * 3


def test_every_protocol_ends_in_one_table(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = "--layers conv1 conv2 --random-init --fine-tune --supervised --knn --linear --images-per-class 2"
    assert evaluate(run, flags) == 0
    results = load_results(run / "evaluate-001")
    rows = [(c["method"], c["layer"], c["head"]) for c in results["cells"]]
    heads = [(layer, head) for layer in ("conv1", "conv2") for head in ("nonlinear", "conv")]
    neighbours = [("conv1", "knn"), ("conv2", "knn")]
    assert rows == [
        *[("frozen", *place) for place in heads],
        *[("random-init", *place) for place in heads * 2],
        *[("fine-tune", *place) for place in heads],
        ("supervised", None, None),
        *[("frozen", *place) for place in neighbours],
        *[("random-init", *place) for place in neighbours * 2],
        *[("frozen", layer, "linear") for layer in ("conv1", "conv2")],
        *[("random-init", layer, "linear") for layer in ("conv1", "conv2") * 2],
    ]
    assert all(0 <= cell["accuracy"] <= 100 for cell in results["cells"])
    printed = capsys.readouterr().out
    assert render(results) in printed
    titles = [line for line in printed.splitlines() if re.match(r"\d+ of \d+: ", line)]
    assert [line.partition(": ")[2] for line in titles] == [
        "heads on frozen features of conv1 conv2",
        "heads on an untrained network (running statistics), conv1 conv2",
        "heads on an untrained network (batch statistics), conv1 conv2",
        *[f"fine-tuning up to {layer}, with a {head} head" for layer, head in heads],
        "supervised training of a whole network, from scratch",
        "nearest neighbours on frozen features of conv1 conv2",
        "nearest neighbours on an untrained network (running statistics), conv1 conv2",
        "nearest neighbours on an untrained network (batch statistics), conv1 conv2",
        "linear probes on frozen features of conv1 conv2",
        "linear probes on an untrained network (running statistics), conv1 conv2",
        "linear probes on an untrained network (batch statistics), conv1 conv2",
    ]
    assert [line.partition(":")[0] for line in titles] == [f"{n} of 14" for n in range(1, 15)]


def test_data_and_network_are_those_of_the_pretraining(run: Path) -> None:
    assert evaluate(run, "--no-frozen --knn") == 0
    results = load_results(run / "evaluate-001")
    _, state = checkpoint.load_newest(run)
    assert results["dataset"]["fingerprint"] == state["config"]["data_fingerprint"]
    assert (results["dataset"]["train_images"], results["dataset"]["test_images"]) == (40, 20)
    sizes = {"blocks": 3, "width": 0.05, "rotations": [0, 90, 180, 270]}
    assert results["network"] == {"model": "nin", "pretext_task": "rotation", **sizes}
    assert (results["settings"]["pad"], results["settings"]["flip_prob"]) == (4, 0.5)
    assert results["pretraining"] == {"epochs": 2, "is_limited": True, "has_same_images": True}
    assert results["environment"]["torch"]


def test_heads_train_on_the_published_recipe_unless_told_otherwise(run: Path) -> None:
    assert EvaluateConfig(run).batch_size == 128
    assert evaluate(run, "--heads conv --batch-size 32 --pad 2 --flip-prob 0") == 0
    state = checkpoint.load(run / "evaluate-001" / "frozen" / "checkpoints" / "last.pt")
    trained_with = [state["config"][name] for name in ("batch_size", "pad", "flip_prob")]
    assert trained_with == [32, 2, 0.0]


def test_flags_say_how_heads_train(run: Path) -> None:
    flags = "--epochs 4 --schedule step --milestones 1 3 --lr-factor 0.5 --no-nesterov --lr 0.2"
    assert evaluate(run, f"--heads conv nonlinear {flags}") == 0
    state = checkpoint.load(run / "evaluate-001" / "frozen" / "checkpoints" / "last.pt")
    groups = [(g["lr"], g["nesterov"]) for g in state["optimizer"]["param_groups"]]
    assert groups == [(pytest.approx(0.05), False)] * 2
    assert evaluate(run, "--heads conv --epochs 4 --schedule linear --warmup 1 --optimizer muon") == 0
    settings = load_results(run / "evaluate-002")["settings"]
    assert (settings["schedule"], settings["warmup"], settings["optimizer"]) == ("linear", 1, "muon")
    state = checkpoint.load(run / "evaluate-002" / "frozen" / "checkpoints" / "last.pt")
    names = [group["name"] for group in state["optimizer"]["param_groups"]]
    assert names == ["conv2_conv", "conv2_conv filters"]


def test_heads_on_a_network_trained_by_the_slides_follow_the_slides(tmp_path: Path) -> None:
    slides = PRESETS["slides"]().stretched(5).optimisation()
    folder = tmp_path / "slides"
    pretrain(tiny_config(folder, **slides))
    assert evaluate(folder, "--heads conv --epochs 10 --supervised") == 0
    settings = load_results(folder / "evaluate-001")["settings"]
    assert settings["preset"] == "slides"
    assert settings["milestones"] == [3, 6, 8]
    assert (settings["lr_factor"], settings["nesterov"]) == (0.5, False)
    for name in ("frozen", "supervised"):
        state = checkpoint.load(folder / "evaluate-001" / name / "checkpoints" / "last.pt")
        (group,) = state["optimizer"]["param_groups"]
        assert (group["lr"], group["nesterov"]) == (pytest.approx(0.1 / 8), False)
    config = EvaluateConfig(folder, epochs=10, preset="paper", milestones=(2,))
    recipe = config.recipe("paper")
    assert (recipe.milestones, recipe.lr_factor, recipe.nesterov) == ((2,), 0.2, True)
    assert config.preset_for(PRESETS["slides"]()) == "paper"
    assert EvaluateConfig(folder).preset_for(PRESETS["slides"]().stretched(37)) == "slides"
    assert EvaluateConfig(folder).preset_for(PRESETS["official"]()) == "paper"


def test_data_set_is_called_as_in_pretraining(tmp_path: Path) -> None:
    pretrain(tiny_config(tmp_path / "run", epochs=1, dataset_name="Digits (a copy)"))
    assert evaluate(tmp_path / "run", "--no-frozen --knn") == 0
    found = load_results(tmp_path / "run" / "evaluate-001")
    assert found["dataset"]["display_name"] == "Digits (a copy)"


def test_refused_evaluation_leaves_the_folder_as_it_was(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = run / "evaluate-001"
    assert evaluate(run, "--heads conv") == 0
    before = [(output / name).read_bytes() for name in ("config.json", "results.json")]
    assert evaluate(run, f"--heads conv --seed 1 --output {shlex.quote(str(output))}") == 2
    assert "seed is 0 there and 1 here" in capsys.readouterr().err
    assert [(output / name).read_bytes() for name in ("config.json", "results.json")] == before


def test_further_protocols_are_added_to_the_table(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = f"--no-random-init --output {shlex.quote(str(run / 'table'))}"
    assert evaluate(run, f"--heads conv {flags}") == 0
    (conv,) = load_results(run / "table")["cells"]
    assert evaluate(run, f"--no-frozen --knn --linear {flags}") == 0
    cells = load_results(run / "table")["cells"]
    assert [cell["head"] for cell in cells] == ["conv", "knn", "linear"]
    assert cells[0] == conv
    assert evaluate(run, f"--no-frozen --knn {flags}") == 0
    assert load_results(run / "table")["cells"] == cells
    before = (run / "table" / "results.json").read_bytes()
    capsys.readouterr()
    assert evaluate(run, f"--no-frozen --knn --limit-train 50 {flags}") == 2
    assert "has results of another evaluation (fingerprint is " in capsys.readouterr().err
    assert (run / "table" / "results.json").read_bytes() == before


def test_limits_override_those_of_the_pretraining(run: Path) -> None:
    assert evaluate(run, "--no-frozen --knn --limit-train 50 --limit-test 30") == 0
    dataset = load_results(run / "evaluate-001")["dataset"]
    assert (dataset["train_images"], dataset["test_images"]) == (50, 30)


def test_each_evaluation_gets_a_folder_of_its_own(run: Path) -> None:
    for _ in range(2):
        assert evaluate(run, "--no-frozen --knn") == 0
    assert sorted(path.name for path in run.glob("evaluate-*")) == ["evaluate-001", "evaluate-002"]


def test_checkpoint_file_serves_as_well_as_its_run_folder(run: Path) -> None:
    assert evaluate(run / "checkpoints" / "last.pt", "--no-frozen --knn") == 0
    assert (run / "evaluate-001" / "results.json").exists()


def test_interrupted_evaluation_goes_on_where_it_was(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = "--heads conv --random-init --epochs 2 --batch-size 16"
    assert evaluate(run, f"{flags} --output {shlex.quote(str(run / 'whole'))}") == 0
    whole = load_results(run / "whole")
    assert whole["settings"]["epochs"] == 2

    steps = 0
    train_step = Trainer.train_step

    def interrupt_the_second_training(self: Trainer, *arguments: object) -> None:
        nonlocal steps
        train_step(self, *arguments)
        steps += 1
        if steps == 8:  # after two epochs of three steps each, and two steps more
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(Trainer, "train_step", interrupt_the_second_training)
    assert evaluate(run, flags) == 143
    monkeypatch.undo()
    advice = capsys.readouterr().err.splitlines()[0]
    command = shlex.split(advice.partition("rotnet_fast.evaluate ")[2])
    assert main(command) == 0
    resumed = load_results(run / "evaluate-001")
    assert resumed["cells"] == whole["cells"]
    states = [
        checkpoint.load(run / name / "random-init-running-statistics" / "checkpoints" / "last.pt")
        for name in ("whole", "evaluate-001")
    ]
    assert checkpoint.state_hash(states[0]["module"]) == checkpoint.state_hash(states[1]["module"])


@pytest.mark.parametrize(
    ("flags", "code", "sentence"),
    [
        ("--layers conv4", 2, "layers holds 'conv4', which this network with 3 blocks does not have"),
        ("--layers conv1 conv1", 2, "layers is conv1 conv1; give one or more, each once"),
        ("--no-frozen", 2, "nothing to evaluate"),
        ("--epochs 0", 2, "epochs is 0; it must be at least 1"),
        ("--pad -1", 2, "pad is -1; it must lie in [0, 32767]"),
        ("--flip-prob 2", 2, "flip-prob is 2.0; it must lie in [0, 1]"),
        ("--lr nan", 2, "lr is nan; it must be a number above 0"),
        ("--milestones 3 2", 2, "milestones is (3, 2); it must increase from above 0, such as 30 60 80"),
        ("--lr-factor 0", 2, "lr-factor is 0.0; it must be a number above 0"),
        ("--warmup 0.5", 2, "warmup is 0.5; it must be 0 or, with schedule linear or cosine, above 0"),
        ("--muon-lr 0.1", 2, "muon-lr is 0.1; it only applies to --optimizer muon: remove it"),
        ("--nesterov=yes", 2, "--nesterov takes no value; pass --nesterov or --no-nesterov"),
        ("--seed -1", 2, "seed is -1; it must lie in [0, 2**63)"),
        ("--images-per-class 5", 2, "the smallest class has 4 training images: give 1 to 4"),
        ("--limit-train 100000", 2, "limit-train is 100000"),
        ("--limit-train 33 --batch-size 16", 2, "33 training images leave a last batch of one"),
        (
            "--no-frozen --knn --validation 10",
            2,
            "that is the pretraining's: give another with --limit-test",
        ),
        ("--device gpu", 2, "device is gpu; it must be auto, cpu, cuda, cuda:N or mps"),
        ("--graph on", 2, "graph is on, which needs a GPU, but the device is cpu: omit --graph"),
        ("--device cuda:99", 2, "device is cuda:99"),
        ("--dataset folder --data-dir nowhere", 3, "nowhere"),
    ],
)
def test_wrong_value_is_one_sentence_and_an_exit_code(
    run: Path, capsys: pytest.CaptureFixture[str], flags: str, code: int, sentence: str
) -> None:
    assert evaluate(run, flags) == code
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert sentence in message
    assert len(message.splitlines()) == 1


def test_wrong_value_leaves_no_empty_folder_behind(run: Path) -> None:
    assert evaluate(run, "--layers conv4") == 2
    assert not list(run.glob("evaluate-*"))


def test_missing_run_folder_is_a_checkpoint_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate(tmp_path / "nowhere") == 4
    assert "nowhere does not exist; pass a run folder" in capsys.readouterr().err


def test_folder_without_checkpoints_is_a_checkpoint_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(tmp_path) == 4
    assert "contains neither model.safetensors nor checkpoints/" in capsys.readouterr().err


def test_damaged_checkpoint_is_passed_over_for_an_older_one(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    last = run / "checkpoints" / "last.pt"
    last.write_bytes(last.read_bytes()[:-100])
    assert evaluate(run, "--no-frozen --knn") == 0
    assert "WARNING: the checkpoint" in capsys.readouterr().err


def test_checkpoint_of_something_else_is_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate(run, "--no-frozen --supervised") == 0
    assert evaluate(run / "evaluate-001" / "supervised") == 4
    assert "was not written by pretraining" in capsys.readouterr().err


def test_folder_of_another_run_is_not_overwritten(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (run / "results.json").read_bytes()
    assert evaluate(run, f"--knn --output {shlex.quote(str(run))}") == 2
    assert "holds another run" in capsys.readouterr().err
    assert (run / "results.json").read_bytes() == before


def test_unreadable_settings_of_a_run_are_named(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "config.json").write_text("{")
    assert evaluate(run, "--no-frozen --knn") == 2
    assert "config.json cannot be read" in capsys.readouterr().err


def test_report_prints_the_table_again(run: Path) -> None:
    assert evaluate(run, "--no-frozen --knn") == 0
    report = [sys.executable, "-m", "rotnet_fast.report"]
    done = subprocess.run([*report, str(run / "evaluate-001")], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, render(load_results(run / "evaluate-001")))
    done = subprocess.run([*report, "nowhere"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: nowhere cannot be read")


@pytest.mark.parametrize(
    "flags", ["--help", "--heads svm --checkpoint x", "--wrong", "--checkpoint x --epochs 0"]
)
def test_help_and_wrong_flags_answer_without_torch(flags: str) -> None:
    program = (
        "import sys; from rotnet_fast.evaluate import main\n"
        "try:\n    code = main(sys.argv[1:])\n"
        "except SystemExit as error:\n    code = error.code\n"
        "assert 'torch' not in sys.modules; sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *shlex.split(flags)], capture_output=True, text=True
    )
    assert done.returncode == (0 if flags == "--help" else 2), done.stderr


def test_protocols_run_in_the_order_of_the_table() -> None:
    config = EvaluateConfig(Path("run"), knn=True, supervised=True)
    assert config.protocols() == ["frozen", "random-init", "supervised", "knn", "random-init-knn"]


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({}, ["frozen", "random-init"]),
        ({"random_init": True}, ["frozen", "random-init"]),
        ({"random_init": False}, ["frozen"]),
        ({"frozen": False, "linear": True}, ["linear", "random-init-linear"]),
        ({"frozen": False, "knn": True, "random_init": False}, ["knn"]),
        ({"frozen": False, "supervised": True}, ["supervised"]),
        ({"frozen": False, "random_init": True}, ["random-init"]),
    ],
)
def test_what_is_frozen_is_measured_beside_an_untrained_network(
    flags: dict[str, bool], expected: list[str]
) -> None:
    assert EvaluateConfig(Path("run"), **flags).protocols() == expected


@pytest.mark.parametrize(
    ("flags", "notes"),
    [
        ("", ["", "batch statistics"]),
        ("--random-init", ["", "running statistics", "batch statistics"]),
        ("--no-random-init", [""]),
        ("--random-init None", None),
    ],
)
def test_the_baseline_is_of_one_mode_unless_both_are_asked_for(
    run: Path, flags: str, notes: list[str] | None, capsys: pytest.CaptureFixture[str]
) -> None:
    code = evaluate(run, f"--no-frozen --knn {flags}")
    if notes is None:
        assert code == 2
        assert "unrecognized argument None" in capsys.readouterr().err
        return
    cells = load_results(run / "evaluate-001")["cells"]
    assert [cell["note"] for cell in cells if cell["head"] == "knn"] == notes

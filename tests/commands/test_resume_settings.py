"""A run is resumed by its name alone, and all flags that contradict its settings are named at once."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tiny import read_digits_once

from rotnet_fast.config import PretrainConfig
from rotnet_fast.engine.signals import Interrupted
from rotnet_fast.engine.trainer import Trainer
from rotnet_fast.errors import ArgumentError, CheckpointError
from rotnet_fast.pretrain import main, parse

TINY = shlex.split(
    "--preset quickstart --limit-train 40 --limit-test 20 --blocks 3 --width 0.05 --epochs 2 --batch-size 16 "
    "--lr 0.05 --seed 3 --device cpu --precision auto --no-tensorboard --dataset-name Figures"
)


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run that was stopped after an epoch, and one that was not; neither is to be changed."""
    folder = tmp_path_factory.mktemp("runs")
    finish = Trainer._finish_epoch

    def stop(self: Trainer, *others: object) -> None:
        finish(self, *others)  # type: ignore[arg-type]
        raise Interrupted(15)

    with read_digits_once():
        assert main([*TINY, "--output", str(folder / "whole")]) == 0
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Trainer, "_finish_epoch", stop)
            assert main([*TINY, "--output", str(folder / "begun")]) == 143
        yield folder


@pytest.fixture
def run(begun: Path, tmp_path: Path) -> Path:
    """A copy of the stopped run, at another place."""
    return Path(shutil.copytree(begun / "begun", tmp_path / "a run"))


def results(run: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads((run / "results.json").read_text())
    return found


def test_the_name_of_a_run_is_enough(begun: Path, run: Path) -> None:
    assert main(["--resume", str(run)]) == 0
    assert results(run)["state_hash"] == results(begun / "whole")["state_hash"]
    assert results(run)["dataset"] == "Figures"


def test_so_is_a_checkpoint_in_it(begun: Path, run: Path) -> None:
    assert main(["--resume", str(run / "checkpoints" / "epoch-0001.pt")]) == 0
    assert results(run)["state_hash"] == results(begun / "whole")["state_hash"]


def test_so_is_the_folder_with_auto(begun: Path, run: Path) -> None:
    assert main(["--resume", "auto", "--output", str(run)]) == 0
    assert results(run)["state_hash"] == results(begun / "whole")["state_hash"]


def test_a_checkpoint_without_its_run_knows_the_recipe(begun: Path, tmp_path: Path) -> None:
    path = shutil.copy(begun / "begun" / "checkpoints" / "last.pt", tmp_path / "my.pth")
    assert main(["--resume", str(path), "--output", str(tmp_path / "new"), "--device", "cpu"]) == 0
    assert results(tmp_path / "new")["state_hash"] == results(begun / "whole")["state_hash"]


def test_flags_change_how_it_runs_and_reports(run: Path) -> None:
    flags = ["--resume", str(run), "--log-every", "1", "--eval-every", "2"]
    config = parse(flags)
    assert (config.log_every, config.eval_every, config.seed, config.preset) == (1, 2, 3, "quickstart")
    assert config == replace(
        parse([*TINY, "--output", str(run)]), log_every=1, eval_every=2, output=None, resume=str(run),
    )  # fmt: skip
    assert main(flags) == 0
    settings = json.loads((run / "config.json").read_text())["settings"]
    assert (settings["log_every"], settings["eval_every"]) == (1, 2)


def test_all_flags_that_contradict_the_run_are_named_at_once(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (run / "config.json").read_bytes()
    for flags in ("--lr 0.5 --seed 4 --rotations 0 180", "--preset paper"):
        assert main(["--resume", str(run), *shlex.split(flags)]) == 4
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: the checkpoint ")
        assert "seed is 3 there and" in line or "--preset" in flags
        for name in ("lr", "seed"):
            assert f"{name} is " in line
        assert "use the run's values, or start a new run with another --output" in line
    assert "rotations is 0 90 180 270 there and 0 180 here" not in line  # of the preset: the same
    for name in ("epochs", "batch_size", "schedule", "blocks", "width", "dataset"):
        assert f"{name} is " in line
    assert (run / "config.json").read_bytes() == before


def test_consent_to_other_images_is_for_once(run: Path) -> None:
    path = run / "config.json"
    content = json.loads(path.read_text())
    content["settings"]["accept_changed_data"] = True
    path.write_text(json.dumps(content))
    assert not parse(["--resume", str(run)]).accept_changed_data


def test_the_number_format_that_auto_stood_for_is_kept(
    run: Path, begun: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rotnet_fast.engine import precision

    began_with = str(results(begun / "whole")["precision"])
    other = {"bf16": False, "fp32": True}[began_with]
    monkeypatch.setattr(precision, "_computes_in_bf16", lambda _: other)
    assert main(["--resume", str(run)]) == 0
    assert results(run)["precision"] == began_with


@pytest.mark.parametrize(
    ("content", "error"),
    [
        ("{", r"config.json cannot be read .*; restore or remove it"),
        ('{"settings": []}', r"holds no run, as its settings is of another type; restore or remove it"),
        ('{"settings": {"checkpoint": "x"}}', r"resume .*a run holds a run of another command, not a pretr"),
        ('{"settings": {"preset": "cpu", "lr": "x"}}', r"config.json is not that of a .*lr is 'x'"),
    ],
)
def test_settings_that_cannot_be_read_are_refused(run: Path, content: str, error: str) -> None:
    (run / "config.json").write_text(content)
    with pytest.raises(ArgumentError, match=error):
        parse(["--resume", str(run)])


def test_what_cannot_be_resumed_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"resume is .*nowhere, which does not exist"):
        parse(["--resume", str(tmp_path / "nowhere")])
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        CheckpointError, match=r"resume is .*empty, which is no run folder; pass a run folder"
    ):
        parse(["--resume", str(tmp_path / "empty")])
    assert parse(["--resume", str(run), "--preset", "cpu"]).width == PretrainConfig(preset="cpu").width / 2


def test_folders_of_other_commands_are_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = tmp_path / "study"
    for folder in (study / "runs" / "0123", tmp_path / "evaluation"):
        folder.mkdir(parents=True)
    (study / "study.json").write_text("{}")
    (tmp_path / "evaluation" / "config.json").write_text('{"settings": {"checkpoint": "x"}}')
    for folder, said in (
        (study, "holds a study of python -m rotnet_fast.reproduce; choose another folder with --output"),
        (study / "runs" / "0123", "belongs to a study of python -m rotnet_fast.reproduce"),
        (tmp_path / "evaluation", "holds a run of another command, not a pretraining; choose another folder"),
    ):
        before = sorted(folder.rglob("*"))
        assert main([*TINY, "--output", str(folder)]) == 2
        assert said in capsys.readouterr().err
        assert sorted(folder.rglob("*")) == before


def test_a_run_that_was_killed_before_its_first_checkpoint_starts_again(begun: Path, run: Path) -> None:
    for path in (run / "checkpoints").iterdir():
        path.unlink()
    assert main(["--resume", str(run)]) == 0
    assert results(run)["state_hash"] == results(begun / "whole")["state_hash"]


def test_printed_commands_work_in_a_folder_that_looks_like_a_flag(
    begun: Path, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(run.parent)
    run.rename("-run")
    assert main(["--resume=-run"]) == 0
    printed = capsys.readouterr().out
    assert "next:\n  python -m rotnet_fast.evaluate ./-run --images-per-class" in printed.replace(
        f"{run.parent}/", "./"
    )


def test_other_ranks_take_over_the_settings_of_the_first(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    for resume in (str(tmp_path / "on another machine"), "auto"):
        assert parse(["--resume", resume, "--dataset", "digits"]).resume == resume

"""Every command ends with next steps, which can be pasted and work."""

from __future__ import annotations

import importlib
import re
import shlex
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from image_files import encoded, pixels, save, write_tar
from processes import stop_before
from tensorboard import program
from tiny import read_digits_once

from rotnet_fast import (
    benchmark,
    doctor,
    evaluate,
    export,
    next_steps,
    orient,
    pretrain,
    report,
    reproduce,
    visualize,
)
from rotnet_fast.benchmark import BenchmarkConfig
from rotnet_fast.config import PretrainConfig
from rotnet_fast.data import cifar10, datasets
from rotnet_fast.data.split import RawDataset, Split
from rotnet_fast.evaluate import EvaluateConfig
from rotnet_fast.export import ExportConfig
from rotnet_fast.flags import parse_flags
from rotnet_fast.ops.library import LIBRARIES
from rotnet_fast.orient import OrientConfig
from rotnet_fast.reproduce import ReproduceConfig
from rotnet_fast.visualize import VisualizeConfig

pytestmark = pytest.mark.usefixtures("unrendered")
SETTINGS: dict[str, Any] = {
    "benchmark": BenchmarkConfig,
    "evaluate": EvaluateConfig,
    "export": ExportConfig,
    "orient": OrientConfig,
    "reproduce": ReproduceConfig,
    "visualize": VisualizeConfig,
}
TINY = shlex.split(
    "--preset quickstart --image-size 16 --blocks 3 --width 0.05 --epochs 3 --batch-size 16 --lr 0.05 "
    "--device cpu --precision fp32"
)
DIGITS = [*TINY, "--limit-train", "80", "--limit-test", "40"]


@pytest.fixture(autouse=True, scope="module")
def _digits() -> Iterator[None]:
    with read_digits_once():
        yield


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, on a machine without a desktop; the user's own cache folder is left alone."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user_cache"))
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def steps_in(printed: str) -> list[str]:
    """The steps at the end of what a command printed."""
    _, found, after = printed.rpartition("\nnext:\n")
    assert found
    steps = after.splitlines()
    assert 1 <= len(steps) <= 3
    assert all(step.startswith("  ") for step in steps)
    return [step.strip() for step in steps]


def check(step: str) -> None:
    """Parse a step as its program would, and check its settings, paths included."""
    words = shlex.split(step)
    if words[0] == "tensorboard":
        board = program.TensorBoard()
        board.configure(words)
        assert list(Path(board.flags.logdir).rglob("events.out.*"))
    elif words[:3] == ["python", "-m", "http.server"]:
        assert words[3:6] == ["--bind", "127.0.0.1", "--directory"]
        (folder,) = words[6:]
        assert any(Path(folder).iterdir())
    else:
        assert words[:2] == ["python", "-m"]
        package, _, name = words[2].partition(".")
        assert package == "rotnet_fast"
        if name == "pretrain":
            pretrain.parse(words[3:])
        elif name == "report":
            assert report.report(words[3:]) == Path(words[3])
        elif name == "doctor":
            assert words[3:] == []
        else:
            parse_flags(SETTINGS[name], name, words[3:]).validate()


def run(step: str) -> int:
    """Do what a step says, in this process."""
    words = shlex.split(step)
    return int(importlib.import_module(words[2]).main(words[3:]))


def is_run(step: str) -> bool:
    """Whether a step is a command that takes seconds here."""
    return step.startswith("python -m rotnet_fast") and ".reproduce" not in step


def test_a_session_on_the_digits_can_follow_the_steps_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert pretrain.main([*DIGITS, "--output", "runs/my run"]) == 0
    waiting, done = steps_in(capsys.readouterr().out), set()
    assert waiting == [
        "python -m rotnet_fast.evaluate 'runs/my run' --images-per-class 1 --epochs 10 --pad 2",
        "python -m rotnet_fast.visualize 'runs/my run'",
        "tensorboard --logdir 'runs/my run'",
    ]
    while waiting:
        step = waiting.pop(0)
        if step in done:
            continue
        done.add(step)
        check(step)
        if is_run(step):
            assert run(step) == 0
            waiting += steps_in(capsys.readouterr().out)
    commands = [step.partition(" 'runs")[0].split(".")[-1] for step in done]
    assert commands.count("evaluate") == 2
    assert commands.count("visualize") == 2  # all pictures, and both networks beside each other
    assert any(step.endswith("--output 'runs/my run/evaluate-001'") for step in done)
    assert "python -m rotnet_fast.reproduce --dataset digits --preset demo" in done
    assert "python -m http.server --bind 127.0.0.1 --directory 'runs/my run/figures'" in done


def test_the_lines_of_python_after_an_export_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert pretrain.main([*DIGITS, "--no-tensorboard", "--output", "it's a run"]) == 0
    (step,) = [step for step in steps_in(capsys.readouterr().out) if ".export" in step]
    assert run(step) == 0
    _, found, code = capsys.readouterr().out.partition("\nnext, in Python:\n")
    assert found
    assert len(code.splitlines()) == 3
    names: dict[str, Any] = {}
    exec(code, names)
    assert names["vectors"].shape == (8, 8)
    assert max(map(len, code.splitlines())) <= 80


def photos(folder: Path, kind: str, side: int = 20) -> Path:
    """A folder of images of a kind, or shards of them, whose name needs quotes."""
    for number in range(24):
        half = "test" if number % 4 == 0 else "train"
        label = number // 4 % 2
        if kind == "shards":
            name = folder / half / f"{number}.tar"
            name.parent.mkdir(parents=True, exist_ok=True)
            write_tar(name, {"a.png": encoded(pixels(number, side, side), "PNG"), "a.cls": b"%d" % label})
        else:
            inner = ("cat", "dog")[label] if kind == "labelled" else ""
            save(folder / half / inner / f"{number}.png", pixels(number, side, side))
    return folder


@pytest.mark.parametrize("kind", ["labelled", "unlabelled", "shards"])
def test_the_steps_fit_folders_of_images(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    folder = photos(Path("my photos"), kind)
    data = ["--dataset", "folder", "--data-dir", str(folder), "--pad", "1", "--lr", "0.01"]
    assert pretrain.main([*TINY, *data, "--epochs", "1", "--output", "run"]) == 0
    steps = pretrain.next_steps(
        PretrainConfig(output=Path("run"), dataset="folder", data_dir=folder),
        {**GOOD, "classes": 0 if kind == "unlabelled" else 2},
    )
    assert [step.split()[2].split(".")[-1] for step in steps[:2]] == (
        ["visualize", "export"] if kind == "unlabelled" else ["evaluate", "visualize"]
    )
    capsys.readouterr()
    check(steps[2])
    for step in steps[:2] if kind != "shards" else steps[:1]:
        check(step)
        assert run(step) == 0
    printed = capsys.readouterr().out
    if kind != "unlabelled":
        for step in steps_in(printed.partition("\nresults: ")[2] if kind == "labelled" else printed):
            check(step)


GOOD: dict[str, Any] = {
    "rotation_accuracy": 90.0,
    "pretext_task": "rotation",
    "rotation_accuracy_by_degrees": {"0": 90.0, "90": 90.0, "180": 90.0, "270": 90.0},
    "train": {"loss": 0.3, "rotation_accuracy": 90.0},
    "train_images": 50_000,
    "test_images": 10_000,
}


def test_an_exported_network_repeats_where_its_images_lie(capsys: pytest.CaptureFixture[str]) -> None:
    folder = photos(Path("my photos"), "labelled")
    data = ["--dataset", "folder", "--data-dir", str(folder), "--pad", "1"]
    assert pretrain.main([*TINY, *data, "--epochs", "1", "--output", "run"]) == 0
    assert export.main(["run", "--output", "model"]) == 0
    capsys.readouterr()
    assert visualize.main(["model", "--data-dir", "my photos", "--what", "rotations"]) == 0
    opened, step = steps_in(capsys.readouterr().out)
    assert opened.endswith("--directory model/figures")
    assert step.endswith("rotnet_fast.evaluate model --no-frozen --knn --linear --data-dir 'my photos'")
    assert run(step) == 0
    steps = steps_in(capsys.readouterr().out)
    assert steps[1] == "python -m rotnet_fast.visualize model --data-dir 'my photos'"
    for step in steps:
        check(step)
        assert run(step) == 0


@pytest.mark.parametrize(
    ("flags", "classes", "first"),
    [
        ("--data-dir photos --dataset folder --image-size 224 --model resnet18", 2, "evaluate"),
        ("--data-dir photos --dataset folder --image-size 224 --model resnet18", 0, "visualize"),
        ("--data-dir photos --dataset folder", 1, "visualize"),
        ("--data-dir photos", 10, "evaluate"),
        ("--preset speedrun", 10, "evaluate"),
        ("--dataset digits --preset quickstart --model resnet18", 10, "evaluate"),
    ],
)
def test_the_steps_after_a_pretraining_are_right_whatever_it_was(
    flags: str, classes: int, first: str, place: Path
) -> None:
    photos(place / "photos", "labelled")
    config = pretrain.parse(flags.split())
    run = config.output_folder()
    (run / "checkpoints").mkdir(parents=True)
    (run / "checkpoints" / "last.pt").touch()
    (run / "tensorboard").mkdir()
    (run / "tensorboard" / "events.out.tfevents").touch()
    steps = pretrain.next_steps(config, {**GOOD, "classes": classes})
    assert len(steps) == 3
    assert f"rotnet_fast.{first} {run}" in steps[0]
    for step in steps:
        check(step)
        assert len(step.replace(str(run), "")) <= 78  # and an indentation


def test_cifar10_is_evaluated_and_drawn_where_it_lies(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def few(data_dir: Path | None, image_size: int, progress: bool, bad_images: str) -> Any:
        assert data_dir is not None
        assert data_dir.resolve() == place / "my archive"
        noise = torch.Generator().manual_seed(0)
        images = torch.randint(0, 256, (60, 32, 32, 3), dtype=torch.uint8, generator=noise)
        split = Split(images, torch.arange(60) % 10)
        return RawDataset("CIFAR-10", cifar10.CLASSES, split, split)

    monkeypatch.setitem(datasets.DATASETS, "cifar10", few)
    (place / "my archive").mkdir()
    flags = ["--preset", "cpu", "--data-dir", "my archive", "--blocks", "3", "--width", "0.05"]
    assert pretrain.main([*flags, "--epochs", "1", "--device", "cpu"]) == 0
    steps = pretrain.next_steps(pretrain.parse(flags), {**GOOD, "classes": 10})
    capsys.readouterr()
    for step in steps:
        check(step)
    assert run(steps[0]) == 0
    for step in steps_in(capsys.readouterr().out):
        check(step)


def test_the_model_that_comes_with_the_package_is_named_and_a_folder_of_its_name_is_not(place: Path) -> None:
    photos(place / "photos", "labelled")
    config = VisualizeConfig("nin4-cifar10-jpeg", data_dir=Path("photos"))
    drawn = visualize.Drawn([Path("a.png"), Path("a.svg")], "folder", ("cat", "dog"))
    steps = visualize.next_steps(config, drawn)
    assert " nin4-cifar10-jpeg --no-frozen --knn --linear --data-dir photos" in steps[1]
    check(steps[1])
    assert next_steps.shell("export", Path("nin4-cifar10-jpeg")).endswith(" ./nin4-cifar10-jpeg")


def test_photos_that_are_turned_can_be_set_upright(capsys: pytest.CaptureFixture[str]) -> None:
    folder = photos(Path("my photos"), "labelled", side=32)
    flags = ["nin4-cifar10-jpeg", "--data-dir", str(folder), "--device", "cpu"]
    assert orient.main([*flags, "--output", "my photos.csv"]) == 0  # of noise, which has no upright
    (step,) = steps_in(capsys.readouterr().out)
    check(step)
    assert run(step) == 0
    (opened,) = steps_in(capsys.readouterr().out)
    check(opened)
    assert opened.endswith("my photos-upright'")
    assert orient.main([*flags, "--evaluate"]) == 0
    (opened,) = steps_in(capsys.readouterr().out)
    check(opened)
    assert orient.next_steps(OrientConfig(flags[0], folder), flags, orient.Found(Counter(), Counter())) == []


@pytest.mark.skipif(not LIBRARIES["cpu"].loaded, reason="the CPU library was not built")
def test_the_doctor_sends_to_the_quickstart_or_to_the_remedy(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert doctor.main([]) == 0
    steps = steps_in(capsys.readouterr().out)
    assert steps[0] == "python -m rotnet_fast.pretrain --preset quickstart"
    for step in steps:
        check(step)
    monkeypatch.setitem(LIBRARIES, "cpu", replace(LIBRARIES["cpu"], loaded=False))
    assert doctor.main([]) == 1
    install, again = steps_in(capsys.readouterr().out)
    folder = re.fullmatch(r"pip install -e (\S+)", install)
    assert folder is not None
    assert (Path(folder[1]) / "pyproject.toml").exists()
    check(again)


@pytest.mark.parametrize("flags", ["--quick --what op", "--quick --what stages --output 'a b/x.json'"])
def test_a_benchmark_sends_on(flags: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [*shlex.split(flags), "--device", "cpu"]
    assert benchmark.main(arguments) == 0
    for step in steps_in(capsys.readouterr().out):
        check(step)
    config = parse_flags(BenchmarkConfig, "", [word for word in arguments if word != "--quick"])
    for step in benchmark.next_steps(config):
        check(step)
    assert ("'a b'" in benchmark.next_steps(config)[0]) is ("stages" in flags)


def test_a_study_can_be_planned_computed_opened_and_repeated_by_its_steps(
    capsys: pytest.CaptureFixture[str],
) -> None:
    study = "--preset quickstart --dataset digits --scale 0.05 --only table3/random-conv-running --device cpu"
    assert reproduce.main([*study.split(), "--headline-seeds", "1", "--output", "my study", "--dry-run"]) == 0
    (step,) = steps_in(capsys.readouterr().out)
    check(step)
    assert run(step) == 0
    steps = steps_in(capsys.readouterr().out)
    assert steps == [
        "python -m http.server --bind 127.0.0.1 --directory 'my study'",
        f"python -m rotnet_fast.reproduce {study} --output 'my study' --headline-seeds 3",
        "python -m rotnet_fast.report 'my study'",
    ]
    for step in steps:
        check(step)
    capsys.readouterr()
    assert run(steps[2]) == 0
    printed = capsys.readouterr()
    assert "next:" not in printed.out  # which may go to a file
    assert steps_in(printed.err) == steps[:1]


def test_a_study_whose_time_was_over_is_resumed(place: Path) -> None:
    config = ReproduceConfig(dataset="digits", time_budget=1.0)
    flags = ["--dataset", "digits", "--time-budget", "1"]
    assert reproduce.next_steps(config, flags, is_finished=False) == [
        "python -m rotnet_fast.reproduce --dataset digits --time-budget 1"
    ]


def test_the_table_of_an_evaluation_leads_to_its_network(
    capsys: pytest.CaptureFixture[str], place: Path
) -> None:
    assert pretrain.main([*DIGITS, "--no-tensorboard", "--output", "run"]) == 0
    assert evaluate.main(["run", "--no-frozen", "--knn", "--device", "cpu"]) == 0
    capsys.readouterr()
    assert report.main(["run/evaluate-001"]) == 0
    steps = steps_in(capsys.readouterr().err)
    assert steps == ["python -m rotnet_fast.visualize run", "python -m rotnet_fast.export run"]
    for step in steps:
        check(step)
    (place / "run").rename("moved")
    assert report.main(["moved/evaluate-001"]) == 0
    assert capsys.readouterr().err == ""


def test_nothing_follows_a_failure_or_an_interruption(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pretrain.main([*DIGITS, "--output", "failed", "--lr", "1e30"]) == 5
    assert evaluate.main(["failed", "--knn"]) == 4
    stop_before(1, signal.SIGINT, monkeypatch)
    assert pretrain.main([*DIGITS, "--output", "stopped"]) == 130
    printed = capsys.readouterr()
    assert "saved; resume with: python -m rotnet_fast.pretrain --resume stopped" in printed.err
    assert "next:" not in printed.out + printed.err


def test_only_rank_0_prints_and_functions_print_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pretrain.pretrain(pretrain.parse([*DIGITS, "--output", "run"]))
    folder = Path("run/evaluate-001")
    evaluate.evaluate(EvaluateConfig("run", frozen=False, knn=True, device="cpu"), folder)
    assert "next" not in capsys.readouterr().out
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    next_steps.print_next(["python -m rotnet_fast.doctor"])
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("platform", "display", "found", "expected"),
    [
        ("linux", "", "/usr/bin/xdg-open", "python -m http.server --bind 127.0.0.1 --directory 'my study'"),
        ("linux", ":0", None, "python -m http.server --bind 127.0.0.1 --directory 'my study'"),
        ("linux", ":0", "/usr/bin/xdg-open", "xdg-open 'my study/index.html'"),
        ("darwin", "", None, "open 'my study/index.html'"),
    ],
)
def test_what_opens_a_page_suits_the_machine(
    platform: str, display: str, found: str | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setenv("DISPLAY", display)
    monkeypatch.setattr("shutil.which", lambda name: found)
    assert next_steps.look_at(Path("my study/index.html")) == expected

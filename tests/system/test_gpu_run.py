"""The prepared GPU run does what is most valuable first, keeps to its budget, and loses nothing."""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import gpu_run
from benchmarks.gpu_run import (
    BASELINE,
    CHOICES,
    COMPILED,
    EAGER,
    GRAPH,
    PARTS,
    FailedError,
    HopelessError,
    Run,
    SkippedError,
    choose,
    name_of,
    run_parts,
)
from rotnet_fast.pretrained import SHIPPED

ROOT = Path(__file__).resolve().parents[2]


def make_run(folder: Path, seconds: float = 60.0) -> Run:
    for name in ("output", "work/json", "work/logs"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    return Run("cpu", None, folder / "output", folder / "work", time.monotonic() + seconds)


def python(run: Run, text: str) -> str:
    return run.finish(run.python("-c", text))


def good(run: Run) -> str:
    run.json("good").write_text('{"found": 1}')
    return python(run, "print('once'); print('all is well')")


def broken(run: Run) -> str:
    return python(run, "print('this went wrong'); raise SystemExit(4)")


def crashing(run: Run) -> str:
    raise KeyError("a mistake of this program")


def lacking(run: Run) -> str:
    raise SkippedError("the tool is not installed")


def slow(run: Run) -> str:
    return python(run, "import time; print('begun', flush=True); time.sleep(60)")


def slow_with_a_child(run: Run) -> str:
    child = f"import time; time.sleep(5); open({str(run.work / 'outlived')!r}, 'w')"
    return python(run, f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])")


SAVING = """
import signal, sys, time
from pathlib import Path
done, wanted = Path(sys.argv[1]), int(sys.argv[2])
def save(*_):
    done.write_text(str(count)); sys.exit(143)
signal.signal(signal.SIGTERM, save)
count = int(done.read_text()) if done.exists() else 0
print("begun at", count, flush=True)
while count < wanted:
    count += 1; time.sleep(0.01)
print("came to", count)
"""


def saving(run: Run) -> str:
    return run.finish(run.python("-c", SAVING, run.work / "count", 400))


def results(run: Run) -> Any:
    return json.loads((run.output / "results.json").read_text())


def test_a_part_that_does_not_work_leaves_the_others_and_all_of_it_is_told(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    parts: dict[Callable[[Run], str], float] = dict.fromkeys((broken, crashing, lacking, good), 30.0)
    states = run_parts(run, parts)
    assert {name: state["state"] for name, state in states.items()} == {
        "broken": "failed",
        "crashing": "failed",
        "lacking": "skipped",
        "good": "finished",
    }
    assert states["broken"]["said"] == "exit code 4: this went wrong"
    assert states["crashing"]["said"] == "KeyError: 'a mistake of this program'"
    assert states["good"]["said"] == "all is well"
    assert results(run)["good"] == {"found": 1}
    assert results(run)["parts"] == states
    log = (run.output / "log.txt").read_text()
    assert "this went wrong" in log
    assert "lacking: skipped after 0 s: the tool is not installed" in log
    assert len(list(run.output.iterdir())) <= 5


def test_what_is_finished_or_has_failed_is_not_repeated_unless_it_is_named(tmp_path: Path) -> None:
    parts: dict[Callable[[Run], str], float] = dict.fromkeys((broken, good), 30.0)
    run_parts(make_run(tmp_path), parts)
    again = make_run(tmp_path)
    run_parts(again, parts)
    assert again.log == ["broken: failed before; repeat it with --only broken"]
    named = make_run(tmp_path)
    states = run_parts(named, parts, only=["good"])
    assert sum(line.startswith("$ ") for line in named.log) == 1
    assert states["broken"]["state"] == "failed"
    assert results(named)["parts"] == states


def test_a_part_has_its_own_clock_and_ends_with_all_that_it_started(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    start = time.monotonic()
    states = run_parts(run, {slow: 1.0, slow_with_a_child: 1.0, good: 30.0})
    assert time.monotonic() - start < 30
    assert states["slow"]["state"] == "failed"
    assert states["slow"]["said"].startswith("took longer than its share of the time: ")
    assert states["good"]["state"] == "finished"
    time.sleep(5)
    assert not (run.work / "outlived").exists()


def test_a_training_that_the_budget_stops_is_continued_by_the_next_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_run, "RESERVE", 0.5)
    parts: dict[Callable[[Run], str], float] = {saving: float("inf"), good: 30.0}
    run = make_run(tmp_path, seconds=2.5)
    states = run_parts(run, parts)
    assert time.monotonic() < run.deadline + 1
    assert (states["saving"]["state"], states["good"]["state"]) == ("unfinished", "not begun")
    saved = int((run.work / "count").read_text())
    assert 0 < saved < 400
    assert results(run)["parts"] == states
    again = make_run(tmp_path)
    states = run_parts(again, parts)
    assert (states["saving"]["state"], states["good"]["state"]) == ("finished", "finished")
    assert again.log_of("saving").read_text().splitlines() == [f"begun at {saved}", "came to 400"]


def row(level: str, seconds: float, loss: float) -> dict[str, Any]:
    return {
        "level": level,
        "seconds": seconds / 39_100,
        "seconds_per_100_epochs": seconds,
        "warmup_loss": loss,
    }


@pytest.mark.parametrize(
    ("rows", "level"),
    [
        ([], GRAPH),
        ([row(GRAPH, 300, 1.0), row(EAGER, 340, 1.0), row(BASELINE, 900, 1.0)], GRAPH),
        ([row(GRAPH, 300, 1.0), row(COMPILED, 250, 1.0), row(BASELINE, 900, 1.0)],
         COMPILED),
        # a gain that compiling takes away; another loss; graphs that cannot be captured
        ([row(GRAPH, 300, 1.0), row(COMPILED, 290, 1.0)], GRAPH),
        ([row(GRAPH, 300, 1.0), row(COMPILED, 100, 1.2), row(BASELINE, 900, 1.0)], GRAPH),
        ([row(COMPILED, 100, float("nan")), row(EAGER, 340, 1.0)], EAGER),
        ([{"level": GRAPH, "skipped": "cannot be captured"}, row(EAGER, 340, 1.0)], EAGER),
    ],
)  # fmt: skip
def test_the_fastest_way_with_the_same_loss_is_taken(rows: list[dict[str, Any]], level: str) -> None:
    assert (choose(rows)["level"], choose(rows)["flags"]) == (level, CHOICES[level])


def test_a_pretraining_that_fails_at_its_level_is_continued_at_the_plainest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path)
    run.json("choice").write_text(json.dumps({"flags": ["--compile", "default"], "seconds": 1e9}))
    begun: list[list[str]] = []

    def pretrain(run: Run, flags: list[str]) -> Any:
        begun.append(flags)
        done = f"import json; open({str(run.work / 'pretrain' / 'results.json')!r}, 'w').write('{{}}')"
        return run.python("-c", "raise SystemExit(1)" if "default" in flags else done, name="pretrain")

    (run.work / "pretrain").mkdir()
    monkeypatch.setattr(gpu_run, "pretrain", pretrain)
    monkeypatch.setattr(gpu_run, "evaluated", lambda *arguments, **settings: None)
    run.part, run.part_deadline = "train", float("inf")
    with pytest.raises(KeyError, match="rotation_accuracy"):  # of the results that are none
        gpu_run.train(run)
    assert begun == [["--compile", "default"], ["--compile", "none", "--graph", "off"]]


SKIPPED = "71 skipped, 94 deselected in 1.51s"


@pytest.mark.parametrize(
    ("printed", "error", "sentence"),
    [
        ({"tests": f"print('{SKIPPED}')"}, FailedError, f"tests: no test was run: {SKIPPED}"),
        ({"tests": "raise SystemExit('3 failed')"}, FailedError, "tests: exit code 1: 3 failed"),
        ({"trial-1": "raise SystemExit('no gcc')"}, FailedError, "trial-1: exit code 1: no gcc"),
        ({"check": "raise SystemExit('2 differ')"}, HopelessError, "check: exit code 1: 2 differ"),
        ({"trial-0": "raise SystemExit('boom')"}, HopelessError, "trial-0: exit code 1: boom"),
        ({"trial-conv": "raise SystemExit('boom')"}, HopelessError, "trial-conv: exit code 1: boom"),
    ],
)
def test_what_is_wrong_is_told_and_ends_the_call_only_where_the_rest_would_be_worthless(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    printed: dict[str, str],
    error: type[Exception],
    sentence: str,
) -> None:
    run = make_run(tmp_path)
    run.device, run.data, run.part, run.part_deadline = "cuda", [], "correct", float("inf")
    start = Run.start

    def python(run: Run, *arguments: object, name: str | None = None) -> Any:
        return start(run, sys.executable, "-c", printed.get(str(name), "print('1 passed')"), name=name)

    monkeypatch.setattr(Run, "python", python)
    with pytest.raises(error) as raised:
        gpu_run.correct(run)
    assert str(raised.value) == sentence
    found = json.loads(run.json("correct").read_text())
    assert list(found["wrong"]) == list(printed)
    states = run_parts(run, {gpu_run.correct: 60.0, good: 60.0})
    ends = error is HopelessError
    assert states["correct"] == {**states["correct"], "state": "failed", "said": sentence}
    assert states["good"]["state"] == ("not begun" if ends else "finished")
    assert ("ending here" in run.log[-1]) == ends


def test_heads_alone_are_trained_on_the_shipped_features(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    run.data = ["--dataset", "folder", "--data-dir", "jpeg", "--dataset-name", "photos"]
    run.part, run.part_deadline = "head", float("inf")
    gpu_run.stop(gpu_run.evaluate(run, "conv", *gpu_run.CONV))
    assert (
        f"--checkpoint {gpu_run.SHIPPED} --dataset folder --data-dir jpeg --device cpu --layers" in run.log[0]
    )
    assert gpu_run.SHIPPED in SHIPPED
    (run.work / "pretrain").mkdir()
    gpu_run.stop(gpu_run.evaluate(run, "conv", *gpu_run.CONV))
    assert f"--checkpoint {run.work / 'pretrain'} --device cpu" in run.log[1]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An archive of class folders of JPEG images, as on a machine that gets everything in one file."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for half, count in (("train", 24), ("test", 6)):
        for name in "abcd":
            (folder / "set" / half / name).mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / "set" / half / name / f"{number}.jpg")
    with tarfile.open(folder / "set.tar.xz", "w:xz") as archive:
        archive.add(folder / "set", "set")
    return folder / "set.tar.xz"


def command(*arguments: object) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "benchmarks.gpu_run", *map(str, arguments)]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.long
def test_a_rehearsal_does_every_part(images: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    pack = tmp_path / "pack"
    pack.mkdir()
    (pack / "commit").write_text("abcdef0")
    flags = (
        "--rehearsal",
        "--device",
        "cpu",
        "--data-dir",
        images,
        "--work",
        tmp_path / "work",
        "--pack",
        pack,
    )
    done = command(*flags, "--output", output, "--dataset-name", "noise")
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((output / "results.json").read_text())
    states = {name: part["state"] for name, part in found["parts"].items()}
    of_gpus = {"peers", "memcheck", "racecheck", "initcheck", "synccheck"}
    of_gpus |= {"profile", "loaders", "all-tests"}
    expected = {name_of(part): "finished" for part in PARTS}
    assert states == {**expected, **dict.fromkeys(of_gpus, "skipped")}
    assert {found["parts"][name]["said"] for name in of_gpus} == {"needs a GPU; this run uses cpu"}
    assert found["correct"]["wrong"] == {}
    assert list(found["correct"]["said"]) == ["check", "trial-0", "trial-conv", "trial-supervised"]
    assert (found["check"]["calls"], found["check"]["differing_calls"]) == (20, 0)
    assert found["environment"]["torch"]
    assert found["commit"] == "abcdef0"
    assert "frozen conv2 conv " in found["parts"]["train"]["said"]
    assert found["op"]["ceilings"]["copy_bytes_per_second"] > 0
    assert len(found["op"]["op"]) > 10
    assert {row["level"] for row in found["levels"]["steps"]} == {BASELINE, "default"}
    assert found["choice"]["level"] == GRAPH
    assert found["pretrain"]["dataset"] == "noise"
    methods = {
        name: [(cell["method"], cell["head"]) for cell in found[name]["cells"]]
        for name in ("supervised", "conv", "nonlinear", "fine-tuned", "labels-2")
    }
    assert methods == {
        "supervised": [("supervised", None)],
        "conv": [("frozen", "conv")],
        "nonlinear": [("frozen", "nonlinear")] * 4,
        "labels-2": [("frozen", "conv"), ("supervised", None)],
        "fine-tuned": [("fine-tune", "nonlinear"), ("fine-tune", "conv")],
    }
    assert sorted(path.name for path in output.iterdir()) == [
        "log.txt",
        "pretrain-checkpoint.pt",
        "pretrain-metrics.jsonl",
        "results.json",
        "runs.tar.gz",
    ]
    with tarfile.open(output / "runs.tar.gz") as archive:
        names = set(archive.getnames())
    kept = ("pretrain/config.json", "conv/results.json", "logs/levels.txt")
    studies = ("study-two-cores/RESULTS.md", "study-paper/RESULTS.md")
    assert {*kept, *studies} <= names
    assert len(found["learning-curve"]["summary"]) == 2
    assert not any(name.startswith("data/") for name in names)
    again = command(*flags, "--output", tmp_path / "elsewhere")
    assert (again.returncode, again.stdout) == (0, "")
    assert json.loads((tmp_path / "elsewhere" / "results.json").read_text()) == found


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (("--device", "cpu"), "--device cpu is for --rehearsal alone"),
        (("--only", "nothing"), "--only names nothing; choose from load correct op levels"),
        (("--data-dir", "/nowhere/at/all"), "--data-dir is /nowhere/at/all, which does not exist"),
    ],
)
def test_wrong_arguments_are_answered_before_anything_is_made(
    tmp_path: Path, flags: tuple[str, ...], sentence: str
) -> None:
    done = command(*flags, "--output", tmp_path / "out", "--work", tmp_path / "work")
    assert done.returncode == 2
    assert sentence in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_without_a_gpu_nothing_is_run(tmp_path: Path) -> None:
    done = command("--output", tmp_path / "out", "--work", tmp_path / "work")
    assert done.returncode == 2
    assert "torch finds no CUDA device on this machine; nothing was run" in done.stderr
    assert not (tmp_path / "out" / "results.json").exists()


def test_parts_are_listed_in_the_order_of_their_worth(tmp_path: Path) -> None:
    done = command("--list", "--work", tmp_path / "work")
    assert done.returncode == 0
    assert [line.split()[0] for line in done.stdout.splitlines()] == [name_of(part) for part in PARTS]
    assert list(tmp_path.iterdir()) == []

"""Commands whose output nobody takes: closed and missing streams, readers that left, full devices."""

from __future__ import annotations

import io
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO

import pytest
from processes import TINY
from synthetic_study import remove_cells, settings_of, write_study
from tiny import read_digits_once, tiny_config

import rotnet_fast.command
from rotnet_fast import benchmark, doctor, evaluate, export, pretrain, report, reproduce, visualize
from rotnet_fast.engine.streams import Shown, robust_streams

ROOT = Path(__file__).parents[2]

needs_full_device = pytest.mark.skipif(
    not Path("/dev/full").exists(), reason="this system has no device that is always full"
)


def closed() -> TextIO:
    stream = io.StringIO()
    stream.close()
    return stream


def without_reader() -> TextIO:
    reading, writing = os.pipe()
    os.close(reading)
    return os.fdopen(writing, "w", buffering=1)


STREAMS: dict[str, Callable[[], TextIO | None]] = {
    "missing": lambda: None,
    "closed": closed,
    "without a reader": without_reader,
    "on a full device": lambda: os.fdopen(os.open("/dev/full", os.O_WRONLY), "w", buffering=1),
}

KINDS = [pytest.param(kind, marks=[needs_full_device] if "full" in kind else []) for kind in STREAMS]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Run folder of a tiny pretraining with an evaluation in it."""
    folder = tmp_path_factory.mktemp("pretrained") / "run"
    with read_digits_once():
        pretrain.pretrain(tiny_config(folder))
        assert evaluate.main(["--checkpoint", str(folder), "--no-frozen", "--knn", "--device", "cpu"]) == 0
        yield folder


def call(command: str, run: Path, new: Path) -> int:
    """Run a command in this process."""
    match command:
        case "pretrain":
            return pretrain.main([*TINY, "--output", str(new)])
        case "evaluate":
            flags = "--heads conv --epochs 1 --device cpu"
            return evaluate.main(["--checkpoint", str(run), "--output", str(new), *flags.split()])
        case "visualize":
            return visualize.main(["--checkpoint", str(run), "--what", "filters", "--output", str(new)])
        case "export":
            return export.main(["--checkpoint", str(run), "--output", str(new)])
        case "reproduce":
            flags = "--preset quickstart --dataset digits --scale 0.1 --dry-run --device cpu --output"
            return reproduce.main([*flags.split(), str(new)])
        case "benchmark":
            return benchmark.main(["--quick", "--what", "op", "--device", "cpu", "--output", f"{new}.json"])
        case "doctor":
            return doctor.main([])
        case "report":
            body = [str(run / "evaluate-001")]
            return rotnet_fast.command.run_command(lambda: report.report(body), is_shown_only=True)
    raise AssertionError(command)


MADE = {
    "pretrain": "results.json",
    "evaluate": "results.json",
    "visualize": "filters.svg",
    "export": "model.safetensors",
}
"""Command -> a file that it leaves in its folder."""


FULL_DEVICE = KINDS[-1]


@pytest.mark.parametrize(
    ("command", "kind"),
    # One command meets every stream; the others, which write to the same streams, meet the worst.
    [
        *(pytest.param("pretrain", *kind.values, marks=kind.marks) for kind in KINDS),
        *(
            pytest.param(command, *FULL_DEVICE.values, marks=FULL_DEVICE.marks)
            for command in (*MADE, "reproduce", "benchmark", "doctor", "report")
            if command != "pretrain"
        ),
    ],
)
def test_no_command_minds_what_becomes_of_its_output(
    command: str, kind: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    streams = STREAMS[kind](), STREAMS[kind]()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", streams[0])
        patch.setattr(sys, "stderr", streams[1])
        code = call(command, run, tmp_path / "new")
        assert (sys.stdout, sys.stderr) == streams
    for stream in streams:
        if stream is not None:
            stream.close()
    is_lost = kind == "on a full device" and command in ("doctor", "report")
    assert code == (7 if is_lost else 0)
    if command in MADE:
        assert (tmp_path / "new" / MADE[command]).exists()


COMMANDS = ("pretrain", "evaluate", "visualize", "export", "reproduce", "benchmark", "doctor", "report")

REDIRECTIONS = [
    ">&-",
    ">&- 2>&-",
    "<&- >&- 2>&-",
    "| true",
    pytest.param("> /dev/full", marks=needs_full_device),
]


def in_a_shell(line: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = f"set -o pipefail; {shlex.quote(sys.executable)} -m rotnet_fast.{line}"
    return subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, env=environment, check=False
    )


@pytest.mark.parametrize("redirection", REDIRECTIONS)
def test_a_program_without_output_trains_to_its_end(redirection: str, tmp_path: Path) -> None:
    done = in_a_shell(f"pretrain {shlex.join(TINY)} --output {tmp_path / 'run'} {redirection}")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "results.json").exists()
    is_told = "full" in redirection
    assert done.stderr == (
        "WARNING: some of the output is lost: No space left on device\n" if is_told else ""
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_help_into_a_pipe_that_is_closed_ends_quietly(command: str) -> None:
    done = in_a_shell(f"{command} --help | true")
    assert (done.returncode, done.stderr) == (0, "")


@needs_full_device
def test_what_cannot_be_shown_at_all_is_an_error() -> None:
    done = in_a_shell("doctor > /dev/full")
    assert (done.returncode, done.stderr) == (
        7,
        "error: cannot write standard output: No space left on device\n",
    )


def test_files_never_get_the_numbers_of_the_standard_streams(tmp_path: Path) -> None:
    script = (
        "import os; from rotnet_fast.command import run_command\n"
        f"run_command(lambda: os.write(3, str(os.open({os.devnull!r}, os.O_RDONLY)).encode()))"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    line = f"{shlex.quote(sys.executable)} -c {shlex.quote(script)} 3>{tmp_path / 'number'} <&- >&- 2>&-"
    assert subprocess.run(["bash", "-c", line], env=environment, check=False).returncode in range(256)
    assert int((tmp_path / "number").read_text()) > 2


def test_letters_that_a_stream_does_not_know_are_escaped() -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    out = Shown(stream)
    assert out.write("\N{GREEK SMALL LETTER MU}m") == 7
    out.flush()
    assert stream.buffer.getvalue() == rb"\u03bcm"  # type: ignore[attr-defined]


def test_a_stream_that_can_do_no_more_than_write_will_do(monkeypatch: pytest.MonkeyPatch) -> None:
    class Plain:
        text = ""

        def write(self, text: str) -> None:
            self.text += text

    out = Plain()
    monkeypatch.setattr(sys, "stdout", out)
    assert rotnet_fast.command.run_command(lambda: print("said", flush=True)) == 0
    assert out.text == "said\n"


def test_a_context_leaves_the_streams_of_the_one_around_it_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    with robust_streams() as (out, _):
        with robust_streams() as (inner, _):
            assert inner is out
        assert not out.closed
    assert out.closed


def test_a_full_disk_that_is_cleared_is_written_to_again(monkeypatch: pytest.MonkeyPatch) -> None:
    class Disk(io.StringIO):
        is_full = True

        def write(self, text: str) -> int:
            if self.is_full:
                raise OSError(28, "No space left on device")
            return super().write(text)

    disk = Disk()
    monkeypatch.setattr(sys, "stdout", disk)
    with robust_streams() as (out, _):
        print("lost")
        disk.is_full = False
        print("kept")
    assert sys.stdout is disk
    assert (disk.getvalue(), str(out.loss)) == ("kept\n", "[Errno 28] No space left on device")


BACKENDS = ["module://matplotlib_inline.backend_inline", "inline", "qtagg", "svg", ""]


@pytest.mark.parametrize("backend", BACKENDS)
def test_pictures_are_drawn_whatever_a_notebook_says_of_matplotlib(
    backend: str, run: Path, tmp_path: Path
) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MPLBACKEND": backend}
    flags = ["--checkpoint", str(run), "--what", "filters", "--output", str(tmp_path), "--device", "cpu"]
    done = subprocess.run(
        [sys.executable, "-m", "rotnet_fast.visualize", *flags],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "filters.png").exists()


def test_reports_are_drawn_whatever_a_notebook_says_of_matplotlib(tmp_path: Path) -> None:
    study = write_study(tmp_path / "study", settings_of(), 1)
    remove_cells(study, 20)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MPLBACKEND": "inline"}
    command = [sys.executable, "-m", "rotnet_fast.report", str(study)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    told, _, _ = done.stderr.partition("\nnext:")
    first, *others = told.splitlines()
    assert (done.returncode, first) == (0, f"writing the report of {study} ...")
    assert others
    assert all(line.startswith(f"writing {study}") for line in others)
    assert (study / "figures" / "table1.png").exists()


def test_matplotlib_is_imported_by_the_package_of_the_pictures_alone() -> None:
    script = (
        "import pkgutil, sys, importlib, rotnet_fast\n"
        "sys.modules['matplotlib'] = None\n"
        "for found in pkgutil.walk_packages(rotnet_fast.__path__, 'rotnet_fast.'):\n"
        "    try:\n        importlib.import_module(found.name)\n"
        "    except ImportError as error:\n"
        "        places, trace = [], error.__traceback__\n"
        "        while trace is not None:\n"
        "            places.append(trace.tb_frame.f_globals['__name__'])\n"
        "            trace = trace.tb_next\n"
        "        if 'matplotlib' in str(error):\n"
        "            print(next(p for p in reversed(places) if p.startswith('rotnet_fast')))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert {name.startswith("rotnet_fast.plots") for name in done.stdout.split()} == {True}, done.stdout


def test_a_backend_that_there_is_stays_chosen() -> None:
    script = (
        "import os, rotnet_fast.plots, matplotlib\n"
        "print(matplotlib.rcParams['backend'], os.environ['MPLBACKEND'])"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MPLBACKEND": "svg"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
    assert done.stdout.split() == ["svg", "svg"], done.stderr

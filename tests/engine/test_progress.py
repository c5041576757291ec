"""What users see while something runs: on terminals of two widths, in log files, and on a busy machine."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Sequence
from pathlib import Path

import pytest

from rotnet_fast.engine.contention import Contention
from rotnet_fast.engine.run_folder import RunFolder
from rotnet_fast.engine.run_log import RunLog, clock_time, shortest
from rotnet_fast.progress import CountingLine, Pace, Part, Status, StatusLine, fitted

PRETRAIN = [
    "rotnet_fast.pretrain", "--preset", "quickstart", "--limit-train", "400", "--limit-test", "40",
    "--blocks", "3", "--width", "0.05", "--epochs", "3", "--log-every", "1", "--no-tensorboard",
    "--device", "cpu",
]  # fmt: skip


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def on_terminal(command: Sequence[str], columns: int) -> str:
    """Run a Python module on a terminal of this width; return all that it wrote there."""
    main_end, other_end = pty.openpty()
    fcntl.ioctl(other_end, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    environment = {k: v for k, v in os.environ.items() if k != "COLUMNS"} | {"PYTHONIOENCODING": "utf-8"}
    with subprocess.Popen(
        [sys.executable, "-m", *command], stdin=other_end, stdout=other_end, stderr=other_end, env=environment
    ) as process:
        os.close(other_end)
        written = b""
        while True:
            try:
                part = os.read(main_end, 65536)
            except OSError:  # Linux reports the end like this
                break
            if not part:
                break
            written += part
    os.close(main_end)
    assert process.returncode == 0, written.decode()
    return written.decode()


def screen(written: str, columns: int) -> list[str]:
    """Return the lines that a terminal shows in the end."""
    lines, row, column = [[" "] * columns], 0, 0
    for character in written:
        if character == "\r":
            column = 0
            continue
        if character == "\n" or column == columns:
            row, column = row + 1, 0
            lines += [[" "] * columns] * (row == len(lines))
        if character != "\n":
            lines[row][column] = character
            column += 1
    return ["".join(line).rstrip() for line in lines]


STATUS = re.compile(r"epoch \d/3 +\d+% .*")


@pytest.mark.parametrize("columns", [80, 120])
def test_the_status_line_neither_wraps_nor_leaves_anything(columns: int, tmp_path: Path) -> None:
    written = on_terminal([*PRETRAIN, "--output", str(tmp_path / "run")], columns)
    drawn = [text for text in re.split(r"[\r\n]", written) if STATUS.match(text)]
    assert len(drawn) > 4
    assert max(map(len, drawn)) < columns
    everything = re.compile(
        r"epoch 3/3 100% █{8} 13/13  loss \d\.\d{3}  rot \d+\.\d %  [\d,]+ img/s  epoch 0:00  0 s left"
    )
    if columns == 120:
        assert any(everything.match(text) for text in drawn)
    shown = screen(written, columns)
    assert not [line for line in shown if STATUS.match(line) or "█" in line or "left" in line]
    assert sum(line.startswith("epoch ") for line in shown) == 3
    assert any(line.startswith("rotation accuracy ") for line in shown)


def test_the_screen_shows_a_line_that_wraps() -> None:
    wide = "epoch 1/3  50% " + "x" * 10
    assert screen(f"{wide}\r{' ' * len(wide)}\rdone\n", 20) == ["epoch 1/3  50% xxxxx", "", "done", ""]


def test_a_log_file_gets_plain_lines(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", *PRETRAIN, "--output", str(tmp_path / "run")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "\r" not in done.stdout + done.stderr
    assert len(re.findall(r"^epoch \d/3: train loss .* images/s$", done.stdout, re.MULTILINE)) == 3
    assert not STATUS.search(done.stdout + done.stderr)  # none is due within a minute


def test_without_a_terminal_a_line_is_printed_once_a_minute(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    with CountingLine("decoding", 1000, "images", True, clock) as line:
        for _ in range(8):
            clock.now += 20
            line.count(100)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "decoding  30%  300/1,000 images  5 images/s  2 min left",
        "decoding  60%  600/1,000 images  5 images/s  80 s left",
    ]


def test_a_line_of_its_own_puts_off_the_next_plain_one(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    line = StatusLine(lambda: Status("work", 0.5, []), True, clock)
    clock.now = 50
    line.print("epoch 1/2: ...")
    clock.now = 100
    line.update()
    clock.now = 110
    line.update()
    assert capsys.readouterr() == ("epoch 1/2: ...\n", "work  50%\n")


def test_nothing_is_shown_where_nothing_is_wanted(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    with CountingLine("decoding", 10, "images", False, clock) as line:
        clock.now = 1000
        line.count(5)
    assert capsys.readouterr() == ("", "")


def test_a_line_keeps_what_matters_most() -> None:
    parts = [Part("160/391", 4), Part("loss 1.234", 1), Part("", 2), Part("5 min left", 0)]
    assert fitted(parts, 31) == "160/391  loss 1.234  5 min left"
    assert fitted(parts, 30) == "loss 1.234  5 min left"
    assert fitted(parts, 21) == "5 min left"
    assert fitted(parts, 5) == ""


def test_the_pace_follows_a_machine_that_becomes_slow() -> None:
    pace = Pace()
    assert pace.seconds(10) is None
    for _ in range(60):
        pace.add(100, 1.0)
    assert pace.per_second == pytest.approx(100)
    assert pace.seconds(500) == pytest.approx(5)
    for _ in range(30):
        pace.add(100, 10.0)
    assert pace.per_second == pytest.approx(10, rel=0.2)


def run_log(folder: RunFolder, **changes: object) -> RunLog:
    """The log of ten epochs of 4 steps on 100 images, every fifth of which is tested."""
    settings: dict[str, object] = {
        "epochs": 10, "steps_per_epoch": 4, "epoch_images": 100, "tested": [5, 10], "epochs_done": 0,
        "steps_done": 0, "print_every": 1, "progress": False, "tensorboard": False,
    }  # fmt: skip
    return RunLog(folder, **{**settings, **changes})  # type: ignore[arg-type]


def test_the_time_left_is_that_of_the_whole_run_with_its_tests(tmp_path: Path) -> None:
    with RunFolder(tmp_path / "run") as folder, run_log(folder) as log:
        log.step(0, 1, 25, seconds=100.0)  # the first step is no measure of the others
        assert log.seconds_left() is None
        log.step(0, 2, 25, seconds=0.5)
        assert log.seconds_left() == pytest.approx(9.5 * 2)
        log.testing()
        log.tested(7.0)
        log.epoch(4, 4, 20, 50.0, {"train": {}, "test": {}})
        log.step(5, 4, 25, seconds=0.5)
        assert log.seconds_left() == pytest.approx(4 * 2 + 7)
        log.epoch(8, 4, 36, 50.0, {"train": {}})
        log.step(9, 4, 25, seconds=0.5)
        assert log.seconds_left() == pytest.approx(7)
        log.epoch(9, 4, 40, 50.0, {"train": {}, "test": {}})
        assert log.seconds_left() == pytest.approx(0)


def test_a_resumed_run_has_only_the_rest_left_at_todays_pace(tmp_path: Path) -> None:
    with (
        RunFolder(tmp_path / "run") as folder,
        run_log(folder, epochs_done=7, steps_done=7 * 4 + 2) as log,
    ):
        assert log.seconds_left() is None
        log.step(7, 3, 25, seconds=9.0)
        log.step(7, 4, 25, seconds=1.0)
        assert log.seconds_left() == pytest.approx(2 * 4)


@pytest.mark.parametrize(("every", "printed"), [(1, [*range(1, 11)]), (4, [1, 4, 8, 10]), (10, [1, 10])])
def test_every_so_many_epochs_are_printed_with_the_first_and_the_last(
    every: int, printed: list[int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with RunFolder(tmp_path / "run") as folder, run_log(folder, print_every=every, progress=True) as log:
        for epoch in range(10):
            log.epoch(epoch, 4, 4 * epoch + 4, 50.0, {"train": {"loss": 0.5}})
    lines = capsys.readouterr().out.splitlines()
    assert lines == [f"epoch {number}/10: train loss 0.5; 50 images/s" for number in printed]
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 10


def test_numbers_of_the_status_line_are_short() -> None:
    assert (
        shortest({"loss": 1.23456, "rotation_accuracy": 61.24, "rotation_accuracy/90": 1.0})
        == "loss 1.235  rot 61.2 %"
    )
    assert (
        shortest({"conv1_accuracy": 10.0, "conv2_accuracy": 20.0, "loss": 12.345}) == "loss 12.35  acc 15.0 %"
    )
    assert shortest({}) == ""
    assert [clock_time(seconds) for seconds in (7, 250, 3850)] == ["0:07", "4:10", "1:04:10"]


class Machine:
    """Runs steps that take so much time; the clocks of a `Contention` are its own."""

    def __init__(self, threads: int = 2) -> None:
        self.wall, self.processor, self.faults = Clock(), Clock(), 0
        Contention.is_told = False
        self.contention = Contention(threads, self.wall, self.processor, lambda: self.faults)

    def steps(
        self, count: int, wall: float, processor: float, faults: int = 0, loading: float = 0
    ) -> list[str]:
        """Run steps; return what was said."""
        said = []
        for _ in range(count):
            self.wall.now += loading
            self.contention.begin()
            self.wall.now += wall
            self.processor.now += processor
            self.faults += faults
            said.append(self.contention.end())
        return [sentence for sentence in said if sentence is not None]


@pytest.fixture(autouse=True)
def _told_by_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Contention, "is_told", False)


@pytest.mark.parametrize(
    ("threads", "remedy"),
    [(1, "; close them"), (2, "OMP_NUM_THREADS=1 in place"), (16, "OMP_NUM_THREADS=8 in place")],
)
def test_waiting_for_the_processor_is_told_once(threads: int, remedy: str) -> None:
    machine = Machine(threads)
    assert machine.steps(10, wall=1.0, processor=0.2) == []  # too early to tell
    (sentence,) = machine.steps(100, wall=1.0, processor=0.2)
    assert sentence.startswith("training steps take 5 times their CPU time")
    assert remedy in sentence
    assert ("OMP_NUM_THREADS" in sentence) == (threads > 1)
    again = Contention(threads, machine.wall, machine.processor, lambda: 0)
    machine.contention = again
    assert machine.steps(100, wall=1.0, processor=0.2) == []


def test_an_idle_machine_says_nothing() -> None:
    assert Machine().steps(200, wall=1.0, processor=0.9) == []
    assert Machine().steps(200, wall=1.0, processor=0.4) == []  # some waiting is normal


def test_waiting_for_a_disk_is_not_blamed_on_other_programs() -> None:
    assert Machine().steps(200, wall=0.2, processor=0.19, loading=5.0) == []
    assert Machine().steps(200, wall=1.0, processor=0.1, faults=50) == []


def test_a_slow_first_step_and_a_suspended_program_say_nothing() -> None:
    machine = Machine()
    assert machine.steps(1, wall=60.0, processor=1.0) == []
    assert machine.steps(5, wall=1.0, processor=0.9) == []
    assert machine.steps(1, wall=3600.0, processor=0.9) == []
    assert machine.steps(100, wall=1.0, processor=0.9) == []


ANNOUNCED = {
    "pretrain": (["--preset", "quickstart"], "pretraining on digits for 8 epochs (preset quickstart) ..."),
    "evaluate": (["nin4-cifar10-jpeg", "--dataset", "digits"], "evaluating nin4-cifar10-jpeg ..."),
    "visualize": (
        ["nin4-cifar10-jpeg", "--what", "filters"], "drawing filters of nin4-cifar10-jpeg ..."
    ),
    "export": (["nin4-cifar10-jpeg"], "exporting nin4-cifar10-jpeg ..."),
    "reproduce": (
        ["--preset", "quickstart", "--dataset", "digits"],
        "computing the study of preset quickstart on digits ...",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ANNOUNCED)
def test_the_first_line_comes_before_torch_is_imported(name: str, tmp_path: Path) -> None:
    arguments, line = ANNOUNCED[name]
    program = (
        "import os, sys\n"
        "class Printed:\n"
        "    def write(self, text):\n"
        "        os.write(1, repr((text, 'torch' in sys.modules)).encode())\n"
        "    def flush(self):\n"
        "        os._exit(0)\n"
        "sys.stdout = Printed()\n"
        f"from rotnet_fast.{name} import main\n"
        f"main({[*arguments, '--output', 'out']!r})\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=tmp_path, timeout=60
    )
    assert done.stdout == repr((f"{line}", False)) + repr(("\n", False)), done.stderr


def test_a_stream_without_a_width_gets_a_line_of_80_columns() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stderr", terminal)
        patch.delenv("COLUMNS", raising=False)
        parts = [Part("x" * 30, 1), Part("y" * 30, 0), Part("z" * 30, 2)]
        StatusLine(lambda: Status("work", 0.25, parts), True).update(at_once=True)
    drawn = {text.rstrip() for text in terminal.getvalue().split("\r")} - {""}
    assert [text.replace("█", "#")[:9] for text in drawn] == ["work  25%"]
    assert all(len(text) < 80 and "y" * 30 in text and "z" not in text for text in drawn)

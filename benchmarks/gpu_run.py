"""Everything that needs a GPU, in the order of its worth, within a budget of seconds.

    python -m benchmarks.gpu_run --data-dir DATA --output RESULTS

Each part has a clock of its own; one that fails or takes too long does not stop those after it. What is
finished is kept in the work folder: the same command continues there, in mid-training, too. After each part
the output folder is up to date and holds at most five files:

    results.json              what came of every part; card, versions, commit
    log.txt                   what was run, and the end of what it printed
    pretrain-metrics.jsonl    of the pretraining
    pretrain-checkpoint.pt    to look at, to resume from, to export
    runs.tar.gz               settings, metrics and results of all trainings, and all logs

This program itself needs Python alone. A machine without a network gets the rest by ``--pack``: a folder that
``python -m benchmarks.gpu_pack`` has made elsewhere.

Exit codes: 0 all parts are finished or skipped, 1 a part failed, 2 wrong arguments, 3 parts are left: run the
same command again.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent

RESERVE = 15.0
"""Seconds of the budget that are kept back, to save trainings and to write results."""

SECONDS_TO_SAVE = 10.0
"""A training that is asked to stop is given so long before it is killed."""

LONGEST_LINE = 200

FAST_ENOUGH = 360.0
"""Estimated seconds of the pretraining up to which the supervised network trains beside it."""


class SkippedError(Exception):
    """A part that this machine cannot do; the reason."""


class UnfinishedError(Exception):
    """A part that the next call continues; how far it is."""


class FailedError(Exception):
    """A part that did not work; what was said."""


class HopelessError(FailedError):
    """A part that did not work, without which the time on the GPU would be wasted."""


class NoGpuError(Exception):
    """Nothing can be done on this machine."""


@dataclass
class Run:
    """One call of this program.

    Attributes:
        device: ``cuda``, or ``cpu`` for a rehearsal.
        data: flags that name the images; None where there are none.
        output, work: folders of what is handed over, and of what later calls continue with.
        deadline: when everything must be over, by the monotonic clock.
        is_rehearsal: everything at tiny sizes.
        site: further packages.
        part, part_deadline: what runs now, and when it must be over.
    """

    device: str
    data: list[str] | None
    output: Path
    work: Path
    deadline: float
    is_rehearsal: bool = False
    site: Path | None = None
    part: str = ""
    part_deadline: float = 0.0
    log: list[str] = field(default_factory=list)

    @property
    def left(self) -> float:
        """Seconds that the running part may still take."""
        return min(self.part_deadline, self.deadline - RESERVE) - time.monotonic()

    def python(self, *arguments: object, name: str | None = None) -> subprocess.Popen[bytes]:
        """Start Python with the packages of this checkout; what it prints goes to a log of that name."""
        return self.start(sys.executable, *arguments, name=name)

    def start(
        self, *command: object, name: str | None = None, variables: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        """Start a command in a process group of its own, so that it ends with all that it has started."""
        words = [str(word) for word in command]
        self.say(f"$ {shlex.join(word.strip().partition(chr(10))[0] for word in words)}")
        path = self.log_of(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "wb") as log:
            return subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
                env={**self.environment(), **(variables or {})},
                start_new_session=True,
            )

    def environment(self) -> dict[str, str]:
        """Variables for the commands: waiting threads sleep, and later calls find compiled kernels."""
        paths = [str(ROOT), *([str(self.site)] if self.site else []), os.environ.get("PYTHONPATH", "")]
        return {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(path for path in paths if path),
            "PYTHONUNBUFFERED": "1",
            "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE"),
            "TRITON_CACHE_DIR": str(self.work / "triton"),
            "TORCHINDUCTOR_CACHE_DIR": str(self.work / "inductor"),
        }

    def log_of(self, name: str | None = None) -> Path:
        """Where a command's output is kept; under the name of the part, unless it has one of its own."""
        return self.work / "logs" / f"{name or self.part}.txt"

    def last_line(self, name: str | None = None) -> str:
        """The end of what a command has printed."""
        lines = self.log_of(name).read_text(errors="replace").replace("\r", "\n").split("\n")
        return next(
            (line.strip()[:LONGEST_LINE] for line in reversed(lines) if line.strip()), "nothing printed"
        )

    def finish(self, process: subprocess.Popen[bytes], name: str | None = None) -> str:
        """Wait for a command; returns its last line.

        Raises:
            FailedError: it ended with another code than 0, or the part's own time is over.
            UnfinishedError: the budget is spent; what it trains is saved.
        """
        try:
            code = process.wait(max(self.left, 0.1))
        except subprocess.TimeoutExpired:
            stop(process)
            if time.monotonic() >= self.part_deadline:
                raise FailedError(f"took longer than its share of the time: {self.last_line(name)}") from None
            raise UnfinishedError(self.last_line(name)) from None
        except BaseException:
            stop(process)
            raise
        if code != 0:
            raise FailedError(f"exit code {code}: {self.last_line(name)}")
        return self.last_line(name)

    def json(self, name: str) -> Path:
        """A file whose content becomes part of results.json, under that name."""
        return self.work / "json" / f"{name}.json"

    def read(self, name: str) -> Any:
        """The content of such a file; None where it is not there or was not written to its end."""
        try:
            return json.loads(self.json(name).read_text())
        except (OSError, ValueError):
            return None

    def say(self, line: str) -> None:
        """Print a line for whoever watches, and keep it."""
        self.log.append(line)
        print(line, flush=True)

    def tiny(self, *flags: object) -> list[str]:
        """Flags for a rehearsal alone."""
        return [str(flag) for flag in flags] if self.is_rehearsal else []

    def require_gpu(self) -> None:
        if self.device != "cuda":
            raise SkippedError(f"needs a GPU; this run uses {self.device}")

    def require_data(self) -> list[str]:
        if self.data is None:
            raise SkippedError("needs images: give --data-dir")
        return self.data


def stop(process: subprocess.Popen[bytes]) -> None:
    """Ask a command to stop, which saves what it trains; then kill what is left of all that it started."""
    # Not SIGINT, which a command would ignore where this program was started in the background.
    for number, seconds in ((signal.SIGTERM, SECONDS_TO_SAVE), (signal.SIGKILL, None)):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(seconds)


# --- the parts ---

_LOADED = """
import json, sys, torch
from rotnet_fast.engine.run_folder import environment
from rotnet_fast.ops.library import LIBRARIES
device = sys.argv[1]
if device == "cuda" and not torch.cuda.is_available(): sys.exit(77)
if not LIBRARIES[device].loaded: sys.exit(f"the {device} library is not in use: {LIBRARIES[device].detail}")
found = {**environment(device), "cudnn": torch.backends.cudnn.version()}
open(sys.argv[2], "w").write(json.dumps(found))
print(found["device"], "torch", found["torch"], "kernels:", found["kernel"])
"""


def load(run: Run) -> str:
    """The compiled libraries load; they are built where they do not."""

    def try_it() -> str:
        return run.finish(run.python("-c", _LOADED, run.device, run.json("environment")))

    if run.device == "cuda" and shutil.which("nvidia-smi"):
        query = "--query-gpu=name,driver_version,clocks.sm,clocks.mem,power.draw,temperature.gpu"
        run.finish(run.start("nvidia-smi", query, "--format=csv", name="card"), "card")
        run.json("card").write_text(json.dumps(run.log_of("card").read_text().splitlines()))
    try:
        return try_it()
    except FailedError as error:
        if str(error).startswith("exit code 77"):
            raise NoGpuError("torch finds no CUDA device on this machine; nothing was run") from error
        run.say(f"load: {error}; building")
    wanted = {"ROTNET_CUDA": "1" if run.device == "cuda" else "0"}
    build = (sys.executable, "setup.py", "-q", "build_ext", "--inplace")
    run.finish(run.start(*build, name="build", variables=wanted), "build")
    return f"built; {try_it()}"


def correct(run: Run) -> str:
    """Whether it works: 300 calls bit for bit, graphs, a second stream; tests; a trial of every level."""
    # All at once, as nothing is timed; what the compiler makes is kept for the levels.
    flags = ["--device", run.device, *run.tiny("--calls", 20)]
    processes = {
        "check": run.python("-m", "benchmarks.gpu_check", run.json("check"), *flags, name="check"),
        **{name: trial(run, name, flags) for name, flags in trials(run).items()},
    }
    if run.device == "cuda":
        names = ("ops/test_ops_cuda", "ops/test_ops_rotate", "ops/test_ops_warp", "engine/test_engine_replay")
        processes["tests"] = tests(run, *(f"tests/{name}.py" for name in names), name="tests")
        processes["peers-once"] = run.python(*PEERS, "--benchmark-disable", name="peers-once")
    said, wrong = {}, {}

    def wait(name: str, process: subprocess.Popen[bytes]) -> None:
        try:
            said[name] = run.finish(process, name)
            if name == "tests":
                check_passed(said[name])
        except FailedError as error:
            wrong[name] = str(error)

    try:
        for name, process in processes.items():
            wait(name, process)
        if "trial-0" in said:
            for name, kind in (("trial-conv", CONV), ("trial-supervised", SUPERVISED)):
                wait(name, evaluate(run, name, *kind, "--epochs", 1, checkpoint="trial-0"))
    finally:
        for process in processes.values():
            stop(process)
        run.json("correct").write_text(json.dumps({"said": said, "wrong": wrong}))
    for name, error in wrong.items():
        run.say(f"{name}: {error}")
    if needed := wrong.keys() & {"check", "trial-0", "trial-conv"}:
        raise HopelessError("; ".join(f"{name}: {wrong[name]}" for name in sorted(needed)))
    if wrong:
        raise FailedError("; ".join(f"{name}: {error}" for name, error in wrong.items()))
    return f"{said['check']}; tests: {said.get('tests', 'need a GPU')}; {len(trials(run))} levels were tried"


def trials(run: Run) -> dict[str, list[str]]:
    """Trainings to try, the default first: name -> flags."""
    if run.data is None:
        return {}
    levels = list(CHOICES.values()) if run.device == "cuda" else [[]]
    return {f"trial-{number}": flags for number, flags in enumerate(levels)}


def trial(run: Run, name: str, flags: Sequence[str]) -> subprocess.Popen[bytes]:
    """Start a few epochs on a few images; the last batch of each has as many as in the whole data set."""
    epochs = ("--epochs", 5, "--limit-train", 8 * 128 + 80, "--limit-test", 500)
    return run.python(
        *("-m", "rotnet_fast.pretrain", "--preset", "paper", *run.require_data(), "--device", run.device),
        *(*flags, "--no-tensorboard", "--resume", "auto", "--output", run.work / name),
        *(TINY_TRAINING if run.is_rehearsal else epochs),
        name=name,
    )


def benchmark(run: Run, *flags: object) -> str:
    """``python -m rotnet_fast.benchmark``, whose file is up to date whenever it is stopped."""
    command = ("-m", "rotnet_fast.benchmark", "--device", run.device, "--output", run.json(run.part), *flags)
    return run.finish(run.python(*command, *run.tiny("--quick")))


def op(run: Run) -> str:
    """Ceilings, and the fused op in graphs."""
    benchmark(run, "--what", "op")
    cases = {
        "an epoch": {"mode": "epoch", "rotations": 4, "dtype": "bf16"},
        "a batch": {"mode": "batch", "rotations": 4, "dtype": "bf16", "side": 32},
    }
    rows = {
        name: next(row for row in run.read("op")["op"] if wanted.items() <= row.items())
        for name, wanted in cases.items()
    }
    return ", ".join(
        f"{name} of {row['batch']}: {1e6 * row['seconds']:.1f} us, {row['share_of_copy']:.0%} of copying"
        for name, row in rows.items()
    )


GRAPH = "bf16, cudnn.benchmark, graph"
EAGER = "bf16, cudnn.benchmark"
BASELINE = "fp32 NCHW, eager"
COMPILED = "bf16, compiled, graph"
CHOICES: dict[str, list[str]] = {
    GRAPH: ["--compile", "none"],
    COMPILED: ["--compile", "default"],
    EAGER: ["--compile", "none", "--graph", "off"],
}
"""Level of the benchmark -> flags of a pretraining at that level."""


def levels(run: Run) -> str:
    """Training steps of NIN-4: graph, eager, plain torch, compiled."""
    try:
        return steps(run, [GRAPH, EAGER, BASELINE, COMPILED], 4)
    finally:
        rows = (run.read(run.part) or {}).get("steps", [])
        run.json("choice").write_text(json.dumps(choose(rows)))


def steps(run: Run, names: Sequence[str], *blocks: int) -> str:
    """Training steps of networks of so many blocks at some levels."""
    names = [BASELINE, "default"] if run.device == "cpu" else names
    flags = ["--what", "steps", "--blocks", *blocks, "--level-limit", 60, "--levels", *names]
    said = benchmark(run, *flags)
    measured = [
        f"NIN-{row['blocks']}, {row['level']} {1e3 * row['seconds']:.2f} ms"
        for row in run.read(run.part)["steps"]
        if "seconds" in row
    ]
    return "; ".join(measured) or said


def choose(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The way to train: the fastest level with the same loss as plain torch.

    Any other way than torch's own kernels has to be faster by a tenth, as compiling takes time, too.

    Args:
        rows: of the benchmark's steps.

    Returns:
        ``level``, ``flags`` of a pretraining, and ``seconds`` of its steps in all; None if unknown.
    """
    losses = {row["level"]: row["warmup_loss"] for row in rows if "seconds" in row}
    right = losses.get(BASELINE, losses.get(EAGER))
    seconds = {
        row["level"]: row["seconds_per_100_epochs"] * (1.0 if row["level"] in (GRAPH, EAGER) else 1.1)
        for row in rows
        if row["level"] in CHOICES and "seconds" in row and is_same(row["warmup_loss"], right)
    }
    level = min(seconds, key=seconds.__getitem__) if seconds else GRAPH
    return {"level": level, "flags": CHOICES[level], "seconds": seconds.get(level)}


def is_same(loss: float, right: float | None) -> bool:
    """Whether two ways to compute agree after some steps of training, up to the rounding of bf16."""
    return right is None or abs(loss - right) <= 0.05 * right


def tests(run: Run, *arguments: object, name: str) -> subprocess.Popen[bytes]:
    """Start tests that need a GPU."""
    return run.python("-m", "pytest", "-q", "--only-cuda", "-p", "no:cacheprovider", *arguments, name=name)


def check_passed(said: str) -> None:
    """Refuse tests that were all skipped.

    Raises:
        FailedError: pytest's last line names none that passed.
    """
    if "passed" not in said:
        raise FailedError(f"no test was run: {said}")


def train(run: Run) -> str:
    """Preset paper, 100 epochs at full width; the supervised network beside it; then the conv head."""
    choice = run.read("choice") or choose([])
    supervised: subprocess.Popen[bytes] | None = None
    try:
        if not is_finished(run.work / "pretrain"):
            process = pretrain(run, choice["flags"])
            if choice["seconds"] is None or choice["seconds"] < FAST_ENOUGH:
                supervised = beside(run, process)
            try:
                run.finish(process, "pretrain")
            except FailedError as error:  # at another level, it continues from its last checkpoint
                run.say(f"pretrain: {error}; trying it without a graph and a compiler")
                run.finish(pretrain(run, CHOICES[EAGER]), "pretrain")
        evaluated(run, "conv", *CONV)
        if supervised is not None:
            with suppress(FailedError):
                run.finish(supervised, "supervised")
        evaluated(run, "supervised", *SUPERVISED)
    finally:
        if supervised is not None:
            stop(supervised)
        keep(run, "pretrain", "supervised", "conv")
    return ", ".join(
        [
            f"rotation {run.read('pretrain')['rotation_accuracy']:.2f} %",
            *accuracies(run, "conv", "supervised"),
        ]
    )


CONV = ("--layers", "conv2", "--heads", "conv", "--no-random-init")
SUPERVISED = ("--no-frozen", "--supervised")
TINY_TRAINING = ("--width", 0.1, "--epochs", 2, "--batch-size", 16, "--limit-train", 48, "--limit-test", 20)


def pretrain(run: Run, flags: Sequence[str]) -> subprocess.Popen[bytes]:
    """Start preset paper, or continue it."""
    return run.python(
        *("-m", "rotnet_fast.pretrain", "--preset", "paper", *run.require_data(), "--device", run.device),
        *(*flags, "--eval-every", 10, "--no-tensorboard", "--resume", "auto"),
        *("--output", run.work / "pretrain", *run.tiny(*TINY_TRAINING)),
        name="pretrain",
    )


def beside(run: Run, process: subprocess.Popen[bytes]) -> subprocess.Popen[bytes] | None:
    """Train the supervised network while a pretraining runs, once a checkpoint tells of its data."""
    if is_finished(run.work / "supervised"):
        return None
    while process.poll() is None and run.left > 0:
        if (run.work / "pretrain" / "checkpoints" / "last.pt").exists():
            return evaluate(run, "supervised", *SUPERVISED)
        time.sleep(0.2)
    return None


def evaluate(run: Run, name: str, *flags: object, checkpoint: str = "pretrain") -> subprocess.Popen[bytes]:
    """Start an evaluation of a pretraining, or continue it."""
    model: tuple[object, ...] = ("--checkpoint", run.work / checkpoint)
    if checkpoint == "pretrain" and not (run.work / checkpoint).exists():  # when this part alone is asked for
        model = ("--checkpoint", SHIPPED, *run.require_data()[:4])
    return run.python(
        *("-m", "rotnet_fast.evaluate", *model, "--device", run.device),
        *(*flags, "--output", run.work / name, *run.tiny("--epochs", 1, "--batch-size", 16)),
        name=name,
    )


SHIPPED = "nin4-cifar10-jpeg-paper"
"""What part train came to in an earlier run."""


def evaluated(run: Run, name: str, *flags: object, checkpoint: str = "pretrain") -> None:
    """Do an evaluation, unless it is done; without a graph, where it fails with one."""
    if is_finished(run.work / name):
        return
    try:
        run.finish(evaluate(run, name, *flags, checkpoint=checkpoint), name)
    except FailedError as error:
        run.say(f"{name}: {error}; trying it without a graph")
        run.finish(evaluate(run, name, *flags, "--graph", "off", checkpoint=checkpoint), name)


def is_finished(folder: Path) -> bool:
    """Whether a training or evaluation has come to its end: results are written last."""
    return (folder / "results.json").exists()


def keep(run: Run, *names: str) -> None:
    """Take the results of runs into results.json."""
    for name in names:
        if is_finished(run.work / name):
            shutil.copyfile(run.work / name / "results.json", run.json(name))


def accuracies(run: Run, *names: str) -> list[str]:
    """What evaluations have found so far."""
    cells = [cell for name in names for cell in (run.read(name) or {"cells": []})["cells"]]
    return [
        f"{' '.join(filter(None, (cell['method'], cell['layer'], cell['head'])))} {cell['accuracy']:.2f} %"
        for cell in cells
    ]


def head(run: Run) -> str:
    """Fine-tuning of both heads; the non-linear head on every block."""
    names, layers = ("fine-tuned", "nonlinear"), ("conv1", "conv2", "conv3", "conv4")
    try:
        evaluated(run, "fine-tuned", "--layers", "conv2", "--no-frozen", "--fine-tune")
        evaluated(run, "nonlinear", "--layers", *layers, "--heads", "nonlinear", "--no-random-init")
    finally:
        keep(run, *names)
    return ", ".join(accuracies(run, *names))


def few_labels(run: Run) -> str:
    """Figure 5b: the conv head and the supervised network with few labels per class."""
    counts = (2,) if run.is_rehearsal else (20, 100, 400)
    names = [f"labels-{count}" for count in counts]
    try:
        for name, count in zip(names, counts, strict=True):
            evaluated(run, name, *CONV, "--supervised", "--images-per-class", count)
    finally:
        keep(run, *names)
    return ", ".join(accuracies(run, *names))


def peers(run: Run) -> str:
    """The op beside other ways to make the same views, and kernels in graphs."""
    run.require_gpu()
    flags = ("--benchmark-only", "--benchmark-max-time=0.4", f"--benchmark-json={run.work / 'peers.json'}")
    return run.finish(run.python(*PEERS, *flags))


PEERS = (
    *("-m", "pytest", "-q", "-p", "no:cacheprovider", "benchmarks/test_rotate_batch.py"),
    *("-k", "(cuda or graph) and bf16 and crop and (128x32 or 64x224)"),
)


def memcheck(run: Run) -> str:
    """compute-sanitizer: addresses."""
    return sanitize(run, "memcheck")


def racecheck(run: Run) -> str:
    """compute-sanitizer: races in shared memory."""
    return sanitize(run, "racecheck")


def initcheck(run: Run) -> str:
    """compute-sanitizer: memory that nobody wrote."""
    return sanitize(run, "initcheck")


def synccheck(run: Run) -> str:
    """compute-sanitizer: barriers."""
    return sanitize(run, "synccheck")


def require_tools(*tools: str) -> None:
    for tool in tools:
        if shutil.which(tool) is None:
            raise SkippedError(f"{tool} is not installed")


def sanitize(run: Run, tool: str) -> str:
    """Watch the kernels, after the tool has noticed a planted fault: one that misses it would miss others."""
    run.require_gpu()
    require_tools("compute-sanitizer", "nvcc")
    planted = run.work / "planted_faults"
    if not planted.exists():
        source = ROOT / "benchmarks" / "planted_faults.cu"
        run.finish(
            run.start("nvcc", "-arch=native", "-lineinfo", "-o", planted, source, name="planted"), "planted"
        )
    watch = ("compute-sanitizer", "--tool", tool, "--error-exitcode", 99)
    try:
        run.finish(run.start(*watch, planted, tool, name=f"{tool}-planted"), f"{tool}-planted")
    except FailedError as error:
        if not str(error).startswith("exit code 99"):
            raise
    else:
        raise FailedError(f"{tool} did not notice the planted fault")
    said = run.finish(run.start(*watch, sys.executable, "-m", "benchmarks.small_kernels", variables=UNCACHED))
    return f"the planted fault was noticed; {said}"


# Memory that torch's allocator keeps would hide what lies outside of a tensor.
UNCACHED = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1", "PYTORCH_ALLOC_CONF": "expandable_segments:False"}


_PROFILED = """
import torch
from rotnet_fast import rotate_batch
images = torch.randint(0, 256, (50_000, 32, 32, 3), dtype=torch.uint8, device="cuda")
for rotations in ((0, 90, 180, 270), tuple(range(0, 360, 45))):
    for batch in (128, 16_384):
        rotate_batch(images[:batch], rotations=rotations, dtype=torch.bfloat16)
"""


def profile(run: Run) -> str:
    """ncu: bandwidth, occupancy and stalls of the op's kernels."""
    run.require_gpu()
    require_tools("ncu")
    sections = [
        word for name in ("SpeedOfLight", "Occupancy", "WarpStateStats") for word in ("--section", name)
    ]
    kernels = "regex:(rotate|warp)_kernel"
    return run.finish(
        run.start("ncu", *sections, "--kernel-name", kernels, sys.executable, "-c", _PROFILED, name="ncu"),
        "ncu",
    )


def other_networks(run: Run) -> str:
    """Training steps of NIN-3 and NIN-5."""
    return steps(run, [GRAPH, BASELINE, COMPILED], 3, 5)


def stages(run: Run) -> str:
    """The stages of a NIN-4 step, each alone, on the roofline."""
    return benchmark(run, "--what", "stages")


def two_cores(run: Run) -> str:
    """The study of preset two-cores: its main numbers, then all others."""
    # Its trainings are short: of several processes, one always has work for the GPU.
    wishes = ["table3/rotnet-conv", "table3/rotnet-nonlinear", "table3/supervised"]
    processes = 1 if run.is_rehearsal else 3
    return reproduced(run, "two-cores", [wishes, []], "--compile", "default", processes=processes)


def learning_curve(run: Run) -> str:
    """Features against minutes: presets paper and speedrun, at two lengths."""
    recipes = [
        "paper --epochs 3",
        "paper --epochs 10",
        "speedrun --epochs 3 --warmup 0.3",
        "speedrun --epochs 10 --warmup 1",
    ]
    if run.is_rehearsal:
        tiny = "--width 0.1 --batch-size 16 / --epochs 1"
        recipes = [f"paper --epochs 1 {tiny}", f"paper --epochs 2 {tiny}"]
    folder = run.work / "learning-curve"
    flags = ["--device", run.device, "--seeds", 0, *run.tiny("--limit-train", 48, "--limit-test", 20)]
    flags += [*run.require_data()[:4], "--output", folder]
    said = run.finish(run.python("-m", "benchmarks.speedrun", *flags, "--recipes", *recipes))
    shutil.copyfile(folder / "speedrun.json", run.json("learning-curve"))
    return said


def study(run: Run) -> str:
    """The study of preset paper: Table 3, Table 1, Figure 5b, then all others."""
    return reproduced(run, "paper", [["table3"], ["table1"], ["figure5b"], []])


def reproduced(
    run: Run, preset: str, wishes: Sequence[Sequence[str]], *flags: str, processes: int = 1
) -> str:
    """Compute the cells of a study, the first wishes first, by processes that divide them."""
    folder = run.work / f"study-{preset}"
    common = ["-m", "rotnet_fast.reproduce", *run.require_data(), "--device", run.device, "--output", folder]
    if run.is_rehearsal:
        common += ["--preset", "cpu", "--scale", 0.001, "--limit-test", 20]
        wishes = [["table3/rotnet-conv"]]
    else:
        common += ["--preset", preset, *flags]
    names = [f"{run.part}-{number}" for number in range(processes)]
    for only in wishes:
        budget = ["--time-budget", f"{max(run.left - SECONDS_TO_SAVE, 1) / 60:.3f}"]
        command = [*common, *budget, *(["--only", *only] if only else [])]
        started = {name: run.python(*command, name=name) for name in names}
        try:
            for name, process in started.items():
                run.finish(process, name)
        finally:
            for process in started.values():
                stop(process)
        for name in names:
            if "time budget exhausted" in run.log_of(name).read_text(errors="replace"):
                raise UnfinishedError(run.last_line(name))
    return run.last_line(names[0])


def all_tests(run: Run) -> str:
    """All other tests that need a GPU."""
    run.require_gpu()
    said = run.finish(tests(run, "tests", name="all-tests"), "all-tests")
    check_passed(said)
    return said


def loaders(run: Run) -> str:
    """The loaders beside a standard DataLoader."""
    run.require_gpu()
    flags = ("-m", "pytest", "-q", "benchmarks/test_loaders.py", "-k", "cuda", "--benchmark-only")
    return run.finish(run.python(*flags, f"--benchmark-json={run.work / 'loaders.json'}"))


PARTS: dict[Callable[[Run], str], float] = {
    load: 180,
    correct: 150,
    op: 60,
    levels: 180,
    train: math.inf,
    peers: 180,
    head: math.inf,
    few_labels: math.inf,
    memcheck: 120,
    racecheck: 240,
    profile: 60,
    other_networks: 150,
    stages: 90,
    two_cores: math.inf,
    learning_curve: 300,
    study: math.inf,
    all_tests: 900,
    loaders: 530,
    initcheck: 480,
    synccheck: 300,
}
"""What there is to do, the most valuable first -> the most seconds that it may take; trainings, which a later
call continues, take what is left. The docstring of a part describes it."""


def name_of(part: Callable[[Run], str]) -> str:
    return part.__name__.replace("_", "-")


# --- one call ---


def run_parts(run: Run, parts: dict[Callable[[Run], str], float], only: Sequence[str] = ()) -> dict[str, Any]:
    """Do what is not finished yet, in order, and hand over the results after each part.

    Returns:
        Name of each part -> ``state`` (``finished``, ``skipped``, ``failed``, ``unfinished`` or ``not
        begun``), ``seconds`` over all calls and what it ``said``.
    """
    states = read_states(run.work)
    for part in parts:
        states.setdefault(name_of(part), {"state": "not begun", "seconds": 0.0, "said": ""})
    for part, seconds in parts.items():
        name = name_of(part)
        before = states[name]
        if name not in only if only else before["state"] in ("finished", "skipped"):
            continue
        if before["state"] == "failed" and not only:
            run.say(f"{name}: failed before; repeat it with --only {name}")
            continue
        run.part, run.part_deadline = name, math.inf
        if run.left < 1:
            continue
        run.part_deadline = time.monotonic() + seconds
        start, is_over = time.monotonic(), False
        try:
            state, said = "finished", part(run)
        except SkippedError as reason:
            state, said = "skipped", str(reason)
        except UnfinishedError as reason:
            state, said = "unfinished", str(reason)
        except FailedError as reason:
            state, said = "failed", str(reason)
            is_over = isinstance(reason, HopelessError)
        except NoGpuError:
            raise
        except Exception as error:
            state, said = "failed", f"{type(error).__name__}: {error}"
        took = time.monotonic() - start
        states[name] = {"state": state, "seconds": before["seconds"] + took, "said": said}
        run.say(f"{name}: {state} after {took:.0f} s: {said}")
        write(run.work / "state.json", json.dumps(states))
        hand_over(run, states)
        if is_over:
            run.say("ending here: the rest would measure what is wrong")
            break
    hand_over(run, states)
    return {name_of(part): states[name_of(part)] for part in parts}


def read_states(work: Path) -> dict[str, Any]:
    """What earlier calls have come to."""
    path = work / "state.json"
    states: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return states


def hand_over(run: Run, states: dict[str, Any]) -> None:
    """Bring the output folder up to date."""
    files = sorted((run.work / "json").glob("*.json"))
    results = {"parts": states, **{path.stem: run.read(path.stem) for path in files}}
    write(run.output / "results.json", json.dumps(results, indent=1))
    ends = [f"== {path.stem}\n{end_of(path)}" for path in sorted((run.work / "logs").glob("*.txt"))]
    write(run.output / "log.txt", "\n".join([*run.log, "", *ends, ""]))
    pretraining = run.work / "pretrain"
    for source, name in (
        (pretraining / "metrics.jsonl", "pretrain-metrics.jsonl"),
        (pretraining / "checkpoints" / "last.pt", "pretrain-checkpoint.pt"),
    ):
        if source.exists():
            shutil.copyfile(source, run.output / name)
    with tarfile.open(run.output / "runs.tar.gz", "w:gz") as archive:
        for path in sorted(run.work.rglob("*")):
            inside = path.relative_to(run.work)
            if path.suffix in (".json", ".jsonl", ".txt", ".md") and inside.parts[0] not in NOT_KEPT:
                archive.add(path, inside, recursive=False)


NOT_KEPT = frozenset(("data", "site", "triton", "inductor", "state.json"))
"""Of the work folder, what runs.tar.gz leaves out: the images, further packages and what compilers keep."""


def end_of(path: Path, characters: int = 4000) -> str:
    return path.read_text(errors="replace").replace("\r", "\n")[-characters:].strip()


def write(path: Path, text: str) -> None:
    """Write a file whole, or not at all."""
    new = path.with_name(path.name + ".new")
    new.write_text(text)
    new.replace(path)


def unpacked(archive: Path, work: Path) -> Path:
    """The folder of images in an archive, taken out of it once."""
    folder = work / "data"
    if not (folder / "done").exists():
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(["tar", "-xf", archive, "-C", folder], check=True)
        (folder / "done").touch()
    inside = [path for path in folder.iterdir() if path.is_dir()]
    return inside[0] if len(inside) == 1 and not (folder / "train").is_dir() else folder


def data_flags(data: Path, name: str | None) -> list[str]:
    """What tells the commands where the images are."""
    if (data / "train").is_dir():
        return ["--dataset", "folder", "--data-dir", str(data), *(["--dataset-name", name] if name else [])]
    return ["--dataset", "cifar10", "--data-dir", str(data)]


def use_pack(pack: Path, work: Path) -> Path:
    """Install the wheels of a pack into the work folder, and put its libraries where they are looked for."""
    site = work / "site"
    wheels = sorted(pack.glob("*.whl"))
    if wheels and not site.exists():
        pip = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--no-compile"]
        subprocess.run([*pip, "--target", site, *wheels], check=True)
    for library in pack.glob("*.so"):
        if not (target := ROOT / "rotnet_fast" / library.name).exists():
            shutil.copyfile(library, target)
    commit = pack / "commit"
    if commit.exists():
        (work / "json" / "commit.json").write_text(json.dumps(commit.read_text().strip()))
    return site


def main(arguments: Sequence[str] | None = None) -> int:
    """Command-line entry point; returns the exit code."""
    start = time.monotonic()
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu_run",
        description="Everything that needs a GPU, in the order of its worth.",
    )
    parser.add_argument(
        "--data-dir", type=Path, help="CIFAR-10: its archive's folder, class folders, or a tar of them"
    )
    parser.add_argument("--dataset-name", help="what results call images of class folders")
    parser.add_argument(
        "--output", type=Path, default=Path("build/gpu-run/results"), help="folder of the results"
    )
    parser.add_argument(
        "--work", type=Path, default=Path("build/gpu-run/work"), help="where later calls continue"
    )
    parser.add_argument("--budget", type=float, default=840.0, help="seconds that this call may take")
    parser.add_argument("--only", nargs="+", default=[], metavar="PART", help="these parts, even if finished")
    parser.add_argument("--list", action="store_true", help="name the parts, and what became of them")
    parser.add_argument("--pack", type=Path, help="folder that benchmarks.gpu_pack has made")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="cpu: for a rehearsal")
    parser.add_argument("--rehearsal", action="store_true", help="everything at tiny sizes")
    options = parser.parse_args(arguments)
    work, output = options.work.resolve(), options.output.resolve()
    names = {name_of(part): part for part in PARTS}
    for name in options.only:
        if name not in names:
            parser.error(f"--only names {name}; choose from {' '.join(names)}")
    if options.list:
        states = read_states(work)
        for name, part in names.items():
            state = states.get(name, {}).get("state", "not begun")
            limit = "" if math.isinf(PARTS[part]) else f"{PARTS[part]:g} s"
            print(f"{name:10} {limit:>5}  {state:10}  {part.__doc__}")
        return 0
    if options.device == "cpu" and not options.rehearsal:
        parser.error("--device cpu is for --rehearsal alone: the numbers of this program are about GPUs")
    if options.data_dir is not None and not options.data_dir.exists():
        parser.error(f"--data-dir is {options.data_dir}, which does not exist")
    for folder in (output, work / "json", work / "logs"):
        folder.mkdir(parents=True, exist_ok=True)
    site = use_pack(options.pack.resolve(), work) if options.pack else None
    data = options.data_dir.resolve() if options.data_dir else None
    if data is not None and data.is_file():
        data = unpacked(data, work)
    flags = data_flags(data, options.dataset_name) if data else None
    run = Run(options.device, flags, output, work, start + options.budget, options.rehearsal, site)
    try:
        states = run_parts(run, PARTS, options.only)
    except NoGpuError as error:
        parser.error(str(error))
    failed = [name for name, found in states.items() if found["state"] == "failed"]
    left = [name for name, found in states.items() if found["state"] in ("unfinished", "not begun")]
    if left:
        run.say(f"left: {' '.join(left)}; run the same command again")
    if failed:
        run.say(f"failed: {' '.join(failed)}; see {output / 'log.txt'}")
    hand_over(run, read_states(work))
    return 1 if failed else 3 if left else 0


if __name__ == "__main__":
    sys.exit(main())

"""Every exit code has a fault that gives it, and every fault that a user can act on has its code."""

from __future__ import annotations

import os
import re
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import pytest
from processes import TINY, Ended, before_step, in_a_process, limit_memory, run_command, stop_before
from ranks import on_ranks

from rotnet_fast import command, errors
from rotnet_fast.engine.checkpoint import candidates
from rotnet_fast.engine.signals import REQUESTS, WARNINGS
from rotnet_fast.errors import ElsewhereError, MissingLibraryError, RotnetError

GUIDE = Path(__file__).parents[2] / "docs" / "training.md"


def damage_all(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Leave a run's checkpoints without their ends."""
    assert run_command([*TINY, "--output", str(folder)]).code == 0
    for path in candidates(folder):
        path.write_bytes(path.read_bytes()[:-1])


def starve_the_other(patch: pytest.MonkeyPatch) -> None:
    """Let the second of two processes run out of memory."""

    def fail() -> None:
        raise MemoryError

    if os.environ["RANK"] == "1":
        before_step(patch, 1, fail)


class NoCapture:
    """A GPU on which no step can be captured."""

    def __init__(self, device: object) -> None: ...

    stream = nullcontext

    def __call__(self, work: object) -> None:
        raise RuntimeError("operation not permitted when stream is capturing")


def forbid_capture(patch: pytest.MonkeyPatch) -> None:
    from rotnet_fast.engine import step

    patch.setattr(step, "use_graph", lambda *arguments: True)
    patch.setattr(step, "CudaCapture", NoCapture)


def end(code: int, folder: Path) -> Ended:
    """Break the command in the way that this exit code stands for."""
    arguments = [*TINY, "--output", str(folder)]
    match code:
        case 0:
            return in_a_process(arguments)
        case 2:
            return in_a_process([*arguments, "--epochs", "0"])
        case 3:
            return in_a_process([*arguments, "--dataset", "folder", "--data-dir", str(folder / "nowhere")])
        case 4:
            return in_a_process([*arguments, "--resume", "auto"], partial(damage_all, folder))
        case 5:
            return in_a_process([*arguments, "--lr", "1e30"])
        case 6:
            return in_a_process(arguments, partial(limit_memory, 0))
        case 7:
            return in_a_process([*TINY, "--output", "/dev/null/run"])
        case 8:
            ended: Ended = on_ranks(2, run_command, arguments, starve_the_other)[0]
            return ended
        case 9:
            return in_a_process(arguments, forbid_capture)
        case code if code > 128:
            return in_a_process(arguments, partial(stop_before, 1, code - 128))
    raise AssertionError(f"nothing gives exit code {code}")


SENTENCES = {
    0: "",
    2: "error: epochs is 0; it must be at least 1",
    3: "error: data-dir is .*nowhere, which does not exist",
    4: "error: .* has 4 checkpoints, but none that is usable",
    5: "error: .* start again with a lower --lr",
    6: "error: the device ran out of memory.*; use a smaller --batch-size or --width",
    7: "error: cannot write /dev/null/run: Not a directory; choose another folder",
    8: "error: rank 0 lost its connection to another process of this job",
    9: r"error: .* captured in a CUDA graph \(operation not permitted.*\); use --graph off",
    129: "stopped by SIGHUP",
    130: "stopped by SIGINT",
    138: "stopped by SIGUSR1",
    140: "stopped by SIGUSR2",
    143: "stopped by SIGTERM",
    152: "stopped by SIGXCPU",
}


@pytest.mark.faults("exit code and its sentence")
@pytest.mark.parametrize("code", SENTENCES)
def test_every_exit_code_has_a_fault_that_gives_it_with_one_sentence(code: int, tmp_path: Path) -> None:
    ended = end(code, tmp_path / "run")
    assert ended.code == code
    last = ended.err.splitlines()[-1] if code else ended.err
    assert re.match(SENTENCES[code], last)
    assert "Traceback" not in ended.err


def numbers(text: str) -> set[int]:
    return {int(number) for number in re.findall(r"\b\d+\b", text)}


def test_the_documented_exit_codes_are_these() -> None:
    assert command.__doc__ is not None
    documented = {*SENTENCES, 1}  # which has tests of its own, of the doctor and of missing libraries
    assert numbers(command.__doc__) == documented
    told = re.search(r"## Exit codes\s+(.*?)\.\s", GUIDE.read_text(), re.DOTALL)
    assert told is not None
    assert numbers(told[1].replace("SIGUSR1", "").replace("SIGUSR2", "")) == documented


def test_every_error_that_a_user_can_act_on_has_a_code_of_its_own() -> None:
    kinds = [
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type)
        and issubclass(kind, RotnetError)
        and kind not in (RotnetError, ElsewhereError, MissingLibraryError)  # the general code, 1
    ]
    codes = [kind.exit_code for kind in kinds]
    of_signals = {128 + number for number in (*REQUESTS, *WARNINGS)}
    assert sorted(codes) == sorted(set(SENTENCES) - {0} - of_signals)
    assert of_signals <= SENTENCES.keys()

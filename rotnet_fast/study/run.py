"""Computes the cells of a study, also while other processes compute some of them."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from rotnet_fast.engine.run_folder import FileLock, environment
from rotnet_fast.errors import (
    CannotWriteError,
    CaptureError,
    CheckpointError,
    OutOfMemoryError,
    RotnetError,
)
from rotnet_fast.memory import is_out_of_memory
from rotnet_fast.plain import counted, duration
from rotnet_fast.study.builder import rotation_set_name
from rotnet_fast.study.cells import StudyCell, with_needs
from rotnet_fast.study.context import Context
from rotnet_fast.study.estimate import Estimator, multiply_adds
from rotnet_fast.study.kinds import KINDS, NETWORK_KINDS

WAIT_SECONDS = 1.0
"""Pause between two checks of what other processes have finished."""


@dataclass
class Progress:
    """What this process has computed so far.

    Attributes:
        computed: cells that this process finished.
        failed: cell -> why it cannot be computed.
    """

    computed: list[StudyCell] = field(default_factory=list)
    failed: dict[StudyCell, Exception] = field(default_factory=dict)

    def failures(self) -> list[tuple[str, Exception]]:
        """Say of each group that failed what it was to compute, and why it cannot."""
        groups: dict[int, list[StudyCell]] = {}
        for cell, error in self.failed.items():
            groups.setdefault(id(error), []).append(cell)
        return [(describe(cells), self.failed[cells[0]]) for cells in groups.values()]


def pending_cells(context: Context, cells: Sequence[StudyCell]) -> list[StudyCell]:
    """Return the unfinished cells, with those that they need, in an order in which they can be computed.

    A network whose number is known but whose weights are missing (results can be copied without them)
    is trained again where an unfinished cell starts from it.
    """
    pending: dict[StudyCell, None] = {}

    def visit(cell: StudyCell, as_network: bool) -> None:
        if cell in pending:
            return
        if context.results.is_finished(cell) and (context.results.has_network(cell) or not as_network):
            return
        for need in cell.needs:
            visit(need, True)
        pending[cell] = None

    for cell in cells:
        visit(cell, False)
    return list(pending)


def grouped(cells: Sequence[StudyCell]) -> list[list[StudyCell]]:
    """Group the cells that are computed together, in the order of each group's first."""
    groups: dict[str, list[StudyCell]] = {}
    for cell in cells:
        groups.setdefault(cell.group_key, []).append(cell)
    return list(groups.values())


def run_cells(
    context: Context,
    cells: Sequence[StudyCell],
    known: Sequence[StudyCell],
    progress: Progress,
    say: Callable[[str], None],
    processes: int = 1,
) -> None:
    """Compute all cells and those that they need; return once each is finished, whichever process did it.

    A cell that fails (its loss is non-finite, a library is missing, ...) is noted, and the others continue.

    Args:
        cells: the requested cells, the most important first.
        known: all cells of the study; an interrupted training of some of them is resumed.
        progress: records what was done.
        say: prints a line for the user.
        processes: number of processes that divide the cells, for the time that is left.

    Raises:
        RotnetError: an error that would stop every other cell, too, such as a full disk.
        Interrupted: stopped by a signal, with everything saved.
    """
    is_waiting = False
    everything = list(with_needs(cells))
    estimator = Estimator(context, everything, environment(str(context.device))["device"])
    while True:
        pending = [cell for cell in pending_cells(context, cells) if not _is_hopeless(cell, progress)]
        if not pending:
            return
        claimed = _claim(context, pending)
        if claimed is None:
            if not is_waiting:
                say(
                    f"waiting for {counted(len(pending), 'cell')} that other processes compute, or that "
                    "need those"
                )
            is_waiting = True
            time.sleep(WAIT_SECONDS)
            continue
        is_waiting = False
        group, lock = claimed
        try:
            # Another process may have finished some between the look and the lock.
            still_pending = set(pending_cells(context, cells))
            group = [cell for cell in group if cell in still_pending]
            if group:
                number = len(everything) - len(pending) + 1
                seconds = sum(map(estimator.seconds, grouped(pending))) / processes
                place = f"cell {number} of {len(everything)}, about {duration(seconds)} left"
                _run_group(context, group, known, progress, say, place)
                estimator.learn(group[0])
        finally:
            lock.close()


def _claim(context: Context, pending: Sequence[StudyCell]) -> tuple[list[StudyCell], FileLock] | None:
    """Return the first group that can be computed and that no other process computes, and its lock."""
    unfinished = set(pending)
    for group in grouped(pending):
        if any(need in unfinished for need in group[0].needs):
            continue
        lock = context.results.lock(group[0])
        if lock.take():
            return group, lock
        lock.close()
    return None


def _run_group(
    context: Context,
    group: list[StudyCell],
    known: Sequence[StudyCell],
    progress: Progress,
    say: Callable[[str], None],
    place: str,
) -> None:
    """Compute a group under its lock and record its results.

    Args:
        place: where in the study it stands.
    """
    first = group[0]
    is_network = first.kind in NETWORK_KINDS
    if is_network:
        folder = context.results.run_folder(first)
        if (folder / "results.json").exists() and not context.results.has_network(first):
            shutil.rmtree(folder)  # trained to the end, but weights or snapshots are missing
        was_begun = context.results.network(first).is_file()
    else:
        relatives = [cell for cell in with_needs(known) if cell.group_key == first.group_key]
        group, folder, was_begun = context.results.claim_work(group, relatives)
    say(f"--- {place}: {describe(group)}{' (resuming)' if was_begun else ''}")
    start = time.monotonic()
    try:
        found = KINDS[first.kind](context, group, folder)
    except (CannotWriteError, CaptureError):
        raise  # the next cell would fare no better
    except (RotnetError, ImportError, MemoryError, RuntimeError) as found_wrong:
        error: Exception = found_wrong
        if is_out_of_memory(error):
            said = str(error).partition("\n")[0]
            error = OutOfMemoryError(f"the device ran out of memory ({said}); run it where there is more")
        elif not isinstance(error, (RotnetError, ImportError)):
            raise
        if not is_network:
            shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, CheckpointError) and was_begun and not is_network:
            say(f"cannot resume ({error}); starting again")
            return
        # Requested cells that were not begun together with these get an attempt of their own.
        say(f"FAILED: {describe(group)}: {error}")
        progress.failed.update(dict.fromkeys(group, error))
        return
    seconds = time.monotonic() - start
    for cell in group:
        if context.results.is_finished(cell) and not is_network:
            continue  # written before a kill in the middle of this loop
        context.results.write(
            cell,
            found[cell.key],
            seconds=seconds / len(group),
            group_seconds=seconds,
            multiply_adds=multiply_adds(group, context.settings),
            resumed=was_begun,
            command=context.command,
            environment=environment(str(context.device)),
        )
        progress.computed.append(cell)
    if not is_network:
        shutil.rmtree(folder, ignore_errors=True)


def describe(group: Sequence[StudyCell]) -> str:
    """Describe what a group computes, as in ``conv2 conv on pretext, 4 blocks, 20 labels per class``."""
    first, values = group[0], group[0].settings
    what = [" ".join(map(str, cell.member.values())) for cell in group if cell.member]
    parts = []
    if first.kind == "pretext":
        what_is_told = values.get("pretext_task") or rotation_set_name(tuple(values["rotations"]))
        parts.append(f"pretext, {counted(values['blocks'], 'block')}, {what_is_told}")
    elif first.kind == "classical":
        parts.append(values["features"])
    elif first.kind == "fine-tune":
        parts.append(f"fine-tune {values['layer']} {values['head']}, lr {values['lr']:g}")
    elif first.kind == "head":
        parts.append(", ".join(what))
    else:
        parts.append(" ".join([first.kind, ", ".join(what)]).strip())
    if first.needs:
        parts[-1] += f" on {describe(first.needs[:1]).rpartition(', seed')[0]}"
    elif "fixed" in values:
        parts[-1] += f" on {values['fixed']}"
    elif first.kind in ("head", "knn", "linear", "svm"):
        parts[-1] += " on an untrained network"
    for name, text in (
        ("ablation", "{}"),
        ("snapshot", "epoch {}"),
        ("images_per_class", "labels per class: {}"),
    ):
        if values.get(name):
            parts.append(text.format(values[name]))
    if values.get("batchnorm") == "batch":
        parts.append("batch statistics")
    if not values.get("revisit", True):
        parts.append("no revisiting")
    if "seed" in values:
        parts.append(f"seed {values['seed']}")
    return ", ".join(parts)


def _is_hopeless(cell: StudyCell, progress: Progress) -> bool:
    """Whether a cell, or one that it needs, has failed."""
    return cell in progress.failed or any(_is_hopeless(need, progress) for need in cell.needs)

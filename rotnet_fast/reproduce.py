"""Reproduce the method's tables and figures: ``python -m rotnet_fast.reproduce [--preset NAME] [flags]``.

The results folder contains one JSON file per finished cell and the report. Running the same command again
computes what is missing. Several processes, or machines that share the folder, divide the work; so do the
processes of torchrun, each on its own GPU if there are several.

Exit codes: see `rotnet_fast.command`; a failed cell determines its own. torch is only imported once the flags
are known to be valid.
"""

from __future__ import annotations

import itertools
import math
import shlex
import signal
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rotnet_fast.checks import check_needs_gpu
from rotnet_fast.command import announce, program_as_started, rank0_only, run_command
from rotnet_fast.engine.ambient import plain_torch
from rotnet_fast.engine.distributed import ALONE, Processes, join
from rotnet_fast.engine.run_folder import check_output
from rotnet_fast.engine.signals import Interrupted, StopSignals
from rotnet_fast.errors import ArgumentError, RotnetError
from rotnet_fast.files import resolve_path
from rotnet_fast.flags import parse_flags
from rotnet_fast.next_steps import look_at, print_next, shell
from rotnet_fast.plain import counted, duration
from rotnet_fast.progress import terminal_columns
from rotnet_fast.protocols.result import format_table
from rotnet_fast.settings import ImageSettings, at_least_one
from rotnet_fast.study.plan import ITEMS, Entry, cells_in_order, make_plan
from rotnet_fast.study.settings import (
    TRAININGS,
    Seeds,
    StudyData,
    StudyPreset,
    limit_at_scale,
    study_settings,
)
from rotnet_fast.study.store import Results

if TYPE_CHECKING:
    from rotnet_fast.study.context import Context

PROGRAM = "python -m rotnet_fast.reproduce"


@dataclass(frozen=True)
class ReproduceConfig(ImageSettings):
    """Reproduce every table and figure of the method, and write the report."""

    examples = (
        "--dataset digits --preset demo",
        "--preset cpu --data-dir FOLDER --dry-run",
        "--preset paper --data-dir FOLDER --only table1 figure5b --seeds 3",
    )

    preset: StudyPreset = "paper"
    """Recipe of every training: slides, paper and official are the published ones; demo (of the digits, with
    few labels), quickstart and cpu take minutes on two cores, and two-cores, the paper's network on all
    images by a faster recipe, takes hours."""

    scale: float = 1.0
    """Fraction of the epochs and of the training images (after --limit-train) to use, for a trial; at least
    six epochs of pretraining, one of everything else, and eight images per class. Labels per class
    are the paper's fractions of a class; all test images are kept."""

    seeds: int = 1
    """Number of seeds, 0, 1, ..., with which to repeat everything."""

    headline_seeds: int | None = None
    """Number of seeds of the numbers to read first: rotation accuracy, heads on the 4-block network, the
    supervised and untrained networks, few labels. None: five for demo, and at least as many as --seeds."""

    only: tuple[str, ...] | None = None
    """Items to compute: table1 table2 table3 figure3 figure4 figure5a figure5b extras ablations, or single
    entries such as table3/rotnet-conv. None: everything."""

    time_budget: float | None = None
    """Minutes after which to stop cleanly and report what is left. None: no limit."""

    dry_run: bool = False
    """Print the plan with the estimated time of each group of cells without computing anything."""

    output: Path | None = None
    """Results folder. None: studies/<preset>-<dataset>, with the scale unless it is 1."""

    compile: Literal["auto", "none", "default", "max"] = "auto"
    """Whether to torch.compile networks that are trained as a whole, as in rotnet_fast.pretrain."""

    graph: Literal["auto", "on", "off"] = "auto"
    """Replay training steps from a CUDA graph, as in rotnet_fast.pretrain."""

    def validate(self) -> None:
        """Check the values of the settings, beyond their types.

        Raises:
            ArgumentError: a setting has an invalid value.
            DataError: the data folder does not exist.
        """
        super().validate()
        if not 0 < self.scale <= 1:
            raise ArgumentError(f"scale is {self.scale:g}; it must lie in (0, 1]")
        at_least_one(self, "seeds", "headline_seeds")
        if self.headline_seeds is not None and self.headline_seeds < self.seeds:
            raise ArgumentError(
                f"headline-seeds is {self.headline_seeds} and seeds is {self.seeds}, but the headline is "
                f"part of everything; give --headline-seeds {self.seeds} or more, or omit it"
            )
        if self.preset == "demo" and self.dataset != "digits":
            raise ArgumentError(
                f"preset is demo, which is a study of the digits, and dataset is {self.dataset}; add "
                "--dataset digits, or choose another preset"
            )
        if self.time_budget is not None and not 0 < self.time_budget < math.inf:
            raise ArgumentError(
                f"time-budget is {self.time_budget:g}; it must be a number of minutes above 0"
            )
        if self.only is not None and not self.only:
            raise ArgumentError(
                f"only is empty; choose from {', '.join(ITEMS)}, or omit it to compute everything"
            )
        for wish in self.only or ():
            if wish.partition("/")[0] not in ITEMS:
                raise ArgumentError(f"only holds {wish!r}; choose from {', '.join(ITEMS)}")
        check_needs_gpu("graph", self.graph, self.graph == "on", self.device)

    def all_seeds(self) -> Seeds:
        """Return how often everything is repeated, and the headline."""
        usual = TRAININGS[self.preset].headline_seeds
        return Seeds(self.seeds, self.headline_seeds or max(self.seeds, usual))

    def output_folder(self) -> Path:
        """Return the folder of the study."""
        if self.output is not None:
            return resolve_path(self.output)
        scale = "" if self.scale == 1 else f"-scale{self.scale:g}"
        return resolve_path(Path("studies") / f"{self.preset}-{self.dataset}{scale}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)

    def command() -> None:
        with rank0_only():
            config = parse_flags(ReproduceConfig, PROGRAM, arguments)
            config.validate()
        work = "planning" if config.dry_run else "computing"
        announce(f"{work} the study of preset {config.preset} on {config.dataset}")
        again = shlex.join([*program_as_started(PROGRAM).split(), *arguments])
        with join() as processes:
            try:
                is_finished = reproduce(config, again, processes)
            except Interrupted:
                if processes.is_main:
                    print(f"saved; resume with: {again}", file=sys.stderr)
                raise
            print_next(next_steps(config, arguments, is_finished))

    return run_command(command)


def next_steps(config: ReproduceConfig, arguments: Sequence[str], is_finished: bool) -> list[str]:
    """Return what to do after a plan, or with what was computed so far.

    Args:
        config: the settings.
        arguments: the flags given.
        is_finished: whether nothing is left to compute.
    """
    arguments = without(arguments, "--dry-run", values=0)
    again = shell("reproduce", *arguments)
    if config.dry_run:
        return [again]
    folder = config.output_folder()
    page = folder / "index.html"
    steps = [look_at(page)] if page.exists() else []
    if not is_finished:
        return [again, *steps]
    if config.all_seeds().headline < MEASURED_SEEDS:
        others = without(arguments, "--headline-seeds", values=1)
        steps.append(shell("reproduce", *others, "--headline-seeds", MEASURED_SEEDS))
    return [*steps, shell("report", folder)]


def without(arguments: Sequence[str], flag: str, values: int) -> list[str]:
    """Return arguments but for a flag and the number of values after it."""
    kept, skip = [], 0
    for word in arguments:
        name, is_joined, _ = word.partition("=")
        if name.replace("_", "-") == flag:
            skip = 0 if is_joined else values
        elif skip > 0:
            skip -= 1
        else:
            kept.append(word)
    return kept


MEASURED_SEEDS = 3
"""Number of seeds that shows how far results scatter."""


def reproduce(config: ReproduceConfig, command: str = PROGRAM, processes: Processes = ALONE) -> bool:
    """Compute the missing cells of a study and write its report, or print the plan.

    Args:
        config: validated settings.
        command: command line to record in the results.
        processes: processes that share the cells; the main one writes the report when all are finished.

    Returns:
        Whether every cell was computed within the time budget; False for a plan.

    Raises:
        RotnetError: an error of `rotnet_fast.errors`; that of a failed cell is raised after all others were
            computed.
        Interrupted: a signal stopped the process, which has saved everything.
    """
    if not config.dry_run:  # a dry run writes nothing
        processes.on_main(lambda: check_study_folder(config.output_folder()))
    return _reproduce(config, command, processes)


@plain_torch()
def _reproduce(config: ReproduceConfig, command: str, processes: Processes) -> bool:
    """Do the work of :func:`reproduce` in a folder that was checked."""
    from rotnet_fast.study.run import Progress, grouped, pending_cells, run_cells

    context = processes.local_main_first(lambda: make_context(config, processes))
    context = replace(context, command=command)
    seeds = config.all_seeds()
    entries = make_plan(context.settings, seeds, config.only or ())
    known = cells_in_order(make_plan(context.settings, seeds))
    cells = cells_in_order(entries)
    if config.dry_run:

        def show() -> None:
            context.results.check(context.settings)
            print(plan_table(context, entries, seeds, terminal_columns()))

        processes.on_main(show)
        return False

    def begin() -> None:
        context.results.check(context.settings)  # before writing anything to a folder that is refused
        context.results.begin(context.settings, seeds)

    processes.on_main(begin)
    progress = Progress()
    start = time.monotonic()
    is_in_time = True
    with StopSignals() as stop:
        with time_limit(config.time_budget) as is_over:
            try:
                with stop.interruptible():
                    run_cells(context, cells, known, progress, printer(processes), processes.world)
            except Interrupted:
                if not is_over():
                    raise
                is_in_time = False
        if is_over():
            stop.forget()
    minutes = (time.monotonic() - start) / 60
    computed = sum(processes.gather(len(progress.computed)))
    failures = [found for one in processes.gather(progress.failures()) for found in one]
    if processes.is_main:
        print(f"computed {counted(computed, 'cell')} in {minutes:.1f} minutes")
        report(context.results)
        if not is_in_time:
            left = pending_cells(context, cells)
            print(
                f"time budget exhausted; {counted(len(left), 'cell')} in "
                f"{counted(len(grouped(left)), 'group')} are left:"
            )
            print(plan_table(context, entries, seeds, terminal_columns()))
            print("run the same command again to resume, even within a training")
        for what, error in failures:
            print(f"FAILED: {what}: {error}", file=sys.stderr)
        if failures and is_in_time:
            missing = counted(len(pending_cells(context, cells)), "cell")
            print(f"{missing} could not be computed", file=sys.stderr)
    for _, error in failures:
        raise processes.shared(error if isinstance(error, RotnetError) else ArgumentError(str(error)))
    return is_in_time


def check_study_folder(folder: Path) -> None:
    """Check that a folder can hold a study, before the data are read.

    Raises:
        ArgumentError: the folder contains a run of another command.
        CannotWriteError: the folder is not writable, see `check_output`.
        DataError: the folder contains a study that cannot be read.
    """
    check_output(folder)
    if Results(folder).read_settings() is None and (folder / "config.json").exists():
        raise ArgumentError(
            f"output {folder} contains a run, not a study; choose another folder with --output"
        )


def report(results: Results) -> None:
    """Write the report of the finished cells; if it cannot be drawn, say how to write it later."""
    try:
        from rotnet_fast.study.pages.report import write_report
    except ImportError as error:
        again = f"python -m rotnet_fast.report {shlex.quote(str(results.path))}"
        print(f"no report was written: {error}; run {again} where it can be imported", file=sys.stderr)
        return
    print("writing the report ...", flush=True)
    files = write_report(results.path)
    print(
        f"report: {', '.join(str(path) for path in files[:2])} and {counted(len(files) - 2, 'figure file')}"
    )


def printer(processes: Processes) -> Callable[[str], None]:
    """Return a function that prints a line without buffering, prefixed by the process's rank."""
    prefix = f"[process {processes.rank}] " if processes.world > 1 else ""
    return lambda line: print(f"{prefix}{line}", flush=True)


@contextmanager
def time_limit(minutes: float | None) -> Iterator[Callable[[], bool]]:
    """Return a context that sends SIGTERM to this process when the time is over, as a user would.

    Yields:
        Function that returns whether the time is over.
    """
    is_over = threading.Event()

    def stop() -> None:
        is_over.set()
        signal.raise_signal(signal.SIGTERM)

    timer = threading.Timer(minutes * 60, stop) if minutes is not None else None
    if timer is not None:
        timer.daemon = True
        timer.start()
    try:
        yield is_over.is_set
    finally:
        if timer is not None:
            timer.cancel()
            timer.join()  # so that a signal being sent arrives while it is still handled


def make_context(config: ReproduceConfig, processes: Processes = ALONE) -> Context:
    """Load the data set and determine everything that the results depend on.

    Args:
        config: validated settings.
        processes: processes of the job, each with its own device; only the main one shows progress.

    Raises:
        ArgumentError, DataError: the data set cannot be used.
    """
    from rotnet_fast.data.datasets import check_has_classes, fingerprint, limit_split, load_dataset
    from rotnet_fast.engine.precision import resolve_precision
    from rotnet_fast.study.context import Context

    device = processes.device(config.device)
    precision = resolve_precision(config.precision, device)
    image_size = TRAININGS[config.preset].recipe.image_size
    dataset = load_dataset(
        config.dataset,
        config.data_dir,
        image_size,
        config.limit_train,
        config.limit_test,
        progress=processes.local_rank == 0,
        display_name=config.dataset_name,
        bad_images=config.bad_images,
        check_images=config.check_images,
        validation=config.validation,
    )
    check_has_classes(dataset)
    limit = limit_at_scale(config.scale, len(dataset.train.images), len(dataset.classes))
    if limit is None:
        limit = config.limit_train
    else:
        train = limit_split(dataset.train, limit, "scale")
        dataset = replace(dataset, train=train, fingerprint=fingerprint(train, dataset.test))
    data = StudyData(
        name=dataset.name,
        display_name=dataset.display_name,
        classes=dataset.classes,
        fingerprint=dataset.fingerprint,
        train_images=len(dataset.train.images),
        test_images=len(dataset.test.images),
        smallest_class=int(dataset.train.labels.bincount(minlength=len(dataset.classes)).min()),
        channels=dataset.train.images.shape[3],
        image_size=image_size,
        limit_train=limit,
        limit_test=config.limit_test,
        validation=config.validation,
    )
    settings = study_settings(config.preset, config.scale, data, precision.name)
    return Context(
        settings,
        Results(config.output_folder()),
        dataset,
        device,
        precision,
        config.data_dir,
        config.dataset_name,
        compile=config.compile,
        graph=config.graph,
        progress=processes.is_main,
    )


def plan_table(context: Context, entries: Sequence[Entry], seeds: Seeds, columns: int | None = None) -> str:
    """Format the groups of cells in order of computation, with their items, estimated time and state.

    Args:
        context, entries, seeds: those of the study.
        columns: width of the terminal, within which lines are wrapped; None does not wrap them.
    """
    from rotnet_fast.engine.run_folder import environment
    from rotnet_fast.study.cells import with_needs
    from rotnet_fast.study.estimate import Estimator
    from rotnet_fast.study.run import describe, grouped, pending_cells

    wanted_by: dict[str, list[str]] = {}
    for entry in entries:
        for cell in entry.cells:
            wanted_by.setdefault(cell.key, []).append(entry.item)
    cells = list(with_needs(cells_in_order(entries)))
    pending = set(pending_cells(context, cells))
    everything = list(with_needs(cells_in_order(make_plan(context.settings, seeds))))
    device_name = environment(str(context.device))["device"]
    estimator = Estimator(context, everything, device_name)
    rows, total = [], 0.0
    for group in grouped(cells):
        left = [cell for cell in group if cell in pending]
        seconds = estimator.seconds(left) if left else 0.0
        total += seconds
        items = dict.fromkeys(item for cell in group for item in wanted_by.get(cell.key, ()))
        state = f"{duration(seconds)}" if left else "finished"
        rows.append([describe(group), ", ".join(items) or "(needed)", str(len(group)), state])
    time = f"about {duration(total)} on {device_name}"
    end = f"{counted(len(cells), 'cell')}, {len(pending)} to compute, in {time}"
    if columns is not None:
        rows, end = fit_plan(rows, columns), textwrap.fill(end, columns - 1)
    return f"{format_table(['group', 'for', 'cells', 'estimate'], rows, numeric=(2, 3))}\n{end}"


def fit_plan(rows: Sequence[Sequence[str]], columns: int) -> list[list[str]]:
    """Wrap the first two columns of a plan, so that its table is narrower than a terminal.

    Args:
        rows: group, items, number of cells and estimate of each line.
        columns: width of the terminal.
    """
    others = len("cells") + len("3 h 20 min") + 3 * len("  ")
    items = max(min(18, (columns - others) // 3), 1)
    group = max(columns - 1 - others - items, 1)
    fitted = []
    for row in rows:
        wrapped = [textwrap.wrap(row[0], group), textwrap.wrap(row[1], items)]
        for number, (first, second) in enumerate(itertools.zip_longest(*wrapped, fillvalue="")):
            fitted.append([first, second, *(row[2:] if number == 0 else ("", ""))])
    return fitted


if __name__ == "__main__":
    sys.exit(main())

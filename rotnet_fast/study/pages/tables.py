"""Tables of a study's numbers: ours, seeds, the published number and, where it is one, the difference.

Importing this module does not import torch.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence

from rotnet_fast import paper
from rotnet_fast.plain import counted
from rotnet_fast.protocols.result import BATCHNORM_MODES, NO_VALUE, points
from rotnet_fast.study.pages.document import NOT_RUN, Table, escaped
from rotnet_fast.study.plan import FINE_TUNING_RATES
from rotnet_fast.study.summary import Number, Study

NETWORKS = {"rotation": "rotation network", "supervised": "supervised network"}
"""Key in the result of an attention or filters cell -> its name."""

SERIES = {"rotation": "rotation", "object": "object", "rotnet": "RotNet", "supervised": "supervised"}
"""Series of a figure -> its name in tables."""


def value(number: Number) -> str:
    """Format the mean, and the standard deviation of several values."""
    if number.mean is None:
        return NOT_RUN
    spread = "" if number.deviation is None else f" ± {number.deviation:.2f}"
    return f"{number.mean:.2f}{spread}"


def accuracy(published: float | None) -> str:
    """Format a published number."""
    return NO_VALUE if published is None else f"{published:.2f}"


def data_set(study: Study) -> str:
    """Return the data set's name as text of the report."""
    return escaped(study.settings.data.display_name)


def mean_difference(number: Number, other: Number) -> float | None:
    """Return first minus second, in points, over the seeds that both have; None without a common seed."""
    common = sorted(set(number.by_seed) & set(other.by_seed))
    differences = [number.by_seed[seed] - other.by_seed[seed] for seed in common]
    return statistics.fmean(differences) if differences else None


def flat_table(study: Study, numbers: Sequence[Number], first: str, caption: str, note: str = "") -> Table:
    """Make a table with one row per number, with its schedule, cost and machine.

    Args:
        first: title of the column that names the rows.
    """
    beside = study.circumstances.header
    header = (first, "ours, %", "seeds", *beside, "epochs", "hours", "PFLOP", "machine")
    rows = [
        (
            number.entry.title + _note(study, number),
            value(number),
            str(number.n),
            *study.circumstances.beside(number.mean, number.entry.published),
            study.schedule(number.entry) or NO_VALUE,
            *_cost(study, number),
            study.machines([number.entry]) or NO_VALUE,
        )
        for number in numbers
    ]
    numeric = (*range(1, 3 + len(beside)), len(header) - 3, len(header) - 2)
    return Table(caption, header, tuple(rows), numeric, f"{note} {COST}".strip())


def _note(study: Study, number: Number) -> str:
    """Return an entry's note in brackets; one on a published number only where that is shown."""
    note, has_reference = number.entry.note, study.circumstances.has_reference
    notes = [note] if note and (has_reference or not note.startswith("published")) else []
    notes += _published_as(study, number)
    return f" ({'; '.join(notes)})" if notes else ""


def _published_as(study: Study, number: Number) -> list[str]:
    """Say what the published number beside a row comes from, where that is not what ours comes from."""
    is_shown = bool(number.entry.repeats) and study.circumstances.has_reference
    return [f"published: {paper.LEARNED_FROM[number.entry.repeats]}"] if is_shown else []


COST = (
    "Hours, and PFLOP (10^15 floating-point operations), are of the last training and of the pretraining "
    "that it starts from; of a resumed one, hours are those of the last attempt."
)


def _cost(study: Study, number: Number) -> tuple[str, str]:
    """Format hours and operations, in 10^15."""
    cost = study.cost(number.entry)
    return (NO_VALUE, NO_VALUE) if cost is None else (f"{cost[0]:.2f}", f"{cost[1] / 1e15:.2f}")


def grid(study: Study, caption: str) -> Table:
    """Make Table 1 as the paper prints it, with our row above the published one."""
    layers = list(paper.NONLINEAR_HEAD[5])
    reference = study.circumstances.published_name
    rows = []
    for blocks, published in paper.NONLINEAR_HEAD.items():
        ours = [
            value(study.number("table1", f"{blocks}-{layer}")) if layer in published else ""
            for layer in layers
        ]
        rows.append((f"{counted(blocks, 'block')}, ours", *ours))
        if not study.circumstances.has_reference:
            continue
        theirs = [accuracy(published[layer]) if layer in published else "" for layer in layers]
        rows.append((f"{counted(blocks, 'block')}, {reference}", *theirs))
    return Table(caption, ("network", *layers), tuple(rows), tuple(range(1, len(layers) + 1)))


def quoted_methods(study: Study) -> dict[str, float]:
    """Return the other methods of Table 3 without a row of ours, and their numbers; none for other images."""
    repeated = {number.entry.repeats for number in of_table3(study)}
    return {
        name: published
        for name, published in paper.OTHER_METHODS.items()
        if study.circumstances.has_reference and name not in repeated
    }


def quoted_rows(study: Study) -> tuple[tuple[str, ...], ...]:
    """Return :func:`quoted_methods` in the columns of :func:`flat_table`."""
    difference = ("",) if study.comparable else ()
    return tuple(
        (
            f"{name} (quoted from the paper, not run here; {paper.LEARNED_FROM[name]})",
            "",
            "",
            accuracy(published),
            *difference,
            "",
            "",
            "",
            "",
        )
        for name, published in quoted_methods(study).items()
    )


def of_table3(study: Study) -> list[Number]:
    """Return Table 3's numbers with all labels."""
    return [number for number in study.of("table3") if number.entry.x is None]


def with_few_labels(study: Study) -> list[Number]:
    """Return Table 3's numbers with few labels."""
    return [number for number in study.of("table3") if number.entry.x is not None]


def few_labels(study: Study, caption: str, only_run: bool = False) -> Table | None:
    """Tabulate Table 3's features with few labels, one column for each number of labels.

    RotNet with the conv head and the supervised network, which Figure 5b shows, stand first. None for a study
    without such rows.

    Args:
        only_run: leave out the rows without a number; None where no row of Table 3's has one.
    """
    found = with_few_labels(study)
    if not found or (only_run and not _is_run(found)):
        return None
    rows: dict[str, list[Number]] = {}
    for number in found:
        rows.setdefault(number.entry.series, []).append(number)
    counts = [int(number.entry.x or 0) for number in next(iter(rows.values()))]
    first = {
        title: [study.number("figure5b", f"{series}-{count}") for count in counts]
        for series, title in (("rotnet", "RotNet + conv"), ("supervised", "Supervised NIN"))
    }
    others = {study.entry("table3", name).title: numbers for name, numbers in rows.items()}
    return Table(
        caption,
        ("method", *(f"{count:,}" for count in counts)),
        tuple(
            (title, *map(value, numbers))
            for title, numbers in (first | others).items()
            if not only_run or _is_run(numbers)
        ),
        tuple(range(1, 1 + len(counts))),
        "The columns are labels per class; the next table and that of Figure 5b have the numbers of seeds.",
    )


def _is_run(numbers: Iterable[Number]) -> bool:
    return any(number.n for number in numbers)


def gaps(study: Study, caption: str) -> Table:
    """Tabulate how far each way of using the features is from the supervised network, ours and published."""
    supervised = study.number("table3", "supervised")
    has_reference = study.circumstances.has_reference
    names = ["rotnet-nonlinear", "rotnet-conv"]
    names += [f"finetuned-{head}-lr{lr:g}" for head in ("nonlinear", "conv") for lr in FINE_TUNING_RATES]
    names += [f"random-conv-{mode}" for mode in BATCHNORM_MODES]
    rows = []
    for name in names:
        number = study.number("table3", name)
        ours = mean_difference(number, supervised)
        published = (number.entry.published or 0.0) - paper.SUPERVISED
        beside = (points(published),) if has_reference else ()
        rows.append((number.entry.title, NOT_RUN if ours is None else points(ours), *beside))
    header = ("minus supervised, points", "ours", *(["published (CIFAR-10)"] if has_reference else []))
    return Table(caption, header, tuple(rows), tuple(range(1, len(header))))


def accuracy_over_steps(study: Study, numbers: Sequence[Number], first: str, caption: str) -> Table:
    """Make the table of a figure: one row per position on its horizontal axis, and columns per series."""
    series = list(dict.fromkeys(number.entry.series for number in numbers))
    positions = list(dict.fromkeys(number.entry.x for number in numbers))
    at = {(number.entry.x, number.entry.series): number for number in numbers}
    header = [first]
    for name in series:
        beside = (f"{SERIES[name]}, {title}" for title in study.circumstances.header)
        header += [f"{SERIES[name]}, ours, %", f"{SERIES[name]}, seeds", *beside]
    rows = []
    for position in positions:
        row = [f"{position:g}"]
        for name in series:
            number = at[position, name]
            row += [
                value(number),
                str(number.n),
                *study.circumstances.beside(number.mean, number.entry.published),
            ]
        rows.append(tuple(row))
    return Table(caption, tuple(header), tuple(rows), tuple(range(len(header))))


def main_rows(study: Study, only_run: bool = False) -> Table:
    """Tabulate the numbers to read first: rotation accuracy, Table 3 and the smallest number of labels."""
    few = study.settings.labels_per_class[0]
    numbers = [study.number("extras", "rotation-accuracy-0-90-180-270"), *of_table3(study)]
    numbers += [study.number("figure5b", f"{series}-{few}") for series in ("rotnet", "supervised")]
    if only_run:
        numbers = [number for number in numbers if number.n]
    beside = study.circumstances.header
    rows = [
        (
            number.entry.title[:1].upper()
            + number.entry.title[1:]
            + "".join(f" ({text})" for text in _published_as(study, number)),
            value(number),
            str(number.n),
            *study.circumstances.beside(number.mean, number.entry.published),
        )
        for number in numbers
    ]
    rows += [
        (f"{name} (quoted; {paper.LEARNED_FROM[name]})", NO_VALUE, NO_VALUE, accuracy(published))
        + ((NO_VALUE,) if study.comparable else ())
        for name, published in (quoted_methods(study).items() if rows else ())
    ]
    caption = f"Test accuracy in % on {data_set(study)}"
    return Table(
        caption, ("result", "ours, %", "seeds", *beside), tuple(rows), tuple(range(1, 3 + len(beside)))
    )


def spread(values: Sequence[float | None], digits: int) -> str:
    """Format the mean, and the standard deviation of several values; values that are None are left out."""
    known = [value for value in values if value is not None]
    if not known:
        return "undefined"
    text = f"{statistics.fmean(known):.{digits}f}"
    return text if len(known) == 1 else f"{text} ± {statistics.stdev(known):.{digits}f}"

"""Draws the figures of a report from a study's results.

Importing this module does not import torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rotnet_fast import paper
from rotnet_fast.errors import ArgumentError, DataError
from rotnet_fast.plain import counted
from rotnet_fast.plots.attention import attention
from rotnet_fast.plots.bars import Bar, bars
from rotnet_fast.plots.confusion import confusion
from rotnet_fast.plots.curves import Line, curves
from rotnet_fast.plots.embedding import embedding
from rotnet_fast.plots.filters import filters
from rotnet_fast.plots.rotation import calibration, hardest, rotations
from rotnet_fast.plots.style import save
from rotnet_fast.protocols.result import BATCHNORM_MODES
from rotnet_fast.rotations import FOUR_ROTATIONS
from rotnet_fast.study.pages import findings
from rotnet_fast.study.pages.ablations import ablated_pairs
from rotnet_fast.study.pages.classes import CONFUSED, class_accuracies, summed_confusion, tested_classes
from rotnet_fast.study.pages.tables import NETWORKS, of_table3, quoted_methods
from rotnet_fast.study.plan import OTHER_PRETEXT_TASKS, Entry
from rotnet_fast.study.store import cell_path
from rotnet_fast.study.summary import Number, Study
from rotnet_fast.verdict import wilson

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TEST_ACCURACY = "test accuracy in %"


def draw_figures(
    study: Study, folder: Path, say: Callable[[str], None] = lambda line: None
) -> dict[str, tuple[Path, Path]]:
    """Draw each figure that has anything to show, as PNG and SVG.

    Args:
        study: the study.
        folder: where to write.
        say: is told of each file before it is drawn.

    Returns:
        Name -> its two files.

    Raises:
        DataError: a result does not hold what its figure shows.
        CannotWriteError: disk full, read-only, ...
    """
    written = {}
    for name, (draw, entries) in FIGURES.items():
        try:
            figure = draw(study)
        except (KeyError, TypeError, IndexError, AttributeError, ArgumentError) as error:
            files = ", ".join(map(str, _files(study, entries)))
            raise DataError(
                f"the figure {name} cannot be drawn ({error!r}); delete {files}, and rotnet_fast.reproduce "
                f"computes this again"
            ) from error
        if figure is not None:
            say(f"writing {folder / name}.png and .svg")
            png, svg = save(figure, folder / name)
            written[name] = (png, svg)
    return written


def table1(study: Study) -> Figure | None:
    """Draw accuracy against the block, one line per network."""
    lines = []
    for blocks, published in paper.NONLINEAR_HEAD.items():
        numbers = [study.number("table1", f"{blocks}-{layer}") for layer in published]
        lines.append(_line(study, f"{counted(blocks, 'block')}", numbers, range(1, blocks + 1)))
    title = findings.best_block(study)
    return _curves(study, title, lines, "block that the non-linear head sits on", x_ticks=range(1, 6))


def table2(study: Study) -> Figure | None:
    """Draw the accuracy of each set of rotations."""
    return _bars(study, findings.best_rotations(study), study.of("table2"))


def table3(study: Study) -> Figure | None:
    """Draw all rows, ours and, where the images are CIFAR-10's, quoted ones."""
    numbers = of_table3(study)
    quoted = [
        Bar(f"{name} (quoted)", None, published=accuracy, is_quoted=True)
        for name, accuracy in quoted_methods(study).items()
    ]
    groups = [_group(number.entry) for number in numbers]
    return _bars(study, findings.distance_to_supervised(study), numbers, groups, quoted)


def figure5a(study: Study) -> Figure | None:
    """Draw both accuracies over the epochs, and those of guessing."""
    lines = []
    for position, series in enumerate(("rotation", "object")):
        numbers = [number for number in study.of("figure5a") if number.entry.series == series]
        line = _line(study, series, numbers)
        if line.published:
            published = [pair[position] for pair in paper.CORRELATION.values()]
            line = replace(line, published_x=tuple(paper.CORRELATION), published=published)
        lines.append(line)
    rotations, objects = 100 / len(FOUR_ROTATIONS), 100 / len(study.settings.data.classes)
    levels = {"rotation,\nguessed": rotations, "object,\nguessed": objects}
    if rotations == objects:
        levels = {"guessed": rotations}
    return _curves(
        study,
        findings.rise_together(study),
        lines,
        "epochs of the pretraining",
        x_ticks=study.settings.snapshot_epochs,
        levels=levels,
    )


def figure5b(study: Study) -> Figure | None:
    """Draw both networks over the number of labels."""
    lines = [
        _line(study, title, [number for number in study.of("figure5b") if number.entry.series == series])
        for series, title in (("rotnet", "RotNet + conv"), ("supervised", "supervised"))
    ]
    ticks = study.settings.labels_per_class
    return _curves(study, findings.few_labels(study), lines, "labels per class", x_ticks=ticks, log_x=True)


def features(study: Study) -> Figure | None:
    """Draw kNN and linear probes by layer."""
    lines = []
    for kind, title in (("knn", "kNN"), ("linear", "linear probe")):
        numbers = [study.number("extras", f"{kind}-conv{block}") for block in range(1, 5)]
        lines.append(_line(study, title, numbers, range(1, 5)))
    for kind, title, shift in (("knn", "kNN", -0.06), ("linear", "linear probe", 0.06)):
        # Beside their block: accuracies of different classifiers often coincide.
        of_modes = [study.number("extras", f"{kind}-random-conv2-{mode}") for mode in BATCHNORM_MODES]
        untrained = max(of_modes, key=lambda number: number.mean or 0.0)
        lines.append(_line(study, f"{title}, untrained network", [untrained], [2 + shift]))
    x_label = "block whose pooled features are used"
    return _curves(study, findings.best_features(study), lines, x_label, x_ticks=range(1, 5))


def figure3(study: Study) -> Figure | None:
    """Draw attention maps of both networks."""
    result = first_result(study, "figure3", "attention") or {}
    networks = [(name, result[key]) for key, name in NETWORKS.items() if key in result]
    return attention(networks) if networks else None


def figure4(study: Study) -> Figure | None:
    """Draw the filters of both networks."""
    result = first_result(study, "figure4", "filters") or {}
    networks = [(name, result[key]) for key, name in NETWORKS.items() if key in result]
    return filters(networks) if networks else None


def per_class(study: Study) -> Figure | None:
    """Draw RotNet's accuracy of each class as bars, and the supervised network's as marks."""
    rotnet, supervised = (list(by_seed.values()) for by_seed in class_accuracies(study).values())
    if not rotnet:
        return None
    matrix, seeds = summed_confusion(study, "rotnet-conv"), study.number("table3", "rotnet-conv").n
    assert matrix is not None
    rows = []
    for label in tested_classes(study):
        name = study.settings.data.classes[label]
        ours = Number(_ANY, dict(enumerate(values[label] for values in rotnet)))
        theirs = Number(_ANY, dict(enumerate(values[label] for values in supervised)))
        images = max(1, sum(matrix[label]) // seeds)
        interval = None if ours.mean is None else wilson(ours.mean, images)
        rows.append(Bar(name, ours.mean, ours.deviation, interval, theirs.mean))
    bar = "error bars: 95 % interval of the class's test images"
    if len(rotnet) > 1:
        bar = "error bars: standard deviation over seeds"
    title = findings.best_and_worst_class(study)
    return bars(rows, x_label=f"{TEST_ACCURACY}\n{bar}", title=title, published_name="supervised network")


def confusion_of(name: str) -> Callable[[Study], Figure | None]:
    """Return a function that draws the confusion matrix of an entry of Table 3."""

    def draw(study: Study) -> Figure | None:
        matrix = summed_confusion(study, name)
        if matrix is None:
            return None
        number = study.number("table3", name)
        seeds = "" if number.n == 1 else f", mean of {counted(number.n, 'seed')}"
        title = f"{CONFUSED[name][0].upper()}{CONFUSED[name][1:]}: {number.mean:.1f} % right{seeds}"
        classes = study.settings.data.classes
        return confusion(matrix, classes, f"{title}{findings.most_confused(matrix, classes)}")

    return draw


def rotation_confusion(study: Study) -> Figure | None:
    """Draw which rotations are taken for which."""
    result = first_result(study, "extras", "rotations")
    if result is None:
        return None
    angles = [f"{angle}°" for angle in result["rotations"]]
    title = f"Rotations: {result['accuracy']:.1f} % right"
    title += findings.most_confused(result["confusion"], angles)
    return confusion(result["confusion"], angles, title, what="rotation")


def of_rotations(draw: Callable[..., Figure], gallery: str = "") -> Callable[[Study], Figure | None]:
    """Return a function that draws a part of the result on rotations, unless its gallery is empty."""

    def draw_part(study: Study) -> Figure | None:
        result = first_result(study, "extras", "rotations")
        if result is None or (gallery and not result[gallery]["indices"]):
            return None
        return draw(result)

    return draw_part


def embedding_of(study: Study) -> Figure | None:
    """Draw PCA and t-SNE of the first seed."""
    result = first_result(study, "extras", "embedding")
    return None if result is None else embedding(result)


def ablations(study: Study) -> Figure | None:
    """Draw each ablation as a bar, and the faithful run as a mark."""
    pairs = ablated_pairs(study)
    if not any(number.n for number, _ in pairs):
        return None
    rows = [
        Bar(number.entry.title, number.mean, number.deviation, study.interval(number), faithful.mean)
        for number, faithful in pairs
    ]
    return bars(
        rows,
        x_label=f"{TEST_ACCURACY}\n{study.error_bars}",
        title=findings.costliest(study),
        published_name="faithful run",
    )


FIGURES: dict[str, tuple[Callable[[Study], Figure | None], tuple[str, ...]]] = {
    "table1": (table1, ("table1",)),
    "table2": (table2, ("table2",)),
    "table3": (table3, ("table3",)),
    "figure5a": (figure5a, ("figure5a",)),
    "figure5b": (figure5b, ("figure5b",)),
    "figure3": (figure3, ("figure3/attention",)),
    "figure4": (figure4, ("figure4/filters",)),
    "features": (features, ("extras",)),
    "per-class": (per_class, tuple(f"table3/{name}" for name in CONFUSED)),
    **{f"confusion-{name}": (confusion_of(name), (f"table3/{name}",)) for name in CONFUSED},
    "rotations": (of_rotations(rotations, "shown"), ("extras/rotations",)),
    "rotation-confusion": (rotation_confusion, ("extras/rotations",)),
    "calibration": (of_rotations(calibration), ("extras/rotations",)),
    "hardest": (of_rotations(hardest, "hardest"), ("extras/rotations",)),
    "embedding": (embedding_of, ("extras/embedding",)),
    "ablations": (ablations, ("ablations",)),
}
"""Name -> function that draws it, or gives None where nothing has been run, and the entries it shows."""

_ANY = Entry("", "", "", ())


def first_result(study: Study, item: str, name: str) -> Mapping[str, Any] | None:
    """Return the result of the first seed that has been run, for figures that show one network."""
    results = study.results(study.entry(item, name))
    return results[min(results)] if results else None


def _line(study: Study, label: str, numbers: Sequence[Number], x: Sequence[float] | None = None) -> Line:
    positions = [number.entry.x or 0.0 for number in numbers] if x is None else list(x)
    means = [number.mean for number in numbers]
    intervals = [study.interval(number) for number in numbers]
    published = [study.circumstances.reference(number.entry.published) for number in numbers]
    if None in published:  # a line through some of its points would tell another story
        return Line(label, positions, means, intervals)
    return Line(label, positions, means, intervals, positions, published)


def _curves(
    study: Study,
    title: str,
    lines: Sequence[Line],
    x_label: str,
    x_ticks: Sequence[float],
    log_x: bool = False,
    levels: Mapping[str, float] | None = None,
) -> Figure | None:
    if all(value is None for line in lines for value in line.mean):
        return None
    return curves(
        lines,
        x_label=f"{x_label}\n{study.error_bars}",
        y_label=TEST_ACCURACY,
        title=title,
        x_ticks=list(x_ticks),
        log_x=log_x,
        published_name=study.circumstances.published_name,
        levels=levels or {},
    )


def _bars(
    study: Study,
    title: str,
    numbers: Sequence[Number],
    groups: Sequence[str] = (),
    more: Sequence[Bar] = (),
) -> Figure | None:
    if not any(number.n for number in numbers):
        return None
    rows = [
        Bar(
            number.entry.title,
            number.mean,
            number.deviation,
            study.interval(number),
            study.circumstances.reference(number.entry.published),
            groups[position] if groups else "",
        )
        for position, number in enumerate(numbers)
    ]
    return bars(
        [*rows, *more],
        x_label=f"{TEST_ACCURACY}\n{study.error_bars}",
        title=title,
        published_name=study.circumstances.published_name,
    )


def _group(entry: Entry) -> str:
    """Return the group, and thereby the colour, of a row of Table 3."""
    for beginning, group in (
        ("supervised", "supervised"),
        ("random", "untrained, frozen"),
        ("rotnet", "RotNet, frozen"),
        ("finetuned", "RotNet, fine-tuned"),
        *((task, "other pretext tasks, ours") for task in OTHER_PRETEXT_TASKS),
        ("scattering-", "fixed features, ours"),
    ):
        if entry.name.startswith(beginning):
            return group
    return "classical, ours"


def _files(study: Study, wishes: Sequence[str]) -> list[Path]:
    """Return the existing cell files of items or entries."""
    return [
        cell_path(study.folder, cell.key)
        for entry in study.entries
        if entry.item in wishes or f"{entry.item}/{entry.name}" in wishes
        for cell in entry.cells
        if cell.key in study.files
    ]

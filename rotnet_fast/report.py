"""Tables of results beside the published numbers; nothing is trained here.

``python -m rotnet_fast.report FOLDER`` prints the table of a finished evaluation again; of a study, which
`rotnet_fast.reproduce` left there, it writes RESULTS.md, index.html and the figures. ``--readme README.md``
puts the study's main numbers into that file.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rotnet_fast import paper
from rotnet_fast.checks import SIZES
from rotnet_fast.command import run_command
from rotnet_fast.config import NIN
from rotnet_fast.errors import ArgumentError
from rotnet_fast.files import named
from rotnet_fast.flags import Parser
from rotnet_fast.study.summary import is_study, load_study
from rotnet_fast.verdict import is_at_chance


@dataclass(frozen=True)
class Cell:
    """One finished result of an evaluation, and one row of its table.

    Attributes:
        method: where the features come from: ``frozen`` (pretrained), ``random-init``, ``fine-tune``
            or ``supervised``.
        layer: feature map that the classifier sees; None for a whole network.
        head: the classifier: ``nonlinear``, ``conv`` or ``knn``; None for a whole network.
        note: what else sets this row apart, such as the BatchNorm mode; empty where nothing does.
        accuracy: on the test images, in percent, after the last epoch.
        confusion: test images of each true class (row) and predicted one (column).
    """

    method: str
    layer: str | None
    head: str | None
    note: str
    accuracy: float
    confusion: list[list[int]] | None = None

    @classmethod
    def of(
        cls, method: str, layer: str | None, head: str | None, note: str, confusion: list[list[int]]
    ) -> Cell:
        """The row of a classifier with this confusion matrix."""
        return cls(method, layer, head, note, accuracy(confusion), confusion)


def accuracy(confusion: list[list[int]]) -> float:
    """Percent of the images on a confusion matrix's diagonal."""
    return 100.0 * sum(row[i] for i, row in enumerate(confusion)) / sum(map(sum, confusion))


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]], numeric: Sequence[int] = ()) -> str:
    """A plain-text table with a rule under its header; columns in ``numeric`` are right-aligned."""
    lines = [list(header), *map(list, rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]

    def aligned(line: Sequence[str]) -> str:
        cells = [
            text.rjust(width) if column in numeric else text.ljust(width)
            for column, (text, width) in enumerate(zip(line, widths, strict=True))
        ]
        return "  ".join(cells).rstrip()

    rule = "  ".join("-" * width for width in widths)
    return "\n".join([aligned(lines[0]), rule, *map(aligned, lines[1:])])


def render(results: Mapping[str, Any]) -> str:
    """The table of one evaluation's ``results.json``.

    Each row has our accuracy, the published one and the difference. Where that would mean nothing, see
    `rotnet_fast.paper.Circumstances`, the published numbers are marked as a reference, and none is taken.
    They are about the Network in Network: other networks stand alone.
    """
    dataset, network = results["dataset"], results["network"]
    images_per_class = results["settings"]["images_per_class"]
    is_nin = network.get("model", NIN) == NIN
    obstacles = circumstances(results).obstacles()
    comparable = not obstacles
    cells = [Cell(**values) for values in results["cells"]]
    rows = []
    for cell in cells:
        rows.append([cell.method, cell.layer or "-", cell.head or "-", cell.note, f"{cell.accuracy:.2f}"])
        if not is_nin:
            continue
        published = paper.published_accuracy(
            cell.method,
            cell.layer,
            cell.head,
            blocks=network["blocks"],
            rotations=network["rotations"],
            images_per_class=images_per_class,
        )
        rows[-1].append("-" if published is None else f"{published:.2f}")
        if comparable:
            rows[-1].append("-" if published is None else f"{cell.accuracy - published:+.2f}")
    header = ["method", "layer", "head", "", "ours"]
    if is_nin:
        header += ["published", "difference"] if comparable else ["CIFAR-10 reference"]
    labels = "all labels" if images_per_class is None else f"{images_per_class} labels per class"
    size = f"{network['blocks']} blocks, width {network['width']:g}" if is_nin else network["model"]
    title = (
        f"Test accuracy in % on {dataset['display_name']} ({dataset['test_images']:,} images); "
        f"{size}; {labels}, {results['settings']['epochs']} epochs"
    )
    table = format_table(header, rows, numeric=range(4, len(header)))
    guessed = [
        " ".join(filter(None, row[:4])) for row, cell in zip(rows, cells, strict=True) if _is_guess(cell)
    ]
    if guessed:
        table += (
            f"\nNo better than naming one class for all images: {'; '.join(guessed)}. Try more --epochs, a "
            f"lower --lr, or more labels."
        )
    if is_nin and not comparable:
        table += f"\n{paper.orientation(obstacles)}"
    return f"{title}\n\n{table}"


def _is_guess(cell: Cell) -> bool:
    """Whether a classifier is no better than one that always names the largest class of the test images."""
    if cell.confusion is None:
        return False
    sizes = [sum(row) for row in cell.confusion]
    return is_at_chance(cell.accuracy, 100 * max(sizes) / sum(sizes), sum(sizes))


def circumstances(results: Mapping[str, Any]) -> paper.Circumstances:
    """Of an evaluation's ``results.json``; what it does not say is not held against it."""
    dataset, network, pretraining = results["dataset"], results["network"], results.get("pretraining", {})
    return paper.Circumstances(
        dataset=dataset["name"],
        display_name=dataset["display_name"],
        classes=dataset["classes"],
        train_images=dataset.get("train_images", SIZES["cifar10"][0]),
        test_images=dataset["test_images"],
        is_limited=pretraining.get("is_limited", False),
        is_pretrained_elsewhere=not pretraining.get("has_same_images", True),
        model=network.get("model", NIN),
        width=network.get("width", 1.0),
        epochs=min(pretraining.get("epochs", paper.EPOCHS), results["settings"]["epochs"]),
    )


def load_results(folder: Path) -> dict[str, Any]:
    """Read ``results.json`` of an evaluation's folder, or of the file itself.

    Raises:
        ArgumentError: there is none, or it is not the result of an evaluation.
    """
    folder = named(folder)
    path = folder / "results.json" if folder.is_dir() else folder
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArgumentError(
            f"{path} cannot be read ({error}); give a folder that rotnet_fast.evaluate or reproduce wrote"
        ) from None
    if not isinstance(results, dict) or "cells" not in results:
        raise ArgumentError(
            f"{path} holds no evaluation; give a folder that rotnet_fast.evaluate or reproduce wrote"
        )
    return results


def main(arguments: Sequence[str]) -> None:
    """Print the table of each evaluation named; write the report of each study named.

    Raises:
        ArgumentError: a folder holds neither; a flag or its file is wrong.
        DataError: a study's result is damaged.
        CannotWriteError: a report cannot be written.
    """
    parser = Parser(
        prog="python -m rotnet_fast.report",
        description="Tables and reports from the JSON of finished runs; nothing is trained.",
    )
    parser.add_argument(
        "folders",
        nargs="+",
        type=named,
        metavar="FOLDER",
        help="of rotnet_fast.evaluate: its table is printed; of rotnet_fast.reproduce: RESULTS.md, "
        "index.html and figures/ are written there",
    )
    parser.add_argument(
        "--readme",
        type=named,
        metavar="FILE",
        help="put the main numbers of the one study named between the accuracy markers of this file",
    )
    options = parser.parse_args(arguments)
    studies = [folder for folder in options.folders if is_study(folder)]
    if options.readme is not None and (len(studies), len(options.folders)) != (1, 1):
        raise ArgumentError("readme takes the numbers of one study; give one folder of rotnet_fast.reproduce")
    for folder in studies:
        load_study(folder)  # first: one that is refused stays as it was
    texts = []
    for folder in options.folders:
        if folder in studies:
            # Here, because drawing needs matplotlib, which takes a second to import.
            from rotnet_fast.study.report import update_readme, write_report

            written = []
            if options.readme is not None:
                update_readme(folder, options.readme)  # first: it may refuse
                written = [options.readme]
            texts.append("\n".join(map(str, [*written, *write_report(folder)])))
        else:
            texts.append(render(load_results(folder)))
    print("\n\n".join(texts))


if __name__ == "__main__":
    sys.exit(run_command(lambda: main(sys.argv[1:]), is_shown_only=True))

"""Tables of results beside the published numbers; nothing is trained here.

``python -m rotnet_fast.report FOLDER`` prints the table of a finished evaluation again; of a study, which
`rotnet_fast.reproduce` left there, it writes RESULTS.md, index.html and the figures. ``--readme README.md``
puts the study's main numbers into that file.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from rotnet_fast.command import run_command
from rotnet_fast.engine.run_folder import read_settings
from rotnet_fast.errors import ArgumentError
from rotnet_fast.files import named
from rotnet_fast.flags import Parser
from rotnet_fast.next_steps import look_at, print_next, shell
from rotnet_fast.pretrained import SHIPPED
from rotnet_fast.protocols.result import load_results, render
from rotnet_fast.study.summary import is_study, load_study

PROGRAM = "python -m rotnet_fast.report"


def report(arguments: Sequence[str]) -> Path:
    """Print the table of each evaluation named; write the report of each study named.

    Returns:
        The last folder named.

    Raises:
        ArgumentError: a folder holds neither; a flag or its file is wrong.
        DataError: a study's result is damaged.
        CannotWriteError: a report cannot be written.
    """
    parser = Parser(
        PROGRAM,
        description="Print or write tables and reports again from the JSON of finished runs.",
    )
    parser.add_argument(
        "folders",
        nargs="+",
        type=named,
        metavar="FOLDER",
        help="Folders of finished runs. Of rotnet_fast.evaluate: print its table. Of rotnet_fast.reproduce: "
        "write RESULTS.md, index.html and figures/ there.",
    )
    parser.add_argument(
        "--readme",
        type=named,
        metavar="FILE",
        help="Put the main numbers of the one study named between the accuracy markers of this file.",
    )
    options = parser.parse_args(arguments)
    studies = [folder for folder in options.folders if is_study(folder)]
    if options.readme is not None and (len(studies), len(options.folders)) != (1, 1):
        raise ArgumentError("readme takes the numbers of one study; give one folder of rotnet_fast.reproduce")
    for folder in studies:
        load_study(folder)  # first: one that is refused stays as it was
        _say(f"writing the report of {folder} ...")
    texts = []
    for folder in options.folders:
        if folder in studies:
            # Here, because drawing needs matplotlib, which takes a second to import.
            from rotnet_fast.study.pages.report import update_readme, write_report

            written = []
            if options.readme is not None:
                update_readme(folder, options.readme)  # first: it may refuse
                written = [options.readme]
            texts.append("\n".join(map(str, [*written, *write_report(folder, _say)])))
        else:
            texts.append(render(load_results(folder)))
    print("\n\n".join(texts))
    last: Path = options.folders[-1]
    return last


def _say(line: str) -> None:
    """Print beside the tables and the names of files, which may go to a file."""
    print(line, file=sys.stderr, flush=True)


def next_steps(folder: Path) -> list[str]:
    """Return what to do after the report of a study, or the table of an evaluation, in this folder."""
    if is_study(folder):
        return [look_at(folder / "index.html")]
    settings = read_settings(folder) or {}
    place = settings.get("checkpoint")
    if place is None or not (place in SHIPPED or Path(place).exists()):
        return []  # the network has moved
    network = place if place in SHIPPED else Path(min(place, os.path.relpath(place), key=len))
    steps = [shell("export", network)]
    if settings.get("dataset") is None and settings.get("data_dir") is None:
        steps.insert(0, shell("visualize", network))
    return steps


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)

    def command() -> None:
        # Beside the tables, which may go to a file.
        print_next(next_steps(report(arguments)), file=sys.stderr)

    return run_command(command, is_shown_only=True)


if __name__ == "__main__":
    sys.exit(main())

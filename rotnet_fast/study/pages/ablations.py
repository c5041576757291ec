"""The section of a report on ablations: what each known mistake costs.

Importing this module does not import torch.
"""

from __future__ import annotations

from rotnet_fast.protocols.result import NO_VALUE, points
from rotnet_fast.study.pages.document import NOT_RUN, Block, Paragraph, Section, Table, figure
from rotnet_fast.study.pages.tables import data_set, mean_difference, value
from rotnet_fast.study.summary import Number, Study


def ablated_pairs(study: Study) -> list[tuple[Number, Number]]:
    """Return each ablation with the faithful run of the same seeds, in the plan's order."""
    pairs = []
    for number in study.of("ablations"):
        name = number.entry.name
        if name.startswith("faithful"):
            continue
        if name.startswith("no-revisiting-"):
            faithful = study.number("ablations", name.replace("no-revisiting", "faithful"))
        elif number.entry.value == "rotation_accuracy":
            rotations = "eight" if name.startswith("black-corners") else "0-90-180-270"
            faithful = study.number("extras", f"rotation-accuracy-{rotations}")
        elif name == "black-corners":
            faithful = study.number("ablations", "faithful-eight")
        else:
            faithful = study.number("ablations", "faithful")
        pairs.append((number, faithful.of_seeds(number.by_seed or faithful.by_seed)))
    return pairs


def ablations(study: Study, drawn: frozenset[str]) -> Section:
    """Show what each deviation from the protocol costs."""
    faithful_of = {number.entry.name: faithful for number, faithful in ablated_pairs(study)}
    rows = []
    for number in study.of("ablations"):
        faithful = faithful_of.get(number.entry.name)
        difference = NO_VALUE
        if faithful is not None:
            found = mean_difference(number, faithful)
            difference = NOT_RUN if found is None else points(found)
        rows.append(
            (
                number.entry.title,
                value(number),
                str(number.n),
                "" if faithful is None else value(faithful),
                difference,
                study.schedule(number.entry) or NO_VALUE,
                study.machines([number.entry]) or NO_VALUE,
            )
        )
    header = ("run", "ours, %", "seeds", "faithful, %", "difference", "epochs", "machine")
    caption = f"Ablations: test accuracy in % on {data_set(study)}, and what each costs in points"
    blocks: list[Block] = [
        Paragraph(
            "Each row deviates from the protocol in one way; all else is as in the faithful run, of which "
            "the same seeds stand beside it."
        ),
        Table(caption, header, tuple(rows), (1, 2, 3, 4)),
    ]
    blocks += figure(
        drawn,
        "ablations",
        "Bar chart: test accuracy of each ablation, and a mark for the faithful run of the same seeds.",
        "Accuracy of each ablation (bars) and of the faithful run (marks).",
    )
    return Section("Ablations: what costs accuracy", tuple(blocks))

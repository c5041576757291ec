"""Sections of a report beyond the paper's tables and figures: extras, ablations, orderings.

Importing this module does not import torch.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence

from rotnet_fast.protocols.result import NO_VALUE, points
from rotnet_fast.study.document import NOT_RUN, Block, Paragraph, Section, Table
from rotnet_fast.study.orderings import (
    FAILS,
    HOLDS,
    NOISE,
    NOISE_ERRORS,
    Correlation,
    Ordering,
    Step,
)
from rotnet_fast.study.sections import figure
from rotnet_fast.study.summary import Number, Study
from rotnet_fast.study.tables import data_set, flat_table, mean_difference, value


def rotation_accuracy(study: Study) -> Section:
    """How well the pretext task itself is solved."""
    numbers = [number for number in study.of("extras") if number.entry.value == "rotation_accuracy"]
    caption = f"Rotation accuracy in % over all turned copies of the test images, {data_set(study)}"
    return Section(
        "Rotation accuracy",
        (flat_table(study, numbers, caption), rotation_accuracy_by_degrees(study, numbers)),
    )


def rotation_accuracy_by_degrees(study: Study, numbers: Sequence[Number]) -> Table:
    """Accuracy for each angle; one row per set of rotations, mean over the seeds."""
    by_set = []
    for number in numbers:
        by_degrees: dict[str, list[float]] = {}
        for result in study.results(number.entry).values():
            for degrees, accuracy in dict(result.get("rotation_accuracy_by_degrees", {})).items():
                by_degrees.setdefault(str(degrees), []).append(float(accuracy))
        by_set.append({degrees: statistics.fmean(values) for degrees, values in by_degrees.items()})
    angles = sorted({degrees for means in by_set for degrees in means}, key=int)
    rows = []
    for number, means in zip(numbers, by_set, strict=True):
        name = number.entry.title.partition(", ")[2]
        cells = [f"{means[degrees]:.2f}" if degrees in means else "" for degrees in angles]
        rows.append((name, *(cells if means else [NOT_RUN, *cells[1:]])))
    header = ("told apart", *(f"{degrees}°" for degrees in angles or ["0"]))
    caption = f"Rotation accuracy in % by the angle that the test image was turned, {data_set(study)}"
    return Table(caption, header, tuple(rows), tuple(range(1, len(header))), "Mean over the seeds.")


def neighbours(study: Study, drawn: frozenset[str]) -> Section:
    """kNN and linear probes on pooled features."""
    numbers = [number for number in study.of("extras") if number.entry.name.startswith(("knn-", "linear-"))]
    blocks: list[Block] = list(
        figure(
            drawn,
            "features",
            "Line chart: accuracy of nearest neighbours and a linear probe on each block's pooled features.",
            "Nearest neighbours and linear probes on pooled, frozen features of each block.",
        )
    )
    blocks.append(
        flat_table(study, numbers, f"kNN and linear probes, test accuracy in % on {data_set(study)}")
    )
    return Section("Nearest neighbours and linear probes", tuple(blocks))


def ablated_pairs(study: Study) -> list[tuple[Number, Number]]:
    """Each ablation and the faithful run it is compared with, in the plan's order."""
    pairs = []
    for number in study.of("ablations"):
        name = number.entry.name
        if name.startswith("faithful"):
            continue
        if name.startswith("no-revisiting-"):
            faithful = study.number("ablations", name.replace("no-revisiting", "faithful"))
        elif number.entry.value == "rotation_accuracy":
            faithful = study.number("extras", "rotation-accuracy-0-90-180-270")
        else:
            faithful = study.number("ablations", "faithful")
        pairs.append((number, faithful))
    return pairs


def ablations(study: Study, drawn: frozenset[str]) -> Section:
    """What each deviation from the protocol costs."""
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
    header = ("", "ours, %", "n", "faithful, %", "difference", "epochs", "machine")
    caption = (
        f"Ablations: test accuracy in % on {data_set(study)}, and what each costs beside the faithful run"
    )
    blocks: list[Block] = [
        Paragraph("Each row makes one known mistake on purpose, everything else as in the faithful run."),
        Table(caption, header, tuple(rows), (1, 2, 3, 4)),
    ]
    blocks += figure(
        drawn,
        "ablations",
        "Bar chart: difference of each ablation to the faithful run, in points.",
        "What each ablation costs, in points of accuracy.",
    )
    return Section("Ablations: what costs accuracy", tuple(blocks))


def orderings_sentence(orderings: Sequence[Ordering], correlation: Correlation) -> str:
    """How many hold."""
    verdicts = Counter([ordering.verdict for ordering in orderings] + [correlation.verdict])
    parts = [
        f"{verdicts[verdict]} {verdict}" for verdict in (HOLDS, NOISE, FAILS, NOT_RUN) if verdicts[verdict]
    ]
    text = ", ".join(parts).replace(f" {HOLDS}", " hold").replace(f" {FAILS}", " do not hold")
    text = text.replace(f" {NOT_RUN}", " not run").replace("1 hold", "1 holds")
    text = text.replace("1 do not", "1 does not")
    return f"Of the method's {sum(verdicts.values())} orderings: {text}."


def orderings_section(study: Study, orderings: Sequence[Ordering], correlation: Correlation) -> Section:
    """Verdicts, then the figures of each."""
    overview = [
        (ordering.claim, ordering.verdict, _on_seeds(ordering), _published(ordering))
        for ordering in orderings
    ]
    overview.append((correlation.claim, correlation.verdict, "", ""))
    steps = [
        (f"{step.higher} > {step.lower}", *_step(step)) for ordering in orderings for step in ordering.steps
    ]
    rho = NOT_RUN if correlation.verdict == NOT_RUN else _rho(correlation.overall)
    by_seed = ", ".join(map(_rho, correlation.by_seed.values()))
    chance = NO_VALUE if correlation.p_value is None else f"{correlation.p_value:.3f}"
    explained = (
        "An ordering of several steps holds where each step does. A step is within noise where the "
        f"difference is smaller than {NOISE_ERRORS:g} standard errors. The standard error adds the binomial "
        "ones of both accuracies, as if their test images were different (they are the same, so that it is "
        "rather too large), and, of several seeds, that of the mean. Where two learning rates or BatchNorm "
        "modes were tried, the one with the higher test accuracy stands here."
    )
    return Section(
        "Orderings: does the method behave as published",
        (
            Paragraph(explained),
            Table(
                f"The method's orderings on {data_set(study)}",
                ("ordering", "verdict", "seeds on which every step is above 0", "in the paper"),
                tuple(overview),
            ),
            Table(
                f"Each step of the orderings with its figures, in % and points, {data_set(study)}",
                (
                    "step",
                    "figures",
                    "difference",
                    "standard error",
                    "by seed",
                    f"difference, {study.circumstances.published_name}",
                    "verdict",
                ),
                tuple(steps),
                (1, 2, 3, 5),
            ),
            Table(
                f"Spearman correlation of the two accuracies over the pretraining, {data_set(study)}",
                ("points", "correlation", "by seed", "p, one-sided, exact", "verdict"),
                ((str(correlation.points), rho, by_seed or NO_VALUE, chance, correlation.verdict),),
                (1, 3),
            ),
        ),
    )


def _step(step: Step) -> tuple[str, ...]:
    published = points(step.published)
    if step.means is None:
        return (NOT_RUN, NO_VALUE, NO_VALUE, NO_VALUE, published, step.verdict)
    sign = {HOLDS: ">", FAILS: "<", NOISE: "≈"}[step.verdict]
    figures = f"{step.means[0]:.2f} {sign} {step.means[1]:.2f}"
    by_seed = ", ".join(points(difference) for difference in step.by_seed.values())
    return (figures, points(step.difference), f"{step.standard_error:.2f}", by_seed, published, step.verdict)


def _on_seeds(ordering: Ordering) -> str:
    common = sorted(set.intersection(*(set(step.by_seed) for step in ordering.steps)))
    above = [seed for seed in common if all(step.by_seed[seed] > 0 for step in ordering.steps)]
    return f"{len(above)} of {len(common)}" if common else NO_VALUE


def _published(ordering: Ordering) -> str:
    known = [step.published for step in ordering.steps]
    if any(difference is None for difference in known):
        return NO_VALUE
    return HOLDS if all(difference is not None and difference > 0 for difference in known) else FAILS


def _rho(correlation: float | None) -> str:
    return "undefined" if correlation is None else f"{correlation:+.2f}"

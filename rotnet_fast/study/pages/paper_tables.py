"""Sections of a report for the tables of the paper.

Importing this module does not import torch.
"""

from __future__ import annotations

from dataclasses import replace

from rotnet_fast.plain import counted
from rotnet_fast.study.pages import findings
from rotnet_fast.study.pages.document import Block, Section, figure
from rotnet_fast.study.pages.tables import (
    data_set,
    few_labels,
    flat_table,
    gaps,
    grid,
    of_table3,
    quoted_rows,
    with_few_labels,
)
from rotnet_fast.study.plan import NO_PRETEXT_TASK, OTHER_PRETEXT_TASK, OTHER_PRETEXT_TASKS
from rotnet_fast.study.summary import Study


def table1(study: Study, drawn: frozenset[str]) -> Section:
    """Show Table 1: every block of three networks."""
    caption = f"Table 1: non-linear head on frozen features, test accuracy in % on {data_set(study)}"
    blocks: list[Block] = [grid(study, caption)]
    blocks += figure(
        drawn,
        "table1",
        "Line chart: test accuracy of the non-linear head against its block, one line per network.",
        "Table 1 as lines. In the paper, features are best after the second block, and worst after the last "
        "one, which serves only the rotation task.",
    )
    blocks.append(
        flat_table(
            study, study.of("table1"), "network, layer", f"Table 1, number by number, on {data_set(study)}"
        )
    )
    return Section("Table 1: which block has the best features", tuple(blocks))


def table2(study: Study, drawn: frozenset[str]) -> Section:
    """Show Table 2: sets of rotations."""
    caption = f"Table 2: non-linear head on conv2 of 4 blocks, test accuracy in % on {data_set(study)}"
    note = "All views of the eight multiples of 45° are bilinearly warped central crops, made by one routine."
    blocks: list[Block] = [flat_table(study, study.of("table2"), "rotations told apart", caption, note)]
    blocks += figure(
        drawn,
        "table2",
        "Bar chart: test accuracy of the non-linear head on conv2 for each set of rotations.",
        "Table 2 as bars.",
    )
    return Section("Table 2: which rotations to tell apart", tuple(blocks))


def table3(study: Study, drawn: frozenset[str]) -> Section:
    """Show Table 3: supervised, untrained and other unsupervised features."""
    caption = f"Table 3: test accuracy in % on {data_set(study)}; heads on conv2 of 4 blocks"
    quoted = "Rows marked as quoted are other methods' numbers as the paper prints them. "
    others = ""
    notes = {number.entry.note for number in study.of("table3")}
    names = {number.entry.name for number in study.of("table3")}
    if OTHER_PRETEXT_TASK in notes:
        others = (
            f"Rows marked as {OTHER_PRETEXT_TASK}, are of RotNet's network, pretrained on the same images "
            "for as many epochs, and are not in the paper, either. "
        )
        others += "".join(
            f"{facts.differences} " for task, facts in OTHER_PRETEXT_TASKS.items() if f"{task}-conv" in names
        )
    if NO_PRETEXT_TASK in notes:
        others += (
            "Scattering has two scales and eight angles, and is computed of every augmented image; its heads "
            "begin with a BatchNorm, and are otherwise trained as RotNet's. "
        )
    if "rotnet-svm" in names:
        others += (
            "The SVM is linear, on whole maps of images without augmentation; on scattering, it takes "
            f"logarithms. {_penalties(study)}"
        )
    if study.circumstances.has_reference:
        others += (
            "Scattering was published with three layers of unknown widths; the SVM of Roto-Scat is not "
            "linear, and on features of rotations, too, that were chosen by the labels. "
        )
    note = (
        f"{findings.other_features(study)} {quoted if study.circumstances.has_reference else ''}Rows marked "
        "as classical are our own measurements, involve no randomness, and are not in the paper. "
        f"{others}Two learning rates of fine-tuning are shown because no recipe was published."
    ).strip()
    ours = flat_table(study, of_table3(study), "method", caption, note)
    blocks: list[Block] = [replace(ours, rows=(*ours.rows, *quoted_rows(study)))]
    blocks += figure(
        drawn,
        "table3",
        "Bar chart: test accuracy of the supervised, untrained, frozen and fine-tuned networks, of networks "
        "of other pretext tasks, of scattering and of classical features.",
        "Table 3 as bars.",
    )
    few = few_labels(study, f"Features with few labels, test accuracy in % on {data_set(study)}")
    if few is not None:
        caption = f"Features with few labels, number by number, on {data_set(study)}"
        blocks += [few, flat_table(study, with_few_labels(study), "method, labels", caption)]
    blocks.append(gaps(study, f"Distance to the supervised network of the same images, {data_set(study)}"))
    return Section("Table 3: comparison with supervised and other features", tuple(blocks))


def _penalties(study: Study) -> str:
    """Say how the penalties of support vector machines were chosen, and how they came out."""
    rule = (
        "Its penalty C is chosen on a fifth of the labelled images of each class; of fewer than 1,000 "
        "images, each fifth is held out in turn, and where a class has one label, C is 1e-05. "
    )
    found = [
        result
        for number in study.of("table3")
        if number.entry.cells[0].kind == "svm"
        for result in study.results(number.entry).values()
    ]
    if not found:
        return rule
    penalties = [result["penalty"] for result in found]
    rule += f"It came out as {min(penalties):g} to {max(penalties):g}. "
    short = sum(not result["has_converged"] for result in found)
    return f"{rule}{counted(short, 'machine')} stopped short of the minimum. " if short else rule

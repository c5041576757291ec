"""The parts of a report about the study itself: what was run, how, where, and what the numbers are.

Importing this module does not import torch.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import replace

from rotnet_fast.plain import counted
from rotnet_fast.settings import Optimisation
from rotnet_fast.study.cells import with_needs
from rotnet_fast.study.pages.document import (
    Block,
    Bullets,
    Code,
    Figure,
    Paragraph,
    Row,
    Section,
    Table,
    escaped,
)
from rotnet_fast.study.pages.tables import data_set, main_rows
from rotnet_fast.study.settings import StudySettings
from rotnet_fast.study.summary import Study

REFERENCE = (
    "Gidaris, Singh, Komodakis, Unsupervised Representation Learning by Predicting Image Rotations, ICLR 2018"
)


WHAT_WAS_RUN = "What was run"

SMOKE_TEST = "A smoke test: so short that its accuracies mean nothing."

SCHEDULES = (
    "In the tables below, the epochs of a number are those of the trainings behind it, in order: first the "
    "pretext, then what was trained on its features."
)


def title(study: Study) -> str:
    """Return the report's title."""
    return f"RotNet on {data_set(study)}: every table and figure"


def lead(study: Study, verdicts: tuple[Block, ...], pictures: Row) -> tuple[Block, ...]:
    """Return what stands above the table of contents: what was run, three pictures and the verdicts.

    Args:
        verdicts: how many orderings hold, and which.
        pictures: those to look at first.
    """
    return (
        Paragraph(
            f"The CIFAR-10 study of RotNet ({REFERENCE}) on {data_set(study)}: {_images(study)}, preset "
            f"`{study.settings.preset}`, scale {study.settings.scale:g}, {study.seeds}. The study is "
            f"{state(study)}."
        ),
        *_warnings(study),
        *([pictures] if pictures.figures else []),
        *verdicts,
        Paragraph(meaning(study)),
    )


def _warnings(study: Study) -> list[Block]:
    """Say what a reader must know before any number: that it means nothing, or comes from few labels."""
    if study.settings.is_smoke_test:
        return [Paragraph(SMOKE_TEST)]
    count = study.settings.images_per_class
    if count is None:
        return []
    return [
        Paragraph(
            "Few labels: the pretraining sees all training images, without their labels, and everything else "
            f"only {counted(count, 'labelled image')} of each class, except in Figure 5b. The paper's order "
            "of the supervised network above RotNet is that of all labels."
        )
    ]


FIRST = ("table3", "figure5a", "figure5b", "table1", "table2", "features", "figure3", "figure4")
"""Figures to look at first, by importance; the first three that there are stand at the top."""


def first_pictures(sections: Sequence[Section]) -> Row:
    """Choose up to three of the figures of all sections."""
    found = {
        block.name: block for section in sections for block in section.blocks if isinstance(block, Figure)
    }
    return Row(tuple(found[name] for name in FIRST if name in found)[:3])


def main_numbers(study: Study) -> Section:
    """Show the numbers to read first."""
    return Section("Main numbers", (main_rows(study),))


def state(study: Study) -> str:
    """Say how much of the study has been run."""
    cells = list(with_needs(study.cells))
    run, planned = len(set(study.files) & {cell.key for cell in cells}), len(cells)
    return (
        "complete"
        if run == planned
        else f"in progress or partial: {run} of {counted(planned, 'cell')} have been run"
    )


def meaning(study: Study) -> str:
    """Say what the numbers are, and what they may be compared with."""
    text = "Accuracies are in % of the test images, after the last epoch of each training"
    if study.settings.data.validation is not None:
        text = (
            "Wherever this study speaks of test images, they are training images that were held out "
            f"(validation). {text}"
        )
    if study.seeds.headline > 1:
        text += "; ± is the sample standard deviation over the n seeds"
    text += ". "
    if study.comparable:
        images = (
            "CIFAR-10 itself: a difference to them is also one of the images, which were re-encoded here"
            if study.circumstances.is_reencoded
            else "the same data set"
        )
        return text + f"Published numbers are those of the paper, on {images}."
    if not study.circumstances.has_reference:
        return f"{text}No published number stands beside them: the paper's are of CIFAR-10."
    circumstances = replace(study.circumstances, display_name=data_set(study))  # as text of the report
    return text + circumstances.caveat


def what_was_run(study: Study) -> Section:
    """Show data, recipe, seeds, machines and cost."""
    settings = study.settings
    pretext = settings.pretext
    rows = [
        (
            "data set",
            f"{data_set(study)}: {_images(study)} of "
            f"{pretext.image_size}x{counted(pretext.image_size, 'pixel')}",
        ),
        ("classes", escaped(", ".join(settings.data.classes))),
        ("preset, scale", f"{settings.preset}, {settings.scale:g}"),
        (
            "network",
            f"Network in Network of 3, 4 and 5 blocks, width {pretext.width:g}, {settings.precision}",
        ),
        ("pretext", f"{_recipe(pretext)}, {counted(pretext.batch_size, 'image')} a step"),
        ("supervised", f"{_recipe(settings.supervised)}, {settings.batch_size} a step"),
        ("heads", f"{_recipe(settings.head)}, {settings.batch_size} a step"),
        ("augmentation", f"{_crop(pretext.pad)}, flips with probability {pretext.flip_prob:g}"),
        ("labels", _labels(settings)),
        ("seeds", str(study.seeds)),
        ("standard error of the test set", _test_errors(study)),
    ]
    if study.files:
        seconds = sum(float(content["seconds"]) for content in study.files.values())
        finished = [str(content["finished"]) for content in study.files.values()]
        resumed = sum(content["resumed"] for content in study.files.values())
        attempts = f"; of {resumed} resumed, the last attempt alone is counted" if resumed else ""
        rows.append(("computing time of all cells", f"{seconds / 3600:,.2f} hours{attempts}"))
        if study.commits:
            rows.append(("commits of the program", escaped(", ".join(study.commits))))
        rows.append(("cells finished between", f"{escaped(min(finished))} and {escaped(max(finished))}"))
    machines = [
        (name, escaped(hardware), escaped(versions), escaped(kernel), _pretext_rate(study, name))
        for (hardware, versions, kernel), name in study.machine_names.items()
    ]
    blocks: list[Block] = [Table("Settings of the study", ("setting", "value"), tuple(rows), note=SCHEDULES)]
    if machines:
        header = ("machine", "hardware", "versions", "kernel of the data path", "pretext, images/s")
        note = (
            "Speed of the pretraining of Table 3 (4 blocks, four rotations) as it ran, median over the seeds."
        )
        blocks.append(Table("Machines", header, tuple(machines), (4,), note))
    else:
        blocks.append(Paragraph("No cell has been run yet."))
    return Section(WHAT_WAS_RUN, tuple(blocks))


def how_to_regenerate(study: Study) -> Section:
    """Show the commands that write the report and compute the cells."""
    recorded = {content["command"] for content in study.files.values()}
    commands = sorted(filter(None, recorded)) or ["python -m rotnet_fast.reproduce"]
    return Section(
        "How to regenerate this report",
        (
            Paragraph(
                "Every number and picture above comes from the JSON files under `cells/`. This writes "
                "`RESULTS.md`, `index.html` and `figures/` again, without any training, in the folder of "
                "this file:"
            ),
            Code("python -m rotnet_fast.report ."),
            Paragraph(
                "These commands computed the cells, as recorded with them (finished cells are not run again):"
            ),
            Code("\n".join(commands)),
            Bullets(
                (
                    "`study.json`: the settings",
                    "`cells/<key>.json`: one result each, named by the hash of its configuration",
                    "`figures/*.png`, `figures/*.svg`: the figures, drawn from these results",
                )
            ),
        ),
    )


def _images(study: Study) -> str:
    data = study.settings.data
    return f"{data.train_images:,} training and {counted(data.test_images, data.tested_on + ' image')}"


def _labels(settings: StudySettings) -> str:
    count = settings.images_per_class
    return "all" if count is None else f"{count} of each class, except in Figure 5b"


def _crop(pad: int) -> str:
    return f"random crops after padding by {counted(pad, 'pixel')}" if pad else "no crops"


def _recipe(recipe: Optimisation) -> str:
    """Epochs, optimiser, rate and schedule of a training in words."""
    rate = f"learning rate {recipe.lr:g}"
    if recipe.optimizer == "muon":
        decay = recipe.muon_weight_decay
        decays = "" if decay is None else f" and weight decay {decay:g}"
        rate += f", Muon for filters with {recipe.muon_lr:g}{decays}"
    if recipe.schedule != "step":
        warmup = f" after a warm-up of {recipe.warmup:g} epochs" if recipe.warmup else ""
        rate += f", {recipe.schedule} to 0{warmup}"
    elif recipe.milestones is None:
        rate += f", times {recipe.lr_factor:g} at each head's published milestones"
    elif recipe.milestones:
        rate += f", times {recipe.lr_factor:g} after {', '.join(map(str, recipe.milestones))}"
    momentum = "" if recipe.nesterov else ", momentum without Nesterov"
    return f"{counted(recipe.epochs, 'epoch')}, {rate}{momentum}"


def _test_errors(study: Study) -> str:
    errors = [f"{study.standard_error(level):.2f} at {level} %" for level in (50, 75, 90)]
    return "binomial, in points: " + ", ".join(errors)


def _pretext_rate(study: Study, machine: str) -> str:
    entry = study.entry("extras", "rotation-accuracy-0-90-180-270")
    rates = [
        float(result["images_per_second"])
        for seed, result in study.results(entry).items()
        if "images_per_second" in result and study.machine_of(entry.cells[seed]) == machine
    ]
    return f"{statistics.median(rates):,.0f}" if rates else "-"

"""What a study consists of: each number of each table and figure, and the cells that give it.

Importing this module does not import torch.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from rotnet_fast import paper
from rotnet_fast.errors import ArgumentError
from rotnet_fast.plain import counted
from rotnet_fast.presets import PRESETS
from rotnet_fast.pretext_tasks import PRETEXT_TASKS, ROTATION
from rotnet_fast.protocols.result import BATCHNORM_MODES
from rotnet_fast.rotations import EIGHT_ROTATIONS, FOUR_ROTATIONS
from rotnet_fast.study.builder import Builder, rotation_set_name
from rotnet_fast.study.cells import StudyCell
from rotnet_fast.study.settings import Seeds, StudySettings

CLASSICAL = {"pixels": "Raw pixels", "hog": "HOG", "scattering": "Scattering"}
"""Hand-made features, and their names in the report."""

OTHER_PRETEXT_TASKS = {task: facts for task, facts in PRETEXT_TASKS.items() if task != ROTATION}
"""Pretext tasks that RotNet's is compared with on its own network."""

OTHER_PRETEXT_TASK = "another pretext task, ours"
"""Note that marks their rows."""

NO_PRETEXT_TASK = "fixed features, ours"
"""Note that marks rows of features that nothing was trained for."""

SCATTERING_STRIDE = 4
"""Pixels along a side of the image that become one position of `rotnet_fast.models.scattering.Scattering`."""

SCATTERING_HEADS = {
    "nonlinear": ("non-linear", ""),
    "conv": ("conv", ""),
    "perceptron": ("perceptron of 2 x 1,024 units", "Scattering"),
}
"""Head on scattering -> its name in the report, and the method of `paper.OTHER_METHODS` that it repeats."""

HEADS = {"nonlinear": "non-linear", "conv": "conv"}
"""Heads of Table 3, and their names in the report."""

FINE_TUNING_RATES = (0.1, 0.01)

FEW_LABELS = 3
"""Numbers of labels per class below 1,000 of CIFAR-10's 5,000, where RotNet is above the supervised network:
20, 100 and 400."""

FEW_LABELS_BY = ("-conv", "-svm", "-perceptron")
"""How the names of Table 3's rows end that are also computed with few labels: by the head of Figure 5b, and
by the classifiers that other methods were published with."""

ABLATED_LABELS = (0, 1)
"""Which of the numbers of labels are tried without revisiting: the two smallest."""


@dataclass(frozen=True)
class Entry:
    """One number or picture of a table or figure.

    Attributes:
        item: key of ``ITEMS``.
        name: its name within the item, as ``--only item/name`` takes it.
        title: its name in the report.
        cells: the cell behind the number, for each seed; a single one if no seed matters.
        value: which value of the cell's result it is, a key such as ``accuracy``.
        published: the paper's number for CIFAR-10, in percent.
        note: what a reader should know about the number.
        x: position on a figure's horizontal axis.
        series: line of the figure that it belongs to.
        headline: whether it is one of the numbers to read first, which get more seeds than others.
        repeats: method of `paper.OTHER_METHODS` that it repeats.
    """

    item: str
    name: str
    title: str
    cells: tuple[StudyCell, ...]
    value: str = "accuracy"
    published: float | None = None
    note: str = ""
    x: float | None = None
    series: str = ""
    headline: bool = False
    repeats: str = ""


def table1(build: Builder) -> list[Entry]:
    """Plan Table 1: the non-linear head on every block of three networks."""
    entries = []
    for blocks, published in paper.NONLINEAR_HEAD.items():
        for layer, accuracy in published.items():
            cell = build.head(build.pretext(blocks), layer, "nonlinear")
            title = f"{counted(blocks, 'block')}, {layer}"
            name = f"{blocks}-{layer}"
            is_main = blocks == 4  # the network of all other tables
            entries.append(Entry("table1", name, title, (cell,), published=accuracy, headline=is_main))
    return entries


def table2(build: Builder) -> list[Entry]:
    """Plan Table 2: sets of rotations, compared by the non-linear head on conv2."""
    entries = []
    for rotations, accuracy in paper.ROTATION_SETS.items():
        cell = build.head(build.pretext(rotations=rotations), "conv2", "nonlinear")
        title = "{" + ", ".join(f"{angle}°" for angle in rotations) + "}"
        is_warped = any(angle % 90 for angle in rotations)
        note = "mirrored border instead of black, which would give classes away" if is_warped else ""
        name = rotation_set_name(rotations)
        entries.append(Entry("table2", name, title, (cell,), published=accuracy, note=note))
    return entries


def table3(build: Builder) -> list[Entry]:
    """Plan Table 3: supervised, untrained, pretrained and fine-tuned networks, and other features."""
    pretext = build.pretext()

    def entry(name: str, title: str, cell: StudyCell, published: float | None, note: str = "") -> Entry:
        is_headline = cell.kind in ("supervised", "head")
        return Entry("table3", name, title, (cell,), published=published, note=note, headline=is_headline)

    is_slides = build.study.preset == "slides"

    def beside_slides(name: str, published: float) -> tuple[float, str]:
        if not is_slides or name not in paper.SLIDES:
            return published, ""
        return paper.SLIDES[name], f"published: the lecture slides' run; in the paper {published:.2f}"

    supervised = beside_slides("supervised", paper.SUPERVISED)
    entries = [entry("supervised", "Supervised NIN", build.supervised(), *supervised)]
    for mode in BATCHNORM_MODES:
        title = f"Random init + conv, BatchNorm with {mode} statistics"
        cell = build.head(None, batchnorm=mode)
        entries.append(entry(f"random-conv-{mode}", title, cell, paper.RANDOM_INIT["conv"]))
    for head, title in HEADS.items():
        cell = build.head(pretext, "conv2", head)
        published = beside_slides(head, paper.FROZEN[head])
        entries.append(entry(f"rotnet-{head}", f"RotNet + {title}", cell, *published))
    for head, title in HEADS.items():
        for lr in FINE_TUNING_RATES:
            entries.append(
                entry(
                    f"finetuned-{head}-lr{lr:g}",
                    f"RotNet + {title}, fine-tuned, lr {lr:g}",
                    build.fine_tune(pretext, head, lr),
                    paper.FINE_TUNED[head],
                )
            )
    if build.study.preset != "demo":  # whose minutes are for RotNet
        entries += other_extractors(build)
    for features, name in CLASSICAL.items():
        title = f"{name} + logistic regression"
        entries.append(entry(features, title, build.classical(features), None, "classical row, ours"))
    return entries


def other_extractors(build: Builder) -> list[Entry]:
    """Plan Table 3's rows of other features under the same classifiers, with all labels and with few.

    They are RotNet's network, pretrained by another task for as many epochs, and scattering; the SVM is on
    RotNet's features, too.
    """
    size = build.study.data.image_size
    few = build.study.labels_per_class[:-1][:FEW_LABELS]
    entries = []

    def add(name: str, title: str, make: Callable[..., StudyCell], note: str, repeats: str = "") -> None:
        """Add the row of all labels, and of some heads, one for each small number of them."""
        published = paper.OTHER_METHODS[repeats] if repeats else None
        row = Entry("table3", name, title, (make(),), published=published, note=note, repeats=repeats)
        entries.append(row)
        for count in few if name.endswith(FEW_LABELS_BY) else ():
            cell, title_of_few = make(images_per_class=count), f"{title}, {build.study.labels(count)}"
            entries.append(Entry("table3", f"{name}-{count}", title_of_few, (cell,), x=count, series=name))

    add("rotnet-svm", "RotNet + SVM", partial(build.features, "svm", build.pretext(), "conv2"), "")
    for task, facts in OTHER_PRETEXT_TASKS.items():
        if size % facts.side_multiple:
            continue  # the task does not apply to such images
        pretext = build.pretext(task=task)
        for head, title in HEADS.items():
            make = partial(build.head, pretext, "conv2", head)
            add(f"{task}-{head}", f"{facts.title} + {title}", make, OTHER_PRETEXT_TASK)
        make = partial(build.features, "svm", pretext, "conv2")
        add(f"{task}-svm", f"{facts.title} + SVM", make, OTHER_PRETEXT_TASK)
    if size % SCATTERING_STRIDE == 0:
        for head, (title, repeats) in SCATTERING_HEADS.items():
            make = partial(build.head, None, "scattering", head, fixed="scattering")
            add(f"scattering-{head}", f"Scattering + {title}", make, NO_PRETEXT_TASK, repeats)
        make = partial(build.features, "svm", None, "log-scattering", fixed="scattering")
        add("scattering-svm", "Scattering + SVM", make, NO_PRETEXT_TASK)
    return entries


def figure5a(build: Builder) -> list[Entry]:
    """Plan Figure 5a: rotation and object accuracy over the epochs of the pretraining."""
    pretext = build.pretext()
    entries = []
    published = list(paper.CORRELATION.items())
    is_full_length = build.study.pretext.epochs == 100
    for position, epoch in enumerate(build.study.snapshot_epochs):
        at, (rotation, objects) = published[position] if is_full_length else (epoch, (None, None))
        note = "" if at == epoch else f"published for epoch {at}"
        for series, cell, value, accuracy in (
            ("rotation", pretext, f"rotation_accuracy_after/{epoch}", rotation),
            ("object", build.head(pretext, epoch=epoch), "accuracy", objects),
        ):
            title = f"{series} accuracy after {counted(epoch, 'epoch')}"
            name = f"{series}-{epoch}"
            entries.append(
                Entry("figure5a", name, title, (cell,), value, accuracy, note, x=epoch, series=series)
            )
    return entries


def figure5b(build: Builder) -> list[Entry]:
    """Plan Figure 5b: few labels, with the pretext task on all images and without it."""
    pretext = build.pretext()
    with_all = (build.head(pretext), build.supervised())  # of Table 3, which repeats them
    entries = []
    for position, count in enumerate(build.study.labels_per_class):
        for series, title, cell in (
            ("rotnet", "RotNet + conv", build.head(pretext, images_per_class=count)),
            ("supervised", "supervised", build.supervised(count)),
        ):
            accuracy = paper.LABEL_SCARCITY[series].get(count)
            title = f"{title}, {build.study.labels(count)}"
            name = f"{series}-{count}"
            entries.append(
                Entry(
                    "figure5b",
                    name,
                    title,
                    (cell,),
                    published=accuracy,
                    x=count,
                    series=series,
                    headline=position < FEW_LABELS or cell in with_all,
                )
            )
    return entries


def figure3(build: Builder) -> list[Entry]:
    """Plan Figure 3: attention maps of the rotation network and of the supervised one."""
    cell = build.picture("attention", build.pretext(), build.supervised())
    return [Entry("figure3", "attention", "Attention maps", (cell,), value="")]


def figure4(build: Builder) -> list[Entry]:
    """Plan Figure 4: first-layer filters of both networks."""
    cell = build.picture("filters", build.pretext(), build.supervised())
    return [Entry("figure4", "filters", "First-layer filters", (cell,), value="")]


def extras(build: Builder) -> list[Entry]:
    """Plan the extras: rotation accuracies, neighbours, linear probes, calibration, embedding."""
    main = build.pretext()
    entries = []
    for rotations in paper.ROTATION_SETS:
        title = "rotation accuracy, " + ", ".join(f"{angle}°" for angle in rotations)
        published, note = None, ""
        is_main = rotations == FOUR_ROTATIONS
        if is_main:
            published = paper.ROTATION_ACCURACY.get(build.study.pretext.epochs)
            is_rerun = build.study.pretext.epochs == PRESETS["official"]().epochs
            note = "published: a re-run of the released code" if is_rerun else ""
        entries.append(
            Entry(
                "extras",
                f"rotation-accuracy-{rotation_set_name(rotations)}",
                title,
                (build.pretext(rotations=rotations),),
                value="rotation_accuracy",
                published=published,
                note=note,
                headline=is_main,
            )
        )
    for kind, title in (("knn", "kNN"), ("linear", "linear probe")):
        for layer in ("conv1", "conv2", "conv3", "conv4"):
            cell = build.features(kind, main, layer)
            entries.append(Entry("extras", f"{kind}-{layer}", f"{title} on {layer}", (cell,)))
        for mode in BATCHNORM_MODES:
            cell = build.features(kind, None, "conv2", batchnorm=mode)
            untrained = f"{title} on conv2, untrained network, BatchNorm with {mode} statistics"
            entries.append(Entry("extras", f"{kind}-random-conv2-{mode}", untrained, (cell,)))
    for kind, title in (
        ("rotations", "Calibration of the rotation confidence; the hardest images"),
        ("embedding", "PCA and t-SNE of the features"),
    ):
        entries.append(Entry("extras", kind, title, (build.picture(kind, main),), value=""))
    return entries


def ablations(build: Builder) -> list[Entry]:
    """Plan the ablations: each deviation made on purpose, next to the faithful run."""
    main, is_demo = build.pretext(), build.study.preset == "demo"

    def entry(name: str, title: str, cell: StudyCell) -> Entry:
        return Entry("ablations", name, title, (cell,))

    entries = [
        entry("faithful", "Faithful: RotNet + conv", build.head(main)),
        entry(
            "train-mode-batchnorm",
            "Frozen BatchNorm with batch statistics",
            build.head(main, batchnorm="batch"),
        ),
    ]
    flips = "" if build.study.pretext.flip_prob else " (faithful: never)"
    halved = "pretext and head" if build.halving_changes_the_pretext else "head alone"
    titles = {
        "flip-after-rotation": f"Flipped after the rotation{flips}",
        "one-rotation": "One random rotation an image (1/4 of the views)",
        "shuffled-views": "All views shuffled one by one (equal work)",
        "lr-halved": f"Rate halved, not divided by 5 ({halved})",
        "turned-images": "Images each turned at random, once and for all",
        "resized-class": "One rotation's views resized",
    }
    head = build.study.head
    if head.schedule != "step" or head.lr_factor == 0.5:  # then it is the recipe of the faithful run
        del titles["lr-halved"]
    if is_demo:  # five minutes leave time for the one pretraining that an ordering asks for
        titles = {name: title for name, title in titles.items() if name in ("lr-halved", "turned-images")}
    for ablation, title in titles.items():
        lr_factor = 0.5 if ablation == "lr-halved" else None
        pretext = build.pretext(ablation=ablation)
        entries.append(entry(ablation, title, build.head(pretext, lr_factor=lr_factor)))
        if pretext != main:
            title = f"{title}: rotation accuracy"
            name = f"{ablation}-rotation"
            entries.append(Entry("ablations", name, title, (pretext,), value="rotation_accuracy"))
    if not is_demo:
        entries += black_corners(build)
    for position in ABLATED_LABELS:
        count = build.study.labels_per_class[position]
        with_revisits = build.head(main, images_per_class=count)
        entries.append(entry(f"faithful-{count}", f"Faithful, {build.study.labels(count)}", with_revisits))
        title = f"{build.study.labels(count)}, each image once per epoch"
        once = build.head(main, images_per_class=count, revisit=False)
        entries.append(entry(f"no-revisiting-{count}", title, once))
    return entries


def black_corners(build: Builder) -> list[Entry]:
    """Plan the ablation of warps by 45 degrees that show which class they are of."""
    mirrored, cheating = (
        build.pretext(rotations=EIGHT_ROTATIONS),
        build.pretext(rotations=EIGHT_ROTATIONS, ablation="black-corners"),
    )
    name, title = "black-corners", "Eight rotations, black corners"
    return [
        Entry("ablations", "faithful-eight", "Eight rotations, mirrored border", (build.head(mirrored),)),
        Entry("ablations", name, title, (build.head(cheating),)),
        Entry(
            "ablations",
            f"{name}-rotation",
            f"{title}: rotation accuracy",
            (cheating,),
            value="rotation_accuracy",
        ),
    ]


ITEMS: dict[str, Callable[[Builder], list[Entry]]] = {
    "table3": table3,
    "table1": table1,
    "figure5b": figure5b,
    "table2": table2,
    "figure5a": figure5a,
    "figure3": figure3,
    "figure4": figure4,
    "extras": extras,
    "ablations": ablations,
}
"""Table or figure -> its entries for one seed, in the order in which they are computed."""


def make_plan(settings: StudySettings, seeds: Seeds, only: Sequence[str] = ()) -> list[Entry]:
    """Return all requested entries, each with one cell per seed.

    Args:
        settings: settings of the study.
        seeds: numbers of seeds.
        only: items, or ``item/name`` for one entry; empty for everything.

    Raises:
        ArgumentError: an unknown item or entry.
    """
    builders = [Builder(settings, seed) for seed in range(seeds.headline)]
    known: dict[str, Entry] = {}
    for make_entries in ITEMS.values():
        for versions in zip(*(make_entries(build) for build in builders), strict=True):
            first = versions[0]
            repeated = versions if first.headline else versions[: seeds.every]
            cells = tuple(dict.fromkeys(entry.cells[0] for entry in repeated))
            known[f"{first.item}/{first.name}"] = replace(first, cells=cells)
    for wish in only:
        if wish not in ITEMS and wish not in known:
            item = wish.partition("/")[0]
            choices = [name for name in known if name.startswith(f"{item}/")] or list(ITEMS)
            near = difflib.get_close_matches(wish, choices, n=3, cutoff=0.85)
            remedy = f"did you mean {' or '.join(near)}?" if near else f"choose from {', '.join(choices)}"
            raise ArgumentError(f"only holds {wish!r}; {remedy}")
    return [entry for name, entry in known.items() if not only or name in only or entry.item in only]


def cells_in_order(entries: Sequence[Entry]) -> list[StudyCell]:
    """Return the cells of all entries, one seed after another, so that a study in progress has whole tables.

    Hand-made features come last: they need no accelerator, which may be available only for a while.
    """
    seeds = max((len(entry.cells) for entry in entries), default=0)
    cells = [entry.cells[seed] for seed in range(seeds) for entry in entries if seed < len(entry.cells)]
    return sorted(dict.fromkeys(cells), key=lambda cell: cell.kind == "classical")

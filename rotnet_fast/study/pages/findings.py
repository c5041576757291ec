"""What each figure of a report shows, as one sentence from its numbers: the title of the figure.

Where the numbers behind a finding have not been run, the sentence only says what is drawn.
Importing this module does not import torch.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from rotnet_fast import paper
from rotnet_fast.plain import counted
from rotnet_fast.protocols.result import BATCHNORM_MODES
from rotnet_fast.study.pages.ablations import ablated_pairs
from rotnet_fast.study.pages.classes import class_accuracies, tested_classes
from rotnet_fast.study.pages.orderings import FAILS, HOLDS, NOISE, better, compare, find_correlation
from rotnet_fast.study.pages.tables import mean_difference
from rotnet_fast.study.plan import OTHER_PRETEXT_TASKS
from rotnet_fast.study.summary import Number, Study


def best_block(study: Study) -> str:
    """Say which block of each network has the best features (Table 1)."""
    best = {}
    for blocks, published in paper.NONLINEAR_HEAD.items():
        means = [study.number("table1", f"{blocks}-{layer}").mean for layer in published]
        known = [mean for mean in means if mean is not None]
        if len(known) == len(means):
            best[blocks] = 1 + known.index(max(known))
    if len(best) < len(paper.NONLINEAR_HEAD):
        return "Accuracy of a non-linear head, by the block that it sits on"
    if len(set(best.values())) == 1:
        return f"The best features are those of block {best[4]}, in networks of 3, 4 and 5 blocks alike"
    places = ", ".join(f"{place} of {blocks}" for blocks, place in best.items())
    return f"The best features are those of block {places}"


def best_rotations(study: Study) -> str:
    """Say which set of rotations is best, and by how much (Table 2)."""
    numbers = study.of("table2")
    if any(number.mean is None for number in numbers):
        return "Accuracy by the rotations that the network tells apart"
    best, second = sorted(numbers, key=lambda number: -(number.mean or 0.0))[:2]
    title = f"{best.entry.title} gives the best features: {best.mean:.1f} %"
    if mean_difference(best, second) is None:  # of no common seed
        return title
    return f"{title}, {_above(study, best, second, second.entry.title)}"


def distance_to_supervised(study: Study) -> str:
    """Say where RotNet stands between the supervised and the untrained network (Table 3)."""
    ours, supervised = study.number("table3", "rotnet-conv"), study.number("table3", "supervised")
    untrained = better(study.number("table3", f"random-conv-{mode}") for mode in BATCHNORM_MODES)
    if ours.mean is None:
        return "Frozen, fine-tuned, supervised and classical features"
    parts = [
        _above(study, ours, other, name)
        for other, name in ((supervised, "supervised"), (untrained, "an untrained network"))
        if mean_difference(ours, other) is not None
    ]
    return f"RotNet + conv: {', '.join([f'{ours.mean:.1f} %', *parts])}"


def other_features(study: Study) -> str:
    """Say where RotNet's features stand beside other ones under the same head; empty where none was run."""
    ours = study.number("table3", "rotnet-conv")
    others = {f"{task}-conv": f"the {facts.title.lower()}" for task, facts in OTHER_PRETEXT_TASKS.items()}
    others["scattering-conv"] = "scattering"
    parts = [
        _above(study, ours, number, others[number.entry.name])
        for number in study.of("table3")
        if number.entry.name in others and mean_difference(ours, number) is not None
    ]
    return f"Under the same conv head, RotNet is {', '.join(parts)}." if parts else ""


def rise_together(study: Study) -> str:
    """Say whether both accuracies rise together over the pretraining (Figure 5a)."""
    found = find_correlation(study)
    if found.overall is None:
        return "Rotation and object accuracy over the pretraining"
    rho = f"rank correlation {found.overall:+.2f}"
    says = {
        HOLDS: "The better the rotations are told apart, the better the objects",
        FAILS: "The better the rotations are told apart, the worse the objects",
        NOISE: "No clear relation of rotation and object accuracy over the pretraining",
    }
    return f"{says[found.verdict]}: {rho}"


def few_labels(study: Study) -> str:
    """Say with how many labels RotNet is above the supervised network, beyond noise (Figure 5b)."""
    verdicts = {}
    for count in study.settings.labels_per_class:
        ours, supervised = (study.number("figure5b", f"{name}-{count}") for name in ("rotnet", "supervised"))
        if mean_difference(ours, supervised) is not None:
            verdicts[count] = compare(ours, supervised).verdict
    if not verdicts:
        return "RotNet and the supervised network with few labels"
    ahead = [count for count, verdict in verdicts.items() if verdict == HOLDS]
    behind = [count for count, verdict in verdicts.items() if verdict == FAILS]
    if not ahead and not behind:
        return "RotNet and the supervised network are within noise with every number of labels"
    parts = []
    if ahead:
        parts.append(f"ahead with {_counts(study, ahead)}")
    if behind:
        parts.append(f"behind with {_counts(study, behind)}")
    unit = "label per class" if (behind or ahead) == [1] else "labels per class"
    return f"RotNet is {' and '.join(parts)} {unit}"


def best_features(study: Study) -> str:
    """Say which block is best for nearest neighbours and for a linear probe."""
    parts = []
    for kind, name in (("knn", "kNN"), ("linear", "linear probe")):
        means = [study.number("extras", f"{kind}-conv{block}").mean for block in range(1, 5)]
        known = [mean for mean in means if mean is not None]
        if len(known) == len(means):
            parts.append(f"{name} {max(known):.1f} % on block {1 + known.index(max(known))}")
    if not parts:
        return "kNN and linear probes by block"
    return f"Best without a trained head: {', '.join(parts)}"


def best_and_worst_class(study: Study) -> str:
    """Say in how many classes RotNet is above the supervised network, and where it is furthest below."""
    ours, theirs = class_accuracies(study).values()
    names = study.settings.data.classes
    if not ours.keys() & theirs.keys():
        return "RotNet + conv, class by class"
    differences = {
        names[label]: statistics.fmean(ours[seed][label] - theirs[seed][label] for seed in ours)
        for label in tested_classes(study)
    }
    above = sum(value > 0 for value in differences.values())
    worst = min(differences, key=lambda name: differences[name])
    text = f"RotNet + conv is above the supervised network in {above} of {counted(len(differences), 'class')}"
    if differences[worst] < 0:
        text += f"; furthest below in {worst}, by {-differences[worst]:.1f} points"
    return text


def most_confused(matrix: Sequence[Sequence[int]], classes: Sequence[str]) -> str:
    """Say which class is most often taken for which, as the end of a title; empty where none is."""
    shares = {
        (row, column): 100 * count / sum(counts)
        for row, counts in enumerate(matrix)
        for column, count in enumerate(counts)
        if row != column and count
    }
    if not shares:
        return ""
    (row, column), share = max(shares.items(), key=lambda item: item[1])
    return f"; most often, {classes[row]} is taken for {classes[column]} ({share:.1f} %)"


def costliest(study: Study) -> str:
    """Say which ablation costs most object accuracy.

    Rotation accuracies are left out: some mistakes change the pretext task's test itself.
    """
    found = {
        number.entry.title: difference
        for number, faithful in ablated_pairs(study)
        if number.entry.value == "accuracy" and (difference := mean_difference(number, faithful)) is not None
    }
    if not found or min(found.values()) >= 0:
        return "What each known mistake costs"
    title = min(found, key=lambda title: found[title])
    return f"The costliest mistake, at {-found[title]:.1f} points: {title[0].lower()}{title[1:]}"


def _above(study: Study, number: Number, other: Number, name: str) -> str:
    """Say how far a number is above or below another one, and whether that is noise."""
    difference = mean_difference(number, other)
    assert difference is not None
    how = "above" if difference >= 0 else "below"
    noise = " (within noise)" if compare(number, other).verdict == NOISE else ""
    return f"{abs(difference):.1f} points {how} {name}{noise}"


def _counts(study: Study, counts: Sequence[int]) -> str:
    """List numbers of labels: 4; 4 and 20; 4, 20 and 80 or more."""
    *first, last = (study.settings.labels(count).partition(" label")[0] for count in counts)
    return f"{', '.join(first)} and {last}" if first else last

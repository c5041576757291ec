"""The orderings that the method is known by, each with its figures and whether it holds here.

Importing this module does not import torch.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from rotnet_fast import paper
from rotnet_fast.protocols.result import BATCHNORM_MODES, NO_VALUE, points
from rotnet_fast.study.pages.document import NOT_RUN, Block, Paragraph, Section, Table
from rotnet_fast.study.pages.tables import data_set
from rotnet_fast.study.paired import SIGNIFICANCE, Paired, over_seeds, paired
from rotnet_fast.study.plan import FEW_LABELS, FINE_TUNING_RATES
from rotnet_fast.study.summary import Number, Study

HOLDS = "holds"
FAILS = "does not hold"
NOISE = "within noise"

EARLY = 2
"""Position among the snapshots, after 40 % of the pretraining, by which object accuracy has saturated."""


@dataclass(frozen=True)
class Step:
    """One "a > b" of an ordering.

    Attributes:
        higher, lower: names of the two numbers.
        means: their means over the seeds that both have; None without a common seed.
        by_seed: seed -> higher minus lower, in points.
        standard_error: standard error of the mean difference, in points.
        p_value: how often chance gives a difference as large, in either direction; None where none was taken.
        verdict: ``HOLDS``, ``FAILS``, ``NOISE`` or ``NOT_RUN``.
        published: higher minus lower in the paper, on CIFAR-10.
    """

    higher: str
    lower: str
    means: tuple[float, float] | None
    by_seed: Mapping[int, float]
    standard_error: float
    p_value: float | None
    verdict: str
    published: float | None

    @property
    def difference(self) -> float | None:
        """Mean over the seeds, in points."""
        return statistics.fmean(self.by_seed.values()) if self.by_seed else None


@dataclass(frozen=True)
class Ordering:
    """A claim, its steps, and whether all of them hold."""

    claim: str
    steps: tuple[Step, ...]

    @property
    def verdict(self) -> str:
        """The worst of the steps: one that fails, else one not run, else one within noise."""
        verdicts = {step.verdict for step in self.steps}
        return next(verdict for verdict in (FAILS, NOT_RUN, NOISE, HOLDS) if verdict in verdicts)


@dataclass(frozen=True)
class Correlation:
    """Whether two accuracies rise together over the epochs of the pretraining.

    Attributes:
        by_seed: seed -> Spearman's rank correlation; None where one of the accuracies is constant.
        overall: rank correlation of the means over the seeds.
        p_value: how often chance gives a correlation as strong and of the same sign; exact.
        verdict: as in `Step`.
    """

    claim: str
    points: int
    by_seed: Mapping[int, float | None]
    overall: float | None
    p_value: float | None
    verdict: str


def find_orderings(study: Study) -> list[Ordering]:
    """Check all orderings of accuracies against the study's numbers."""
    layers = {
        blocks: {layer: study.number("table1", f"{blocks}-{layer}") for layer in published}
        for blocks, published in paper.NONLINEAR_HEAD.items()
    }
    four = layers[4]
    chain = [four["conv2"], four["conv3"], four["conv1"], four["conv4"]]
    collapses = [
        compare(of_network[f"conv{blocks - 1}"], of_network[f"conv{blocks}"])
        for blocks, of_network in layers.items()
    ]
    quarters, eight = study.number("table2", "0-90-180-270"), study.number("table2", "eight")
    half, sideways = study.number("table2", "0-180"), study.number("table2", "90-270")
    supervised = study.number("table3", "supervised")
    conv, nonlinear = study.number("table3", "rotnet-conv"), study.number("table3", "rotnet-nonlinear")
    untrained = better(study.number("table3", f"random-conv-{mode}") for mode in BATCHNORM_MODES)
    tuned = {
        head: better(study.number("table3", f"finetuned-{head}-lr{lr:g}") for lr in FINE_TUNING_RATES)
        for head in ("conv", "nonlinear")
    }
    few_labels = {
        count: compare(
            study.number("figure5b", f"rotnet-{count}"),
            study.number("figure5b", f"supervised-{count}"),
        )
        for count in study.settings.labels_per_class[: FEW_LABELS + 1]
    }
    *few, most = few_labels
    lying = study.number("ablations", "turned-images")
    return [
        Ordering("4 blocks: conv2 > conv3 > conv1 > conv4", _steps(chain)),
        Ordering("The last block collapses, of 3, 4 and 5 blocks", tuple(collapses)),
        *(
            Ordering(f"The deeper the network, the better {layer}: 5 > 4 > 3 blocks", _steps(deeper))
            for layer in ("conv1", "conv2")
            for deeper in [[layers[blocks][layer] for blocks in (5, 4, 3)]]
        ),
        Ordering(
            "Four rotations > {0°, 180°} > {90°, 270°}",
            (*_steps([quarters, half, sideways]), compare(quarters, sideways)),
        ),
        Ordering("Four rotations > eight", (compare(quarters, eight),)),
        Ordering(
            "Supervised > conv head > non-linear head > untrained network (better BatchNorm mode)",
            _steps([supervised, conv, nonlinear, untrained]),
        ),
        Ordering("Conv head: pretrained > untrained network", (compare(conv, untrained),)),
        Ordering(
            f"RotNet > supervised with {', '.join(map(str, few[:-1]))} and {study.settings.labels(few[-1])}",
            tuple(few_labels[count] for count in few),
        ),
        Ordering(
            f"RotNet > supervised still with {study.settings.labels(most)}",
            (few_labels[most],),
        ),
        Ordering(
            "Fine-tuning (better learning rate) improves both heads",
            (compare(tuned["conv"], conv), compare(tuned["nonlinear"], nonlinear)),
        ),
        Ordering(
            "Upright images matter: pretraining on them > on images turned at random",
            (compare(conv, lying),),
        ),
        Ordering("Object accuracy saturates before rotation accuracy", (saturation(study),)),
        Ordering(
            "Attention resembles that of the supervised network: same image > another image",
            resemblances(study),
        ),
    ]


def saturation(study: Study) -> Step:
    """Compare how much of its rise object accuracy has made early in the pretraining, and rotation accuracy.

    The standard error takes the accuracies as if they were of different images, which overestimates it.
    """
    epochs = study.settings.snapshot_epochs
    places = (0, EARLY, len(epochs) - 1)
    series = {
        name: [study.number("figure5a", f"{name}-{epochs[place]}") for place in places]
        for name in ("object", "rotation")
    }
    after = f"share of the rise of {{}} accuracy by epoch {epochs[EARLY]} of {epochs[-1]}, in %"
    names = after.format("object"), after.format("rotation")
    known = list(paper.CORRELATION.values())
    of_paper = [_share([known[place][which] for place in places]) for which in (1, 0)]
    published = None if None in of_paper else (of_paper[0] or 0.0) - (of_paper[1] or 0.0)
    seeds = sorted(set.intersection(*(set(number.by_seed) for its in series.values() for number in its)))
    if not seeds:
        return Step(*names, None, {}, math.nan, None, NOT_RUN, published)
    by_seed, shares = {}, []
    for seed in seeds:
        pair = [_share([number.by_seed[seed] for number in series[name]]) for name in ("object", "rotation")]
        if pair[0] is None or pair[1] is None:  # an accuracy that does not rise has no share of a rise
            return Step(*names, None, {}, math.nan, None, NOISE, published)
        by_seed[seed] = pair[0] - pair[1]
        shares.append(pair)
    errors = []
    for name in ("object", "rotation"):  # views of one image are no independent tests
        levels = [statistics.fmean(number.by_seed[seed] for seed in seeds) for number in series[name]]
        share = (_share(levels) or 0.0) / 100
        variances = [study.standard_error(level) ** 2 for level in levels]
        weights = ((1 - share) ** 2, 1.0, share**2)
        spread = sum(weight * variance for weight, variance in zip(weights, variances, strict=True))
        errors.append(100 * math.sqrt(spread) / (levels[-1] - levels[0]))
    means = tuple(statistics.fmean(pair[which] or 0.0 for pair in shares) for which in (0, 1))
    return _step_of(names, (means[0], means[1]), by_seed, over_seeds(by_seed.values(), *errors), published)


def _share(levels: Sequence[float]) -> float | None:
    """Return the share, in %, of the rise from the first level to the last that the middle one has made."""
    first, middle, last = levels
    return 100 * (middle - first) / (last - first) if last > first else None


def resemblances(study: Study) -> tuple[Step, ...]:
    """Compare the attention of both networks on the same image with that on different ones, by layer."""
    results = study.results(study.entry("figure3", "attention"))
    found = {seed: result["resemblance"] for seed, result in results.items() if "resemblance" in result}
    if not found:
        names = ("attention of both networks on the same image", "on another image")
        return (Step(*names, None, {}, math.nan, None, NOT_RUN, None),)
    steps = []
    first = next(iter(found.values()))
    for place, (layers, power) in enumerate(zip(first["layers"], first["powers"], strict=True)):
        shown = " and ".join(dict.fromkeys(layers))
        names = (f"correlation of attention, {shown}, p = {power}", "on another image")
        same, other, errors = (
            {seed: its[name][place] for seed, its in found.items()}
            for name in ("same_image", "chance", "standard_error")
        )
        if any(value is None for values in (same, other, errors) for value in values.values()):
            steps.append(Step(*names, None, {}, math.nan, None, NOISE, None))  # constant maps
            continue
        by_seed = {seed: same[seed] - other[seed] for seed in found}
        means = statistics.fmean(same.values()), statistics.fmean(other.values())
        alike = over_seeds(by_seed.values(), statistics.fmean(errors.values()))
        steps.append(_step_of(names, means, by_seed, alike, None))
    return tuple(steps)


def find_correlation(study: Study) -> Correlation:
    """Check Figure 5a's claim: the better the rotations are told apart, the better the objects."""
    claim = "Rotation and object accuracy rise together over the pretraining"
    epochs = study.settings.snapshot_epochs
    pairs = [
        (study.number("figure5a", f"rotation-{epoch}"), study.number("figure5a", f"object-{epoch}"))
        for epoch in epochs
    ]
    seeds = sorted(set.intersection(*(set(number.by_seed) for pair in pairs for number in pair)))
    if not seeds:
        return Correlation(claim, len(epochs), {}, None, None, NOT_RUN)
    by_seed = {
        seed: spearman(
            [rotation.by_seed[seed] for rotation, _ in pairs], [objects.by_seed[seed] for _, objects in pairs]
        )
        for seed in seeds
    }
    rotations = [statistics.fmean(rotation.by_seed[seed] for seed in seeds) for rotation, _ in pairs]
    objects = [statistics.fmean(number.by_seed[seed] for seed in seeds) for _, number in pairs]
    overall = spearman(rotations, objects)
    p_value = None if overall is None else permutation_p_value(rotations, objects)
    if p_value is None or overall is None or p_value >= SIGNIFICANCE:
        verdict = NOISE
    else:
        verdict = HOLDS if overall > 0 else FAILS
    return Correlation(claim, len(epochs), by_seed, overall, p_value, verdict)


def better(numbers: Iterable[Number]) -> Number:
    """Return the number with the higher mean, or one that has not been run while there is any."""
    candidates = list(numbers)
    missing = [number for number in candidates if number.mean is None]
    return missing[0] if missing else max(candidates, key=lambda number: number.mean or 0.0)


def compare(higher: Number, lower: Number) -> Step:
    """Compare two numbers, by the seeds that both have.

    Classifiers are compared image by image, see `paired`.
    """
    seeds = sorted(set(higher.by_seed) & set(lower.by_seed))
    names = higher.entry.title, lower.entry.title
    published = None
    if higher.entry.published is not None and lower.entry.published is not None:
        published = higher.entry.published - lower.entry.published
    if not seeds:
        return Step(*names, None, {}, math.nan, None, NOT_RUN, published)
    by_seed = {seed: higher.by_seed[seed] - lower.by_seed[seed] for seed in seeds}
    means = tuple(statistics.fmean(number.by_seed[seed] for seed in seeds) for number in (higher, lower))
    found = paired(*([number.correct[seed] for seed in seeds] for number in (higher, lower)))
    return _step_of(names, (means[0], means[1]), by_seed, found, published)


def _step_of(
    names: tuple[str, str],
    means: tuple[float, float],
    by_seed: Mapping[int, float],
    found: Paired,
    published: float | None,
) -> Step:
    """Judge a difference."""
    verdict = judge(found.difference, found.p_value)
    return Step(*names, means, by_seed, found.standard_error, found.p_value, verdict, published)


def judge(difference: float, p_value: float) -> str:
    """Return the verdict on a difference that should be above 0."""
    if p_value >= SIGNIFICANCE:
        return NOISE
    return HOLDS if difference > 0 else FAILS


def spearman(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Return Spearman's rank correlation; None where all values of one are equal."""
    from scipy.stats import spearmanr  # here, because importing scipy.stats takes a second

    if min(len(set(first)), len(set(second))) < 2:
        return None
    return float(spearmanr(first, second).statistic)


def permutation_p_value(first: Sequence[float], second: Sequence[float]) -> float:
    """Return the share of all orders of ``second`` that correlate as strongly, with the same sign.

    One-sided and exact. Both have at least two different values; there are n! orders, so n is small.
    """
    from scipy.stats import permutation_test, rankdata

    found = spearman(first, second)
    assert found is not None
    others = rankdata(second)
    test = permutation_test(
        (rankdata(first),),
        lambda ranks, axis: (ranks * others).sum(axis),
        permutation_type="pairings",
        vectorized=True,
        n_resamples=math.inf,
        alternative="less" if found < 0 else "greater",
    )
    return float(test.pvalue)


_COUNTED = {
    HOLDS: (HOLDS, "hold"),
    NOISE: (NOISE, NOISE),
    FAILS: (FAILS, "do not hold"),
    NOT_RUN: (NOT_RUN, NOT_RUN),
}
"""Verdict -> how a sentence says it of one ordering, and of several."""


def orderings_sentence(orderings: Sequence[Ordering], correlation: Correlation) -> str:
    """Say how many orderings hold."""
    verdicts = Counter([ordering.verdict for ordering in orderings] + [correlation.verdict])
    parts = [
        f"{count} {texts[count > 1]}" for verdict, texts in _COUNTED.items() if (count := verdicts[verdict])
    ]
    return f"Of the method's {sum(verdicts.values())} orderings: {', '.join(parts)}."


def verdicts(study: Study, orderings: Sequence[Ordering], correlation: Correlation) -> tuple[Block, ...]:
    """Say how many orderings hold, and show which."""
    rows = [(ordering.claim, ordering.verdict) for ordering in orderings]
    rows.append((correlation.claim, correlation.verdict))
    caption = f"Does the method behave as published? On {data_set(study)}"
    return (
        Paragraph(orderings_sentence(orderings, correlation)),
        Table(caption, ("ordering", "verdict"), tuple(rows)),
    )


def orderings_section(study: Study, orderings: Sequence[Ordering], correlation: Correlation) -> Section:
    """Show the verdicts, then the figures of each."""
    has_reference = study.circumstances.has_reference
    overview = [
        (ordering.claim, ordering.verdict, _on_seeds(ordering), *([_published(ordering)] * has_reference))
        for ordering in orderings
    ]
    overview.append((correlation.claim, correlation.verdict, "", *([""] * has_reference)))
    steps = [
        (f"{step.higher} > {step.lower}", *_step(step, has_reference))
        for ordering in orderings
        for step in ordering.steps
    ]
    rho = NOT_RUN if correlation.verdict == NOT_RUN else _rho(correlation.overall)
    by_seed = ", ".join(map(_rho, correlation.by_seed.values()))
    chance = NO_VALUE if correlation.p_value is None else f"{correlation.p_value:.3f}"
    explained = (
        "An ordering of several steps holds if every step does. Classifiers are compared on the same test "
        "images: with one seed by McNemar's exact test, of the images about which exactly one of the two is "
        "right; with several by Student's t of the difference, whose error adds the spreads over images and "
        "seeds. A step is within noise "
        "if chance gives a difference as large, in either direction, in more than "
        f"{100 * SIGNIFICANCE:g} % of cases. Where two learning rates or BatchNorm modes were tried, the one "
        "with the higher test accuracy is shown."
    )
    return Section(
        "Orderings: does the method behave as published",
        (
            Paragraph(explained),
            Table(
                f"The method's orderings on {data_set(study)}",
                (
                    "ordering",
                    "verdict",
                    "seeds on which every step is above 0",
                    *(["in the paper"] * has_reference),
                ),
                tuple(overview),
            ),
            Table(
                f"Each step of the orderings with its figures, in % and points, {data_set(study)}",
                (
                    "step",
                    "figures",
                    "difference",
                    "standard error",
                    "p",
                    "by seed",
                    *([f"difference, {study.circumstances.published_name}"] * has_reference),
                    "verdict",
                ),
                tuple(steps),
                (1, 2, 3, 4, *([6] * has_reference)),
            ),
            Table(
                f"Spearman correlation of the two accuracies over the pretraining, {data_set(study)}",
                ("points", "correlation", "by seed", "p, one-sided, exact", "verdict"),
                ((str(correlation.points), rho, by_seed or NO_VALUE, chance, correlation.verdict),),
                (1, 3),
            ),
        ),
    )


def _steps(chain: Sequence[Number]) -> tuple[Step, ...]:
    return tuple(compare(higher, lower) for higher, lower in itertools.pairwise(chain))


def _step(step: Step, has_reference: bool) -> tuple[str, ...]:
    published = [points(step.published)] * has_reference
    if step.means is None:
        figures = NOT_RUN if step.verdict == NOT_RUN else "undefined"
        return (figures, *[NO_VALUE] * 4, *published, step.verdict)
    sign = {HOLDS: ">", FAILS: "<", NOISE: "≈"}[step.verdict]
    figures = f"{step.means[0]:.2f} {sign} {step.means[1]:.2f}"
    by_seed = ", ".join(points(difference) for difference in step.by_seed.values())
    error, p_value = f"{step.standard_error:.2f}", _p(step.p_value)
    return (figures, points(step.difference), error, p_value, by_seed, *published, step.verdict)


def _p(p_value: float | None) -> str:
    if p_value is None:
        return NO_VALUE
    return "< 0.001" if p_value < 0.001 else f"{p_value:.3f}"


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

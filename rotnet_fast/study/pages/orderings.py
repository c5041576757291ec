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
from rotnet_fast.study.plan import FINE_TUNING_RATES
from rotnet_fast.study.summary import Number, Study

HOLDS = "holds"
FAILS = "does not hold"
NOISE = "within noise"

NOISE_ERRORS = 2.0
"""A difference is noise below this many standard errors."""

FEW_LABELS = 3
"""Numbers of labels per class, the smallest ones, at which RotNet is above the supervised network: 20, 100
and 400 of CIFAR-10's 5,000."""

SIGNIFICANCE = 0.05
"""A correlation is noise where chance gives one as strong, of that sign, more often than this."""


@dataclass(frozen=True)
class Step:
    """One "a > b" of an ordering.

    Attributes:
        higher, lower: names of the two numbers.
        means: their means over the seeds that both have; None without a common seed.
        by_seed: seed -> higher minus lower, in points.
        standard_error: standard error of the mean difference, in points.
        verdict: ``HOLDS``, ``FAILS``, ``NOISE`` or ``NOT_RUN``.
        published: higher minus lower in the paper, on CIFAR-10.
    """

    higher: str
    lower: str
    means: tuple[float, float] | None
    by_seed: Mapping[int, float]
    standard_error: float
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
        compare(study, of_network[f"conv{blocks - 1}"], of_network[f"conv{blocks}"])
        for blocks, of_network in layers.items()
    ]
    quarters = study.number("table2", "0-90-180-270")
    half, sideways = study.number("table2", "0-180"), study.number("table2", "90-270")
    supervised = study.number("table3", "supervised")
    conv, nonlinear = study.number("table3", "rotnet-conv"), study.number("table3", "rotnet-nonlinear")
    untrained = better(study.number("table3", f"random-conv-{mode}") for mode in BATCHNORM_MODES)
    tuned = better(study.number("table3", f"finetuned-conv-lr{lr:g}") for lr in FINE_TUNING_RATES)
    few = study.settings.labels_per_class[:FEW_LABELS]
    few_labels = [
        compare(
            study,
            study.number("figure5b", f"rotnet-{count}"),
            study.number("figure5b", f"supervised-{count}"),
        )
        for count in few
    ]
    return [
        Ordering("4 blocks: conv2 > conv3 > conv1 > conv4", _steps(study, chain)),
        Ordering("The last block collapses, of 3, 4 and 5 blocks", tuple(collapses)),
        Ordering(
            "Four rotations > {0°, 180°} > {90°, 270°}",
            (*_steps(study, [quarters, half, sideways]), compare(study, quarters, sideways)),
        ),
        Ordering(
            "Supervised > conv head > non-linear head > untrained network (better BatchNorm mode)",
            _steps(study, [supervised, conv, nonlinear, untrained]),
        ),
        Ordering("Conv head: pretrained > untrained network", (compare(study, conv, untrained),)),
        Ordering(
            f"RotNet > supervised with {', '.join(map(str, few[:-1]))} and {few[-1]} labels per class",
            tuple(few_labels),
        ),
        Ordering("Conv head: fine-tuned (better learning rate) > frozen", (compare(study, tuned, conv),)),
    ]


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


def compare(study: Study, higher: Number, lower: Number) -> Step:
    """Compare two numbers, by the seeds that both have.

    The standard error of the difference adds those of both accuracies, as if their test images were
    different ones (they are the same, so it is an overestimate), and, for several seeds, that of the
    mean over the seeds.
    """
    seeds = sorted(set(higher.by_seed) & set(lower.by_seed))
    names = higher.entry.title, lower.entry.title
    published = None
    if higher.entry.published is not None and lower.entry.published is not None:
        published = higher.entry.published - lower.entry.published
    if not seeds:
        return Step(*names, None, {}, math.nan, NOT_RUN, published)
    by_seed = {seed: higher.by_seed[seed] - lower.by_seed[seed] for seed in seeds}
    means = tuple(statistics.fmean(number.by_seed[seed] for seed in seeds) for number in (higher, lower))
    of_test_set = math.hypot(*map(study.standard_error, means))
    of_seeds = statistics.stdev(by_seed.values()) / math.sqrt(len(seeds)) if len(seeds) > 1 else 0.0
    standard_error = math.hypot(of_test_set, of_seeds)
    verdict = judge(statistics.fmean(by_seed.values()), standard_error)
    return Step(*names, (means[0], means[1]), by_seed, standard_error, verdict, published)


def judge(difference: float, standard_error: float) -> str:
    """Return the verdict on a difference that should be above 0."""
    if difference == 0 or abs(difference) < NOISE_ERRORS * standard_error:
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
        "An ordering of several steps holds if every step does. A step is within noise if the "
        f"difference is smaller than {NOISE_ERRORS:g} standard errors. The standard error adds the binomial "
        "errors of both accuracies, as if their test images were different (they are the same, so it is an "
        "overestimate), and, for several seeds, that of the mean. Where two learning rates or BatchNorm "
        "modes were tried, the one with the higher test accuracy is shown."
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
                    "by seed",
                    *([f"difference, {study.circumstances.published_name}"] * has_reference),
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


def _steps(study: Study, chain: Sequence[Number]) -> tuple[Step, ...]:
    return tuple(compare(study, higher, lower) for higher, lower in itertools.pairwise(chain))


def _step(step: Step, has_reference: bool) -> tuple[str, ...]:
    published = [points(step.published)] * has_reference
    if step.means is None:
        return (NOT_RUN, NO_VALUE, NO_VALUE, NO_VALUE, *published, step.verdict)
    sign = {HOLDS: ">", FAILS: "<", NOISE: "≈"}[step.verdict]
    figures = f"{step.means[0]:.2f} {sign} {step.means[1]:.2f}"
    by_seed = ", ".join(points(difference) for difference in step.by_seed.values())
    return (figures, points(step.difference), f"{step.standard_error:.2f}", by_seed, *published, step.verdict)


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

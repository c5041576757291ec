"""The evaluation protocols: one driver each, and how an evaluation divides them into units."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from rotnet_fast.protocols.evaluation import (
    RELEASED,
    WHOLE_NETWORK,
    EvaluationSetup,
    Placement,
    Subject,
)
from rotnet_fast.protocols.knn import classify_features, knn_predict
from rotnet_fast.protocols.linear import linear_predict
from rotnet_fast.protocols.result import BATCHNORM_MODES, Cell, Outcome
from rotnet_fast.protocols.supervised import supervised
from rotnet_fast.protocols.svm import svm
from rotnet_fast.protocols.trained_heads import train_heads
from rotnet_fast.settings import Optimisation

Driver = Callable[[EvaluationSetup, Subject], dict[Placement, Outcome]]
"""Trains or fits the classifiers of a subject; returns the outcome of each placement."""

classify_pooled = partial(classify_features, classifiers={"knn": knn_predict, "linear": linear_predict})
"""Driver of classifiers on pooled features, of which a subject may have several."""

DRIVERS: dict[str, Driver] = {
    "head": partial(train_heads, frozen=True),
    "fine-tune": partial(train_heads, frozen=False),
    "supervised": supervised,
    "knn": classify_pooled,
    "linear": classify_pooled,
    "svm": svm,
}
"""Kind -> its driver, which evaluations and studies share."""


@dataclass(frozen=True)
class Unit:
    """A training or another piece of an evaluation that waits for no other piece.

    Attributes:
        kind: key of ``DRIVERS``.
        method, note: labels of its rows, see `rotnet_fast.protocols.result.Cell`.
        subject: argument of the driver.
    """

    kind: str
    method: str
    note: str
    subject: Subject

    @property
    def title(self) -> str:
        """Say what is trained or fitted, as in ``heads on frozen features of conv1 conv2``."""
        layers = " ".join(self.subject.layers)
        if self.kind == "supervised":
            return "supervised training of a whole network, from scratch"
        if self.kind == "fine-tune":
            ((_, head),) = self.subject.placements
            return f"fine-tuning up to {layers}, with a {head} head"
        what = {"head": "heads", "knn": "nearest neighbours", "linear": "linear probes"}[self.kind]
        on = "frozen features" if self.subject.is_pretrained else f"an untrained network ({self.note})"
        return f"{what} on {on}{' of' if self.subject.is_pretrained else ','} {layers}"

    def cells(self, setup: EvaluationSetup) -> list[Cell]:
        """Run it, and return its rows of the table."""
        found = DRIVERS[self.kind](setup, self.subject)
        return [
            Cell.of(self.method, layer or None, head or None, self.note, outcome.confusion)
            for (layer, head), outcome in found.items()
        ]


def protocol_units(
    layers: Sequence[str],
    heads: Sequence[str],
    recipe: Optimisation,
    supervised_recipe: Optimisation,
    modes: Sequence[str] = BATCHNORM_MODES,
) -> dict[str, list[Unit]]:
    """Divide every protocol of an evaluation into units.

    Args:
        layers, heads: where classifiers are trained, and which heads.
        recipe: how heads are trained, frozen or fine-tuned.
        supervised_recipe: how the supervised network is trained.
        modes: those of ``BATCHNORM_MODES`` in which untrained networks are measured.

    Returns:
        Name of each protocol -> its units, in the order of its rows.
    """
    placements = tuple((layer, head) for layer in layers for head in heads)
    neighbours = tuple((layer, "knn") for layer in layers)
    probes = tuple((layer, "linear") for layer in layers)
    return {
        "frozen": [_on_pretrained("head", placements, recipe)],
        "random-init": _on_untrained("head", placements, modes, recipe),
        "fine-tune": [
            Unit(
                "fine-tune",
                "fine-tune",
                f"lr {recipe.lr:g}",
                Subject(((layer, head),), name=f"fine-tune-{layer}-{head}", recipe=recipe),
            )
            for layer, head in placements
        ],
        "supervised": [
            Unit(
                "supervised",
                "supervised",
                "",
                Subject((WHOLE_NETWORK,), False, name="supervised", recipe=supervised_recipe),
            )
        ],
        "knn": [_on_pretrained("knn", neighbours)],
        "random-init-knn": _on_untrained("knn", neighbours, modes),
        "linear": [_on_pretrained("linear", probes)],
        "random-init-linear": _on_untrained("linear", probes, modes),
    }


def _on_pretrained(kind: str, placements: tuple[Placement, ...], recipe: Optimisation = RELEASED) -> Unit:
    return Unit(kind, "frozen", "", Subject(placements, name="frozen", recipe=recipe))


def _on_untrained(
    kind: str, placements: tuple[Placement, ...], modes: Sequence[str], recipe: Optimisation = RELEASED
) -> list[Unit]:
    return [
        Unit(
            kind,
            "random-init",
            f"{mode} statistics",
            Subject(placements, False, mode, f"random-init-{mode}-statistics", recipe),
        )
        for mode in modes
    ]

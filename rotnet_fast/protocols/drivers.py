"""The evaluation protocols by name."""

from __future__ import annotations

from collections.abc import Callable

from rotnet_fast.protocols.evaluation import EvaluationSetup, Unit
from rotnet_fast.protocols.fine_tune import fine_tune
from rotnet_fast.protocols.frozen import frozen, random_init
from rotnet_fast.protocols.knn import knn, random_init_knn
from rotnet_fast.protocols.linear import linear, random_init_linear
from rotnet_fast.protocols.supervised import supervised

PROTOCOLS: dict[str, Callable[[EvaluationSetup], list[Unit]]] = {
    "frozen": frozen,
    "random-init": random_init,
    "fine-tune": fine_tune,
    "supervised": supervised,
    "knn": knn,
    "random-init-knn": random_init_knn,
    "linear": linear,
    "random-init-linear": random_init_linear,
}
"""Name -> function that divides the protocol into units, none of which waits for another.

Called in order, they give the protocol's rows of the report."""

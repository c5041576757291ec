"""How the training loop trains."""

from __future__ import annotations

from dataclasses import dataclass

from rotnet_fast.engine.precision import Precision


@dataclass(frozen=True)
class TrainerSettings:
    """How to train; what to train is the task's business.

    Attributes:
        epochs: passes over the loader.
        precision: number format of the forward and backward pass.
        nesterov: Nesterov's momentum.
        momentum, weight_decay: of SGD; weight decay acts on all parameters, biases and BatchNorm's too.
        eval_every: evaluate after every so many epochs, and always after the last.
        log_every: steps per logging interval, each of which costs one wait for the device; None for 20 on a
            CPU and 500 on a GPU.
        checkpoint_every_steps: save in mid-epoch after so many steps; None for never.
        checkpoint_every_seconds: save in mid-epoch after so many seconds; None for never.
        snapshot_epochs: after so many epochs, evaluate, and keep ``snapshots/epoch-XXXX.pt`` for good.
        graph: ``auto``, ``on`` or ``off``, see `rotnet_fast.engine.replay.use_graph`.
        progress: progress bar and a printed line per epoch.
        tensorboard: write TensorBoard events.
    """

    epochs: int
    precision: Precision
    nesterov: bool = True
    momentum: float = 0.9
    weight_decay: float = 5e-4
    eval_every: int = 1
    log_every: int | None = None
    checkpoint_every_steps: int | None = None
    checkpoint_every_seconds: float | None = 300.0
    snapshot_epochs: tuple[int, ...] = ()
    graph: str = "auto"
    progress: bool = True
    tensorboard: bool = True

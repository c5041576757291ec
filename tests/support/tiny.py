"""A pretraining that takes a fraction of a second, shared by the tests of the engine."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rotnet_fast.config import PretrainConfig
from rotnet_fast.data import datasets, digits

STEPS_PER_EPOCH = 3
EPOCHS = 2

_TINY = PretrainConfig(
    preset="quickstart",
    dataset="digits",
    image_size=16,
    limit_train=40,  # batches of 16, 16 and 8
    limit_test=20,
    blocks=3,
    width=0.05,
    epochs=EPOCHS,
    batch_size=16,
    lr=0.05,
    schedule="linear",
    device="cpu",
    precision="fp32",
    log_every=2,
    checkpoint_every_steps=1,
    tensorboard=False,
)


def tiny_config(output: Path, **changes: Any) -> PretrainConfig:
    """The tiny pretraining in the folder ``output``, with other settings where asked for."""
    return replace(_TINY, output=output, **changes)


def folder_config(output: Path, images: Path, settings: str, **changes: Any) -> PretrainConfig:
    """The tiny pretraining on a folder of images; ``settings`` are its precision, loader and optimiser."""
    precision, loader, optimizer = settings.split()
    kinds: dict[str, Any] = {"precision": precision, "loader": loader, "optimizer": optimizer}
    data: dict[str, Any] = {"dataset": "folder", "data_dir": images, "limit_train": None, "limit_test": None}
    return tiny_config(output, **{**data, **kinds, "log_every": 1, "resume": "auto", **changes})


@contextmanager
def read_digits_once() -> Iterator[None]:
    """Context in which the digits are made once, which takes longer than a tiny training."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(datasets.DATASETS, "digits", functools.cache(digits.load))
        yield

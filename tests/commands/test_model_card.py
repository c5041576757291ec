"""What a model card says of the training is what was done."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny import tiny_config

from rotnet_fast.config import PretrainConfig
from rotnet_fast.model_card import CardFacts, render_card

BLACK = "random crop within a black border of 4 pixels"
FLIP = "left-right flip with probability 0.5"
EVERY = "then every rotation of each image"
SQUARE = f"{EVERY}'s central square of 11.3 pixels, enlarged to 16"
CROP = (
    "random crop of {} % of the image's area, with a width of {} times its height, resized to 16 x 16 pixels"
)


def card(**changes: Any) -> str:
    """The card of a tiny pretraining with another recipe."""
    ablation, metrics = changes.pop("ablation", ""), changes.pop("metrics", {})
    facts = CardFacts(
        config=PretrainConfig.from_recipe({**tiny_config(Path()).recipe(), **changes}),
        in_channels=3,
        ablation=ablation,
        epochs=2,
        steps=0,
        metrics=metrics,
        preset=None,
        dataset_name="Somewhere",
        train_images=40,
        test_images=20,
        hardware=None,
        evaluations=(),
        feature_shapes={"conv2": (8, 4, 4)},
        default_layer="conv2",
        parameters=1000,
        state_hash="0",
        file_name="model.safetensors",
        file_sha256="0",
        data_licence=None,
    )
    return render_card(facts)


@pytest.mark.parametrize(
    ("changes", "augmentation"),
    [
        ({}, f"{BLACK}, {FLIP}; {EVERY}"),
        ({"pad": 0, "flip_prob": 0.0}, f"no crop, no flip; {EVERY}"),
        ({"rotations": [90, 270]}, f"{BLACK}, {FLIP}; {EVERY}"),
        (
            {"rotations": [0, 45, 90, 135, 180, 225, 270, 315]},
            f"random crop within a mirrored border of 4 pixels, {FLIP}; {SQUARE}",
        ),
        ({"crop": "resized"}, f"{CROP.format('8 to 100', '0.75 to 1.33')}, {FLIP}; {EVERY}"),
        (
            {"crop": "resized", "crop_scale": [0.2, 0.5], "crop_ratio": [1.0, 1.0], "rotations": [0, 10]},
            f"{CROP.format('20 to 50', '1 to 1')}, {FLIP}; {SQUARE}",
        ),
        (
            {"ablation": "FlipAfterRotation"},
            f"{BLACK}; {EVERY}; then left-right flip of each view with probability 0.5",
        ),
        ({"ablation": "OneRotation"}, f"{BLACK}, {FLIP}; then one random rotation of each image"),
    ],
)
def test_the_augmentation_is_told_as_it_was(changes: dict[str, Any], augmentation: str) -> None:
    assert f"\n- augmentation: {augmentation}\n" in card(**changes)


@pytest.mark.parametrize(
    ("changes", "views"), [({}, 64), ({"rotations": [0, 180]}, 32), ({"ablation": "OneRotation"}, 16)]
)
def test_views_are_counted_as_they_were_shown(changes: dict[str, Any], views: int) -> None:
    assert f"batches of 16 images ({views} views)" in card(**changes)


def test_what_was_tested_on_held_out_training_images_is_not_said_to_be_of_test_images() -> None:
    measured = {"rotation_accuracy": 90.0}
    of_test, of_validation = card(metrics=measured), card(metrics=measured, validation=20)
    assert "      split: test\n" in of_test
    assert "90.00 %** on 20 test images" in of_test
    assert "      split: validation\n" in of_validation
    assert "90.00 %** on 20 validation images" in of_validation
    assert "test image" not in of_validation

"""Tables show our numbers beside the right published ones."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
from study_tools import cifar10_data

from rotnet_fast import paper
from rotnet_fast.errors import ArgumentError
from rotnet_fast.protocols.result import Circumstances, format_table, load_results, render
from rotnet_fast.report import report as main
from rotnet_fast.rotations import FOUR_ROTATIONS
from rotnet_fast.study.settings import StudyPreset, study_settings
from rotnet_fast.study.summary import Study

SURE: dict[str, Any] = {"confusion": [[9000, 1000], [1000, 9000]]}


def results(dataset: str = "cifar10", **settings: Any) -> dict[str, Any]:
    return {
        "dataset": {
            "name": dataset,
            "display_name": "Somewhere",
            "classes": ["cat", "dog"],
            "train_images": 50000,
            "test_images": 10000,
            "tested_on": "test",
        },
        "network": {
            "model": "nin",
            "blocks": 4,
            "width": 1.0,
            "pretext_task": "rotation",
            "rotations": list(FOUR_ROTATIONS),
        },
        "pretraining": {"epochs": 100, "is_limited": False, "has_same_images": True},
        "settings": {"images_per_class": None, "epochs": 100, "preset": "paper", **settings},
        "cells": [
            {"method": "frozen", "layer": "conv2", "head": "conv", "note": "", "accuracy": 90.16, **SURE},
            {
                "method": "random-init",
                "layer": "conv2",
                "head": "knn",
                "note": "some",
                "accuracy": 50.0,
                **SURE,
            },
        ],
    }


def rows(table: str) -> list[list[str]]:
    return [line.split() for line in table.splitlines()]


def test_cifar10_rows_have_published_number_and_difference() -> None:
    table = rows(render(results()))
    assert ["method", "layer", "head", "variant", "ours,", "%", "published", "difference"] in table
    assert ["frozen", "conv2", "conv", "-", "90.16", "91.16", "-1.00"] in table
    assert ["random-init", "conv2", "knn", "some", "50.00", "-", "-"] in table


NOT_TAKEN = (
    "The CIFAR-10 reference is the paper's number, for orientation only: {}; no difference to it is taken."
)


@pytest.mark.parametrize(
    ("part", "changes", "reason"),
    [
        ("dataset", {"train_images": 49_999}, "only some of the images are used"),
        ("dataset", {"test_images": 1000}, "only some of the images are used"),
        ("network", {"width": 0.5}, "the network has 0.5 of the paper's width"),
        ("settings", {"epochs": 10}, "the shortest training has 10 of the paper's 100 epochs"),
        ("pretraining", {"epochs": 99}, "the shortest training has 99 of the paper's 100 epochs"),
        ("pretraining", {"is_limited": True}, "only some of the images are used"),
        ("pretraining", {"has_same_images": False}, "the network was pretrained on other images"),
    ],
)
def test_what_is_not_the_papers_experiment_gets_a_reference_and_no_difference(
    part: str, changes: dict[str, Any], reason: str
) -> None:
    found = results()
    found[part] |= changes
    table = render(found)
    assert "CIFAR-10 reference" in table
    assert "difference" not in table.replace("no difference", "")
    assert ["frozen", "conv2", "conv", "-", "90.16", "91.16"] in rows(table)
    assert table.splitlines()[-1] == NOT_TAKEN.format(reason)


def test_a_folder_that_is_cifar_10_re_encoded_is_compared() -> None:
    found = results("folder")
    found["dataset"]["classes"] = sorted(paper.CIFAR10_CLASSES)
    assert ["frozen", "conv2", "conv", "-", "90.16", "91.16", "-1.00"] in rows(render(found))
    found["dataset"]["train_images"] = 10_000
    assert "the images are those of Somewhere" in render(found)


@pytest.mark.parametrize(
    ("part", "changes"),
    [
        ("network", {"model": "resnet18"}),
        ("dataset", {"name": "digits"}),
        ("dataset", {"name": "folder"}),  # of cats and dogs
    ],
)
def test_other_networks_and_other_images_stand_alone(part: str, changes: dict[str, Any]) -> None:
    found = results()
    found[part] |= changes
    table = render(found)
    assert not {"reference", "published", "CIFAR-10", "difference"} & set(table.replace(",", "").split())
    assert ["method", "layer", "head", "variant", "ours,", "%"] in rows(table)
    assert ["frozen", "conv2", "conv", "-", "90.16"] in rows(table)


def test_every_column_has_a_name_and_every_cell_a_text() -> None:
    found = results()
    for note, variant in (("running statistics", "BatchNorm with running statistics"), ("lr 0.1", "lr 0.1")):
        found["cells"][1]["note"] = note
        header, rule, *lines = render(found).splitlines()[2:6]
        edges = [len(part) for part in rule.split("  ")]
        start = 0
        for edge in edges:
            assert all(line[start : start + edge].strip() for line in (header, *lines))
            start += edge + 2
        assert variant in lines[1]
    for cell in found["cells"]:
        cell["note"] = ""
    assert "variant" not in render(found)


def test_one_of_a_thing_is_in_the_singular() -> None:
    found = results(images_per_class=1, epochs=1)
    found["dataset"]["test_images"] = found["network"]["blocks"] = 1
    assert render(found).splitlines()[0].endswith("(1 image); 1 block, width 1; 1 label per class, 1 epoch")


@pytest.mark.parametrize("preset", get_args(StudyPreset))
@pytest.mark.parametrize("limit", [None, 20_000])
def test_a_study_and_an_evaluation_of_the_same_thing_are_compared_alike(
    preset: StudyPreset, limit: int | None
) -> None:
    data = replace(cifar10_data(), train_images=limit or 50_000, limit_train=limit)
    settings = study_settings(preset, 1.0, data, "bf16")
    found = results(epochs=settings.head.epochs)
    found["dataset"] |= {"train_images": data.train_images, "display_name": data.display_name}
    found["network"]["width"] = settings.pretext.width
    found["pretraining"] |= {"epochs": settings.pretext.epochs, "is_limited": limit is not None}
    study = Study(Path(), settings, 1, (), {})
    assert Circumstances.of(found).obstacles == study.circumstances.obstacles
    assert study.comparable is ("CIFAR-10 reference" not in render(found))


def test_the_slides_stand_beside_their_own_two_numbers() -> None:
    table = render(results(preset="slides"))
    assert ["frozen", "conv2", "conv", "-", "90.16", "90.02", "+0.14"] in rows(table)


def test_few_labels_are_compared_with_the_label_scarcity_curve() -> None:
    table = render(results(images_per_class=20))
    assert "20 labels per class" in table
    assert ["frozen", "conv2", "conv", "-", "90.16", "64.80", "+25.36"] in rows(table)


def test_numbers_are_right_aligned_and_text_is_left_aligned() -> None:
    table = format_table(["name", "value"], [["a", "1.00"], ["longer", "10.00"]], numeric=[1])
    assert table == "name    value\n------  -----\na        1.00\nlonger  10.00"


def test_main_prints_a_saved_evaluation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "results.json").write_text(json.dumps(results()))
    main([str(tmp_path)])
    assert capsys.readouterr().out.strip() == render(results())


def test_folder_without_results_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=r"results\.json cannot be read"):
        load_results(tmp_path)


def test_results_of_something_else_are_refused(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text('{"rotation_accuracy": 96.0}')
    with pytest.raises(ArgumentError, match="holds no evaluation"):
        load_results(tmp_path)


@pytest.mark.parametrize(
    ("method", "layer", "head", "blocks", "rotations", "labels", "expected"),
    [
        ("frozen", "conv2", "nonlinear", 4, FOUR_ROTATIONS, None, 89.06),
        ("frozen", "conv5", "nonlinear", 5, FOUR_ROTATIONS, None, 50.37),
        ("frozen", "conv5", "nonlinear", 4, FOUR_ROTATIONS, None, None),
        ("frozen", "conv2", "nonlinear", 4, (0, 180), None, 87.46),
        ("frozen", "conv1", "nonlinear", 4, (0, 180), None, None),
        ("frozen", "conv2", "conv", 4, FOUR_ROTATIONS, None, 91.16),
        ("frozen", "conv2", "conv", 4, (0, 180), None, None),
        ("frozen", "conv2", "conv", 3, FOUR_ROTATIONS, None, None),
        ("frozen", "conv2", "conv", 4, FOUR_ROTATIONS, 400, 85.3),
        ("frozen", "conv2", "nonlinear", 4, FOUR_ROTATIONS, 400, None),
        ("fine-tune", "conv2", "conv", 4, FOUR_ROTATIONS, None, 92.17),
        ("random-init", "conv2", "conv", 4, FOUR_ROTATIONS, None, 72.50),
        ("random-init", "conv2", "conv", 4, FOUR_ROTATIONS, 20, None),
        ("random-init", "conv1", "conv", 4, FOUR_ROTATIONS, None, None),
        ("supervised", None, None, 4, FOUR_ROTATIONS, None, 92.80),
        ("supervised", None, None, 4, FOUR_ROTATIONS, 100, 63.3),
        ("supervised", None, None, 4, FOUR_ROTATIONS, 50, None),
        ("frozen", "conv2", "knn", 4, FOUR_ROTATIONS, None, None),
    ],
)
def test_published_number_belongs_to_the_very_same_setting(
    method: str,
    layer: str | None,
    head: str | None,
    blocks: int,
    rotations: tuple[int, ...],
    labels: int | None,
    expected: float | None,
) -> None:
    found = paper.published_accuracy(
        method, layer, head, blocks=blocks, rotations=rotations, images_per_class=labels
    )
    assert found == expected


def test_tables_of_the_paper_agree_where_they_overlap() -> None:
    assert paper.NONLINEAR_HEAD[4]["conv2"] == paper.FROZEN["nonlinear"]
    assert paper.ROTATION_SETS[FOUR_ROTATIONS] == paper.FROZEN["nonlinear"]
    assert paper.LABEL_SCARCITY["supervised"][5000] == paper.SUPERVISED


@pytest.mark.parametrize("part", ["cells", "dataset", "network", "pretraining", "settings"])
def test_an_incomplete_evaluation_is_refused(part: str, tmp_path: Path) -> None:
    content = results()
    del content[part]
    (tmp_path / "results.json").write_text(json.dumps(content))
    with pytest.raises(ArgumentError, match=f"holds no evaluation, as its {part} is missing"):
        load_results(tmp_path)


def test_an_evaluation_of_another_version_is_refused(tmp_path: Path) -> None:
    content = results()
    del content["dataset"]["tested_on"]
    (tmp_path / "results.json").write_text(json.dumps(content))
    with pytest.raises(ArgumentError, match="was written by another version of rotnet_fast; evaluate again"):
        load_results(tmp_path)

"""A study's plan has every number of the method, each once."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
import torch
from study_tools import CPU, cifar10_data

from rotnet_fast import paper
from rotnet_fast.config import PretrainConfig
from rotnet_fast.data.datasets import Dataset, Split
from rotnet_fast.engine.precision import resolve_precision
from rotnet_fast.errors import ArgumentError
from rotnet_fast.models.scattering import STRIDE
from rotnet_fast.presets import PRESETS
from rotnet_fast.protocols.evaluation import EvaluationSetup
from rotnet_fast.study.cells import StudyCell, with_needs
from rotnet_fast.study.estimate import multiply_adds
from rotnet_fast.study.plan import ITEMS, SCATTERING_STRIDE, Entry, cells_in_order, make_plan
from rotnet_fast.study.run import grouped
from rotnet_fast.study.settings import (
    TRAININGS,
    Seeds,
    StudyPreset,
    StudySettings,
    limit_at_scale,
    study_settings,
)

PAPER = study_settings("paper", 1.0, cifar10_data(), "bf16")


def entries(*only: str, settings: StudySettings = PAPER, seeds: int = 1) -> list[Entry]:
    return make_plan(settings, Seeds(seeds, seeds), only)


def test_the_documentation_counts_the_cells_as_the_plan_does() -> None:
    page = Path(__file__).parents[2] / "docs" / "reproduce.md"
    (said,) = re.findall(r"All of its (\d+) cells", page.read_text())
    settings = study_settings("two-cores", 1.0, cifar10_data(), "bf16")
    assert int(said) == len(list(with_needs(cells_in_order(entries(settings=settings)))))


@pytest.mark.parametrize(
    ("item", "count"), [("table1", 12), ("table2", 4), ("figure5a", 12), ("figure5b", 10)]
)
def test_tables_and_figures_have_as_many_numbers_as_published(item: str, count: int) -> None:
    found = entries(item)
    assert len(found) == count
    assert len({(entry.name, entry.cells, entry.value) for entry in found}) == count


def test_table_3_has_all_its_rows() -> None:
    found = entries("table3")
    names = [entry.name for entry in found if entry.x is None]
    assert names == [
        "supervised",
        "random-conv-running",
        "random-conv-batch",
        "rotnet-nonlinear",
        "rotnet-conv",
        "finetuned-nonlinear-lr0.1",
        "finetuned-nonlinear-lr0.01",
        "finetuned-conv-lr0.1",
        "finetuned-conv-lr0.01",
        "rotnet-svm",
        "autoencoder-nonlinear",
        "autoencoder-conv",
        "autoencoder-svm",
        "jigsaw-nonlinear",
        "jigsaw-conv",
        "jigsaw-svm",
        "scattering-nonlinear",
        "scattering-conv",
        "scattering-perceptron",
        "scattering-svm",
        "pixels",
        "hog",
        "scattering",
    ]
    with_few = ["rotnet-svm", "scattering-perceptron"]
    with_few += [
        f"{name}-{head}" for name in ("autoencoder", "jigsaw", "scattering") for head in ("conv", "svm")
    ]
    assert {entry.name: (entry.series, entry.x) for entry in found if entry.x is not None} == {
        f"{name}-{count}": (name, count) for name in with_few for count in (20, 100, 400)
    }
    for entry in found:
        (cell,) = entry.cells
        if entry.x is not None:
            assert cell.settings["images_per_class"] == entry.x


def test_every_published_number_stands_beside_ours() -> None:
    published = {(entry.item, entry.name): entry.published for entry in entries()}
    assert [published["table1", f"4-{layer}"] for layer in paper.NONLINEAR_HEAD[4]] == [
        85.07,
        89.06,
        86.21,
        61.73,
    ]
    assert [entry.published for entry in entries("table2")] == [89.06, 88.51, 87.46, 85.52]
    assert published["table3", "rotnet-conv"] == 91.16
    assert published["figure5b", "supervised-20"] == 38.4
    assert published["figure5a", "rotation-100"] == 91.1


@pytest.mark.parametrize("per_class", [20, 100, 400, 1000, 5000])
def test_an_epoch_has_391_steps_for_every_number_of_labels(per_class: int) -> None:
    labels = torch.arange(50_000) % 10
    train = Split(torch.zeros(50_000, 1, 1, 3, dtype=torch.uint8), labels)
    for name in ("rotnet", "supervised"):
        (entry,) = entries(f"figure5b/{name}-{per_class}")
        settings = entry.cells[0].settings
        assert settings["epochs"] == 100
        setup = EvaluationSetup(
            pretrained={},
            config=PretrainConfig(),
            in_channels=3,
            pad=settings["pad"],
            flip_prob=settings["flip_prob"],
            dataset=Dataset("made", "made", tuple("0123456789"), train, train, ""),
            batch_size=settings["batch_size"],
            images_per_class=settings["images_per_class"],
            seed=0,
            device=CPU,
            precision=resolve_precision("fp32", CPU),
            folder=None,  # type: ignore[arg-type]
            revisit=settings["revisit"],
        )
        loader = setup.views().loader
        assert len(loader) == 391
        assert len(loader.labels) == 10 * per_class


def test_few_labels_change_neither_epochs_nor_schedule() -> None:
    def others(entry: Entry) -> dict[str, object]:
        return {name: value for name, value in entry.cells[0].settings.items() if name != "images_per_class"}

    by_series: dict[str, list[Entry]] = {}
    for entry in entries("figure5b"):
        by_series.setdefault(entry.series, []).append(entry)
    assert set(by_series) == {"rotnet", "supervised"}
    for series in by_series.values():
        assert all(others(entry) == others(series[0]) for entry in series)


def test_all_labels_of_figure_5b_are_table_3() -> None:
    scarce, table = entries("figure5b/rotnet-5000"), entries("table3/rotnet-conv")
    assert scarce[0].cells == table[0].cells
    assert entries("figure5b/supervised-5000")[0].cells == entries("table3/supervised")[0].cells
    assert entries("figure5a/object-100")[0].cells == table[0].cells


def test_layers_of_a_table_row_share_one_forward_pass() -> None:
    groups = {entry.cells[0].group_key for entry in entries("table1")}
    assert len(groups) == 3
    assert entries("table3/rotnet-conv")[0].cells[0].group_key in groups


def test_a_pretraining_is_planned_once() -> None:
    cells = list(with_needs(cells_in_order(entries())))
    pretexts = [cell for cell in cells if cell.kind == "pretext"]
    assert len(pretexts) == 15  # 3 sizes, 3 other rotation sets, 2 other tasks, 7 ablations
    assert len(cells) == len({cell.key for cell in cells}) == 116
    positions = {cell: position for position, cell in enumerate(cells)}
    assert all(positions[need] < positions[cell] for cell in cells for need in cell.needs)


@pytest.mark.parametrize("preset", sorted(set(TRAININGS) - {"demo"}))
def test_another_pretext_task_is_the_one_thing_that_its_rows_change(preset: StudyPreset) -> None:
    settings = study_settings(preset, 1.0, cifar10_data(), "bf16")
    (rotnet,) = entries("table3/rotnet-conv", settings=settings)
    expected = rotnet.cells[0]
    for task in ("autoencoder", "jigsaw"):
        for head in ("nonlinear", "conv"):
            (entry,) = entries(f"table3/{task}-{head}", settings=settings)
            (cell,) = entry.cells
            assert (cell.settings, cell.member) == (expected.settings, {"layer": "conv2", "head": head})
            assert (entry.published, entry.note) == (None, "another pretext task, ours")
            (pretext,), (known,) = cell.needs, expected.needs
            different = {
                name: value for name, value in pretext.settings.items() if known.settings.get(name) != value
            }
            rate = {"lr": 0.02} if task == "autoencoder" else {}
            assert different == {"pretext_task": task, "snapshots": [], **rate}


def test_what_is_not_random_is_computed_once() -> None:
    found = {entry.name: len(entry.cells) for entry in entries("table3", seeds=3)}
    assert {name for name, seeds in found.items() if seeds == 1} == {
        *("scattering-svm", *(f"scattering-svm-{count}" for count in (20, 100, 400))),
        *("pixels", "hog", "scattering"),
    }
    assert set(found.values()) == {1, 3}


def test_a_jigsaw_costs_what_rotnet_costs_and_an_autoencoder_a_third() -> None:
    names = ("rotnet", "jigsaw", "autoencoder")
    pretexts = [entries(f"table3/{name}-conv")[0].cells[0].needs for name in names]
    rotnet, jigsaw, autoencoder = (multiply_adds(cells, PAPER) for cells in pretexts)
    assert jigsaw == pytest.approx(rotnet, rel=1e-3)
    assert 0.3 < autoencoder / rotnet < 0.4


def test_tasks_that_do_not_apply_to_the_images_are_left_out() -> None:
    for side, expected in ((36, {"autoencoder", "jigsaw", "scattering"}), (18, {"jigsaw"}), (15, set())):
        settings = study_settings("paper", 1.0, replace(cifar10_data(), image_size=side), "bf16")
        names = {
            entry.name.split("-")[0] for entry in entries("table3", settings=settings) if "-" in entry.name
        }
        assert names & {"autoencoder", "jigsaw", "scattering"} == expected
    assert not [entry for entry in entries(settings=DEMO) if "jigsaw" in entry.name]


def test_heads_on_scattering_share_its_passes_and_differ_from_rotnets_in_the_features_alone() -> None:
    found = {entry.name: entry.cells[0] for entry in entries("table3")}
    heads = [found[f"scattering-{head}"] for head in ("nonlinear", "conv", "perceptron")]
    assert len({cell.group_key for cell in heads}) == 1
    rotnet, scattering = found["rotnet-conv"], found["scattering-conv"]
    assert scattering.settings == {**rotnet.settings, "fixed": "scattering"}
    assert (rotnet.member["head"], rotnet.needs != ()) == (scattering.member["head"], scattering.needs == ())
    assert 0 < multiply_adds(heads, PAPER) < multiply_adds([rotnet], PAPER)
    assert SCATTERING_STRIDE == STRIDE  # written twice, because a plan imports no torch


def test_seeds_give_other_cells_but_where_nothing_is_random() -> None:
    (conv,) = entries("table3/rotnet-conv", seeds=3)
    assert len(conv.cells) == 3
    assert [cell.needs[0].settings["seed"] for cell in conv.cells] == [0, 1, 2]
    (pixels,) = entries("table3/pixels", seeds=3)
    assert len(pixels.cells) == 1


def test_the_headline_gets_more_seeds_than_the_rest() -> None:
    found = {f"{entry.item}/{entry.name}": entry for entry in make_plan(PAPER, Seeds(1, 3))}
    names = {name for name, entry in found.items() if len(entry.cells) > 1}
    assert names == {
        "table3/supervised",
        "table3/random-conv-running",
        "table3/random-conv-batch",
        "table3/rotnet-nonlinear",
        "table3/rotnet-conv",
        *("figure5b/rotnet-5000", "figure5b/supervised-5000"),  # which are those of Table 3
        *(f"table1/4-conv{number}" for number in (1, 2, 3, 4)),
        *(f"figure5b/{series}-{count}" for series in ("rotnet", "supervised") for count in (20, 100, 400)),
        "extras/rotation-accuracy-0-90-180-270",
    }
    assert {len(found[name].cells) for name in names} == {3}
    assert found["table3/rotnet-conv"].cells == entries("table3/rotnet-conv", seeds=3)[0].cells
    more = {entry.name: entry for entry in make_plan(PAPER, Seeds(2, 3), ["table2"])}
    assert len(more["eight"].cells) == 2


@pytest.mark.parametrize("counts", [(0, 1), (3, 2), (1, 0)])
def test_numbers_of_seeds_that_make_no_sense_are_refused(counts: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="are no numbers of seeds"):
        Seeds(*counts)


def test_a_seed_is_finished_before_the_next_one_begins() -> None:
    cells = cells_in_order(entries("table2", "table3", seeds=2))
    seeds = [cell.settings["seed"] for cell in cells if cell.kind != "classical"]
    assert seeds == sorted(seeds)
    assert set(seeds) == {0, 1}
    assert [cell.kind for cell in cells[-3:]] == ["classical"] * 3  # they need no accelerator


def test_keys_do_not_change_between_versions() -> None:
    # A changed key makes every finished result of users unreachable: then raise RESULT_FORMAT as well.
    (entry,) = entries("table3/rotnet-conv")
    assert (entry.cells[0].needs[0].key, entry.cells[0].key) == ("af24b76bf74c97be", "06795eea25603bba")


def test_every_setting_is_in_the_key() -> None:
    cell = StudyCell("head", {"epochs": 1}, {"layer": "conv1"})
    others = [
        StudyCell("head", {"epochs": 2}, {"layer": "conv1"}),
        StudyCell("head", {"epochs": 1}, {"layer": "conv2"}),
        StudyCell("knn", {"epochs": 1}, {"layer": "conv1"}),
        StudyCell("head", {"epochs": 1}, {"layer": "conv1"}, (cell,)),
    ]
    assert len({cell.key, *(other.key for other in others)}) == 5
    assert cell == StudyCell("head", {"epochs": 1}, {"layer": "conv1"})


@pytest.mark.parametrize(
    ("preset", "pretext", "supervised", "heads", "milestones"),
    [
        ("paper", 100, 100, 100, (30, 60, 80)),
        ("slides", 100, 100, 100, (30, 60, 80)),
        ("official", 200, 200, 100, (60, 120, 160)),
    ],
)
def test_presets_have_their_lengths(
    preset: str, pretext: int, supervised: int, heads: int, milestones: tuple[int, ...]
) -> None:
    settings = study_settings(preset, 1.0, cifar10_data(), "bf16")  # type: ignore[arg-type]
    assert settings.pretext.epochs == pretext
    assert settings.pretext.milestones == milestones
    (entry,) = entries("table3/supervised", settings=settings)
    assert entry.cells[0].settings["epochs"] == supervised
    assert tuple(entry.cells[0].settings["milestones"]) == milestones
    (entry,) = entries("table3/rotnet-conv", settings=settings)
    assert entry.cells[0].settings["epochs"] == heads


def test_studies_are_of_the_presets_that_are_recipes_of_all_that_they_train() -> None:
    assert set(TRAININGS) == set(get_args(StudyPreset)) == set(PRESETS) - {"speedrun"} | {"demo", "two-cores"}


DIGITS = replace(
    cifar10_data(), name="digits", train_images=1437, test_images=360, smallest_class=138, image_size=16
)
DEMO = study_settings("demo", 1.0, DIGITS, "fp32")
QUICKSTART = study_settings("quickstart", 1.0, DIGITS, "fp32")


def test_the_demo_has_every_table_and_figure_and_is_short() -> None:
    found = make_plan(DEMO, Seeds(1, TRAININGS["demo"].headline_seeds))
    assert {entry.item for entry in found} == set(ITEMS)
    assert not DEMO.is_smoke_test
    cells = list(with_needs(cells_in_order(found)))
    work = sum(multiply_adds(group, DEMO) for group in grouped(cells))
    # Of the quickstart's pretraining, which takes 13 seconds on two idle cores of an AMD EPYC.
    (pretext,) = entries("extras/rotation-accuracy-0-90-180-270", settings=QUICKSTART)
    assert work < 15 * multiply_adds(pretext.cells, QUICKSTART)


def test_all_but_the_pretraining_sees_the_labels_of_the_study() -> None:
    assert (DEMO.images_per_class, DEMO.labels_per_class) == (1, (1, 2, 4, 138))
    seen = {
        f"{entry.item}/{entry.name}": entry.cells[0].settings.get("images_per_class")
        for entry in entries(settings=DEMO)
        if entry.value and entry.cells[0].kind != "pretext"
    }
    others = {"ablations/faithful-2": 2, "ablations/no-revisiting-2": 2}
    for count in (2, 4):
        others |= {f"figure5b/rotnet-{count}": count, f"figure5b/supervised-{count}": count}
    assert {name: count for name, count in seen.items() if count != 1} == {
        **others,
        "figure5b/rotnet-138": None,
        "figure5b/supervised-138": None,
    }


def test_a_study_of_all_labels_has_the_cells_of_one_that_knows_no_limit() -> None:
    for entry in entries("table3", "extras", "table1"):
        if entry.x is not None:
            continue  # a row of few labels
        assert entry.cells[0].settings.get("images_per_class") is None
    assert "images_per_class" not in entries("table3/pixels")[0].cells[0].settings


def test_all_labels_of_classes_of_different_sizes_are_not_said_to_be_so_many_of_each() -> None:
    titles = [entry.title for entry in entries("figure5b", settings=DEMO)]
    assert titles[-2:] == [
        f"{name}, 138 or more labels per class" for name in ("RotNet + conv", "supervised")
    ]
    assert titles[0] == "RotNet + conv, 1 label per class"
    assert entries("figure5b")[-1].title == "supervised, 5,000 labels per class"


def test_few_labels_are_fewer_than_a_class_has() -> None:
    small = study_settings("demo", 1.0, replace(DIGITS, smallest_class=8), "fp32")
    assert small.labels_per_class == (1, 2, 4, 8)


def test_a_study_of_few_labels_survives_json() -> None:
    assert StudySettings.from_json(json.loads(json.dumps(DEMO.to_json()))) == DEMO


def test_a_study_of_too_few_steps_to_learn_is_a_smoke_test() -> None:
    tiny = replace(DIGITS, train_images=80, smallest_class=8)
    assert study_settings("quickstart", 0.05, tiny, "fp32").is_smoke_test
    assert not QUICKSTART.is_smoke_test
    assert not study_settings("cpu", 1.0, replace(cifar10_data(), train_images=10_000), "fp32").is_smoke_test


def test_two_cores_train_everything_by_muon_and_a_linear_decay() -> None:
    settings = study_settings("two-cores", 1.0, cifar10_data(), "bf16")
    trainings = (settings.pretext, settings.supervised, settings.head)
    assert {(training.optimizer, training.schedule) for training in trainings} == {("muon", "linear")}
    assert (settings.pretext.width, settings.pretext.preset) == (1.0, "speedrun")
    assert not [entry for entry in entries("ablations", settings=settings) if "halved" in entry.name]
    rates = {
        entry.name: (entry.cells[0].settings["lr"], entry.cells[0].settings["muon_lr"])
        for entry in entries("table3", settings=settings)
        if entry.cells[0].kind == "fine-tune"
    }
    assert rates["finetuned-conv-lr0.1"] == (0.1, settings.head.muon_lr)
    assert rates["finetuned-conv-lr0.01"] == (0.01, pytest.approx(settings.head.muon_lr / 10))


@pytest.mark.parametrize("preset", sorted(set(TRAININGS) - {"slides", "two-cores"}))
def test_halved_rates_are_the_one_thing_that_their_ablation_changes(preset: StudyPreset) -> None:
    settings = study_settings(preset, 1.0, cifar10_data(), "bf16")
    (ablated,), (faithful,) = (
        entries(f"ablations/{name}", settings=settings) for name in ("lr-halved", "faithful")
    )
    assert (ablated.cells[0].settings["lr_factor"], faithful.cells[0].settings["lr_factor"]) == (0.5, 0.2)
    pretexts = [entry.cells[0].needs[0].settings for entry in (ablated, faithful)]
    different = {name for name in pretexts[0] if pretexts[0][name] != pretexts[1][name]}
    # Linear schedules divide by nothing: there the head alone differs.
    is_divided = preset in ("paper", "official")
    assert different == ({"lr_factor", "ablation", "snapshots"} if is_divided else set())
    assert f"({'pretext and head' if is_divided else 'head alone'})" in ablated.title
    names = [entry.name for entry in entries("ablations", settings=settings)]
    assert ("lr-halved-rotation" in names) == is_divided


def test_slides_train_networks_and_heads_alike_and_stand_beside_their_own_numbers() -> None:
    settings = study_settings("slides", 1.0, cifar10_data(), "bf16")
    planned = {(entry.item, entry.name): entry for entry in entries(settings=settings)}
    supervised, conv = planned["table3", "supervised"], planned["table3", "rotnet-conv"]
    of_conv = conv.cells[0]
    for trained in (supervised.cells[0].settings, of_conv.settings, of_conv.needs[0].settings):
        assert (trained["milestones"], trained["lr_factor"]) == ((30, 60, 80), 0.5)
        assert (trained["nesterov"], trained["epochs"]) == (False, 100)
    assert (supervised.published, conv.published) == (92.06, 90.02)
    assert "92.80" in supervised.note
    assert "91.16" in conv.note
    assert planned["table3", "rotnet-nonlinear"].published == paper.FROZEN["nonlinear"]
    assert ("ablations", "lr-halved") not in planned  # it would be the faithful run
    quarter = study_settings("slides", 0.25, cifar10_data(), "bf16")
    assert (quarter.head.epochs, quarter.head.milestones) == (25, (8, 15, 20))


def test_a_last_batch_of_one_is_refused() -> None:
    data = replace(cifar10_data(), train_images=49_921)
    with pytest.raises(ArgumentError, match=r"last batch of one.*--limit-train 49920"):
        study_settings("paper", 1.0, data, "bf16")


def test_fp16_heads_train_alone_because_groups_share_a_loss_scaler() -> None:
    settings = study_settings("paper", 1.0, cifar10_data(), "fp16")
    assert len({entry.cells[0].group_key for entry in entries("table1", settings=settings)}) == 12


def test_scale_shortens_epochs_and_keeps_the_milestones_shares() -> None:
    settings = study_settings("paper", 0.1, replace(cifar10_data(), smallest_class=500), "bf16")
    assert (settings.pretext.epochs, settings.pretext.milestones, settings.head.epochs) == (10, (3, 6, 8), 10)
    assert settings.snapshot_epochs == (1, 2, 4, 6, 8, 10)
    assert settings.labels_per_class == (2, 10, 40, 100, 500)
    assert limit_at_scale(0.1, 50_000, 10) == 5_000
    assert limit_at_scale(1, 50_000, 10) is None
    assert limit_at_scale(0.05, 1437, 10) == 80


def test_even_a_tiny_study_has_six_snapshots_and_five_numbers_of_labels() -> None:
    settings = study_settings("paper", 0.001, replace(cifar10_data(), smallest_class=8), "bf16")
    assert settings.snapshot_epochs == (1, 2, 3, 4, 5, 6)
    assert settings.labels_per_class == (1, 2, 3, 4, 8)


def test_published_numbers_of_epochs_belong_to_runs_of_that_length() -> None:
    short = study_settings("paper", 0.1, cifar10_data(), "bf16")
    assert all(entry.published is None for entry in entries("figure5a", settings=short))


def test_settings_survive_json() -> None:
    assert StudySettings.from_json(json.loads(json.dumps(PAPER.to_json()))) == PAPER


def test_a_class_too_small_for_the_label_counts_is_refused() -> None:
    with pytest.raises(ArgumentError, match="smallest class of CIFAR-10 has 7"):
        study_settings("paper", 1.0, replace(cifar10_data(), smallest_class=7), "bf16")


def test_unknown_parts_are_named_with_the_choices() -> None:
    with pytest.raises(ArgumentError, match=r"only holds 'table4'; choose from .*table1"):
        entries("table4")
    with pytest.raises(
        ArgumentError, match=r"only holds 'table3/supervized'; did you mean table3/supervised\?"
    ):
        entries("table3/supervized")
    with pytest.raises(ArgumentError, match=r"only holds 'table2/sixteen'; choose from .*table2/eight"):
        entries("table2/sixteen")
    assert {entry.item for entry in entries("table2", "figure3")} == {"table2", "figure3"}
    assert {entry.item for entry in entries()} == set(ITEMS)

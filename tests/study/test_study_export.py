"""Weights of a study carry the study's numbers in their model card, and no others."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from study_tools import tiny_context
from synthetic_study import settings_of, write_study
from tiny import tiny_config

from rotnet_fast.export import ExportConfig, export
from rotnet_fast.pretrain import pretrain
from rotnet_fast.study.plan import cells_in_order, make_plan
from rotnet_fast.study.run import Progress, run_cells
from rotnet_fast.study.settings import Seeds, study_settings
from rotnet_fast.study.summary import evaluation_of, load_study


def test_the_accuracies_of_few_labels_are_said_to_be(tmp_path: Path) -> None:
    data = replace(settings_of().data, train_images=100, smallest_class=10)
    study = load_study(write_study(tmp_path / "study", study_settings("demo", 1.0, data, "fp32"), seeds=1))
    (head,) = study.entry("table3", "rotnet-conv").cells
    found = evaluation_of(study, head.needs[0].key)
    assert found["settings"]["images_per_class"] == head.settings["images_per_class"] == 1


def test_the_card_of_a_studys_network_has_the_accuracies_of_its_cells(tmp_path: Path) -> None:
    context = tiny_context(tmp_path / "study")
    known = cells_in_order(make_plan(context.settings, Seeds()))
    names = ["table3/rotnet-conv", "figure5b/rotnet-1", "extras/knn-conv1", "ablations/train-mode-batchnorm"]
    cells = cells_in_order(make_plan(context.settings, Seeds(), names))
    run_cells(context, cells, known, Progress(), say=lambda line: None)
    pretext = cells[0].needs[0]
    run = context.results.run_folder(pretext)

    def card(checkpoint: Path) -> str:
        folder = export(ExportConfig(checkpoint=checkpoint, output=tmp_path / f"export-{checkpoint.stem}"))
        return (folder / "README.md").read_text()

    text = card(run)
    rows = [line for line in text.splitlines() if line.startswith("| these weights, frozen")]
    accuracies = {}
    for cell, name in zip(cells, names, strict=True):
        found = context.results.read(cell)
        assert found is not None
        accuracies[name] = found["result"]["accuracy"]
    assert rows == [
        f"| these weights, frozen | conv2 | conv | - | {accuracies['table3/rotnet-conv']:.2f} |",
        f"| these weights, frozen | conv1 | knn | - | {accuracies['extras/knn-conv1']:.2f} |",
    ]
    assert "(`study study`: 32 labels, epochs 1, seed 0)" in text
    # Weights of an earlier epoch are not what the heads were trained on.
    assert "these weights, frozen" not in card(context.results.network(pretext, 1))


def test_a_run_that_lies_below_a_study_is_none_of_it(tmp_path: Path) -> None:
    study = write_study(tmp_path / "study", settings_of(), seeds=1)
    pretrain(tiny_config(study / "mine" / "run", epochs=1))
    export(ExportConfig(checkpoint=study / "mine" / "run", output=tmp_path / "export"))
    assert evaluation_of(load_study(study), "0" * 16) is None
    (study / "runs").mkdir(exist_ok=True)
    (study / "mine" / "run").rename(study / "runs" / "unplanned")  # as of a plan that has changed
    export(ExportConfig(checkpoint=study / "runs" / "unplanned", output=tmp_path / "unplanned"))

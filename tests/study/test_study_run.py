"""Cells are computed once, by whoever comes first, and whatever interrupts."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from study_tools import tiny_context
from synthetic_study import DETAILS

from rotnet_fast.data.datasets import Split
from rotnet_fast.engine import checkpoint
from rotnet_fast.engine.trainer import Trainer
from rotnet_fast.errors import (
    ArgumentError,
    CannotWriteError,
    CaptureError,
    DataError,
    NonFiniteError,
    OutOfMemoryError,
    RotnetError,
)
from rotnet_fast.study import kinds, run
from rotnet_fast.study.cells import StudyCell, with_needs
from rotnet_fast.study.context import Context
from rotnet_fast.study.kinds import KINDS
from rotnet_fast.study.plan import cells_in_order, make_plan
from rotnet_fast.study.run import Progress, grouped, pending_cells, run_cells
from rotnet_fast.study.settings import Seeds
from rotnet_fast.study.store import Results


def planned(context: Context, *only: str) -> list[StudyCell]:
    return cells_in_order(make_plan(context.settings, Seeds(), only))


def compute(context: Context, *only: str) -> Progress:
    progress = Progress()
    run_cells(context, planned(context, *only), planned(context), progress, say=lambda line: None)
    return progress


def results(context: Context, *only: str) -> list[dict[str, Any]]:
    found = [context.results.read(cell) for cell in planned(context, *only)]
    assert all(found)
    return [content["result"] for content in found if content]


@pytest.fixture
def context(tmp_path: Path) -> Context:
    return tiny_context(tmp_path / "study")


def test_a_cell_brings_what_it_needs_and_is_not_computed_again(context: Context) -> None:
    first = compute(context, "table3/rotnet-conv")
    assert [cell.kind for cell in first.computed] == ["pretext", "head"]
    (found,) = results(context, "table3/rotnet-conv")
    assert found["accuracy"] == pytest.approx(100 * sum(found["confusion"][i][i] for i in range(4)) / 12)
    assert compute(context, "table3/rotnet-conv").computed == []


def test_networks_of_other_pretext_tasks_are_cells_like_rotnets(context: Context) -> None:
    wishes = ("table3/jigsaw-conv", "table3/autoencoder-conv")
    progress = compute(context, *wishes)
    assert [cell.kind for cell in progress.computed] == ["pretext", "head"] * 2
    assert progress.failed == {}
    assert [sum(map(sum, found["confusion"])) for found in results(context, *wishes)] == [12, 12]
    for cell, measure in zip(
        progress.computed[::2], ("reconstruction_error", "permutation_accuracy"), strict=True
    ):
        content = context.results.read(cell)
        assert content is not None
        assert set(content["result"]) == {measure, "images_per_second", "train_seconds", "state_hash"}
    assert compute(context, *wishes).computed == []


def test_heads_and_machines_are_put_on_fixed_features_and_on_few_labels(context: Context) -> None:
    wishes = [f"table3/scattering-{name}" for name in ("nonlinear", "conv", "perceptron", "svm", "svm-1")]
    progress = compute(context, *wishes)
    assert progress.failed == {}
    assert {cell.kind for cell in progress.computed} == {"head", "svm"}  # nothing was pretrained for them
    assert [sum(map(sum, found["confusion"])) for found in results(context, *wishes)] == [12] * 5
    assert compute(context, "table3/rotnet-svm").failed == {}


def test_every_kind_of_training_gives_a_confusion_of_all_test_images(context: Context) -> None:
    wishes = (
        "table1/3-conv1",
        "table3",
        "figure5b",
        "extras/knn-conv1",
        "extras/linear-random-conv2-batch",
    )
    compute(context, *wishes, "ablations/no-revisiting-1")
    for found in results(context, *wishes, "ablations/no-revisiting-1"):
        assert sum(map(sum, found["confusion"])) == 12
        assert [sum(row) for row in found["confusion"]] == [3] * 4


def test_a_study_of_few_labels_sees_no_other_labelled_images(context: Context, tmp_path: Path) -> None:
    wishes = (
        "table3/supervised",
        "table3/random-conv-running",
        "table3/scattering-conv",
        "table3/scattering-svm",
        "table3/pixels",
        "extras/knn-random-conv2-batch",
        "extras/knn-random-conv2-running",
        "extras/linear-random-conv2-batch",
        "extras/linear-random-conv2-running",
    )
    settings = replace(context.settings, few_labels=(2, 4))
    train = context.dataset.train
    images = train.images.clone()
    images[2 * 4 :] = 0  # of four classes, which take turns
    blackened = replace(context.dataset, train=Split(images, train.labels))
    few = replace(context, settings=settings)
    other = replace(tiny_context(tmp_path / "other"), settings=settings, dataset=blackened)
    for study in (few, other):
        assert compute(study, *wishes).failed == {}
    assert results(few, *wishes) == results(other, *wishes)
    compute(context, "table3/pixels")  # with all labels
    assert results(few, "table3/pixels") != results(context, "table3/pixels")


def test_figure_5a_reads_its_rotation_accuracies_from_one_pretraining(context: Context) -> None:
    progress = compute(context, "figure5a")
    assert sum(cell.kind == "pretext" for cell in progress.computed) == 1
    entries = make_plan(context.settings, Seeds(), ["figure5a"])
    pretext = results(context, "extras/rotation-accuracy-0-90-180-270")[0]
    values = [pretext[entry.value] for entry in entries if entry.series == "rotation"]
    assert len(values) == 6
    assert values[-1] == pretext["rotation_accuracy"]
    objects = {entry.cells[0].key for entry in entries if entry.series == "object"}
    assert len(objects) == 6


def test_snapshots_are_of_their_epochs(context: Context) -> None:
    compute(context, "figure5a/rotation-1")
    (cell,) = planned(context, "figure5a/rotation-1")
    first = checkpoint.load(context.results.network(cell, 1))
    last = checkpoint.load(context.results.network(cell, 6))
    assert (first["epoch"], last["epoch"]) == (1, 6)
    final = checkpoint.load(context.results.network(cell))
    assert checkpoint.state_hash(last["module"]) == checkpoint.state_hash(final["module"])
    assert checkpoint.state_hash(first["module"]) != checkpoint.state_hash(final["module"])


def test_heads_come_out_the_same_alone_and_together(context: Context, tmp_path: Path) -> None:
    compute(context, "table1")
    alone = tiny_context(tmp_path / "alone")
    compute(alone, "table1/4-conv3")
    assert results(alone, "table1/4-conv3") == results(context, "table1/4-conv3")


@pytest.mark.parametrize("interrupted", ["pretext", "head"])
def test_an_interrupted_cell_goes_on_from_its_checkpoint(
    context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interrupted: str
) -> None:
    class PowerCutError(Exception):
        pass

    steps: list[str] = []
    train_step = Trainer.train_step

    def counted(self: Trainer, batch: Any) -> None:
        is_head = self.run.path.name == "head"
        if is_head == (interrupted == "head"):
            if len(steps) == 1:
                self.save_checkpoint("last.pt")
                steps.append("power cut")
                raise PowerCutError
            steps.append("step")
        train_step(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", counted)
        with pytest.raises(PowerCutError):
            compute(context, "table3/rotnet-conv")
    # Asked for less or more now: what was begun is finished from where it was.
    lines: list[str] = []
    cells = planned(context, "table1", "table3/rotnet-conv")
    run_cells(context, cells, planned(context), Progress(), lines.append)
    assert sum("resuming" in line for line in lines) == 1
    whole = tiny_context(tmp_path / "whole")
    compute(whole, "table3/rotnet-conv")
    assert results(context, "table3/rotnet-conv") == results(whole, "table3/rotnet-conv")
    assert list((context.results.path / "work").iterdir()) == []


def test_what_another_process_computes_is_left_to_it(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = planned(context, "table3/supervised", "table3/random-conv-running")
    lock = context.results.lock(cells[0])
    assert lock.take()
    computed: list[StudyCell] = []

    def sleep(seconds: float) -> None:
        # All that is free has been done; the other process finishes its cell in the meantime.
        computed.extend(cell for cell in cells if context.results.read(cell) is not None)
        context.results.write(cells[0], {"accuracy": 12.5, "confusion": []}, **DETAILS)
        lock.close()

    monkeypatch.setattr(run.time, "sleep", sleep)
    progress = compute(context, "table3/supervised", "table3/random-conv-running")
    assert computed == progress.computed == cells[1:]
    assert results(context, "table3/supervised") == [{"accuracy": 12.5, "confusion": []}]


def test_a_failed_cell_does_not_stop_the_others(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(context: Context, cells: list[StudyCell], folder: Path) -> kinds.Found:
        raise NonFiniteError("the loss became nan")

    monkeypatch.setitem(KINDS, "pretext", fails)
    progress = compute(context, "table3/rotnet-conv", "table3/supervised")
    assert [cell.kind for cell in progress.failed] == ["pretext"]
    assert [cell.kind for cell in progress.computed] == ["supervised"]


@pytest.mark.parametrize("error", [RuntimeError("CUDA out of memory. Tried to allocate"), MemoryError()])
def test_a_cell_without_memory_does_not_stop_the_others(
    error: Exception, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(context: Context, cells: list[StudyCell], folder: Path) -> kinds.Found:
        raise error

    monkeypatch.setitem(KINDS, "classical", fails)
    progress = compute(context, "table3/pixels", "table3/supervised")
    ((cell, found),) = progress.failed.items()
    assert (cell.kind, [cell.kind for cell in progress.computed]) == ("classical", ["supervised"])
    assert isinstance(found, OutOfMemoryError)
    error = RuntimeError("a mistake of ours")
    with pytest.raises(RuntimeError, match="a mistake of ours"):
        compute(context, "table3/hog")


def test_a_network_whose_weights_are_gone_is_trained_again_where_it_is_needed(context: Context) -> None:
    compute(context, "table3/rotnet-conv")
    (pretext,) = planned(context, "extras/rotation-accuracy-0-90-180-270")
    context.results.network(pretext).unlink()
    assert pending_cells(context, [pretext]) == []
    wanted = planned(context, "table3/rotnet-nonlinear")
    assert pending_cells(context, wanted) == [pretext, *wanted]


def test_a_pretraining_whose_snapshots_are_gone_is_trained_again(context: Context) -> None:
    compute(context, "figure5a/object-6")
    (pretext,) = planned(context, "figure5a/rotation-1")
    context.results.network(pretext, 2).unlink()
    progress = compute(context, "figure5a/object-2")
    assert [cell.kind for cell in progress.computed] == ["pretext", "head"]
    assert progress.failed == {}


@pytest.mark.faults("a full disk")
def test_a_network_whose_result_could_not_be_written_is_not_trained_again(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    (pretext,) = planned(context, "figure5a/rotation-1")
    with monkeypatch.context() as during:

        def full(*arguments: Any, **values: Any) -> None:
            raise CannotWriteError("no space left")

        during.setattr(Results, "write", full)
        with pytest.raises(CannotWriteError):
            compute(context, "figure5a/rotation-1")
    trained = context.results.network(pretext).stat()
    with monkeypatch.context() as during:
        during.setattr(Trainer, "train_step", lambda *arguments: pytest.fail("it is trained again"))
        compute(context, "figure5a/rotation-1")
    assert context.results.is_finished(pretext)
    assert context.results.network(pretext).stat().st_ino == trained.st_ino


def test_damaged_weights_fail_their_cells_with_the_remedy(context: Context) -> None:
    compute(context, "table3/rotnet-conv")
    (pretext,) = planned(context, "figure5a/rotation-1")
    path = context.results.network(pretext)
    path.write_bytes(path.read_bytes()[:-1])
    progress = compute(context, "table1/4-conv1", "table3/supervised")
    assert [cell.kind for cell in progress.computed] == ["supervised"]
    (error,) = progress.failed.values()
    assert f"remove {context.results.run_folder(pretext)}, and the network is trained again" in str(error)


def begun(context: Context, *names: str) -> Path:
    """Work of a killed process on some heads of a pretraining that is finished."""
    compute(context, "figure5a/rotation-1")
    cells = planned(context, *names)
    _, folder, _ = context.results.claim_work(cells, cells)
    return folder


def test_what_fails_is_not_tried_again_and_again(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    begun(context, "table1/4-conv4")
    attempts: list[list[StudyCell]] = []

    def fails(context: Context, cells: list[StudyCell], folder: Path) -> kinds.Found:
        attempts.append(cells)
        raise NonFiniteError("the loss became nan")

    monkeypatch.setitem(KINDS, "head", fails)
    progress = compute(context, "table3/rotnet-conv")
    # What was begun, then what was wanted.
    assert attempts == [planned(context, "table1/4-conv4"), planned(context, "table3/rotnet-conv")]
    assert set(progress.failed) == {cell for cells in attempts for cell in cells}


def test_a_kill_between_two_results_of_a_group_costs_no_training(context: Context) -> None:
    names = ("table1/4-conv1", "table1/4-conv2")
    folder = begun(context, *names)
    first, second = planned(context, *names)
    found = KINDS["head"](context, [first, second], folder)
    context.results.write(first, {**found[first.key], "mark": 1}, **DETAILS)
    steps: list[int] = []
    train_step = Trainer.train_step
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "train_step", lambda self, batch: steps.append(1) or train_step(self, batch))
        progress = compute(context, *names)
    assert steps == []
    assert progress.computed == [second]
    one, other = results(context, *names)
    assert one["mark"] == 1
    assert other == found[second.key]


def test_work_that_cannot_be_gone_on_with_is_started_again(context: Context) -> None:
    folder = begun(context, "table1/4-conv1")
    (folder / "head" / "checkpoints").mkdir(parents=True)
    (folder / "head" / "checkpoints" / "last.pt").write_bytes(b"damaged")
    progress = compute(context, "table1/4-conv1")
    assert [cell.kind for cell in progress.computed] == ["head"]


def test_any_error_of_a_cell_leaves_the_others_alone(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(context: Context, cells: list[StudyCell], folder: Path) -> kinds.Found:
        raise ArgumentError("too few images")

    monkeypatch.setitem(KINDS, "classical", fails)
    progress = compute(context, "table3/pixels", "table3/supervised")
    assert [cell.kind for cell in progress.failed] == ["classical"]
    assert [cell.kind for cell in progress.computed] == ["supervised"]


def test_each_group_that_failed_is_told_apart(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(context: Context, cells: list[StudyCell], folder: Path) -> kinds.Found:
        raise ArgumentError("no such library")

    monkeypatch.setitem(KINDS, "head", fails)
    names = ("table3/scattering-conv", "table3/scattering-nonlinear", "table3/scattering-conv-2")
    failures = compute(context, *names).failures()
    assert [what for what, _ in failures] == [
        "scattering nonlinear, scattering conv on scattering, seed 0",
        "scattering conv on scattering, labels per class: 2, seed 0",
    ]
    assert {str(error) for _, error in failures} == {"no such library"}


def test_the_graph_setting_reaches_pretraining_and_heads(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    def use_graph(setting: str, *arguments: object) -> bool:
        seen.append(setting)
        return False

    monkeypatch.setattr("rotnet_fast.engine.step.use_graph", use_graph)
    compute(replace(context, graph="off"), "table3/rotnet-conv")
    assert seen == ["off", "off"]


@pytest.mark.parametrize("error", [CannotWriteError("disk full"), CaptureError("use --graph off")])
def test_what_no_other_cell_would_survive_stops_everything(
    context: Context, monkeypatch: pytest.MonkeyPatch, error: RotnetError
) -> None:
    def fails(context: Context, cells: list[StudyCell], folder: Path) -> kinds.Found:
        raise error

    monkeypatch.setitem(KINDS, "classical", fails)
    with pytest.raises(type(error)):
        compute(context, "table3/pixels", "table3/supervised")


def test_a_damaged_result_is_reported_with_the_remedy(context: Context) -> None:
    (cell,) = planned(context, "table3/pixels")
    path = context.results.path / "cells" / f"{cell.key}.json"
    compute(context, "table3/pixels")
    whole = path.read_text()
    path.write_text('{"key": "')
    context = replace(context, results=Results(context.results.path))  # which has not read the file yet
    with pytest.raises(
        DataError, match=r"cannot be read .*; delete it, and rotnet_fast.reproduce computes this cell again"
    ):
        compute(context, "table3/pixels")
    path.write_text(json.dumps({**json.loads(whole), "key": "0" * 16}))
    with pytest.raises(DataError, match="belongs to another cell"):
        compute(context, "table3/pixels")


def test_a_folder_holds_one_study(context: Context) -> None:
    Results(context.results.path).begin(context.settings, Seeds(1, 3))
    Results(context.results.path).begin(context.settings, Seeds(2, 2))  # what was asked for once stays
    known = context.results.read_settings()
    assert known == (context.settings, Seeds(2, 3))
    with pytest.raises(ArgumentError, match=r"holds a study with other settings \(head epochs\)"):
        context.results.begin(replace(context.settings, head=context.settings.head.stretched(7)), Seeds())
    other = replace(context.settings, data=replace(context.settings.data, fingerprint="1" * 64))
    with pytest.raises(ArgumentError, match=r"\(fingerprint\)"):
        context.results.begin(other, Seeds())
    (context.results.path / "study.json").write_text("{")
    with pytest.raises(DataError, match=r"cannot be read .* choose another --output"):
        context.results.read_settings()


def test_every_planned_kind_can_be_computed(context: Context) -> None:
    assert {cell.kind for cell in with_needs(planned(context))} == set(KINDS)


def test_groups_keep_the_order_of_their_first_cells(context: Context) -> None:
    cells = planned(context, "table1", "table3")
    groups = grouped(cells)
    assert [group[0] for group in groups] == [
        cell
        for position, cell in enumerate(cells)
        if cell.group_key not in {c.group_key for c in cells[:position]}
    ]
    assert sorted(cell.key for group in groups for cell in group) == sorted(cell.key for cell in cells)

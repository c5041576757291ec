"""Features are watched while the pretraining runs, which stays what it would be without."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from image_files import pixels, save
from processes import before_step
from ranks import on_ranks
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny import folder_config, read_digits_once, tiny_config

from rotnet_fast.data.loader import Loader
from rotnet_fast.engine import checkpoint
from rotnet_fast.engine.run_folder import read_settings
from rotnet_fast.engine.signals import Interrupted
from rotnet_fast.errors import ArgumentError, DataError
from rotnet_fast.evaluate import EvaluateConfig, evaluate
from rotnet_fast.models.network import FeatureNetwork
from rotnet_fast.pretrain import main, parse, pretrain
from rotnet_fast.protocols import evaluation, knn
from rotnet_fast.protocols.monitor import Monitor

BOTH: dict[str, Any] = {"monitor": ("knn", "linear"), "monitor_every": 1, "epochs": 3}


@pytest.fixture(autouse=True, scope="module")
def _digits() -> Iterator[None]:
    with read_digits_once():
        yield


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    run = tmp_path_factory.mktemp("watched") / "run"
    return run, pretrain(tiny_config(run, tensorboard=True, **BOTH))


def found(run: Path) -> list[tuple[int, float, float]]:
    """Epochs done, and what was found after them, as recorded."""
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [
        (line["epoch"] + 1, line["knn_accuracy"], line["linear_accuracy"])
        for line in lines
        if line["kind"] == "features_epoch"
    ]


def evaluated(run: Path, name: str, **others: Any) -> list[float]:
    """What `rotnet_fast.evaluate` finds on a checkpoint."""
    config = EvaluateConfig(
        str(run / "checkpoints" / name),
        frozen=False,
        random_init=False,
        knn=True,
        linear=True,
        device="cpu",
        precision="fp32",
        output=run / f"of-{name}",
        **others,
    )
    cells = evaluate(config, config.output_folder())["cells"]
    assert [cell["head"] for cell in cells] == ["knn", "linear"]
    return [cell["accuracy"] for cell in cells]


def test_the_accuracies_are_those_that_an_evaluation_finds(watched: tuple[Path, dict[str, Any]]) -> None:
    run, results = watched
    for epochs, *accuracies in found(run):
        assert accuracies == evaluated(run, f"epoch-{epochs:04d}.pt")
    assert [epochs for epochs, _, _ in found(run)] == [1, 2, 3]
    for place, name in enumerate(("knn_accuracy", "linear_accuracy"), 1):
        values = [line[place] for line in found(run)]
        best = values.index(max(values))
        expected = {"last": values[-1], "best": values[best], "best_epoch": best + 1}
        assert results["features"][name] == expected
        kept = checkpoint.load(run / "checkpoints" / f"best-{name.removesuffix('_accuracy')}.pt")
        assert kept["epoch"] == best + 1


def test_an_image_is_loaded_once_and_shown_to_the_network_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, loaded, shown = evaluation.make_loader, [], []

    def loader(*arguments: Any, **settings: Any) -> Loader:
        loaded.append(len(arguments[1]))
        return made(*arguments, **settings)

    features = knn.frozen_features

    def counted(backbone: FeatureNetwork, batches: Any, count: int, *others: Any) -> dict[str, torch.Tensor]:
        shown.append(count)
        return features(backbone, batches, count, *others)

    monkeypatch.setattr(evaluation, "make_loader", loader)
    monkeypatch.setattr(knn, "frozen_features", counted)
    config = tiny_config(tmp_path / "run", epochs=2, monitor=("knn", "linear"), monitor_every=2)
    pretrain(config)
    assert loaded == shown == [config.limit_train, config.limit_test]


def test_a_finished_run_that_is_resumed_with_a_monitor_says_that_it_has_nothing_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pretrain(tiny_config(tmp_path / "run"))
    results = pretrain(tiny_config(tmp_path / "run", resume="auto", monitor=("knn",)))
    assert results["features"] == {}
    assert "no epoch is left to monitor; see --knn" in capsys.readouterr().out


def test_a_network_that_diverges_is_trained_to_its_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny_config(
        tmp_path / "run", epochs=1, monitor=("linear",), monitor_every=1, lr=1e30, checkpoint_every_steps=None
    )
    results = pretrain(config)
    assert results["features"] == {}
    said = capsys.readouterr().err
    assert "nothing was monitored after epoch 1: the features of conv2 are not finite" in said


def test_the_training_is_that_without_a_monitor_to_the_bit(
    watched: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    without = pretrain(tiny_config(tmp_path / "run", epochs=3))
    assert watched[1]["state_hash"] == without["state_hash"]
    assert without["features"] == {}
    assert "features" not in (tmp_path / "run" / "metrics.jsonl").read_text()


@pytest.mark.parametrize("step", [1, 4, 8])
def test_a_resumed_run_repeats_the_accuracies(
    step: int, watched: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, whole = watched
    with monkeypatch.context() as patch:
        before_step(patch, step, lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(Interrupted):
            pretrain(tiny_config(tmp_path / "run", **BOTH))
    resumed = pretrain(tiny_config(tmp_path / "run", resume="auto", **BOTH))
    assert found(tmp_path / "run") == found(run)
    assert resumed["features"] == whole["features"]
    assert resumed["state_hash"] == whole["state_hash"]


@pytest.mark.faults("signal while the features are evaluated")
def test_a_signal_while_the_features_are_evaluated_stops_and_they_are_evaluated_again(
    watched: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(self: Monitor, state: Any) -> dict[str, float]:
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("the evaluation went on")

    with monkeypatch.context() as patch:
        patch.setattr(Monitor, "__call__", stopped)
        with pytest.raises(Interrupted):
            pretrain(tiny_config(tmp_path / "run", **BOTH))
    resumed = pretrain(tiny_config(tmp_path / "run", resume="auto", **BOTH))
    assert found(tmp_path / "run") == found(watched[0])
    assert resumed["features"] == watched[1]["features"]


def test_a_run_may_be_watched_from_its_second_half_on(
    tmp_path: Path, watched: tuple[Path, dict[str, Any]]
) -> None:
    pretrain(tiny_config(tmp_path / "run", epochs=3))
    again = pretrain(
        tiny_config(
            tmp_path / "half",
            epochs=3,
            resume=str(tmp_path / "run/checkpoints/epoch-0002.pt"),
            monitor=("knn",),
        )
    )
    (line,) = [
        json.loads(text)
        for text in (tmp_path / "half/metrics.jsonl").read_text().splitlines()
        if "features_epoch" in text
    ]
    assert (
        line["knn_accuracy"]
        == watched[1]["features"]["knn_accuracy"]["last"]
        == again["features"]["knn_accuracy"]["last"]
    )


def test_every_tenth_of_the_epochs_and_the_last_unless_said_otherwise(tmp_path: Path) -> None:
    pretrain(tiny_config(tmp_path / "run", epochs=21, monitor=("knn", "linear"), limit_train=20))
    assert [epochs for epochs, _, _ in found(tmp_path / "run")] == [*range(2, 21, 2), 21]
    pretrain(
        tiny_config(tmp_path / "two", epochs=5, monitor=("knn", "linear"), monitor_every=3, limit_train=20)
    )
    assert [epochs for epochs, _, _ in found(tmp_path / "two")] == [3, 5]


def test_curves_and_terminal_show_the_accuracies(
    watched: tuple[Path, dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, _ = watched
    events = EventAccumulator(str(run / "tensorboard" / "test"), size_guidance={"scalars": 0})
    events.Reload()
    shown = [event.value for event in events.Scalars("curves/knn_accuracy")]
    assert shown == pytest.approx([knn for _, knn, _ in found(run)])
    flags = (
        "--preset quickstart --limit-train 40 --limit-test 20 --blocks 3 --width 0.05 --epochs 1 --device cpu"
    )
    assert main([*flags.split(), "--monitor", "knn", "--output", str(tmp_path / "run")]) == 0
    out = capsys.readouterr().out
    assert "; features knn_accuracy " in out
    assert " %, at best " in out.partition("knn on the features: ")[2]


def labelled_folder(folder: Path, classes: int, images: int = 6) -> Path:
    for split in ("train", "test"):
        for label in range(classes):
            for number in range(images):
                save(folder / split / f"class{label}" / f"{number}.png", pixels(100 * label + number))
    return folder


def test_labels_may_come_from_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos, run = tmp_path / "photos", tmp_path / "run"
    for number in range(24):
        save(photos / f"{number}.png", pixels(number))
    labelled = labelled_folder(tmp_path / "labelled", classes=2)

    def watch(data: Path | None) -> None:
        both = ("knn", "linear")
        pretrain(folder_config(run, photos, "fp32 resident sgd", monitor=both, monitor_data=data))

    with pytest.raises(
        DataError,
        match=r"monitor is knn linear, which .* has no class labels .* or give .* with --monitor-data",
    ):
        watch(None)
    watch(labelled)
    *_, (_, *accuracies) = found(run)
    assert accuracies == evaluated(run, "last.pt", dataset="folder", data_dir=labelled)
    with pytest.raises(DataError, match=r"^monitor-data is .*/none, which does not exist; pass"):
        watch(tmp_path / "none")
    with monkeypatch.context() as patch:
        patch.chdir(tmp_path)
        watch(Path("labelled"))
    assert (read_settings(run) or {})["monitor_data"] == str(labelled)  # for a resume from elsewhere
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty") as refused:
        watch(tmp_path / "empty")
    assert "--data-dir" not in str(refused.value)


def features_of_processes(folder: Path) -> dict[str, Any]:
    with read_digits_once():
        return pretrain(tiny_config(folder, **BOTH))["features"]  # type: ignore[no-any-return]


def test_processes_agree_on_the_accuracies(tmp_path: Path) -> None:
    first, second = on_ranks(2, features_of_processes, tmp_path / "run")
    assert first == second
    *_, (_, *accuracies) = found(tmp_path / "run")
    assert accuracies == evaluated(tmp_path / "run", "last.pt")
    assert first["knn_accuracy"]["last"] == accuracies[0]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--monitor", "monitor"),
        ("--monitor knn knn", "monitor is knn knn; give knn, linear, or both"),
        ("--monitor svm", "monitor is 'svm'; choose from knn, linear"),
        (
            "--monitor-every 2",
            "monitor-every is 2; it only applies with --monitor: add --monitor knn, or remove it",
        ),
        ("--monitor knn --monitor-every 0", "monitor-every is 0; it must be at least 1"),
        ("--monitor-data photos", "monitor-data is photos; it only applies with --monitor"),
    ],
)
def test_unusable_settings_are_refused_by_name(flags: str, message: str) -> None:
    with pytest.raises(ArgumentError) as refused:
        parse(["--preset", "quickstart", *flags.split()])
    assert message in str(refused.value)


def test_the_callers_random_state_is_left_alone(watched: tuple[Path, dict[str, Any]]) -> None:
    before = torch.get_rng_state()
    pretrain(tiny_config(watched[0].parent / "again", **BOTH))
    assert torch.equal(torch.get_rng_state(), before)

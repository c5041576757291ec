"""What TensorBoard shows of a run, read back from the event files with TensorBoard's own reader."""

from __future__ import annotations

import io
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from image_files import pixels, save
from numpy.typing import NDArray
from PIL import Image
from processes import before_step
from tensorboard.backend.event_processing import plugin_event_accumulator
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny import STEPS_PER_EPOCH, folder_config, read_digits_once, tiny_config

from rotnet_fast.config import PretrainConfig
from rotnet_fast.engine.predictions import MOST_COLUMNS, draw_predictions
from rotnet_fast.engine.rotation_task import EXAMPLES, RotationTask
from rotnet_fast.engine.run_log import as_table
from rotnet_fast.engine.trainer import Trainer
from rotnet_fast.pretrain import pretrain


@pytest.fixture(autouse=True, scope="module")
def _digits() -> Iterator[None]:
    with read_digits_once():
        yield


def read(run: Path, kind: str) -> EventAccumulator:
    """Everything that TensorBoard finds of training, or of testing, none of it left out."""
    everything = dict.fromkeys(("scalars", "images", "tensors"), 0)
    found = EventAccumulator(str(run / "tensorboard" / kind), size_guidance=everything)
    found.Reload()
    return found


def curve(events: EventAccumulator, tag: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in events.Scalars(tag)]


def text(run: Path, name: str) -> list[tuple[int, str]]:
    """Step and text, as the newer reader finds them; the older one does not hide texts of killed runs."""
    events = plugin_event_accumulator.EventAccumulator(str(run / "tensorboard" / "train"))
    events.Reload()
    return [
        (event.step, event.tensor_proto.string_val[0].decode())
        for event in events.Tensors(f"{name}/text_summary")
    ]


def records(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def pictures(events: EventAccumulator) -> list[tuple[int, Image.Image]]:
    return [
        (event.step, Image.open(io.BytesIO(event.encoded_image_string)))
        for event in events.Images("predictions")
    ]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with TensorBoard: three epochs of three steps, reported after two of them and at the end."""
    folder = tmp_path_factory.mktemp("board") / "run"
    pretrain(tiny_config(folder, tensorboard=True, epochs=3))
    return folder


def test_training_and_testing_share_the_charts_of_loss_and_accuracy(run: Path) -> None:
    train, test = read(run, "train"), read(run, "test")
    shared = {"curves/loss", "curves/rotation_accuracy"}
    by_degrees = {f"rotation_accuracy_by_degrees/{degrees}" for degrees in (0, 90, 180, 270)}
    assert set(train.Tags()["scalars"]) == shared | {
        "training/lr",
        "training/images_per_second",
        "training/data_wait",
    }
    assert set(test.Tags()["scalars"]) == shared | by_degrees
    written = records(run)
    of_steps = [record for record in written if record["kind"] == "train"]
    of_tests = [record for record in written if record["kind"] == "test_epoch"]
    for name in shared:
        assert [step for step, _ in curve(train, name)] == [2, 3, 5, 6, 8, 9]
        assert [step for step, _ in curve(test, name)] == [3, 6, 9]
        for events, lines in ((train, of_steps), (test, of_tests)):
            assert [value for _, value in curve(events, name)] == pytest.approx(
                [record[name.removeprefix("curves/")] for record in lines]
            )
    rates = [record["images_per_second"] for record in of_steps]
    assert [value for _, value in curve(train, "training/images_per_second")] == pytest.approx(rates)


def test_the_loss_of_the_test_is_the_mean_over_all_views(tmp_path: Path) -> None:
    found: list[float] = []
    evaluate = RotationTask.evaluate

    @torch.no_grad()
    def checked(self: RotationTask) -> dict[str, float]:
        metrics = evaluate(self)
        losses = []
        for batch in self.test_loader.epoch(0):
            images = batch.images[batch.indices].permute(0, 3, 1, 2).double() / 255
            mean, std = (torch.tensor(self.view_settings[name]).view(-1, 1, 1) for name in ("mean", "std"))
            for k in range(4):
                logits = self.module(((images - mean) / std).float().rot90(k, (2, 3)))
                losses += (-logits.log_softmax(dim=1)[:, k]).tolist()
        found.append(abs(metrics["loss"] - sum(losses) / len(losses)))
        return metrics

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RotationTask, "evaluate", checked)
        pretrain(tiny_config(tmp_path / "run"))
    assert found
    assert max(found) < 1e-5


def test_settings_and_machine_are_told_as_tables(run: Path) -> None:
    ((step, settings),) = text(run, "settings")
    assert step == 1
    for line in ("| epochs | 3 |", "| rotations | 0 90 180 270 |", "| lr | 0.05 |", "| seed | 0 |"):
        assert line in settings.splitlines()
    ((_, machine),) = text(run, "environment")
    assert f"| torch | {torch.__version__} |" in machine.splitlines()
    assert "| device | " in machine


def test_a_table_survives_any_value() -> None:
    table = as_table(
        {"name": "a|b\nc\x1b", "none": None, "list": [1, 2], "libraries": {"x": "1.0"}, "no": {}}
    )
    assert table.splitlines()[2:] == [r"| name | a\|b c\x1b |", "| list | 1 2 |", "| libraries | x 1.0 |"]


def test_predictions_are_drawn_after_every_epoch_of_a_short_run(run: Path) -> None:
    drawn = pictures(read(run, "test"))
    assert [step for step, _ in drawn] == [3, 6, 9]
    views = EXAMPLES * (112 + 12 + 24) + 24 + 12
    assert {image.size for _, image in drawn} == {(4 * (112 + 12) + 12, views)}


def test_a_long_run_has_few_pictures(tmp_path: Path) -> None:
    pretrain(tiny_config(tmp_path / "run", tensorboard=True, epochs=25, eval_every=2))
    steps = [step for step, _ in pictures(read(tmp_path / "run", "test"))]
    assert steps[0] == 2 * STEPS_PER_EPOCH
    assert steps[-1] == 25 * STEPS_PER_EPOCH
    assert 8 <= len(steps) <= 12
    assert len(set(steps)) == len(steps)


def test_the_pictures_are_of_test_images_as_the_network_saw_them(tmp_path: Path) -> None:
    seen: list[tuple[NDArray[np.uint8], Trainer]] = []
    finish = Trainer._finish_epoch

    def after(self: Trainer, *arguments: Any) -> None:
        finish(self, *arguments)
        views, _ = self.task._examples[0]  # type: ignore[attr-defined]
        images = self.task.test_loader.images  # type: ignore[attr-defined]
        mean, std = (torch.tensor(self.task.view_settings[n]).view(-1, 1, 1) for n in ("mean", "std"))  # type: ignore[attr-defined]
        pixels = (255 * (views * std + mean)).round().to(torch.uint8)
        for k in range(4):
            assert torch.equal(pixels[k], images[0].permute(2, 0, 1).rot90(k, (1, 2)))
        (picture,) = self.task.pictures().values()
        seen.append((picture, self))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_finish_epoch", after)
        pretrain(tiny_config(tmp_path / "run", epochs=1))
    ((picture, _),) = seen
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 16


def test_right_and_wrong_predictions_look_different() -> None:
    views = np.zeros((1, 2, 16, 16, 3), np.uint8)
    probabilities = np.array([[[0.9, 0.1], [0.8, 0.2]]], np.float32)  # both are taken for upright
    picture = draw_predictions(views, probabilities, (0, 90))
    half = picture.shape[1] // 2
    blue, vermilion = ((picture == colour).all(axis=2) for colour in ((0, 114, 178), (213, 94, 0)))
    assert blue[:, :half].any()
    assert not blue[:, half:].any()
    assert vermilion[:, half:].sum() > 3 * blue[:, :half].sum()  # a thicker frame


@pytest.mark.parametrize(("number", "columns"), [(2, 2), (8, 8), (12, 6), (64, 8)])
def test_the_width_of_a_picture_is_bounded(number: int, columns: int) -> None:
    assert columns <= MOST_COLUMNS
    rotations = range(0, 5 * number, 5)
    views = np.zeros((2, number, 300, 300, 1), np.uint8)
    probabilities = np.full((2, number, number), 1 / number, np.float32)
    assert draw_predictions(views, probabilities, rotations).shape == (
        24 + 12 + 2 * 148,
        12 + columns * 124,
        3,
    )


@pytest.mark.parametrize("loader", ["resident", "dali"])
def test_streamed_images_are_drawn_and_change_no_weight(
    loader: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    if loader == "dali":
        pytest.importorskip("nvidia.dali")
    for number in range(40):
        half = "test" if number % 5 == 0 else "train"
        save(tmp_path / "images" / half / f"{number:02d}.png", pixels(number, 20, 24))
    hashes = []
    for tensorboard in (False, True):
        config = folder_config(
            tmp_path / f"run-{tensorboard}",
            tmp_path / "images",
            f"fp32 {loader} sgd",
            tensorboard=tensorboard,
        )
        hashes.append(pretrain(config)["state_hash"])
    assert hashes[0] == hashes[1]
    drawn = pictures(read(tmp_path / "run-True", "test"))
    assert len(drawn) == 2
    assert not (tmp_path / "run-False" / "tensorboard").exists()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_weights_are_the_same_to_the_bit_without_tensorboard(precision: str, tmp_path: Path) -> None:
    torch.manual_seed(7)
    before = torch.get_rng_state()
    hashes = {
        pretrain(tiny_config(tmp_path / str(on), tensorboard=on, precision=precision))["state_hash"]
        for on in (False, True)
    }
    assert len(hashes) == 1
    assert torch.equal(torch.get_rng_state(), before)


class Killed(BaseException):
    """Ends a run in this process as abruptly as an exception can."""


def kill() -> None:
    raise Killed


def next_second() -> None:
    """Wait until event files have a later time in their names, which decides their order."""
    second = int(time.time())
    while int(time.time()) == second:
        time.sleep(0.02)


@pytest.mark.faults("killed before any step")
@pytest.mark.parametrize("every", [1, 2, None])
@pytest.mark.parametrize("steps", [(0,), (1,), (4,), (3, 2)])
def test_no_step_occurs_twice_in_a_curve_after_kills(
    steps: tuple[int, ...], every: int | None, run: Path, tmp_path: Path
) -> None:
    config: PretrainConfig = tiny_config(
        tmp_path / "run", tensorboard=True, resume="auto", epochs=3, checkpoint_every_steps=every
    )
    for step in steps:
        with pytest.MonkeyPatch.context() as patch:
            before_step(patch, step, kill)
            with pytest.raises(Killed):
                pretrain(config)
        next_second()
    pretrain(config)
    check_same_curves(tmp_path / "run", run)


@pytest.mark.faults("killed before any step")
def test_no_step_occurs_twice_after_a_kill_between_a_test_and_its_checkpoint(
    run: Path, tmp_path: Path
) -> None:
    """The last checkpoint then holds all steps of the epoch, but not its test, which is done again."""
    config: PretrainConfig = tiny_config(tmp_path / "run", tensorboard=True, resume="auto", epochs=3)
    save_checkpoint = Trainer.save_checkpoint

    def killed(self: Trainer, *names: str) -> None:
        if "epoch-0002.pt" in names:
            raise Killed
        save_checkpoint(self, *names)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "save_checkpoint", killed)
        with pytest.raises(Killed):
            pretrain(config)
    assert [step for step, _ in curve(read(tmp_path / "run", "test"), "curves/loss")] == [3, 6]
    next_second()
    pretrain(config)
    check_same_curves(tmp_path / "run", run)


def check_same_curves(resumed: Path, whole: Path) -> None:
    """The curves of both runs are the same, to the steps that a resumed interval begins at."""
    for kind in ("train", "test"):
        events, expected = read(resumed, kind), read(whole, kind)
        assert events.Tags()["scalars"] == expected.Tags()["scalars"]
        for tag in events.Tags()["scalars"]:
            steps = [step for step, _ in curve(events, tag)]
            assert steps == [step for step, _ in curve(expected, tag)], tag
        for name in ("curves/loss", "curves/rotation_accuracy") if kind == "test" else ("training/lr",):
            for (_, one), (_, other) in zip(curve(events, name), curve(expected, name), strict=True):
                assert math.isclose(one, other, rel_tol=1e-6)
    assert [step for step, _ in pictures(read(resumed, "test"))] == [3, 6, 9]
    told = [step for step, _ in text(resumed, "settings")]
    assert told == sorted(set(told))


@pytest.mark.parametrize(
    ("batches", "size", "expected"),
    [
        (1, 60, [0, 10, 20, 30, 40, 50]),
        (3, 10, [0, 5, 10, 15, 20, 25]),
        (11, 2, [0, 2, 6, 10, 14, 18]),
        (2, 2, [0, 1, 2, 3]),
    ],
)
def test_the_images_shown_are_spread_over_the_test_images(
    batches: int, size: int, expected: list[int], tmp_path: Path
) -> None:
    config = tiny_config(
        tmp_path / "run", epochs=1, limit_test=batches * size, batch_size=size, limit_train=80
    )
    shown: list[int] = []
    evaluate = RotationTask.evaluate

    def remember(self: RotationTask) -> dict[str, float]:
        metrics = evaluate(self)
        images = self.test_loader.images  # type: ignore[attr-defined]
        mean, std = (torch.tensor(self.view_settings[name]).view(-1, 1, 1) for name in ("mean", "std"))
        for views, _ in self._examples:
            upright = (255 * (views[0] * std + mean)).round().to(torch.uint8).permute(1, 2, 0)
            shown.append(next(n for n, image in enumerate(images) if torch.equal(image, upright)))
        return metrics

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RotationTask, "evaluate", remember)
        pretrain(config)
    assert shown == expected

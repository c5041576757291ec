"""The examples run, in seconds on one core, and come out as they say."""

from __future__ import annotations

import re
import runpy
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from image_files import pixels, save

from rotnet_fast import load_backbone
from rotnet_fast.presets import quickstart
from rotnet_fast.pretrain import pretrain

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
ROTNET = "rotnet_in_20_lines.py"


@pytest.fixture(autouse=True)
def _own_random_numbers() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        yield


def run(name: str) -> dict[str, Any]:
    """Run an example as a script; returns its names."""
    return runpy.run_path(str(EXAMPLES / name), run_name="__main__")


def test_every_example_is_run_here() -> None:
    tested = set(re.findall(r'run\("(\w+\.py)"\)', Path(__file__).read_text(encoding="utf-8"))) | {ROTNET}
    assert {path.name for path in EXAMPLES.iterdir() if path.suffix == ".py"} == tested


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_each_example_begins_by_saying_what_it_shows(path: Path) -> None:
    docstring = re.match(r'"""(.+?)"""', path.read_text(encoding="utf-8"), re.DOTALL)
    assert docstring is not None
    assert 2 <= len([line for line in docstring[1].splitlines() if line]) <= 4


def test_rotnet_in_20_lines_trains_what_the_command_trains(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = (EXAMPLES / ROTNET).read_text(encoding="utf-8")
    for written, shorter in (("epochs = 8\n", "epochs = 2\n"), ("width=0.5", "width=0.1")):
        assert code.count(written) == 1
        code = code.replace(written, shorter)
    names: dict[str, Any] = {}
    exec(code, names)
    said = capsys.readouterr().out

    smaller = replace(quickstart(), epochs=2, width=0.1)
    folder = tmp_path / "run"
    results = pretrain(replace(smaller, precision="fp32", device="cpu", output=folder, tensorboard=False))

    ours, theirs = names["network"].state_dict(), load_backbone(folder, "cpu").network.state_dict()
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
    assert names["accuracy"] == pytest.approx(results["rotation_accuracy"] / 100, abs=1e-12)
    assert f"rotation accuracy {results['rotation_accuracy']:.2f}%" in said
    assert re.findall(r"^epoch (\d): loss \d", said, re.MULTILINE) == ["1", "2"]


def test_rotnet_in_20_lines_stays_as_short_as_it_says() -> None:
    code = re.sub(r'^""".+?"""', "", (EXAMPLES / ROTNET).read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len([line for line in code.splitlines() if line.strip()]) <= 26


def test_the_op_in_a_dataloader_gives_turned_images_and_learns() -> None:
    names = run("op_in_a_dataloader.py")
    images, to_stored = names["images"], names["to_stored"]
    stored = to_stored(images)
    assert stored.shape == (1797, 8, 8, 1)
    assert torch.equal(to_stored(stored.permute(0, 3, 1, 2)), stored)
    views, labels = names["rotate_batch"](stored, pad=0, flip_prob=0.0, mean=(0.5,), std=(0.5,))
    expected = torch.stack([torch.rot90((images - 0.5) / 0.5, k, (2, 3)) for k in range(4)], 1).flatten(0, 1)
    torch.testing.assert_close(views, expected, atol=1.01 / 255, rtol=0)  # levels are rounded
    assert torch.equal(labels, torch.arange(4).repeat(1797))
    losses = names["losses"]
    assert sum(losses[-10:]) / 10 < 0.7 < sum(losses[:10]) / 10


def test_sklearn_does_better_on_features_than_on_pixels() -> None:
    accuracy = run("sklearn_on_features.py")["accuracy"]
    assert len(accuracy) == 6
    for labels_per_class in (1, 5, 20):
        assert accuracy["features", labels_per_class] > accuracy["pixels", labels_per_class] + 0.02
    assert accuracy["features", 20] > 0.8


def test_a_folder_has_the_same_features_as_a_file_and_in_memory() -> None:
    names = run("features_of_a_folder.py")
    assert names["is_equal"]
    assert names["features"]["vectors"].shape == (200, 192)
    assert names["features"]["classes"].tolist() == list("0123456789")
    assert names["accuracy"] > 0.8


def test_a_grid_search_finds_a_layer_in_the_middle() -> None:
    names = run("sklearn_pipeline.py")
    assert names["search"].best_params_["features__layer"] in ("conv2", "conv3")
    assert names["test_accuracy"] > 0.75


def test_features_are_seen_while_they_are_learned() -> None:
    names = run("features_while_training.py")
    assert list(names["features"]) == [1, 3, 5]
    assert set(names["features"]) < set(names["rotations"])
    assert names["rotations"][5] > names["rotations"][1] + 5
    labels = names["features"].values()
    assert min(labels) > 85
    last = max(names["features"], key=names["features"].get) == 5
    is_last = (
        load_backbone(names["folder"], "cpu").metadata["state_hash"] == names["best"].metadata["state_hash"]
    )
    assert last == is_last


def test_fine_tuning_learns_and_changes_the_pretrained_blocks() -> None:
    names = run("fine_tune_with_a_new_head.py")
    assert names["test_accuracy"]() > 0.7
    before = dict(load_backbone("nin4-cifar10-jpeg", "cpu").network.named_parameters())
    is_equal = {name: torch.equal(p, before[name]) for name, p in names["network"].named_parameters()}
    used = {name for name in before if name.startswith(("conv1", "conv2", "conv3"))}
    assert {name for name, equal in is_equal.items() if not equal} == used


def test_with_few_labels_the_rotation_loss_helps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["example", "--steps", "150"])
    names = run("few_labels_with_rotation_loss.py")
    without, with_loss = names["found"][0]
    assert with_loss > without > 50


def test_few_labels_may_be_those_of_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(40):
        save(
            tmp_path / ("test" if number % 3 == 0 else "train") / "ab"[number % 2] / f"{number}.png",
            pixels(number),
        )
    flags = ["--folder", str(tmp_path), "--steps", "2", "--labels-per-class", "3", "--seeds", "2"]
    monkeypatch.setattr(sys, "argv", ["example", *flags])
    run("few_labels_with_rotation_loss.py")
    assert re.search(r"mean gain [+-]\d+\.\d points, positive for \d of 2 seeds", capsys.readouterr().out)


def test_a_lightning_module_learns_from_views_made_on_the_device() -> None:
    pytest.importorskip("lightning", reason="lightning is no dependency; needs pip install lightning")
    names = run("rotnet_in_lightning.py")
    steps = 3 * len(names["train"])
    assert names["rotnet"].rotate.key.tolist() == [0, steps]  # nothing is drawn while validating
    assert names["trainer"].callback_metrics["rotation_accuracy"].item() > 0.7


@pytest.fixture(scope="module")
def two_views() -> dict[str, Any]:
    with torch.random.fork_rng(devices=[]):
        return run("two_views.py")


def test_two_views_of_an_image_come_to_lie_together(two_views: dict[str, Any]) -> None:
    names = two_views
    batch_size, losses, encoder = names["batch_size"], names["losses"], names["encoder"]
    untold = torch.tensor(2 * batch_size - 1).log().item()  # loss of embeddings that say nothing
    assert losses[-1] < 0.7 * untold
    indices = torch.arange(batch_size)
    both, _ = names["rotate_batch"](
        names["images"],
        indices.repeat(2),
        sample_ids=torch.arange(2 * batch_size),
        rotations=(0,),
        epoch=100,
        pad=3,
        flip_prob=0.0,
    )
    one, other = both.chunk(2)
    assert (one != other).flatten(1).any(dim=1).float().mean() > 0.9
    with torch.no_grad():
        one, other = torch.nn.functional.normalize(encoder(both), dim=1).chunk(2)
    found = (one @ other.T).argmax(dim=1)
    assert (found == indices).float().mean() > 0.5


def test_nt_xent_is_the_published_loss(two_views: dict[str, Any]) -> None:
    z = torch.randn(8, 5, dtype=torch.float64)
    unit = z / z.norm(dim=1, keepdim=True)
    expected = 0.0
    for i in range(8):
        others = torch.stack([(unit[i] @ unit[k] / 0.3).exp() for k in range(8) if k != i])
        expected -= ((unit[i] @ unit[(i + 4) % 8] / 0.3).exp() / others.sum()).log().item() / 8
    assert two_views["nt_xent"](z, temperature=0.3).item() == pytest.approx(expected)


def test_photos_are_set_upright_by_a_network_that_learned_from_others() -> None:
    names = run("photos_set_upright.py")
    assert names["upright"] == len(names["copies"]) == 40
    assert dict(names["found"].decisions) == {"upright": 10, "turned": 30}
    assert not names["found"].unchanged
    assert names["points"][0].wrong == 0

"""A pretraining may start from the weights of another one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import before_step
from tiny import read_digits_once, tiny_config

from rotnet_fast.data.datasets import load_dataset
from rotnet_fast.engine import checkpoint
from rotnet_fast.engine.precision import Precision
from rotnet_fast.engine.run_folder import open_run_folder
from rotnet_fast.errors import ArgumentError, CheckpointError
from rotnet_fast.evaluate import EvaluateConfig, evaluate
from rotnet_fast.models.build import make_network
from rotnet_fast.pretrain import main, parse, pretrain
from rotnet_fast.pretrained import read_pretrained
from rotnet_fast.protocols.pretext import pretraining, start_from

CPU = torch.device("cpu")


@pytest.fixture(autouse=True, scope="module")
def _digits() -> Iterator[None]:
    with read_digits_once():
        yield


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with another seed than the default."""
    run = tmp_path_factory.mktemp("first") / "run"
    pretrain(tiny_config(run, seed=5))
    return run


def weights(run: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = checkpoint.load(run / "checkpoints" / "last.pt")["module"]
    return found


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name in expected:
        assert torch.equal(found[name], expected[name]), name


def test_the_training_is_that_of_a_network_with_these_weights(first: Path, tmp_path: Path) -> None:
    pretrain(tiny_config(tmp_path / "run", init_from=str(first)))
    config = tiny_config(tmp_path / "by hand")
    dataset = load_dataset("digits", None, config.image_size, config.limit_train, config.limit_test)
    with open_run_folder(tmp_path / "by hand", False) as run:
        trainer = pretraining(config, dataset, CPU, Precision("fp32", "cpu"), run, progress=False)
        trainer.task.module.load_state_dict(weights(first))
        trainer.fit()
    assert_same(weights(tmp_path / "run"), weights(tmp_path / "by hand"))
    settings = json.loads((tmp_path / "run" / "config.json").read_text())["settings"]
    assert settings["init_from"] == str(first)


@pytest.mark.parametrize("kind", ["checkpoint", "exported"])
def test_every_form_of_a_model_will_do(kind: str, first: Path, tmp_path: Path) -> None:
    if kind == "checkpoint":
        model = first / "checkpoints" / "last.pt"
    else:
        from rotnet_fast.export import main as export

        model = tmp_path / "model"
        assert export([str(first), "--output", str(model)]) == 0
    pretrain(tiny_config(tmp_path / "run", init_from=str(model), epochs=1))
    pretrain(tiny_config(tmp_path / "other", init_from=str(first), epochs=1))
    assert_same(weights(tmp_path / "run"), weights(tmp_path / "other"))


@pytest.mark.parametrize("step", [1, 4])
def test_an_interrupted_run_resumes_even_where_the_model_is_gone(
    step: int, first: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(first, tmp_path / "first")
    start: dict[str, Any] = {"init_from": str(tmp_path / "first")}
    pretrain(tiny_config(tmp_path / "whole", **start))

    def stop() -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        before_step(patch, step, stop)
        with pytest.raises(KeyboardInterrupt):
            pretrain(tiny_config(tmp_path / "run", **start))
    shutil.rmtree(tmp_path / "first")
    pretrain(tiny_config(tmp_path / "run", resume="auto", **start))
    assert_same(weights(tmp_path / "run"), weights(tmp_path / "whole"))
    with pytest.raises(CheckpointError, match=r"init-from .* does not exist"):
        pretrain(tiny_config(tmp_path / "new", **start))


def test_a_run_resumes_although_the_model_was_trained_further(first: Path, tmp_path: Path) -> None:
    shutil.copytree(first, tmp_path / "first")
    start: dict[str, Any] = {"init_from": str(tmp_path / "first")}
    pretrain(tiny_config(tmp_path / "run", epochs=1, **start))
    before = weights(tmp_path / "run")
    shutil.rmtree(tmp_path / "first")
    pretrain(tiny_config(tmp_path / "first", seed=8))
    pretrain(tiny_config(tmp_path / "run", epochs=1, resume="auto", **start))
    assert_same(weights(tmp_path / "run"), before)


def test_a_run_of_another_beginning_is_not_resumed(first: Path, tmp_path: Path) -> None:
    pretrain(tiny_config(tmp_path / "run", epochs=1, init_from=str(first)))
    with pytest.raises(
        CheckpointError, match=r"belongs to another run: init is '[0-9a-f]{64}' there and None here"
    ):
        pretrain(tiny_config(tmp_path / "run", epochs=1, resume="auto"))
    pretrain(tiny_config(tmp_path / "other", epochs=1, seed=6))
    with pytest.raises(CheckpointError, match=r"belongs to another run: init is '[0-9a-f]{64}' there and '"):
        pretrain(tiny_config(tmp_path / "run", epochs=1, resume="auto", init_from=str(tmp_path / "other")))


def test_with_other_rotations_what_follows_the_last_map_starts_anew(first: Path) -> None:
    init = read_pretrained(first)
    config = replace(init.config, rotations=(0, 180), init_from=str(first))
    torch.manual_seed(1)
    network = make_network(2, 3, blocks=3, width=config.width)
    before = network.classifier.weight.clone()  # type: ignore[union-attr,operator]
    start_from(network, init, config)
    state, source = network.state_dict(), init.network().state_dict()
    for name in state:
        if name.startswith("classifier"):
            continue
        assert torch.equal(state[name], source[name]), name
    assert torch.equal(network.classifier.weight, before)  # type: ignore[union-attr,arg-type]


def test_networks_of_a_library_can_be_started_from_too(tmp_path: Path) -> None:
    resnet: dict[str, Any] = {
        "model": "resnet18",
        "blocks": 4,
        "width": 1.0,
        "limit_train": 20,
        "image_size": 32,
    }
    pretrain(tiny_config(tmp_path / "first", epochs=1, seed=3, **resnet))
    init = read_pretrained(tmp_path / "first")
    for rotations in ((0, 90, 180, 270), (0, 180)):
        config = replace(init.config, rotations=rotations, init_from="first")
        network = make_network(len(rotations), 3, "resnet18")
        start_from(network, init, config)
        images = torch.randn(2, 3, 32, 32)
        maps = [one.eval().features(images, ["layer4"])["layer4"] for one in (network, init.network())]
        assert torch.equal(*maps)


def test_another_network_is_refused_by_what_differs(first: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ArgumentError, match=r"another network: blocks is 3 there and 4 here; use the same one"
    ):
        pretrain(tiny_config(tmp_path / "run", init_from=str(first), blocks=4))
    with pytest.raises(ArgumentError, match=r"width is 0\.05 there and 0\.1 here"):
        pretrain(tiny_config(tmp_path / "run", init_from=str(first), width=0.1))
    with pytest.raises(CheckpointError, match=r"^init-from nowhere does not exist"):
        parse(["--preset", "quickstart", "--init-from", "nowhere"])
    assert main(["--preset", "quickstart", "--init-from="]) == 2


def test_what_was_started_from_a_model_is_evaluated_like_any_other(first: Path, tmp_path: Path) -> None:
    pretrain(tiny_config(tmp_path / "run", epochs=1, init_from=str(first)))
    config = EvaluateConfig(
        str(tmp_path / "run"),
        frozen=False,
        random_init=False,
        knn=True,
        device="cpu",
        output=tmp_path / "knn",
    )
    (cell,) = evaluate(config, config.output_folder())["cells"]
    assert 0 <= cell["accuracy"] <= 100

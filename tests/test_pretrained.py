"""Networks come back from checkpoints as they were."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny import read_digits_once, tiny_config

from rotnet_fast.engine import checkpoint
from rotnet_fast.engine.run_folder import run_of
from rotnet_fast.errors import CheckpointError
from rotnet_fast.models.nin import NetworkInNetwork
from rotnet_fast.pretrain import pretrain
from rotnet_fast.protocols.pretrained import load_pretrained, load_supervised, network_from_state


@pytest.mark.parametrize("blocks", [3, 4, 5])
@pytest.mark.parametrize("width", [0.01, 0.05, 0.07, 0.1, 0.25, 0.37, 0.5, 0.73])
def test_size_of_a_network_is_read_off_its_weights(blocks: int, width: float) -> None:
    network = NetworkInNetwork(7, blocks, width, in_channels=2)
    copy = network_from_state(network.state_dict())
    assert copy is not None
    assert checkpoint.state_hash(copy.state_dict()) == checkpoint.state_hash(network.state_dict())


def test_other_weights_are_not_a_network() -> None:
    state = NetworkInNetwork(4, 3, 0.05).state_dict()
    assert network_from_state({}) is None
    assert network_from_state({f"backbone.{name}": value for name, value in state.items()}) is None
    without_a_block = {name: value for name, value in state.items() if not name.startswith("conv3")}
    assert network_from_state(without_a_block) is None
    without_a_weight = {name: value for name, value in state.items() if name != "conv2.1.bn.weight"}
    assert network_from_state(without_a_weight) is None
    wider = {**state, "conv2.1.conv.weight": torch.zeros(9, 8, 1, 1)}
    assert network_from_state(wider) is None


def test_pretrained_network_and_images_are_those_of_the_run(tmp_path: Path) -> None:
    with read_digits_once():
        pretrain(tiny_config(tmp_path / "run", rotations=(90, 270), epochs=1, dataset_name="Digits"))
        pretrained = load_pretrained(tmp_path / "run" / "checkpoints" / "last.pt")
        dataset = pretrained.open_dataset(torch.device("cpu"), limit_test=10)
    assert pretrained.run == tmp_path / "run"
    assert (pretrained.rotations, pretrained.epoch) == ((90, 270), 1)
    state = pretrained.network().state_dict()
    assert checkpoint.state_hash(state) == checkpoint.state_hash(pretrained.module)
    assert (len(dataset.train), len(dataset.test)) == (40, 10)
    assert dataset.display_name == "Digits"
    with pytest.raises(CheckpointError, match="is one of a pretraining; give a supervised training"):
        load_supervised(tmp_path / "run")


def test_a_checkpoint_without_a_network_is_refused(tmp_path: Path) -> None:
    checkpoint.save(
        tmp_path / "a.pt", {"config": {"task": "evaluate"}, "module": {"heads.a": torch.zeros(1)}}
    )
    with pytest.raises(CheckpointError, match="does not hold a whole network"):
        load_supervised(tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="is not one of a pretraining"):
        load_pretrained(tmp_path / "a.pt")


def test_run_of_a_checkpoint(tmp_path: Path) -> None:
    assert run_of(tmp_path) == tmp_path
    assert run_of(tmp_path / "checkpoints" / "last.pt") == tmp_path
    assert run_of(tmp_path / "snapshots" / "epoch-0001.pt") == tmp_path
    assert run_of(tmp_path / "copy.pt") == tmp_path

"""Copies, averages and states of networks and backbones, as torch makes them."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn

from rotnet_fast.backbone import Backbone
from rotnet_fast.models.build import make_network
from rotnet_fast.models.network import FeatureNetwork

IMAGES = torch.randint(0, 256, (4, 32, 32, 3), dtype=torch.uint8)
FLOATS = torch.randn(4, 3, 32, 32).contiguous(memory_format=torch.channels_last)
MODELS = pytest.mark.parametrize("model", ["nin", "resnet18"])


def trained(model: str) -> FeatureNetwork:
    """A network after a step, with BatchNorm statistics of its own."""
    torch.manual_seed(1)
    settings: dict[str, Any] = {"blocks": 3, "width": 0.1} if model == "nin" else {}
    network = make_network(4, model=model, **settings).train()
    network(FLOATS).sum().backward()
    return network


def by_torch_save(module: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    loaded: nn.Module = torch.load(file, weights_only=False)
    return loaded


COPIES: dict[str, Callable[[nn.Module], nn.Module]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda module: pickle.loads(pickle.dumps(module)),
    "torch.save": by_torch_save,
}


@MODELS
@pytest.mark.parametrize("make_copy", COPIES.values(), ids=COPIES.keys())
def test_a_copy_is_equal_and_apart(model: str, make_copy: Callable[[nn.Module], nn.Module]) -> None:
    network = trained(model)
    backbone = Backbone(network, rotations=(0, 90, 180, 270), metadata={"dataset": "digits"})
    backbone.features(IMAGES)  # what is made at the first use must not be in the way
    for original in (backbone, network):
        copied = make_copy(original)
        assert list(copied.state_dict()) == list(original.state_dict())
        x = IMAGES if original is backbone else FLOATS
        assert torch.equal(copied(x), original(x))
        with torch.no_grad():
            next(copied.parameters()).zero_()
        assert not torch.equal(copied(x), original(x))
    copied_backbone = make_copy(backbone)
    assert isinstance(copied_backbone, Backbone)
    for name in ("layers", "rotations", "mean", "std", "image_size", "metadata"):
        assert getattr(copied_backbone, name) == getattr(backbone, name)
    assert torch.equal(copied_backbone.features(IMAGES), backbone.features(IMAGES))
    assert torch.equal(copied_backbone.rotation_logits(IMAGES), backbone.rotation_logits(IMAGES))


@MODELS
def test_states_go_from_one_to_another(model: str) -> None:
    first, second = (
        Backbone(network, rotations=(0, 90, 180, 270)) for network in (trained(model), trained(model))
    )
    with torch.no_grad():
        for parameter in second.parameters():
            parameter.add_(0.1)
    assert not torch.equal(first(IMAGES), second(IMAGES))
    second.load_state_dict(first.state_dict())
    assert torch.equal(first(IMAGES), second(IMAGES))
    larger = [nn.Sequential(trained(model), nn.Linear(4, 2)) for _ in range(2)]
    larger[1].load_state_dict(larger[0].state_dict())
    assert torch.equal(larger[1].eval()(FLOATS), larger[0].eval()(FLOATS))
    with pytest.raises(RuntimeError, match="Missing key"):
        second.load_state_dict({})


@MODELS
def test_averaged_models_average_and_renew_batch_norm(model: str) -> None:
    network = trained(model)
    averaged = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    averaged.update_parameters(network)
    before = [parameter.clone() for parameter in network.parameters()]
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(1.0)
    averaged.update_parameters(network)
    for found, old in zip(averaged.parameters(), before, strict=True):
        torch.testing.assert_close(found, old + 0.5)
    old_state = {key: value.clone() for key, value in averaged.state_dict().items()}
    update_bn([(FLOATS,), (FLOATS + 1,)], averaged)
    counts = [value for key, value in averaged.state_dict().items() if key.endswith("num_batches_tracked")]
    assert counts
    assert {int(count) for count in counts} == {2}
    assert any(
        not torch.equal(value, old_state[key])
        for key, value in averaged.state_dict().items()
        if key.endswith("running_mean")
    )
    other = AveragedModel(trained(model))
    other.load_state_dict(averaged.state_dict())
    assert torch.equal(other.eval()(FLOATS), averaged.eval()(FLOATS))


@MODELS
def test_update_bn_gives_the_statistics_of_the_whole(model: str) -> None:
    """The first layer sees the images alone, so that its averages are known."""
    network = trained(model)
    update_bn([(FLOATS,), (FLOATS + 1,)], network)
    first = next(part for part in network.modules() if isinstance(part, nn.BatchNorm2d))
    conv = next(part for part in network.modules() if isinstance(part, nn.Conv2d))
    means = [conv(x).mean(dim=(0, 2, 3)) for x in (FLOATS, FLOATS + 1)]
    torch.testing.assert_close(first.running_mean, (means[0] + means[1]) / 2, rtol=1e-4, atol=1e-5)
    assert first.momentum == 0.1  # as it was


def test_update_bn_leaves_a_frozen_backbone_alone() -> None:
    backbone = Backbone(trained("nin"), rotations=(0, 90, 180, 270))
    before = backbone(IMAGES)
    averaged = AveragedModel(nn.Sequential(backbone, nn.Linear(16, 2)))
    assert torch.equal(averaged.module[0](IMAGES), before)
    assert not averaged.module[0].training

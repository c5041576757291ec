"""The op and the rotation loss as modules: the same views and losses, to the bit, as those of the package."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import rotnet_fast
from rotnet_fast import RotateBatch, RotationLoss, rotate_batch
from rotnet_fast.data.datasets import Dataset, Split
from rotnet_fast.data.loaders import make_loader
from rotnet_fast.engine.rotation_task import RotationTask
from rotnet_fast.engine.schedule import Schedule
from rotnet_fast.errors import ArgumentError
from rotnet_fast.models.nin import NetworkInNetwork
from rotnet_fast.rotations import EIGHT_ROTATIONS

CPU = torch.device("cpu")


def images(count: int = 5, side: int = 8, channels: int = 3, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, side, side, channels), dtype=torch.uint8, generator=generator)


def test_each_call_in_training_is_the_op_with_the_next_draws() -> None:
    module = RotateBatch(seed=7, pad=2, flip_prob=0.3)
    for call in range(3):
        views, labels = module(images())
        expected, of = rotate_batch(
            images(), sample_ids=torch.arange(5), seed=7, epoch=call, pad=2, flip_prob=0.3
        )
        assert torch.equal(views, expected)
        assert torch.equal(labels, of)
    assert not torch.equal(module(images())[0], views)


def test_in_eval_mode_images_are_whole_and_nothing_is_drawn() -> None:
    module = RotateBatch(seed=7).eval()
    expected = rotate_batch(images(), pad=0, flip_prob=0.0)[0]
    assert torch.equal(module(images())[0], expected)
    assert module.key.tolist() == [7, 0]


@given(
    st.integers(1, 4),
    st.integers(1, 3),
    st.sampled_from([(0, 90, 180, 270), EIGHT_ROTATIONS, (0, 180), (30,)]),
    st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    st.booleans(),
)
def test_both_layouts_give_the_same_views(
    count: int, channels: int, rotations: tuple[int, ...], dtype: torch.dtype, is_said: bool
) -> None:
    stored = images(count, 6, channels)
    constants = {"mean": [0.4] * channels, "std": [0.3] * channels}
    last, first = (
        RotateBatch(rotations, dtype=dtype, layout=layout if is_said else None, **constants)  # type: ignore[arg-type]
        for layout in ("NHWC", "NCHW")
    )
    views, labels = last(stored)
    again, _ = first(stored.permute(0, 3, 1, 2).contiguous())
    assert views.dtype == dtype
    assert torch.equal(views, again)
    assert labels.tolist() == [*range(len(rotations))] * count


def test_numbers_of_images_make_draws_independent_of_their_batches() -> None:
    together, apart = RotateBatch(), RotateBatch()
    numbers = torch.tensor([3, 1, 4, 1, 5])
    whole, _ = together(images(), numbers)
    apart.key[1] = 0
    part, _ = apart(images()[2:], numbers[2:])
    assert torch.equal(whole[8:], part)


def test_a_saved_module_goes_on_with_its_draws() -> None:
    module = RotateBatch(seed=1)
    module(images())
    other = RotateBatch(seed=99)
    other.load_state_dict(module.state_dict())
    assert torch.equal(module(images())[0], other(images())[0])
    assert torch.equal(copy.deepcopy(module)(images())[0], module(images())[0])


def test_the_module_compiles_without_a_break() -> None:
    module, plain = RotateBatch(seed=3), RotateBatch(seed=3)
    compiled = torch.compile(module, backend="eager", fullgraph=True)
    for _ in range(3):
        assert torch.equal(compiled(images())[0], plain(images())[0])
    assert module.key.tolist() == [3, 3]


def loss_of(network: NetworkInNetwork, **others: Any) -> RotationLoss:
    """The rotation loss with the network's own classifier for a head."""
    last = network.layers[-1]
    rotation = RotationLoss(
        lambda views: network.features(views, [last])[last], network.feature_channels(last), **others
    )
    with torch.no_grad():
        rotation.head.weight.copy_(network.classifier.weight)
        rotation.head.bias.copy_(network.classifier.bias)
    return rotation


def test_loss_and_gradients_are_those_of_the_pretext_task() -> None:
    torch.manual_seed(0)
    network = NetworkInNetwork(num_classes=4, blocks=3, width=0.05)
    stored = images(6, 16)
    split = Split(stored, torch.zeros(6, dtype=torch.int64))
    dataset = Dataset("digits", "digits", ("a", "b"), split, split, "0" * 64)
    loader = make_loader(dataset, split, CPU, 6, 5, shuffle=False)
    task = RotationTask(
        network, Schedule(0.1, "step", (), 0.2, 1, 0.0), loader, rotations=(0, 90, 180, 270), seed=5, pad=4,
        flip_prob=0.5, mean=dataset.mean, std=dataset.std, dtype=torch.float32,
    )  # fmt: skip
    task.begin_epoch(0)
    (batch,) = loader.epoch(0)
    views, labels = task.views(batch)
    expected = task.loss(task.forward(views), labels)
    expected.loss.backward()
    gradients = [parameter.grad for parameter in network.feature_parameters("conv3")]
    network.zero_grad(set_to_none=True)

    rotation = loss_of(network, seed=5)
    found = rotation(stored)
    found.loss.backward()
    assert found.loss.item() == expected.loss.item()
    assert found.accuracy.item() == pytest.approx(expected.sums["rotation_accuracy"].item() / 24)
    for parameter, gradient in zip(network.feature_parameters("conv3"), gradients, strict=True):
        assert torch.equal(parameter.grad, gradient)  # type: ignore[arg-type]
    assert rotation.head.weight.grad is not None


def test_the_network_stays_the_callers() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())
    rotation = RotationLoss(network, features=8)
    assert {name for name, _ in rotation.named_parameters()} == {"head.weight", "head.bias"}
    rotation.eval()
    assert network.training
    rotation(images()).loss.backward()
    assert network[0].weight.grad is not None


def test_features_that_the_network_made_in_one_batch_count_as_well() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(2), nn.AdaptiveAvgPool1d(1), nn.Flatten())
    rotation, other = RotationLoss(network, features=8, seed=1), RotationLoss(network, features=8, seed=1)
    other.head.load_state_dict(rotation.head.state_dict())
    views, labels = other.rotate(images())
    upright = torch.zeros(2, 3, 8, 8)
    together = other.of_features(network(torch.cat([upright, views]))[2:], labels)
    assert together.loss.item() == pytest.approx(rotation(images()).loss.item(), rel=1e-6)


def test_a_rotation_loss_is_learned() -> None:
    torch.manual_seed(0)
    stored = torch.zeros(8, 12, 12, 3, dtype=torch.uint8)
    stored[:, :3] = 255  # a bright sky
    network = nn.Sequential(nn.Conv2d(3, 16, 5), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 64, 16))
    rotation = RotationLoss(network, features=16, pad=0)
    sgd = torch.optim.SGD([*network.parameters(), *rotation.parameters()], lr=0.05)
    for _ in range(30):
        found = rotation(stored)
        sgd.zero_grad()
        found.loss.backward()
        sgd.step()
    assert found.accuracy == 1.0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rotations": ()}, "rotations"),
        ({"rotations": (0.5,)}, "rotations"),
        ({"layout": "HWC"}, "layout is 'HWC'; it must be NHWC, NCHW, or None to tell it"),
        ({"dtype": torch.float64}, "dtype is torch.float64; it must be one of"),
        ({"seed": -1}, "seed is -1; it must be an integer in"),
        ({"mean": (0.5,)}, "mean has 1 value and std 3; give one per channel to both"),
        ({"mean": (), "std": ()}, r"mean is \(\); it must be a sequence, one value for each of 1 to 4"),
        ({"mean": torch.tensor(0.5)}, "mean is Tensor .*; it must be a sequence"),
        ({"pad": -1}, "pad"),
        ({"flip_prob": 2.0}, "flip_prob"),
    ],
)
def test_unusable_settings_are_refused_at_once(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        RotateBatch(**settings)


def test_a_module_made_in_inference_mode_or_on_meta_is_usable_outside() -> None:
    with torch.inference_mode():
        made = RotateBatch()
    made(images())
    assert made.key.tolist() == [0, 1]
    with torch.device("meta"):
        assert RotateBatch().key.device.type == "meta"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (torch.rand(2, 3, 8, 8), "images are torch.float32, and they must be uint8 .* as they are stored"),
        (
            images()[0],
            r"images has the shape \[8, 8, 3\]; add the first dimension with images\[None\]",
        ),
        (images(channels=1), r"shape \[5, 8, 8, 1\], without 3 channels .*; give mean and std one"),
        (images(side=3), "may be NHWC or NCHW; pass layout='NHWC' or layout='NCHW'"),
    ],
)
def test_unusable_images_are_refused_by_name(given: torch.Tensor, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        RotateBatch()(given)


@pytest.mark.parametrize("features", [0, -1, 2.0, True, None])
def test_a_number_of_features_is_a_whole_number(features: Any) -> None:
    with pytest.raises(ArgumentError, match=r"features is .*; it must be an integer of at least 1"):
        RotationLoss(nn.Identity(), features)


def test_features_of_another_shape_are_refused() -> None:
    with pytest.raises(
        ArgumentError, match=r"network returned shape \[20, 3, 8, 8\] for 20 views; with features=8"
    ):
        RotationLoss(nn.Identity(), 8)(images())
    with pytest.raises(ArgumentError, match="network returned dict for 20 views"):
        RotationLoss(lambda views: {"maps": views}, 8)(images())  # type: ignore[arg-type,return-value]


def test_the_modules_are_imported_on_first_use() -> None:
    assert rotnet_fast.RotateBatch is RotateBatch
    assert "RotationLoss" in dir(rotnet_fast)


def test_processes_draw_differently_from_the_same_state(monkeypatch: pytest.MonkeyPatch) -> None:
    """DistributedDataParallel gives all processes the buffers of the first one, the seed among them."""
    alone = RotateBatch(seed=3)(images())[0]
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    of_rank = []
    for rank in range(3):
        monkeypatch.setattr(torch.distributed, "get_rank", lambda rank=rank: rank)
        of_rank.append(RotateBatch(seed=3)(images())[0])
    assert torch.equal(of_rank[0], alone)
    assert not torch.equal(of_rank[1], alone)
    assert not torch.equal(of_rank[2], of_rank[1])


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: RotateBatch()(images().numpy()), "images is ndarray .*; it must be a uint8 tensor"),
        (lambda: RotateBatch()([1]), r"images is \[1\]; it must be a uint8 tensor"),
        (lambda: RotateBatch(mean=0.5), "mean is 0.5; it must be a sequence, one value for each of 1"),
        (lambda: RotateBatch(std=None), "std is None; it must be a sequence"),
        (lambda: RotateBatch(seed=None), "seed is None; it must be an integer in"),
        (lambda: RotateBatch(seed=1.5), "seed is 1.5; it must be an integer in"),
        (lambda: RotationLoss("resnet18", 8), "network is 'resnet18'; it must be a module or a function"),
        (
            lambda: RotationLoss(nn.Identity(), 8).of_features(torch.zeros(4, 8), [0, 1, 2, 3]),
            r"labels is \[0, 1, 2, 3\]; pass those that rotate returned",
        ),
    ],
)
def test_a_wrong_argument_is_named(call: Any, said: str) -> None:
    with pytest.raises(ArgumentError, match=said):
        call()


def test_numbers_of_numpy_are_numbers() -> None:
    assert RotationLoss(nn.Identity(), np.int64(8)).head.in_features == 8
    assert RotateBatch(seed=np.int64(5)).key.tolist() == [5, 0]


@pytest.mark.parametrize("name", ["mean", "std", "pad", "flip_prob"])
def test_settings_given_as_tensors_are_copied_and_can_be_compiled(name: str) -> None:
    usual = {"mean": torch.full((3,), 0.5), "std": torch.ones(3), "pad": torch.tensor(2)}
    usual["flip_prob"] = torch.ones(())
    module = RotateBatch(**usual)
    images = torch.randint(0, 256, (2, 8, 8, 3), dtype=torch.uint8)
    before = module.eval()(images)[0]
    if name == "pad":
        usual["pad"].fill_(1)
    else:
        usual[name].fill_(0.25)
    assert torch.equal(module(images)[0], before)
    assert type(getattr(module, name)) in (int, float, tuple)
    assert torch.equal(torch.compile(module, backend="eager", fullgraph=True)(images)[0], before)


def test_means_in_tensors_without_dimensions_become_numbers() -> None:
    mean = torch.full((3,), 0.5)
    module = RotateBatch(mean=list(mean), std=list(torch.ones(3)))
    mean.fill_(0.25)
    assert module.mean == (0.5, 0.5, 0.5)
    assert [type(value) for value in (*module.mean, *module.std)] == [float] * 6

"""The backbone has the published layers, sizes, taps and numerics."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.modules.module import register_module_forward_hook

from rotnet_fast.errors import ArgumentError
from rotnet_fast.models.flops import multiply_adds
from rotnet_fast.models.nin import NetworkInNetwork, scaled_channels


def images(batch: int = 2, side: int = 32, seed: int = 0) -> torch.Tensor:
    made = torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(seed))
    return made.contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("blocks", "parameters", "millions_of_multiply_adds"),
    [(3, 1_004_484, 224.72), (4, 1_411_140, 250.68), (5, 1_817_796, 276.63)],
)
def test_size_is_as_published(blocks: int, parameters: int, millions_of_multiply_adds: float) -> None:
    network = NetworkInNetwork(num_classes=4, blocks=blocks)
    assert sum(p.numel() for p in network.parameters()) == parameters
    found = multiply_adds(lambda: network.eval()(images(1)))
    assert round(found / 1e6, 2) == millions_of_multiply_adds


def test_feature_maps_are_tapped_after_the_pool() -> None:
    network = NetworkInNetwork(blocks=5)
    maps = network.features(images(), network.layers)
    assert {name: tuple(x.shape[1:]) for name, x in maps.items()} == {
        "conv1": (96, 16, 16),
        "conv2": (192, 8, 8),
        "conv3": (192, 8, 8),
        "conv4": (192, 8, 8),
        "conv5": (192, 8, 8),
    }
    assert [network.feature_channels(layer) for layer in network.layers] == [96, 192, 192, 192, 192]


def test_feature_maps_and_weights_are_channels_last() -> None:
    network = NetworkInNetwork(width=0.25)
    maps = network.features(images(), network.layers)
    assert all(x.is_contiguous(memory_format=torch.channels_last) for x in maps.values())
    assert network.conv1[0].conv.weight.is_contiguous(memory_format=torch.channels_last)


def test_last_feature_map_gives_the_logits_through_mean_and_classifier() -> None:
    network = NetworkInNetwork(width=0.25).eval()
    x = images()
    last = network.features(x, ["conv4"])["conv4"]
    assert torch.equal(network(x), network.classifier(last.mean(dim=(2, 3))))


def test_network_equals_the_layers_of_the_protocol_written_out() -> None:
    network = NetworkInNetwork(num_classes=4, blocks=3, width=0.25).eval()
    state = network.state_dict()

    def conv_bn_relu(x: torch.Tensor, name: str, padding: int) -> torch.Tensor:
        x = functional.conv2d(x, state[f"{name}.conv.weight"], padding=padding)
        x = (x - state[f"{name}.bn.running_mean"][:, None, None]) / torch.sqrt(
            state[f"{name}.bn.running_var"][:, None, None] + 1e-5
        )
        x = x * state[f"{name}.bn.weight"][:, None, None] + state[f"{name}.bn.bias"][:, None, None]
        return x.clamp(min=0)

    x = inputs = images()
    for block, padding in (("conv1", 2), ("conv2", 2), ("conv3", 1)):
        for index in range(3):
            x = conv_bn_relu(x, f"{block}.{index}", padding if index == 0 else 0)
        if block == "conv1":
            x = functional.max_pool2d(functional.pad(x, (1, 1, 1, 1), value=-torch.inf), 3, 2)
        elif block == "conv2":
            x = functional.avg_pool2d(functional.pad(x, (1, 1, 1, 1)), 3, 2)  # zeros count as values
    logits = x.mean(dim=(2, 3)) @ state["classifier.weight"].T + state["classifier.bias"]
    torch.testing.assert_close(network(inputs), logits, rtol=1e-4, atol=1e-5)


def test_average_pool_counts_its_padding() -> None:
    pool = NetworkInNetwork(width=0.25).conv2[-1]
    corner = pool(torch.ones(1, 1, 16, 16))[0, 0, 0, 0]
    assert corner == pytest.approx(4 / 9)


def test_convolutions_have_no_bias_and_every_block_ends_in_relu() -> None:
    network = NetworkInNetwork(blocks=5, width=0.25)
    assert all(m.bias is None for m in network.modules() if isinstance(m, nn.Conv2d))
    assert all(x.min() >= 0 for x in network.features(images(), network.layers).values())


def test_features_stop_at_the_last_layer_asked() -> None:
    network = NetworkInNetwork(width=0.25)
    ran = []
    for layer in network.layers:
        network.get_submodule(layer).register_forward_hook(lambda *_, layer=layer: ran.append(layer))
    assert list(network.features(images(), ["conv2", "conv1"])) == ["conv1", "conv2"]
    assert ran == ["conv1", "conv2"]


@pytest.mark.parametrize(
    ("channels", "width", "expected"),
    [(192, 1.0, 192), (160, 1.0, 160), (96, 0.5, 48), (160, 0.25, 40), (192, 0.33, 64), (96, 0.01, 8)],
)
def test_width_rounds_to_multiples_of_eight(channels: int, width: float, expected: int) -> None:
    assert scaled_channels(channels, width) == expected


def test_width_multiplies_every_layer() -> None:
    network = NetworkInNetwork(width=0.5)
    shapes = [m.out_channels for m in network.modules() if isinstance(m, nn.Conv2d)]
    assert shapes == [96, 80, 48] + [96] * 9


def test_state_dict_keys_are_the_documented_ones() -> None:
    parts = ["conv.weight"]
    parts += [f"bn.{n}" for n in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")]
    expected = [f"conv{block}.{i}.{part}" for block in (1, 2, 3) for i in range(3) for part in parts]
    network = NetworkInNetwork(blocks=3, width=0.25)
    assert list(network.state_dict()) == [*expected, "classifier.weight", "classifier.bias"]


def test_gamma_starts_at_one_or_uniform() -> None:
    plain = NetworkInNetwork().conv1[0].bn.weight
    drawn = NetworkInNetwork(uniform_gamma=True).conv1[0].bn.weight
    assert (plain == 1).all()
    assert 0 <= drawn.min() < 0.1
    assert 0.9 < drawn.max() <= 1
    assert 0.4 < drawn.mean() < 0.6


def test_batch_norm_statistics_stay_fp32_under_autocast() -> None:
    network = NetworkInNetwork(width=0.25).train()
    seen = []
    first = network.conv1[0]
    first.conv.register_forward_hook(lambda module, inputs, output: seen.append(output.detach()))
    with torch.autocast("cpu", torch.bfloat16):
        logits = network(images(16))
    assert seen[0].dtype == logits.dtype == torch.bfloat16
    assert first.bn.running_mean.dtype == first.bn.running_var.dtype == torch.float32
    # Equal to statistics of the low-precision activations taken in float64: nothing was
    # accumulated or stored in bfloat16, whose relative step is 4e-3.
    mean, variance = seen[0].double().mean((0, 2, 3)), seen[0].double().var((0, 2, 3))
    torch.testing.assert_close(first.bn.running_mean.double(), 0.1 * mean, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(first.bn.running_var.double(), 0.9 + 0.1 * variance, rtol=1e-5, atol=0)


def test_network_traces_into_one_graph() -> None:
    network = NetworkInNetwork(width=0.25).eval()
    compiled = torch.compile(network, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(images()), network(images()))


@pytest.mark.parametrize("blocks", [2, 6])
def test_wrong_number_of_blocks_is_named(blocks: int) -> None:
    with pytest.raises(ArgumentError, match=rf"blocks is {blocks}; a NIN has 3, 4 or 5"):
        NetworkInNetwork(blocks=blocks)


@pytest.mark.parametrize("width", [0.0, -1.0, float("nan"), 17.0])
def test_wrong_width_is_named(width: float) -> None:
    with pytest.raises(ArgumentError, match="width is"):
        NetworkInNetwork(width=width)


def test_wrong_counts_are_named() -> None:
    with pytest.raises(ArgumentError, match="num_classes is -1"):
        NetworkInNetwork(num_classes=-1)
    with pytest.raises(ArgumentError, match="in_channels is 0"):
        NetworkInNetwork(in_channels=0)


def test_unknown_layer_is_named_with_the_choices() -> None:
    network = NetworkInNetwork(blocks=3, width=0.25)
    with pytest.raises(ArgumentError, match=r"'conv4'.*choose from conv1, conv2, conv3"):
        network.features(images(), ["conv1", "conv4"])
    with pytest.raises(ArgumentError, match="layers is empty"):
        network.features(images(), [])


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"blocks": 4.0}, "blocks is 4.0; a NIN has 3, 4 or 5"),
        ({"blocks": "4"}, "blocks is '4'; a NIN has 3, 4 or 5"),
        ({"width": "1"}, "width is '1'; it must lie in"),
        ({"width": None}, "width is None; it must lie in"),
        ({"num_classes": 4.0}, "num_classes is 4.0; it must be a whole number"),
    ],
)
def test_settings_of_another_type_are_named(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ArgumentError, match=said):
        NetworkInNetwork(**settings)


def test_the_name_of_one_layer_is_no_sequence_and_one_image_no_batch() -> None:
    network = NetworkInNetwork(blocks=3, width=0.1)
    with pytest.raises(ArgumentError, match=r"layers is 'conv2'; pass a sequence, such as \('conv2',\)"):
        network.features(images(), "conv2")
    for call in (network, lambda x: network.features(x, ["conv1"])):
        with pytest.raises(ValueError, match=r"x has shape \[3, 32, 32\].* x\[None\]"):
            call(images()[0])


def test_global_hooks_and_a_forward_of_its_own_reach_every_layer() -> None:
    network = NetworkInNetwork(blocks=3, width=0.1).eval()
    expected = network(images())
    seen: list[str] = []
    handle = register_module_forward_hook(lambda module, inputs, output: seen.append(type(module).__name__))
    try:
        torch.testing.assert_close(network(images()), expected)
    finally:
        handle.remove()
    assert seen.count("BatchNorm2d") == seen.count("Conv2d") == 9
    norm = network.conv1[0].bn
    norm.forward = lambda x: torch.zeros_like(x)
    assert not network.features(images(), ["conv1"])["conv1"].isnan().any()
    assert torch.equal(network.conv1[0](images()), torch.zeros_like(network.conv1[0].conv(images())))

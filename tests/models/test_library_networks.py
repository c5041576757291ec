"""Networks of torchvision and timm have named feature maps and the libraries' own weights."""

from __future__ import annotations

import copy
import pickle
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn
from torch.nn import functional
from torchvision import models

from rotnet_fast.models import library
from rotnet_fast.models.build import make_network
from rotnet_fast.models.library import LibraryNetwork
from rotnet_fast.models.nin import NetworkInNetwork
from rotnet_fast.protocols.heads import HeadsOnBackbone, use_batch_statistics

RESNET_LAYERS = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4")


def images(batch: int = 2, side: int = 32, channels: int = 3) -> torch.Tensor:
    made = torch.randn(batch, channels, side, side, generator=torch.Generator().manual_seed(0))
    return made.contiguous(memory_format=torch.channels_last)


@pytest.fixture(scope="module")
def trained() -> LibraryNetwork:
    """A resnet18 whose running statistics have seen something; not to be changed."""
    torch.manual_seed(0)
    network = LibraryNetwork("resnet18", 4)
    network.train()(images(8))
    return network.eval()


@pytest.fixture
def resnet(trained: LibraryNetwork) -> LibraryNetwork:
    """A copy of it for one test."""
    return copy.deepcopy(trained)


def outputs_of_modules(network: LibraryNetwork, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """What each module of the library's model gives when the whole model runs."""
    found: dict[str, torch.Tensor] = {}

    def record(name: str, output: torch.Tensor) -> None:
        found.setdefault(name, output.clone())

    handles = [
        module.register_forward_hook(lambda _, inputs, output, name=name: record(name, output))
        for name, module in network.model.named_modules()
    ]
    network(x)
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize(
    ("name", "layers", "default", "stride"),
    [
        ("resnet18", RESNET_LAYERS, "layer3", 32),
        ("mobilenet_v3_small", tuple(f"features.{n}" for n in range(13)), "features.8", 32),
        ("squeezenet1_1", tuple(f"features.{n}" for n in range(13)), "features.7", 16),
        (
            "regnet_y_400mf",
            ("stem", *(f"trunk_output.block{n}" for n in range(1, 5))),
            "trunk_output.block3",
            32,
        ),
        ("swin_t", ("permute",), "permute", 32),  # its other maps are [B,H,W,C]
        (
            "timm/test_resnet",
            ("conv1", "bn1", "act1", "maxpool", "layer1", "layer2", "layer3", "layer4"),
            "layer3",
            32,
        ),
        (
            "timm/test_efficientnet",
            ("conv_stem", "bn1", *(f"blocks.{n}" for n in range(5)), "conv_head", "bn2"),
            "blocks.3",
            32,
        ),
    ],
)
def test_layers_are_the_stages_of_the_network(
    name: str, layers: tuple[str, ...], default: str, stride: int
) -> None:
    network = LibraryNetwork(name, 4).eval()
    assert network.training is False
    assert (network.name, network.layers, network.default_layer, network.stride) == (
        name,
        layers,
        default,
        stride,
    )
    x = images(side=64)
    expected = outputs_of_modules(network, x)
    for layer, maps in network.features(x, layers).items():
        assert torch.equal(maps, expected[layer]), layer
        assert network.feature_channels(layer) == maps.shape[1]


def test_a_map_is_the_same_alone_and_in_company(resnet: LibraryNetwork) -> None:
    # What follows bn1 and layer1.0.bn2 works in place: a ReLU, and the addition of the shortcut.
    layers = ("bn1", "layer1.0.relu", "layer1.0.bn2", "layer3")
    expected = outputs_of_modules(resnet, images())
    together = resnet.features(images(), layers[::-1])
    assert tuple(together) == layers
    for layer in layers:
        assert torch.equal(together[layer], expected[layer])
        assert torch.equal(resnet.features(images(), [layer])[layer], expected[layer])
    assert expected["bn1"].min() < 0


def test_what_comes_after_the_last_layer_does_not_run(resnet: LibraryNetwork) -> None:
    ran = []
    for name in RESNET_LAYERS:
        resnet.model.get_submodule(name).register_forward_hook(lambda *_, name=name: ran.append(name))
    resnet.features(images(), ["layer2", "conv1"])
    assert ran == ["conv1", "bn1", "relu", "maxpool", "layer1", "layer2"]


def test_parameters_of_a_layer_are_those_that_its_map_depends_on(resnet: LibraryNetwork) -> None:
    for layer in ("conv1", "layer1.0.conv2", "layer3"):
        resnet.features(images(), [layer])[layer].square().sum().backward()
        reached = {parameter for parameter in resnet.parameters() if parameter.grad is not None}
        named = resnet.feature_parameters(layer)
        assert reached == set(named)
        assert len(named) == len(reached)
        resnet.zero_grad(set_to_none=True)


def test_state_dict_has_the_keys_of_the_library(resnet: LibraryNetwork) -> None:
    theirs = models.resnet18(num_classes=4)
    assert list(resnet.state_dict()) == list(theirs.state_dict())
    theirs.to(memory_format=torch.channels_last).load_state_dict(resnet.state_dict())
    assert torch.equal(theirs.eval()(images()), resnet(images()))
    other = LibraryNetwork("resnet18", 4).eval()
    other.load_state_dict(theirs.state_dict())
    assert torch.equal(other(images()), resnet(images()))


def test_state_dict_inside_another_module_has_them_under_its_name(resnet: LibraryNetwork) -> None:
    def heads() -> HeadsOnBackbone:
        backbone, placements = copy.deepcopy(resnet), [("layer1.0.bn1", "conv"), ("layer3", "nonlinear")]
        settings = {"image_shape": (3, 32, 32), "num_classes": 5, "width": 0.1, "seed": 0, "frozen": True}
        return HeadsOnBackbone(backbone, placements, **settings)  # type: ignore[arg-type]

    module = heads()
    keys = list(module.state_dict())
    assert keys[:2] == ["backbone.conv1.weight", "backbone.bn1.weight"]
    assert {key.split(".")[1] for key in keys if key.startswith("heads.")} == {
        "layer1-0-bn1_conv",
        "layer3_nonlinear",
    }
    changed = {key: torch.ones_like(value) for key, value in module.state_dict().items()}
    loaded = heads()
    loaded.load_state_dict(changed)
    assert all(torch.equal(value, changed[key]) for key, value in loaded.state_dict().items())


def test_weights_of_another_network_are_refused(resnet: LibraryNetwork) -> None:
    state = resnet.state_dict()
    for wrong in (
        {**state, "layer5.weight": torch.zeros(1)},
        {key: value for key, value in state.items() if key != "fc.bias"},
        NetworkInNetwork(width=0.05).state_dict(),
    ):
        with pytest.raises(RuntimeError, match="Error"):
            resnet.load_state_dict(wrong)


def test_weights_are_channels_last_and_depend_on_the_seed_alone() -> None:
    networks = []
    for _ in range(2):
        torch.manual_seed(3)
        networks.append(make_network(4, model="timm/test_resnet"))
    first, second = (network.state_dict() for network in networks)
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert all(
        weight.is_contiguous(memory_format=torch.channels_last)
        for weight in networks[0].parameters()
        if weight.dim() == 4
    )


def test_train_mode_uses_the_statistics_of_the_batch_in_traced_layers_too(resnet: LibraryNetwork) -> None:
    before = resnet.features(images(), ["layer2"])["layer2"]
    assert not torch.allclose(resnet.train().features(images(), ["layer2"])["layer2"], before)
    assert not torch.equal(resnet.eval().features(images(), ["layer2"])["layer2"], before)  # they are kept


def test_tracing_leaves_every_module_in_its_mode(resnet: LibraryNetwork) -> None:
    resnet.train()
    resnet.model.bn1.eval()
    resnet.features(images(), ["layer1.1"])
    assert resnet.model.layer1.training
    assert not resnet.model.bn1.training


class Dropping(nn.Module):
    """A network that switches its dropout by its own mode, as tracing does not see."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.pool = nn.MaxPool2d(2)
        self.fc = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        dropped: torch.Tensor = functional.dropout(self.conv(x), 0.5, self.training)
        logits: torch.Tensor = self.fc(self.pool(dropped).mean(dim=(2, 3)))
        return logits


def test_threads_may_trace_layers_while_others_run_modules(resnet: LibraryNetwork) -> None:
    layers = [*RESNET_LAYERS, "layer1.0", "layer2.1", "layer3.0.conv1"]
    views, own = images(side=64), nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    expected = {layer: copy.deepcopy(resnet).features(views, [layer])[layer] for layer in layers}
    logits, of_own = resnet(views), own(views)
    state = {name: tensor.clone() for name, tensor in resnet.state_dict().items()}
    wrong, is_over = [], threading.Event()

    def run() -> None:
        while not is_over.is_set():
            if not (torch.equal(resnet(views), logits) and torch.equal(own(views), of_own)):
                wrong.append("other outputs")

    with ThreadPoolExecutor(5) as pool:
        other = pool.submit(run)
        try:
            found = list(pool.map(lambda layer: resnet.features(views, [layer])[layer], layers))
        finally:
            is_over.set()
        other.result()
    assert wrong == []
    assert all(torch.equal(maps, expected[layer]) for layer, maps in zip(layers, found, strict=True))
    assert all(torch.equal(tensor, state[name]) for name, tensor in resnet.state_dict().items())


def test_what_the_mode_decides_is_decided_by_the_present_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "_create", lambda *_: Dropping())
    network = LibraryNetwork("made", 4)
    x = images()
    for dropped_out in (True, False, True):
        network.train(dropped_out)
        pooled = network.features(x, ["pool"])["pool"]
        assert torch.equal(pooled, network.features(x, ["pool"])["pool"]) is not dropped_out


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda network: pickle.loads(pickle.dumps(network))])
def test_a_copy_shares_nothing_with_its_original(resnet: LibraryNetwork, copied: object) -> None:
    before = resnet.features(images(), ["layer1"])["layer1"]
    other = copied(resnet)  # type: ignore[operator]
    nn.init.zeros_(other.model.conv1.weight)
    assert torch.equal(resnet.features(images(), ["layer1"])["layer1"], before)
    assert not torch.equal(other.features(images(), ["layer1"])["layer1"], before)


class Centring(nn.Module):
    """A network with a buffer of its own, which a conversion replaces, and a pool to a fixed size."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.ones(3, 1, 1))
        self.conv1 = nn.Conv2d(3, 8, 3, stride=8)
        self.conv2 = nn.Conv2d(8, 8, 3, stride=4)
        self.avgpool = nn.AdaptiveAvgPool2d(7)
        self.fc = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pooled = self.avgpool(self.conv2(self.conv1(x - self.mean)))
        logits: torch.Tensor = self.fc(pooled.mean(dim=(2, 3)))
        return logits


@pytest.fixture
def centring(monkeypatch: pytest.MonkeyPatch) -> LibraryNetwork:
    monkeypatch.setattr(library, "_create", lambda *_: Centring())
    return LibraryNetwork("made", 4)


def test_features_follow_a_conversion(centring: LibraryNetwork) -> None:
    centring.features(images(), ["conv1"])
    half = centring.bfloat16().features(images().bfloat16(), ["conv1"])["conv1"]
    assert half.dtype == torch.bfloat16


def test_a_pool_of_the_classifier_is_no_layer(centring: LibraryNetwork) -> None:
    assert (centring.layers, centring.default_layer) == (("conv1", "conv2"), "conv1")
    assert centring.features(images(side=64), ["avgpool"])["avgpool"].shape == (2, 8, 7, 7)


def test_network_traces_into_one_graph(resnet: LibraryNetwork) -> None:
    compiled = torch.compile(resnet, backend="eager", fullgraph=True)
    assert torch.equal(compiled(images()), resnet(images()))


@pytest.mark.parametrize("name", ["resnet18", "timm/test_resnet", "timm/test_efficientnet"])
def test_batch_statistics_reach_every_batch_norm(name: str) -> None:
    network = LibraryNetwork(name, 4)
    use_batch_statistics(network)
    x, layers = images(4, 64), [network.default_layer]
    in_train_mode = network.train().features(x, layers)[layers[0]]
    assert torch.equal(network.eval().features(x, layers)[layers[0]], in_train_mode)


def test_networks_with_auxiliary_classifiers_have_one_output_and_no_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        network = make_network(4, model="googlenet").train()
    assert network(images(side=64)).shape == (2, 4)

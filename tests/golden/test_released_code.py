"""The project does what the released code of RotNet does, by figures recorded from that: see record.py."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from golden.record import EPOCH, OUTPUT, PAD, SEED, images, levels, sha256, summary
from torch import nn

import rotnet_fast
from rotnet_fast.data.sampling import Order
from rotnet_fast.engine.precision import resolve_precision
from rotnet_fast.engine.step import make_optimizer
from rotnet_fast.engine.task import TrainerSettings, parameter_groups
from rotnet_fast.models.heads import ConvClassifier, NonLinearClassifier
from rotnet_fast.models.nin import NetworkInNetwork
from rotnet_fast.philox import crop_and_flip_draws
from rotnet_fast.presets import PRESETS
from rotnet_fast.protocols.heads import MILESTONES
from rotnet_fast.settings import Optimisation

RELEASED: dict[str, Any] = json.loads(OUTPUT.read_text())


def assert_like(values: torch.Tensor, recorded: dict[str, Any], tolerance: float) -> None:
    """The values have the recorded shape, moments and samples; errors count relative to the deviation."""
    found = summary(values)
    assert found["shape"] == recorded["shape"]
    allowed = tolerance * recorded["deviation"]
    for name in ("mean", "deviation", "values"):
        assert found[name] == pytest.approx(recorded[name], abs=allowed, rel=0), name


def views() -> tuple[torch.Tensor, torch.Tensor]:
    return rotnet_fast.rotate_batch(images(), seed=SEED, epoch=EPOCH, pad=PAD, flip_prob=0.5)


def losses_of(network: nn.Module, inputs: torch.Tensor, targets: torch.Tensor, steps: int) -> list[float]:
    """Losses of the first steps by the project's optimiser and default settings."""
    recipe = Optimisation()
    schedule, _ = recipe.schedules()
    groups = parameter_groups("network", list(network.parameters()), schedule)
    settings = TrainerSettings(1, resolve_precision("fp32", torch.device("cpu")))
    optimizer = make_optimizer(groups, [torch.tensor(schedule.lr(0))], settings)
    found = []
    network.train()
    for _ in range(steps):
        loss = nn.functional.cross_entropy(network(inputs), targets)
        found.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return found


def test_the_recorded_draws_are_ours() -> None:
    top, left, flip = crop_and_flip_draws(torch.arange(len(images())), SEED, EPOCH, PAD, 0.5)
    assert torch.stack([top, left, flip.long()], dim=1).tolist() == RELEASED["draws"]


def test_views_show_the_same_pixels_in_the_same_order() -> None:
    made, turns = views()
    assert sha256(levels(made)) == RELEASED["views"]["levels"]
    assert_like(made, RELEASED["views"], 1e-6)
    assert turns.tolist() == [0, 1, 2, 3] * len(images())


@pytest.mark.parametrize("blocks", [3, 4, 5])
def test_the_network_is_the_same_function_and_learns_the_same_first_steps(blocks: int) -> None:
    recorded = RELEASED["networks"][str(blocks)]
    torch.manual_seed(SEED)
    network = NetworkInNetwork(4, blocks=blocks).eval()
    assert sum(parameter.numel() for parameter in network.parameters()) == recorded["parameters"]
    assert sha256(*network.parameters()) == recorded["initial_weights"]
    made, turns = views()
    with torch.no_grad():
        maps = network.features(made, list(recorded["maps"]))
        assert_like(network(made), recorded["logits"], 1e-3)
    for name, values in maps.items():
        assert_like(values, recorded["maps"][name], 1e-3)
    assert_losses(losses_of(network, made, turns, len(recorded["losses"])), recorded["losses"])
    with torch.no_grad():
        assert_like(network.eval()(made), recorded["logits_after"], 0.05)


@pytest.mark.parametrize("kind", ["nonlinear", "conv"])
def test_heads_have_the_same_layers_initialisation_and_first_steps(kind: str) -> None:
    recorded = RELEASED["heads"][kind]
    generator = torch.Generator().manual_seed(SEED)
    head: nn.Module
    if kind == "nonlinear":
        head = NonLinearClassifier(192, 8, 8, 10, generator)
    else:
        head = ConvClassifier(192, 10, generator=generator)
    weights = [parameter for parameter in head.parameters() if parameter.ndim > 1]
    assert [list(weight.shape) for weight in weights] == recorded["shapes"]
    assert [weight.std().item() for weight in weights] == pytest.approx(recorded["deviations"], rel=0.05)
    maps = torch.randn(16, 192, 8, 8, generator=torch.Generator().manual_seed(1))
    draws = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for weight in weights:
            weight.copy_(0.02 * torch.randn(weight.shape, generator=draws))
    found = losses_of(head, maps, torch.arange(16) % 10, len(recorded["losses"]))
    assert_losses(found, recorded["losses"])


def assert_losses(found: list[float], recorded: list[float]) -> None:
    """The first loss is the same; rounding makes the later ones part, as it does between two machines."""
    assert found[0] == pytest.approx(recorded[0], abs=1e-5)
    assert found == pytest.approx(recorded, abs=0.01)


def recipe_of(name: str) -> tuple[Optimisation, tuple[int, ...]]:
    """The project's recipe for a released configuration, and the published milestones of a head."""
    if "ConvClassifier" in name:
        return Optimisation(), MILESTONES["conv"]
    if "MultLayerClassifier" in name:
        return Optimisation(), MILESTONES["nonlinear"]
    return PRESETS["official"](), ()


def test_all_configurations_for_cifar10_were_recorded() -> None:
    assert len(RELEASED["configurations"]) == 12
    assert RELEASED["revision"] == "edafaba"


@pytest.mark.parametrize("name", RELEASED["configurations"])
def test_learning_rates_and_optimiser_are_the_released_configurations(name: str) -> None:
    recorded = RELEASED["configurations"][name]
    recipe, published = recipe_of(name)
    schedule, muon = recipe.schedules(published)
    assert muon is None
    rates = [rate for count, rate in recorded["lr"] for _ in range(int(count))]
    assert recipe.epochs == recorded["epochs"] == len(rates)
    assert [schedule.lr(epoch) for epoch in range(recipe.epochs)] == pytest.approx(rates, rel=1e-12)
    assert (recipe.nesterov, recipe.weight_decay) == (recorded["nesterov"], recorded["weight_decay"])
    assert TrainerSettings(1, resolve_precision("fp32", torch.device("cpu"))).momentum == recorded["momentum"]
    labels = recorded["labels_per_class"]
    assert labels == (int(name.rpartition("_K")[2]) if "_K" in name else None)
    if labels is not None:  # few images are visited as often as all 50,000
        assert recorded["epoch_size"] == 50_000
        assert len(Order(10 * labels, recorded["batch_size"], 0, epoch_size=50_000)) == 391

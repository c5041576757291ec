"""Muon does what its definition says, and leaves what is not a filter to SGD."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from rotnet_fast.engine.muon import Muon, orthogonalised
from rotnet_fast.engine.precision import Precision
from rotnet_fast.engine.schedule import Schedule
from rotnet_fast.engine.step import make_optimizer
from rotnet_fast.engine.task import ParameterGroup, TrainerSettings
from rotnet_fast.models.nin import NetworkInNetwork

SETTINGS = TrainerSettings(1, Precision("fp32", "cpu"), weight_decay=0.01)
SHAPES: list[tuple[int, ...]] = [
    (8, 3, 5, 5),
    (16, 8, 1, 1),
    (8, 16, 1, 1),
    (8, 8, 3, 3),
    (8, 8, 3, 3),
]  # tall, wide, two alike


def gradients(step: int, shapes: list[tuple[int, ...]]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    return [torch.randn(shape, generator=generator) for shape in shapes]


def in_layout(value: torch.Tensor) -> torch.Tensor:
    """As a network has it, whose filters and their gradients are channels_last."""
    return value.contiguous(memory_format=torch.channels_last) if value.ndim == 4 else value


def newton_schulz(matrix: torch.Tensor) -> torch.Tensor:
    """As it stands in the source, for one matrix [rows,columns]."""
    if matrix.shape[0] > matrix.shape[1]:
        return newton_schulz(matrix.T).T
    x: torch.Tensor = matrix / matrix.norm()
    for _ in range(5):
        square = x @ x.T
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return x


@pytest.mark.parametrize("shape", [(1, 6, 6), (3, 4, 9), (2, 9, 4), (2, 8, 75)])
def test_orthogonalised_matrices_are_those_of_the_plain_iteration(shape: tuple[int, int, int]) -> None:
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    expected = torch.stack([newton_schulz(matrix) for matrix in matrices.double()]).float()
    torch.testing.assert_close(orthogonalised(matrices), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_all_directions_become_about_equally_long_whatever_the_scale(scale: float) -> None:
    matrix = torch.randn((1, 12, 40), generator=torch.Generator().manual_seed(2))
    left, _, right = torch.linalg.svd(matrix[0], full_matrices=False)
    turned = left.T @ orthogonalised(scale * matrix)[0] @ right.T  # diagonal: the singular vectors are kept
    assert 0.6 < turned.diagonal().min() <= turned.diagonal().max() < 1.25
    torch.testing.assert_close(turned - turned.diagonal().diag(), torch.zeros(12, 12), rtol=0, atol=1e-4)


def test_matrices_of_zeros_stay_zero() -> None:
    assert torch.equal(orthogonalised(torch.zeros(2, 3, 4)), torch.zeros(2, 3, 4))


def muon_step(
    value: torch.Tensor, momentum: torch.Tensor, gradient: torch.Tensor, lr: float, decay: float
) -> torch.Tensor:
    """One step on one filter, by the definition; the momentum is updated in place."""
    momentum.mul_(0.95).add_(0.05 * gradient)
    ahead = 0.05 * gradient + 0.95 * momentum
    matrix = newton_schulz(ahead.flatten(1))
    matrix = matrix * float(max(1.0, matrix.shape[0] / matrix.shape[1]) ** 0.5)
    return value - lr * (matrix.view_as(value) + decay * value)


def parameters(shapes: list[tuple[int, ...]]) -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(in_layout(value)) for value in gradients(99, shapes)]


def make(
    filters: list[torch.nn.Parameter],
    rest: list[torch.nn.Parameter],
    *lrs: float,
    settings: TrainerSettings = SETTINGS,
) -> torch.optim.SGD:
    groups = [
        ParameterGroup("rest", rest, Schedule(0.1)),
        ParameterGroup("filters", filters, Schedule(0.1), is_orthogonalised=True),
    ]
    return make_optimizer(groups, [torch.tensor(lr) for lr in lrs], settings)


def give_gradients(values: list[torch.nn.Parameter], step: int, scale: float = 1.0) -> None:
    for value, gradient in zip(values, gradients(step, [tuple(v.shape) for v in values]), strict=True):
        value.grad = in_layout(scale * gradient)


def take_steps(optimizer: torch.optim.Optimizer, values: list[torch.nn.Parameter], steps: range) -> None:
    for step in steps:
        give_gradients(values, step)
        optimizer.step()


@pytest.mark.parametrize(("apart", "decay"), [(None, SETTINGS.weight_decay), (0.3, 0.3), (0.0, 0.0)])
def test_filters_follow_the_definition_of_muon_step_by_step(apart: float | None, decay: float) -> None:
    filters = parameters(SHAPES)
    expected = [value.detach().double() for value in filters]
    momenta = [torch.zeros_like(value) for value in expected]
    settings = replace(SETTINGS, muon_weight_decay=apart)
    take_steps(make(filters, [], 0.5, 0.02, settings=settings), filters, range(4))
    for step in range(4):
        for number, gradient in enumerate(gradients(step, SHAPES)):
            expected[number] = muon_step(expected[number], momenta[number], gradient.double(), 0.02, decay)
    for value, wanted in zip(filters, expected, strict=True):
        torch.testing.assert_close(value.detach(), wanted.float(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("apart", [None, 0.3])
def test_what_is_no_filter_is_trained_by_sgd_to_the_last_bit(apart: float | None) -> None:
    shapes: list[tuple[int, ...]] = [(8,), (8,), (4, 8)]
    ours, plain = parameters(shapes), parameters(shapes)
    filters = parameters(SHAPES)
    settings = replace(SETTINGS, muon_weight_decay=apart)
    take_steps(make(filters, ours, 0.3, 0.02, settings=settings), [*ours, *filters], range(3))
    sgd = torch.optim.SGD(plain, lr=0.3, momentum=0.9, nesterov=True, weight_decay=0.01, fused=True)
    take_steps(sgd, plain, range(3))
    assert all(torch.equal(one, other) for one, other in zip(ours, plain, strict=True))


def test_a_rate_that_changes_in_place_counts_from_the_next_step_on() -> None:
    filters = parameters(SHAPES)
    optimizer = make(filters, [], 0.0, 0.5)
    before = [value.detach().clone() for value in filters]
    optimizer.param_groups[1]["lr"].zero_()
    take_steps(optimizer, filters, range(1))
    assert all(torch.equal(value, old) for value, old in zip(filters, before, strict=True))


def test_a_saved_state_resumes_to_the_last_bit() -> None:
    whole = parameters(SHAPES)
    take_steps(make(whole, [], 0.1, 0.02), whole, range(5))
    cut = parameters(SHAPES)
    first = make(cut, [], 0.1, 0.02)
    take_steps(first, cut, range(2))
    state: dict[str, Any] = first.state_dict()
    again = make(cut, [], 0.1, 0.02)
    again.load_state_dict(state)
    take_steps(again, cut, range(2, 5))
    assert all(torch.equal(one, other) for one, other in zip(whole, cut, strict=True))


def test_a_closure_makes_the_gradients_of_its_step() -> None:
    called, plain = parameters(SHAPES), parameters(SHAPES)

    def closure() -> float:
        give_gradients(called, 0)
        return 1.5

    assert make(called, [], 0.1, 0.02).step(closure) == 1.5
    take_steps(make(plain, [], 0.1, 0.02), plain, range(1))
    assert all(torch.equal(one, other) for one, other in zip(called, plain, strict=True))


def test_filters_without_a_gradient_are_left_as_they_are() -> None:
    filters = parameters(SHAPES)
    before = filters[0].detach().clone()
    optimizer = make(filters, [], 0.1, 0.02)
    take_steps(optimizer, filters[1:], range(1))
    assert torch.equal(filters[0], before)
    assert not optimizer.state[filters[0]]["momentum"].any()


def test_gradients_come_unscaled_from_a_loss_scaler() -> None:
    # Muon's momentum would otherwise mix gradients of several scales.
    scaled, plain = parameters(SHAPES), parameters(SHAPES)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    optimizer = make(scaled, [], 0.1, 0.02)
    scaler.scale(torch.zeros(()))  # the scale is made when it is first used
    give_gradients(scaled, 0, scale=1024.0)
    scaler.step(optimizer)
    take_steps(make(plain, [], 0.1, 0.02), plain, range(1))
    assert isinstance(optimizer, Muon)
    assert all(torch.equal(one, other) for one, other in zip(scaled, plain, strict=True))


def test_without_muon_the_optimiser_is_sgd_itself() -> None:
    network = NetworkInNetwork(blocks=3, width=0.05)
    group = ParameterGroup("network", list(network.parameters()), Schedule(0.1))
    assert type(make_optimizer([group], [torch.tensor(0.1)], SETTINGS)) is torch.optim.SGD

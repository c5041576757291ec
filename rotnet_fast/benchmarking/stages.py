"""The stages of a training step, each alone: work, traffic and time, which a roofline puts in relation.

Traffic is what has to be read or written even by a perfect implementation of that stage alone: every tensor
once, but for those that have to be gone through twice, because all of them decides about each element. Small
tensors may stay in a cache between two calls, so that such stages can be faster than memory would allow.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from rotnet_fast.benchmarking.timing import Effort, Timing, Work, in_a_graph, interleaved
from rotnet_fast.engine.precision import Precision
from rotnet_fast.models.flops import multiply_adds
from rotnet_fast.models.nin import ConvBnRelu, NetworkInNetwork

PARAMETER_BYTES = 4
"""Parameters, gradients and momentum are fp32 in every number format."""

CALLS_IN_A_GRAPH = 10

SIDE = 32
"""Pixels of the images."""


@dataclass(frozen=True)
class Cost:
    """Arithmetic and traffic of a pass through a stage.

    Attributes:
        flops: floating-point operations; a multiplication and an addition are two.
        elements: elements of activations read or written.
        parameters: elements of parameters and the like read or written.
    """

    flops: float
    elements: float
    parameters: float = 0.0

    def bytes(self, element: int) -> float:
        """Return the traffic in bytes, given the bytes of an activation."""
        return self.elements * element + self.parameters * PARAMETER_BYTES


@dataclass
class Stage:
    """A part of the step, and all places where it occurs with the same shapes.

    Attributes:
        label: with its shapes.
        kind: ``convolution``, ``BN + ReLU``, ``pool``, ``loss`` or ``optimiser``.
        module: the work: [B*K,C,H,W] -> anything.
        in_shape: of its input.
        needs_input_gradient: False for the first convolution, whose input are images.
        forward, backward: costs; the optimiser has no backward pass.
        layers: where it occurs.
    """

    label: str
    kind: str
    module: nn.Module
    in_shape: tuple[int, int, int, int]
    needs_input_gradient: bool
    forward: Cost
    backward: Cost | None
    layers: list[str] = field(default_factory=list)


class Loss(nn.Module):
    """From the last feature map to the mean cross-entropy: average pool, linear layer, softmax."""

    def __init__(self, classifier: nn.Module, labels: torch.Tensor) -> None:
        super().__init__()
        self.classifier = classifier
        self.labels = labels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B*K,C,H,W] -> scalar."""
        return functional.cross_entropy(self.classifier(x.mean(dim=(2, 3))).float(), self.labels)


class BnRelu(nn.Module):
    """The part of a `ConvBnRelu` after its convolution."""

    def __init__(self, layer: ConvBnRelu) -> None:
        super().__init__()
        self.layer = layer
        self.layer.conv = nn.Identity()  # type: ignore[assignment]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B*K,C,H,W] -> the same shape."""
        out: torch.Tensor = self.layer(x)
        return out


def find_stages(network: NetworkInNetwork, views: int) -> list[Stage]:
    """Find the stages of a network's forward and backward pass; those with equal shapes are one.

    Args:
        network: it is taken apart, and cannot be used afterwards.
        views: B*K, images times rotations.
    """
    found: dict[str, Stage] = {}
    side = SIDE

    def add(layer: str, stage: Stage) -> None:
        found.setdefault(stage.label, stage).layers.append(layer)

    for name in network.layers:
        block = network.get_submodule(name)
        for number, module in enumerate(block.children()):
            layer = f"{name}.{number}"
            if isinstance(module, ConvBnRelu):
                add(layer, _convolution(module.conv, views, side, is_first=not found))
                channels = module.conv.out_channels
                add(layer, _bn_relu(module, channels, views, side))
            else:
                stage = _pool(module, channels, views, side)
                add(layer, stage)
                side = -(-side // 2)
    labels = torch.zeros(views, dtype=torch.int64)
    assert isinstance(network.classifier, nn.Linear)
    add("classifier", _loss(network.classifier, labels, (views, channels, side, side)))
    return list(found.values())


def convolution_flops(network: NetworkInNetwork, images: int, rotations: int) -> float:
    """Count the floating-point operations of a step's convolutions; the network cannot be used afterwards."""
    stages = [stage for stage in find_stages(network, images * rotations) if stage.kind == "convolution"]
    passes = [
        (stage, cost) for stage in stages for cost in (stage.forward, stage.backward) if cost is not None
    ]
    return sum(len(stage.layers) * cost.flops for stage, cost in passes)


def _convolution(conv: nn.Conv2d, views: int, side: int, is_first: bool) -> Stage:
    before, after, kernel = conv.in_channels, conv.out_channels, conv.kernel_size[0]
    pixels = views * side**2
    flops = 2.0 * views * multiply_adds(lambda: conv(torch.zeros(1, before, side, side)))
    weights = float(conv.weight.numel())
    # The gradients of weights and input are separate products, each of which reads that of the output.
    weight_gradient = Cost(flops, pixels * (before + after), weights)
    input_gradient = Cost(flops, pixels * (before + after), weights)
    backward = weight_gradient if is_first else _sum(weight_gradient, input_gradient)
    return Stage(
        f"{kernel}x{kernel} {before}→{after}, {side}²",
        "convolution",
        conv,
        (views, before, side, side),
        not is_first,
        Cost(flops, pixels * (before + after), weights),
        backward,
    )


def _bn_relu(layer: ConvBnRelu, channels: int, views: int, side: int) -> Stage:
    elements = float(views * channels * side**2)
    # Forward: x is read for its statistics (3 operations per element), read again, and y is written
    # (multiply, add, compare). Backward: x and dy are read for their sums (mask, normalise, multiply, two
    # additions: 6) and read again, and dx is written (6).
    return Stage(
        f"BN + ReLU {channels}, {side}²",
        "BN + ReLU",
        BnRelu(layer),
        (views, channels, side, side),
        True,
        Cost(6 * elements, 3 * elements, 4.0 * channels),
        Cost(12 * elements, 5 * elements, 4.0 * channels),
    )


def _pool(pool: nn.Module, channels: int, views: int, side: int) -> Stage:
    name = "max" if isinstance(pool, nn.MaxPool2d) else "average"
    before, after = float(views * channels * side**2), float(views * channels * (-(-side // 2)) ** 2)
    cost = Cost(9 * after, before + after)  # a window of 3x3; positions of maxima are not counted
    return Stage(
        f"{name} pool {channels}, {side}²", "pool", pool, (views, channels, side, side), True, cost, cost
    )


def _loss(classifier: nn.Linear, labels: torch.Tensor, shape: tuple[int, int, int, int]) -> Stage:
    views, channels, side, _ = shape
    elements = float(views * channels * side**2)
    products = 2.0 * views * multiply_adds(lambda: classifier(torch.zeros(1, channels)))
    return Stage(
        "loss",
        "loss",
        Loss(classifier, labels),
        shape,
        True,
        Cost(elements + products, elements, float(classifier.weight.numel())),
        Cost(elements + 2 * products, elements, 2.0 * classifier.weight.numel()),
    )


def _sum(one: Cost, other: Cost) -> Cost:
    return Cost(one.flops + other.flops, one.elements + other.elements, one.parameters + other.parameters)


class StageWork:
    """A stage's forward and backward pass, ready to be timed.

    Args:
        stage: its module is moved to the device.
        device, precision: of a training step.
    """

    def __init__(self, stage: Stage, device: torch.device, precision: Precision) -> None:
        self._module = stage.module.to(device).train()
        if isinstance(self._module, Loss):
            self._module.labels = self._module.labels.to(device)
        self._device, self._precision = device, precision
        self._x = torch.randn(stage.in_shape, device=device, dtype=precision.dtype).to(
            memory_format=torch.channels_last
        )
        self._x.requires_grad_(stage.needs_input_gradient)
        inputs = [self._x] if stage.needs_input_gradient else []
        self._inputs = [*inputs, *self._module.parameters()]

    def forward(self) -> torch.Tensor:
        """Run one forward pass, the conversion of the weights included."""
        with self._precision.autocast():
            out: torch.Tensor = self._module(self._x)
        return out

    def passes(self) -> dict[str, tuple[Work, int]]:
        """Return ``forward`` and ``backward`` -> the work, and how many passes one call of it makes."""
        if self._device.type == "cuda":
            return self._captured()
        out = self.forward()
        gradient = torch.ones_like(out)
        return {"forward": (self.forward, 1), "backward": (lambda: self._backward(out, gradient), 1)}

    def _backward(self, out: torch.Tensor, gradient: torch.Tensor) -> object:
        return torch.autograd.grad(out, self._inputs, gradient, retain_graph=True)

    def _captured(self) -> dict[str, tuple[Work, int]]:
        """Capture the passes as CUDA graphs, because the host launches kernels slower than they run.

        A backward pass runs on the stream of its forward pass, which therefore is captured, too.
        """
        stream = torch.cuda.Stream(self._device)
        stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(stream):
            out = self.forward()
            gradient = torch.ones_like(out)
            self._backward(out, gradient)
            del out
        torch.cuda.synchronize(self._device)
        forward, backward = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        with torch.cuda.graph(forward, stream=stream):
            for _ in range(CALLS_IN_A_GRAPH):
                out = self.forward()
        with torch.cuda.graph(backward, pool=forward.pool(), stream=stream):
            for _ in range(CALLS_IN_A_GRAPH):
                self._backward(out, gradient)
        kept = (self, out, gradient)  # what the captured kernels read must not be freed

        def replay_backward() -> object:
            backward.replay()
            return kept

        return {
            "forward": (forward.replay, CALLS_IN_A_GRAPH),
            "backward": (replay_backward, CALLS_IN_A_GRAPH),
        }


def optimiser(network: nn.Module, device: torch.device) -> tuple[Stage, Work, int]:
    """Return the stage of SGD with Nesterov momentum and weight decay, its work, and steps per call."""
    parameters = [nn.Parameter(value.detach().clone().to(device)) for value in network.parameters()]
    for parameter in parameters:
        parameter.grad = torch.full_like(parameter, 1e-3)
    step = torch.optim.SGD(
        parameters, lr=0.01, momentum=0.9, nesterov=True, weight_decay=5e-4, fused=True
    ).step
    count = float(sum(parameter.numel() for parameter in parameters))
    # Weight decay, momentum, Nesterov's look-ahead, update: a multiplication and an addition each. Weight,
    # gradient and momentum are read, weight and momentum written.
    cost = Cost(8 * count, 0, 5 * count)
    stage = Stage("optimiser", "optimiser", network, (0, 0, 0, 0), False, cost, None, ["all"])
    if device.type == "cuda":
        return stage, in_a_graph(step, device, CALLS_IN_A_GRAPH), CALLS_IN_A_GRAPH
    return stage, step, 1


def measure_stages(
    network: NetworkInNetwork,
    images: int,
    rotations: int,
    device: torch.device,
    precision: Precision,
    effort: Effort,
) -> list[dict[str, Any]]:
    """Measure bytes, operations and seconds of every stage's forward and backward pass.

    Args:
        network: on the CPU; of no use afterwards.
        images, rotations: B and K.
        device, precision: of the step.
        effort: how long to measure.

    Returns:
        One row per stage and direction, for `rotnet_fast.plots.roofline`; ``count`` is how often the step
        has it.
    """
    last, step, steps = optimiser(network, device)
    stages = find_stages(network, images * rotations)
    works: dict[str, tuple[Stage, str, Work, int]] = {}
    for stage in stages:
        for direction, (work, calls) in StageWork(stage, device, precision).passes().items():
            works[f"{stage.label} {direction}"] = stage, direction, work, calls
    works["optimiser"] = last, "update", step, steps
    timings = interleaved({name: work for name, (_, _, work, _) in works.items()}, device, effort)
    element = precision.dtype.itemsize
    rows = []
    for name, (stage, direction, _, calls) in works.items():
        cost = stage.backward if direction == "backward" else stage.forward
        assert cost is not None
        rows.append(_row(stage, direction, cost, element, timings[name].divided(calls)))
    return rows


def _row(stage: Stage, direction: str, cost: Cost, element: int, timing: Timing) -> dict[str, Any]:
    traffic = cost.bytes(element)
    return {
        "stage": stage.label,
        "kind": stage.kind,
        "direction": direction,
        "layers": stage.layers,
        "count": len(stage.layers),
        "flops": cost.flops,
        "bytes": traffic,
        "seconds": timing.seconds,
        "spread": timing.spread,
        "cpu_seconds": timing.cpu_seconds,
        "flops_per_second": cost.flops / timing.seconds,
        "bytes_per_second": traffic / timing.seconds,
    }

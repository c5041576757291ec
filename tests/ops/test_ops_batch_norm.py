"""The fused BatchNorm and ReLU: what float64 says, for all shapes and threads, and torch's own elsewhere."""

from __future__ import annotations

import copy
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from rotnet_fast.models.nin import ConvBnRelu, NetworkInNetwork
from rotnet_fast.models.sync_batchnorm import synchronise_batchnorm
from rotnet_fast.ops import batch_norm
from rotnet_fast.ops.batch_norm import batch_norm_relu
from rotnet_fast.ops.library import BATCH_NORM_OPS, LIBRARIES
from rotnet_fast.protocols.heads import use_batch_statistics

EPS = 1e-5
FP32 = 2.0**-23
TYPES = [torch.float32, torch.bfloat16]
needs_kernels = pytest.mark.skipif(
    not LIBRARIES["cpu"].loaded, reason="the compiled CPU library is not in use"
)


class Call(NamedTuple):
    """Arguments [B,C,H,W] and [C], and a gradient of the result."""

    x: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor
    grad: torch.Tensor

    def result(self, training: bool = True) -> tuple[torch.Tensor, ...]:
        """y, gradients of x, weight and bias, and the running statistics afterwards."""
        leaves = [tensor.clone().requires_grad_() for tensor in self[:3]]
        mean, variance = torch.zeros_like(self.bias), torch.ones_like(self.bias)
        y = batch_norm_relu(*leaves, mean, variance, training, 0.1, EPS)
        y.backward(self.grad)
        return y.detach(), *(leaf.grad for leaf in leaves), mean, variance


def make_call(
    shape: tuple[int, int, int, int],
    dtype: torch.dtype = torch.float32,
    mean: float = 0.0,
    std: float = 1.0,
    seed: int = 0,
) -> Call:
    generator = torch.Generator().manual_seed(seed)

    def activations(mean: float, std: float) -> torch.Tensor:
        made = mean + std * torch.randn(shape, generator=generator)
        return made.to(dtype).contiguous(memory_format=torch.channels_last)

    channels = shape[1]
    weight, bias = torch.randn(2, channels, generator=generator)
    return Call(activations(mean, std), weight, bias, activations(0.0, 1.0))


def assert_near(found: torch.Tensor, expected: torch.Tensor, rtol: float, atol: torch.Tensor) -> None:
    excess = (found.double() - expected).abs() - (rtol * expected.abs() + atol)
    assert excess.max() <= 0, f"beyond the bound by {excess.max().item()}"


def assert_right(call: Call) -> None:
    """Compare with float64: half of the last digit of the type, and what float32 loses on the way."""
    y, grad_x, grad_weight, grad_bias, running_mean, running_var = call.result()
    last_digit = torch.finfo(call.x.dtype).eps
    x, weight, bias = (tensor.double().requires_grad_() for tensor in call[:3])
    normalised = functional.batch_norm(x, None, None, weight, bias, True, 0.1, EPS)
    pixels = (0, 2, 3)
    count = x.numel() // x.shape[1]
    mean, variance = x.detach().mean(pixels), x.detach().var(pixels, correction=0)
    # The mean is rounded to float32: the further it is from 0 in units of the deviation, the more that shows.
    blur = (FP32 * (8 + 2 * mean.abs() / (variance + EPS).sqrt()))[:, None, None]  # of normalised values
    size = weight.detach().abs()[:, None, None]
    values = (normalised - bias[:, None, None]).detach().abs() + size
    assert_near(y, normalised.detach().clamp(min=0), last_digit / 2, blur * values + FP32 * bias.abs().max())

    # On the edge of the ReLU, float64 may decide otherwise: the mask is the output's.
    grad = call.grad.double() * (y > 0)
    normalised.backward(grad)
    scale = (weight.detach() * (variance + EPS).rsqrt()).abs()[:, None, None]
    spread = 1 + (values / size.clamp(min=1e-30)).square()
    at_most = scale * (grad.abs() + grad.abs().mean(pixels, keepdim=True) * spread)
    assert_near(grad_x, x.grad, last_digit / 2, 4 * blur * at_most + 1e-30)
    total = grad.abs().sum(pixels)
    shares = (grad.abs() * values).sum(pixels) / size.flatten()
    assert_near(grad_bias, bias.grad, 4 * FP32, 4 * FP32 * total)
    assert_near(grad_weight, weight.grad, 4 * FP32, blur.flatten() * (total + shares))

    assert_near(running_mean, 0.1 * mean, FP32, FP32 * 0.1 * variance.sqrt() + 1e-30)
    # Small beside the mean or not, the variance is right; squares are added up in float32 within a block.
    expected = 0.9 + 0.1 * variance * count / (count - 1)
    assert_near(running_var, expected, 16 * FP32, torch.zeros(()))


@needs_kernels
@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(*(st.integers(1, most) for most in (5, 40, 9, 9))).filter(
        lambda shape: shape[0] * shape[2] * shape[3] > 1
    ),
    dtype=st.sampled_from(TYPES),
    mean=st.sampled_from([0.0, 1.0, -300.0]),
    std=st.sampled_from([1e-3, 1.0, 50.0]),
    seed=st.integers(0, 2**31),
)
def test_result_and_gradients_are_those_of_float64(shape, dtype, mean, std, seed) -> None:
    assert_right(make_call(shape, dtype, mean, std, seed))


@needs_kernels
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("channels", [1, 3, 24, 96, 192, 255, 257, 600])
def test_many_pixels_and_channels_are_right(channels: int, dtype: torch.dtype) -> None:
    assert_right(make_call((3, channels, 13, 11), dtype, mean=0.5, std=2.0))


@needs_kernels
@pytest.mark.parametrize("dtype", TYPES)
def test_many_chunks_are_right(dtype: torch.dtype) -> None:
    assert_right(make_call((30, 24, 57, 61), dtype, mean=3.0))


@needs_kernels
def test_a_small_variance_beside_a_large_mean_is_not_lost() -> None:
    call = make_call((8, 5, 16, 16), mean=1000.0, std=0.01)
    call.x[:3] -= 2000.0  # and neither where the mean differs from one part of the batch to the next
    for x in (call.x, call.x[3:]):
        running_var = torch.zeros(5)
        batch_norm_relu(x, call.weight, call.bias, torch.zeros(5), running_var, True, 1.0, EPS)
        torch.testing.assert_close(running_var, x.double().var((0, 2, 3)).float(), rtol=1e-5, atol=0)


@needs_kernels
@pytest.mark.parametrize("dtype", TYPES)
def test_the_number_of_threads_changes_no_bit(dtype: torch.dtype) -> None:
    before = torch.get_num_threads()
    call = make_call((9, 40, 30, 31), dtype)
    try:
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(call.result())
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@needs_kernels
@pytest.mark.parametrize("dtype", TYPES)
def test_channels_without_variance_become_their_bias(dtype: torch.dtype) -> None:
    call = make_call((20, 6, 30, 31), dtype)
    call.x[:] = torch.tensor([0.0, 1.0, -3.0, 0.1, 1e4, -0.7])[:, None, None]
    y, grad_x, grad_weight, *_ = call.result()
    expected = call.bias.clamp(min=0).to(dtype)[:, None, None].expand_as(y)
    assert torch.equal(y, expected)
    assert grad_x.isfinite().all()
    assert not grad_weight.any()


@needs_kernels
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf, 1e30])
def test_what_cannot_be_normalised_shows_as_nan_in_its_channel_alone(bad: float) -> None:
    call = make_call((2, 18, 5, 5))
    clean, *_ = call.result()
    call.x[1, 3, 2, 2] = bad
    y, grad_x, *_ = call.result()
    others = [c for c in range(18) if c != 3]
    assert y[:, 3].isnan().all()
    assert grad_x[:, 3].isnan().all()
    assert torch.equal(y[:, others], clean[:, others])
    in_eval = batch_norm_relu(
        call.x, call.weight.abs(), call.bias, torch.zeros(18), torch.ones(18), False, 0.1, EPS
    )
    assert in_eval.isnan().sum() == (bad != bad)


@needs_kernels
@pytest.mark.parametrize("dtype", TYPES)
def test_eval_mode_uses_the_running_statistics(dtype: torch.dtype) -> None:
    call = make_call((3, 21, 6, 7), dtype, mean=2.0, std=3.0)
    mean, variance = call.bias + 2, call.weight.square() * 9 + 0.1
    before = mean.clone(), variance.clone()
    y = batch_norm_relu(*call[:3], mean, variance, False, 0.1, EPS)
    expected = functional.batch_norm(call.x.double(), *(t.double() for t in (mean, variance, *call[1:3])))
    assert y.dtype == dtype
    assert y.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(
        y.double(), expected.clamp(min=0), rtol=torch.finfo(dtype).eps / 2 + 1e-6, atol=1e-5
    )
    assert all(torch.equal(a, b) for a, b in zip(before, (mean, variance), strict=True))


@needs_kernels
@pytest.mark.parametrize("dtype", TYPES)
def test_gradients_in_eval_mode_leave_the_statistics_out(dtype: torch.dtype) -> None:
    call = make_call((5, 21, 6, 7), dtype, mean=0.5)
    y, grad_x, grad_weight, grad_bias, *_ = call.result(training=False)
    x, weight, bias = (tensor.double().requires_grad_() for tensor in call[:3])
    zeros, ones = torch.zeros(21, dtype=torch.float64), torch.ones(21, dtype=torch.float64)
    normalised = functional.batch_norm(x, zeros, ones, weight, bias, False, 0.1, EPS)
    normalised.backward(call.grad.double() * (y > 0))
    torch.testing.assert_close(grad_x.double(), x.grad, rtol=torch.finfo(dtype).eps / 2 + 1e-6, atol=1e-30)
    for found, expected in ((grad_weight, weight.grad), (grad_bias, bias.grad)):
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-4)


@needs_kernels
@pytest.mark.parametrize("training", [True, False])
def test_whether_gradients_are_wanted_changes_no_bit(training: bool) -> None:
    call = make_call((2, 9, 4, 4))
    with torch.no_grad():
        y = batch_norm_relu(*call[:3], torch.zeros(9), torch.ones(9), training, 0.1, EPS)
    assert torch.equal(y, call.result(training)[0])


@needs_kernels
def test_the_gradient_may_come_in_any_layout() -> None:
    call = make_call((3, 10, 4, 5))
    for grad in (call.grad.contiguous(), torch.ones(3, 10, 1, 1).expand(3, 10, 4, 5)):
        dense = grad.contiguous(memory_format=torch.channels_last)
        for a, b in zip(call._replace(grad=grad).result(), call._replace(grad=dense).result(), strict=True):
            assert torch.equal(a, b)


@needs_kernels
@pytest.mark.parametrize("training", [True, False])
def test_gradients_have_gradients(training: bool) -> None:
    call = make_call((2, 4, 3, 3))
    running = torch.zeros(4), torch.ones(4)
    found = []
    for function in (batch_norm_relu, batch_norm._plain):
        leaves = [tensor.clone().requires_grad_() for tensor in call[:3]]
        y = function(*leaves, *running, training, 0.0, EPS)
        (grad_x,) = torch.autograd.grad(y, leaves[:1], call.grad, create_graph=True)
        found.append(torch.autograd.grad(grad_x.square().sum(), leaves[:2]))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


FALLBACKS = {
    "contiguous": lambda x: x.contiguous(),
    "a part of the channels": lambda x: x[:, :3],
    "every other row": lambda x: x[:, :, ::2],
    "float64": lambda x: x.double(),
    "three dimensions": lambda x: x[:, :, 0],
}


@pytest.mark.parametrize("kind", FALLBACKS)
def test_other_inputs_are_computed_by_torch(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_norm, "_OPS", None)
    x = FALLBACKS[kind](make_call((2, 6, 6, 5)).x)
    weight, bias, mean, variance = torch.rand(4, x.shape[1], dtype=x.dtype)
    for training in (True, False):
        expected = functional.batch_norm(x, mean.clone(), variance.clone(), weight, bias, training).relu()
        arguments = (weight, bias, mean.clone(), variance.clone(), training, 0.1, EPS)
        assert torch.equal(batch_norm_relu(x, *arguments), expected)


def test_other_parameters_are_computed_by_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_norm, "_OPS", None)
    call = make_call((2, 6, 4, 5), torch.bfloat16)
    for weight, bias in ((None, None), (call.weight.bfloat16(), call.bias.bfloat16())):
        y = batch_norm_relu(call.x, weight, bias, None, None, True, 0.1, EPS)
        assert torch.equal(y, functional.batch_norm(call.x, None, None, weight, bias, True).relu())


def test_one_value_per_channel_is_refused_as_by_torch() -> None:
    call = make_call((1, 6, 1, 1))
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        call.result()


@needs_kernels
def test_the_ops_pass_torch_library_opcheck() -> None:
    rows = [torch.randn(2, 3, 4, 6) for _ in range(3)]
    channels = [torch.rand(6) for _ in range(6)]
    x, y, grad = rows
    train, evaluate, backward = (getattr(torch.ops.rotnet_fast, name).default for name in BATCH_NORM_OPS)
    for running in ((None, None), tuple(channels[2:4])):
        torch.library.opcheck(train, (y, *channels[:2], *running, x, *channels[4:], 0.1, EPS))
    torch.library.opcheck(evaluate, (y, *channels[:4], x, *channels[4:], EPS))
    torch.library.opcheck(backward, (y, *channels[:2], grad, x, *channels[2:], True))


@needs_kernels
def test_the_ops_refuse_what_they_would_misread() -> None:
    x, c = torch.randn(2, 3, 4, 6), torch.rand(6)
    evaluate = torch.ops.rotnet_fast.batch_norm_relu_eval_out
    for y, like, weight in (
        (x.bfloat16(), x, c),
        (x[:, :2].clone(), x, c),
        (x.clone(), x.permute(0, 2, 1, 3), c),
        (x.clone(), x, c[:5].clone()),
        (x.clone(), x, c.double()),
        (x.double(), x.double(), c),
    ):
        with pytest.raises(RuntimeError, match="batch_norm_relu"):
            evaluate(y, c.clone(), c.clone(), c, c, like, weight, c, EPS)


def layer(channels: int = 8) -> ConvBnRelu:
    torch.manual_seed(0)
    return ConvBnRelu(3, channels, 3).to(memory_format=torch.channels_last)


def images() -> torch.Tensor:
    return make_call((4, 3, 8, 8), seed=1).x


def modules_one_by_one(block: ConvBnRelu, x: torch.Tensor) -> torch.Tensor:
    return block.bn(block.conv(x)).relu()


@pytest.mark.parametrize("dtype", TYPES)
def test_a_layer_does_what_its_modules_do_one_by_one(dtype: torch.dtype) -> None:
    ours, theirs = layer(), layer()
    tolerance = {"rtol": 0.02, "atol": 0.02} if dtype == torch.bfloat16 else {"rtol": 1e-4, "atol": 1e-5}
    for _ in range(3):
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            y, expected = ours(images()), modules_one_by_one(theirs, images())
        assert y.dtype == expected.dtype == dtype
        torch.testing.assert_close(y, expected, **tolerance)
        for found in (y, expected):
            found.float().square().sum().backward()
    assert ours.bn.num_batches_tracked == 3
    torch.testing.assert_close(dict(ours.named_buffers()), dict(theirs.named_buffers()))
    for (name, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        difference = (a.grad - b.grad).abs().max() / b.grad.abs().max()
        assert difference < (0.03 if dtype == torch.bfloat16 else 1e-4), name


@pytest.mark.parametrize("by_batch", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_a_layer_handles_running_and_batch_statistics_in_both_modes(by_batch: bool, training: bool) -> None:
    block = layer().train(training)
    if by_batch:
        use_batch_statistics(block)
    expected = modules_one_by_one(copy.deepcopy(block), images())
    with torch.no_grad():
        torch.testing.assert_close(block(images()), expected, rtol=1e-4, atol=1e-5)
    if by_batch:
        assert list(block.buffers()) == []
    else:
        assert block.bn.num_batches_tracked == int(training)


def test_a_layer_that_stops_tracking_keeps_its_statistics() -> None:
    block = layer()
    block.bn.track_running_stats = False
    block(images())
    assert not block.bn.running_mean.any()
    assert block.bn.num_batches_tracked == 0


def test_another_kind_of_batchnorm_and_hooks_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_norm, "_OPS", None)
    seen = []
    hooked, synchronised = layer().eval(), layer().eval()
    hooked.bn.register_forward_hook(lambda *_: seen.append("forward"))
    synchronise_batchnorm(synchronised, None)
    for block in (hooked, synchronised):
        assert torch.equal(block(images()), modules_one_by_one(block, images()))
    assert seen == ["forward", "forward"]


def test_a_layer_compiles_to_one_graph() -> None:
    block = layer()
    compiled = torch.compile(copy.deepcopy(block), backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(images()), block(images()))


def test_traces_and_transforms_see_torchs_own_ops() -> None:
    torch.manual_seed(0)
    network = NetworkInNetwork(blocks=3, width=0.05).eval()
    x = torch.randn(2, 3, 16, 16).to(memory_format=torch.channels_last)
    expected = network(x)
    torch.testing.assert_close(torch.jit.trace(network, x)(x), expected)
    tangent = torch.randn_like(x)
    _, moved = torch.func.jvp(network, (x,), (tangent,))
    torch.testing.assert_close(moved, torch.autograd.functional.jvp(network, x, tangent)[1])
    each = torch.func.vmap(lambda image: network(image[None])[0])(x)
    torch.testing.assert_close(each, expected)

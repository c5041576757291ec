"""What the benchmark times is what training does, and its costs are those of the network."""

from __future__ import annotations

import os
import statistics
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from rotnet_fast.benchmarking import levels as level_table
from rotnet_fast.benchmarking.levels import BASELINE, DEFAULT, LEVELS, Level, levels_of, plain_network
from rotnet_fast.benchmarking.op import OpCase, op_calls
from rotnet_fast.benchmarking.stages import BnRelu, Loss, Stage, StageWork, convolution_flops, find_stages
from rotnet_fast.benchmarking.steps import Step, average_power, measure_steps, synthetic_dataset
from rotnet_fast.benchmarking.timing import Effort, Timing, in_a_graph, interleaved
from rotnet_fast.config import PretrainConfig
from rotnet_fast.data.loader import Batch
from rotnet_fast.engine.precision import resolve_precision
from rotnet_fast.engine.rotation_task import RotationTask
from rotnet_fast.models.nin import ConvBnRelu, NetworkInNetwork
from rotnet_fast.rotations import FOUR_ROTATIONS

CPU = torch.device("cpu")
EFFORT = Effort(1, 0.0)
RATES = {"fp32": 1e12, "bf16": 1e12, "tf32": 1e12}
CONFIG = PretrainConfig(blocks=3, width=0.1, batch_size=4, lr=0.01)
LEVELS_OF_CPU = [level for level in levels_of(CPU) if not level.is_compiled]

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")


def test_the_median_window_counts() -> None:
    seconds = [5.0, 1.0, 2.0, 100.0, 3.0]
    timing = Timing.of([(each, 2 * each) for each in seconds])
    assert (timing.seconds, timing.best, timing.cpu_seconds) == (3.0, 1.0, 6.0)
    quartiles = statistics.quantiles(seconds, n=4)
    assert timing.spread == (quartiles[2] - quartiles[0]) / 3
    assert timing.divided(10) == Timing(0.3, 0.1, timing.spread, 0.6)
    assert Timing.of([(2.0, 1.0)]) == Timing(2.0, 2.0, 0.0, 1.0)


def test_windows_take_turns() -> None:
    calls: list[str] = []
    works = {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}
    timings = interleaved(works, CPU, Effort(3, 0.0))
    assert list(timings) == ["a", "b"]
    assert calls[-6:] == ["a", "b"] * 3


@pytest.mark.parametrize("blocks", [3, 4, 5])
def test_operations_of_the_convolutions_are_those_that_torch_counts(blocks: int) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    images, rotations = 2, 4
    network = NetworkInNetwork(4, blocks, 0.1)
    x = torch.zeros(images * rotations, 3, 32, 32).to(memory_format=torch.channels_last)
    with FlopCounterMode(display=False) as counter:
        network(x).sum().backward()
    counts = counter.get_flop_counts()["Global"]
    expected = sum(count for name, count in counts.items() if "convolution" in str(name))
    assert convolution_flops(network, images, rotations) == expected


def test_traffic_of_a_stage_is_every_tensor_once_and_twice_where_statistics_come_first() -> None:
    stages = {stage.label: stage for stage in find_stages(NetworkInNetwork(4, 3, 1.0), views=2)}
    pixels = 2 * 32 * 32
    convolution = stages["1x1 192→160, 32²"]
    assert convolution.forward.bytes(2) == 2 * pixels * (192 + 160) + 4 * 192 * 160
    assert convolution.backward is not None
    assert convolution.backward.bytes(2) == 2 * convolution.forward.bytes(2)
    norm = stages["BN + ReLU 160, 32²"]
    assert norm.forward.bytes(4) == 3 * 4 * pixels * 160 + 4 * 4 * 160
    first = stages["5x5 3→192, 32²"]
    assert first.backward is not None
    assert first.backward.flops == first.forward.flops  # images have no gradient
    assert stages["max pool 96, 32²"].forward.bytes(1) == 2 * 96 * (32**2 + 16**2)


def test_the_stages_one_after_the_other_are_the_network() -> None:
    torch.manual_seed(0)
    network = NetworkInNetwork(4, 3, 0.1).train()
    x = torch.randn(4, 3, 32, 32).to(memory_format=torch.channels_last)
    labels = torch.zeros(4, dtype=torch.int64)
    expected = nn.functional.cross_entropy(network(x), labels)
    parts: list[nn.Module] = []
    for layer in network.layers:
        for module in network.get_submodule(layer).children():
            if isinstance(module, ConvBnRelu):
                parts += [module.conv, BnRelu(module)]
            else:
                parts.append(module)
    for part in [*parts, Loss(network.classifier, labels)]:
        x = part(x)
    assert torch.equal(x, expected)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_backward_pass_gives_the_gradients_of_all_inputs_and_parameters(precision: str) -> None:
    for stage in find_stages(NetworkInNetwork(4, 3, 0.1), views=4):
        work = StageWork(stage, CPU, resolve_precision(precision, CPU))
        passes = work.passes()
        assert passes.keys() == {"forward", "backward"}
        gradients = passes["backward"][0]()
        parameters = len(list(stage.module.parameters()))
        assert isinstance(gradients, tuple)
        assert len(gradients) == parameters + stage.needs_input_gradient
        assert all(gradient.isfinite().all() for gradient in gradients)


def test_the_baseline_is_the_same_network_in_the_plain_memory_format() -> None:
    torch.manual_seed(0)
    network = NetworkInNetwork(4, 4, 0.1).train()
    x = torch.randn(4, 3, 32, 32)
    expected = network(x.to(memory_format=torch.channels_last))
    count = sum(parameter.numel() for parameter in network.parameters())
    plain = plain_network(network).train()
    assert sum(parameter.numel() for parameter in plain.parameters()) == count
    formats = []
    for module in plain.modules():
        if isinstance(module, nn.Conv2d):
            assert module.weight.stride(1) == module.kernel_size[0] ** 2
            module.register_forward_hook(lambda _, __, out: formats.append(out.stride(1)))
    torch.testing.assert_close(plain(x), expected, rtol=1e-4, atol=1e-4)
    assert formats == [32 * 32] * 3 + [16 * 16] * 3 + [8 * 8] * 6
    assert not {type(module) for module in plain.modules()} & {ConvBnRelu, NetworkInNetwork}


@pytest.mark.parametrize("level", LEVELS_OF_CPU, ids=lambda level: level.name)
def test_a_step_of_a_level_trains(level: Level, tmp_path: Path) -> None:
    step = Step(level, CONFIG, synthetic_dataset(12), CPU, tmp_path / "run")
    before = [parameter.detach().clone() for parameter in step.trainer.task.module.parameters()]
    for _ in range(4):  # more than the epoch has
        step()
    step.close()
    after = list(step.trainer.task.module.parameters())
    assert all(not torch.equal(one, other) for one, other in zip(before, after, strict=True))
    assert all(parameter.isfinite().all() for parameter in after)
    assert step.precision.name == {"fp32": "fp32", "bf16": "bf16"}.get(
        level.name[:4], resolve_precision("auto", CPU).name
    )


@pytest.mark.parametrize("level", [LEVELS_OF_CPU[0], LEVELS_OF_CPU[1]], ids=lambda level: level.name)
def test_a_step_without_its_data_path_shows_the_same_views_again(level: Level, tmp_path: Path) -> None:
    dataset = synthetic_dataset(12)
    shown = {}
    for is_fixed in (False, True):
        step = Step(level, CONFIG, dataset, CPU, tmp_path / str(is_fixed), is_fixed)
        batches = [batch for batch in step.trainer.loader.epoch(0) if len(batch) == 4][:2]
        shown[is_fixed] = [step.task.views(batch)[0].clone() for batch in batches]
        step.close()
    assert not torch.equal(*shown[False])
    assert torch.equal(*shown[True])
    assert torch.equal(shown[True][0], shown[False][0])
    is_plain = level.name == BASELINE
    assert all(views.is_contiguous() == is_plain for views in shown[False] + shown[True])


def test_the_table_of_levels_begins_with_the_baseline_and_ends_with_the_packages_own_choice() -> None:
    names = [level.name for level in LEVELS]
    assert (names[0], names[-1]) == (BASELINE, DEFAULT)
    assert len(set(names)) == len(names)
    assert LEVELS[-1].config(CONFIG) == CONFIG
    for level in LEVELS:
        assert level.task in level_table.WITHOUT_DATA


def test_a_level_that_is_refused_is_skipped_with_the_reason_and_the_others_are_measured() -> None:
    levels = [Level("impossible", ("cpu",), {"graph": "on"}), LEVELS[0]]
    rows = measure_steps(levels, CONFIG, 8, CPU, EFFORT, RATES)
    assert rows[0].keys() == {"level", "blocks", "skipped"}
    assert rows[0]["skipped"].startswith("graph is on, which needs a GPU")
    assert (rows[1]["level"], rows[1]["times_baseline"]) == (BASELINE, 1.0)
    assert (rows[1]["compile"], rows[1]["graph"], rows[1]["precision"]) == ("none", False, "fp32")


def test_measuring_leaves_the_settings_of_torch_as_they_were() -> None:
    before = torch.backends.cudnn.benchmark
    level = Level("switched", ("cpu",), {"precision": "fp32"}, cudnn_benchmark=not before)
    rows = measure_steps([level], CONFIG, 8, CPU, EFFORT, RATES)
    assert torch.backends.cudnn.benchmark == before
    assert rows[0]["times_baseline"] is None


def test_no_power_is_made_up_where_no_sensor_is() -> None:
    assert average_power(lambda: None, CPU) is None


def test_bytes_of_a_call_of_the_op() -> None:
    case = OpCase(2, 8, FOUR_ROTATIONS, "bf16")
    assert case.view_bytes == 2 * 4 * 8 * 8 * 3 * 2
    assert case.bytes_moved == case.view_bytes + 2 * 8 * 8 * 3 + 2 * 8 + 2 * 4 * 8


def test_calls_of_the_op_gather_other_rows_each_time() -> None:
    first, second = op_calls(OpCase(4, 32, FOUR_ROTATIONS, "fp32"), CPU, 2)
    views = [call()[0].clone() for call in (first, second, first)]  # type: ignore[index]
    assert not torch.equal(views[0], views[1])
    assert torch.equal(views[0], views[2])


@needs_cuda
def test_a_graph_repeats_the_work_so_many_times() -> None:
    device = torch.device("cuda", 0)
    total = torch.zeros((), device=device)
    replay = in_a_graph(lambda: total.add_(1), device, 5)
    before = total.item()
    replay()
    replay()
    assert total.item() == before + 10


@needs_cuda
@pytest.mark.parametrize("number", range(6))
def test_captured_passes_of_a_stage_run(number: int) -> None:
    device = torch.device("cuda", 0)
    stage: Stage = find_stages(NetworkInNetwork(4, 3, 0.1), views=4)[number]
    work = StageWork(stage, device, resolve_precision("bf16", device))
    for replay, calls in work.passes().values():
        assert calls > 1
        replay()
    torch.cuda.synchronize()


class FourthStep(RotationTask):
    """Does something in its fourth step, in which a GPU's level is captured."""

    steps = 0

    def views(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        self.steps += 1
        if self.steps == 4:
            self.happen()
        return super().views(batch)

    def happen(self) -> None:
        raise NotImplementedError


class CannotCompile(FourthStep):
    def happen(self) -> None:
        raise Exception("out of resource: shared memory\nand more lines")  # no RuntimeError, as Triton's


class Dies(FourthStep):
    def happen(self) -> None:
        os._exit(7)


class Hangs(FourthStep):
    def happen(self) -> None:
        time.sleep(600)


@pytest.mark.parametrize(
    ("task", "apart", "reason"),
    [
        (CannotCompile, False, "out of resource: shared memory"),
        (CannotCompile, True, "out of resource: shared memory"),
        (Dies, True, "its process ended with exit code 7"),
    ],
)
def test_a_level_that_fails_in_its_fourth_step_leaves_the_others(
    task: type[RotationTask], apart: bool, reason: str
) -> None:
    broken = Level("broken", ("cpu",), {"precision": "fp32"}, task=task)
    rows = measure_steps([broken, LEVELS[0]], CONFIG, 8, CPU, EFFORT, RATES, apart=apart, warmup=5)
    assert rows[0] == {"level": "broken", "blocks": 3, "skipped": reason}
    assert (rows[1]["level"], rows[1]["times_baseline"]) == (BASELINE, 1.0)
    assert rows[1]["data_share"] > 0


def test_a_level_that_takes_too_long_is_given_up() -> None:
    level = Level("slow", ("cpu",), {"precision": "fp32"}, task=Hangs)
    (row,) = measure_steps([level], CONFIG, 8, CPU, EFFORT, RATES, apart=True, warmup=5, level_limit=1)
    assert row == {"level": "slow", "blocks": 3, "skipped": "took more than 1 s"}


def test_rows_are_told_as_they_are_made_and_the_baseline_may_come_later() -> None:
    told: list[list[str]] = []

    def report(rows: list[dict[str, Any]]) -> None:
        told.append([row["level"] for row in rows])

    levels = [LEVELS[1], LEVELS[0]]
    rows = measure_steps(levels, CONFIG, 8, CPU, EFFORT, RATES, apart=True, report=report)
    names = [level.name for level in levels]
    assert told[0] == names[:1]
    assert told[-1] == names
    assert rows[0]["times_baseline"] == pytest.approx(rows[1]["seconds"] / rows[0]["seconds"])


def test_levels_that_compute_the_same_have_the_same_loss_and_learn() -> None:
    few, many = (
        [
            row["warmup_loss"]
            for row in measure_steps(LEVELS_OF_CPU[:2], CONFIG, 40, CPU, EFFORT, RATES, warmup=steps)
        ]
        for steps in (2, 40)
    )
    assert few[0] == pytest.approx(few[1], rel=1e-3)
    assert many[0] == pytest.approx(many[1], rel=0.02)
    assert many[0] < 0.8 * few[0]


@needs_cuda
def test_levels_of_a_gpu_run_and_are_timed() -> None:
    device = torch.device("cuda", 0)
    levels = [level for level in levels_of(device) if not level.is_compiled]
    rows = measure_steps(levels, CONFIG, 40, device, EFFORT, RATES)
    assert [row["level"] for row in rows] == [level.name for level in levels]
    assert [row.get("skipped") for row in rows] == [None] * len(levels)
    assert all(row["fixed_views_seconds"] > 0 for row in rows)

"""Measure this machine: ``python -m rotnet_fast.benchmark [--output FILE.json] [flags]``.

It measures the hardware's ceilings, the fused op, the stages of a training step, and whole steps from plain
torch to all of the package's optimisations in one run, so that they can be compared. It prints tables; with
``--output``, it also writes everything as JSON and draws the roofline. The images are synthetic.

Exit codes: see `rotnet_fast.command`. torch is only imported once the flags are known to be valid.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rotnet_fast.checks import check_device
from rotnet_fast.command import run_command
from rotnet_fast.config import PretrainConfig
from rotnet_fast.engine.run_folder import check_output, environment, write_json
from rotnet_fast.errors import ArgumentError
from rotnet_fast.files import ensure_folder, resolve_path
from rotnet_fast.flags import parse_flags
from rotnet_fast.next_steps import PRETRAIN, look_at, print_next, shell
from rotnet_fast.plain import counted
from rotnet_fast.settings import Settings

if TYPE_CHECKING:
    import torch

    from rotnet_fast.benchmarking.levels import Level
    from rotnet_fast.benchmarking.timing import Effort

PROGRAM = "python -m rotnet_fast.benchmark"

Part = Literal["op", "stages", "steps"]
PARTS: tuple[Part, ...] = ("op", "stages", "steps")

STAGED_BLOCKS = 4
"""Number of blocks of the network whose stages are measured, as in the paper."""


@dataclass(frozen=True)
class BenchmarkConfig(Settings):
    """Measure the fused op and training steps on this machine against its hardware's ceilings."""

    examples = ("--quick", "--what op --output op.json", "--full --what steps stages --blocks 4")

    output: Path | None = None
    """JSON file to write; the roofline is saved next to it as .png and .svg. None: only print tables."""

    device: str = "auto"
    """Device: auto (a CUDA device if there is one), cpu, cuda, cuda:N or mps."""

    what: tuple[Part | Literal["all"], ...] = ("all",)
    """op: the fused op from images to views. stages: the stages of a NIN-4 step, separately.
    steps: whole training steps at every level. The ceilings are always measured."""

    quick: bool = False
    """Run a trial of a few seconds, whose numbers are meaningless: small networks and batches, short windows,
    and nothing compiled."""

    full: bool = False
    """Use 128 images per step on a CPU as well, as in training. Takes minutes per network."""

    batch_size: int | None = None
    """Images per step. None: 128; 16 on a CPU, unless --full; 8 with --quick."""

    blocks: tuple[Literal[3, 4, 5], ...] = (3, 4, 5)
    """Networks whose whole steps are measured, by number of conv blocks."""

    width: float | None = None
    """Multiplier of the number of channels. None: 1; 0.25 with --quick."""

    levels: tuple[str, ...] | None = None
    """Levels at which whole steps are measured, in this order. None: all levels of the device."""

    level_limit: float = 600.0
    """Seconds after which a level is aborted on a GPU, where each level has its own process."""

    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Number format of the stages. auto: bf16 if the device computes in it, else fp32."""

    def validate(self) -> None:
        """Check the values of the settings, beyond their types.

        Raises:
            ArgumentError: a setting has an invalid value.
        """
        if self.output is not None and self.output.suffix != ".json":
            raise ArgumentError(f"output is {self.output}; its name must end in .json")
        for name in ("what", "blocks", "levels"):
            if getattr(self, name) == ():
                raise ArgumentError(f"{name} is empty; omit it to measure everything")
        if self.quick and self.full:
            raise ArgumentError("quick and full are mutually exclusive; choose one of them")
        if self.batch_size is not None and self.batch_size < 1:
            raise ArgumentError(f"batch-size is {self.batch_size}; it must be at least 1")
        if self.width is not None and not 0 < self.width <= 16:
            raise ArgumentError(f"width is {self.width:g}; it must lie in (0, 16]")
        if not self.level_limit > 0:
            raise ArgumentError(f"level-limit is {self.level_limit:g}; it must be above 0 seconds")
        check_device(self.device)

    def parts(self) -> list[Part]:
        """Return the parts to measure, in order."""
        return [part for part in PARTS if part in self.what or "all" in self.what]

    def images_per_step(self, device: str) -> int:
        """Return the number of images per training step on a type of device."""
        if self.batch_size is not None:
            return self.batch_size
        return 8 if self.quick else 128 if self.full or device == "cuda" else 16

    def channels(self) -> float:
        """Return the width of the networks."""
        return self.width if self.width is not None else 0.25 if self.quick else 1.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)

    def command() -> None:
        config = parse_flags(BenchmarkConfig, PROGRAM, arguments)
        benchmark(config)
        print_next(next_steps(config))

    return run_command(command)


def next_steps(config: BenchmarkConfig) -> list[str]:
    """Return what to do after a measurement."""
    if config.quick:  # a trial, whose numbers mean nothing
        return [shell("benchmark"), shell("doctor"), PRETRAIN]
    steps = [shell("doctor"), PRETRAIN]
    if config.output is not None and "stages" in config.parts():
        steps.insert(0, look_at(config.output.with_suffix(".png")))
    return steps


def benchmark(config: BenchmarkConfig) -> dict[str, Any]:
    """Measure, print the tables, and write the files.

    Returns:
        The contents of the JSON file.

    Raises:
        ArgumentError: a setting is invalid, or the device does not exist.
        CannotWriteError: a file cannot be written.
    """
    config.validate()
    if config.output is not None:
        check_output(config.output.parent)
    from rotnet_fast.engine.precision import working_device

    device = working_device(config.device)
    from rotnet_fast.benchmarking.ceilings import measure_ceilings
    from rotnet_fast.benchmarking.summary import ceilings_lines, op_lines, stages_lines, steps_lines
    from rotnet_fast.benchmarking.timing import Effort

    chosen_levels(config.levels, device)  # before minutes of measuring
    effort = Effort(3, 0.005) if config.quick else Effort(7, 0.1)
    facts = environment(str(device))
    results: dict[str, Any] = {
        "what": "rotnet_fast benchmark",
        "data": "synthetic images",
        "commit": facts["commit"],
        "environment": facts,
        "settings": asdict(config),
        "batch": config.images_per_step(device.type),
        "width": config.channels(),
        "rounds": effort.rounds,
        "window_seconds": effort.window_seconds,
    }

    output = None if config.output is None else resolve_path(config.output)

    def write() -> None:
        if output is not None:
            write_json(output, results)

    def finish(name: str, found: Any, lines: list[str]) -> None:
        results[name] = found
        print("\n".join([*lines, ""]), flush=True)
        write()  # after each part, so that a long run can be stopped without losing its results

    def keep(rows: list[dict[str, Any]]) -> None:
        results["steps"] = rows
        write()

    print(f"{facts['device']}, torch {facts['torch']}; synthetic images\n", flush=True)
    if output is not None:
        ensure_folder(output.parent)
    write()  # so that a wrong path is reported before minutes of measuring
    ceilings = measure_ceilings(device, effort, config.quick)
    finish("ceilings", ceilings, ceilings_lines(ceilings))
    for part in config.parts():
        if part == "op":
            rows = _op(config, device, effort, ceilings)
            finish(part, rows, op_lines(rows))
        elif part == "stages":
            rows = _stages(config, device, effort)
            finish(part, rows, stages_lines(rows))
            if output is not None:
                _draw(output, results)
        else:
            rows = _steps(config, device, effort, ceilings, keep)
            finish(part, rows, steps_lines(rows))
    if output is not None:
        print(f"written: {output}")
    return results


def _op(
    config: BenchmarkConfig, device: torch.device, effort: Effort, ceilings: dict[str, Any]
) -> list[dict[str, Any]]:
    from rotnet_fast.benchmarking.op import measure_op, op_cases

    if config.quick:
        cases = op_cases(64, ((8, 32), (2, 224)))
    elif device.type == "cuda":
        cases = op_cases(50_000, ((128, 32), (1024, 32), (16_384, 32), (64, 224)))
    else:
        cases = op_cases(10_000, ((128, 32), (1024, 32), (64, 224)))
    return measure_op(cases, device, effort, ceilings["copy_bytes_per_second"])


def _stages(config: BenchmarkConfig, device: torch.device, effort: Effort) -> list[dict[str, Any]]:
    from rotnet_fast.benchmarking.stages import measure_stages
    from rotnet_fast.engine.precision import resolve_precision
    from rotnet_fast.models.nin import NetworkInNetwork

    precision = resolve_precision(config.precision, device)
    network = NetworkInNetwork(blocks=STAGED_BLOCKS, width=config.channels())
    rows = measure_stages(network, config.images_per_step(device.type), 4, device, precision, effort)
    return [{**row, "precision": precision.name} for row in rows]


def _steps(
    config: BenchmarkConfig,
    device: torch.device,
    effort: Effort,
    ceilings: dict[str, Any],
    report: Callable[[list[dict[str, Any]]], None],
) -> list[dict[str, Any]]:
    from rotnet_fast.benchmarking.steps import measure_steps

    batch = config.images_per_step(device.type)
    images = 50_000 if device.type == "cuda" and not config.quick else 8 * batch
    rows: list[dict[str, Any]] = []
    for blocks in config.blocks:
        before = list(rows)
        chosen = PretrainConfig(blocks=blocks, width=config.channels(), batch_size=batch, lr=0.01)
        wanted = chosen_levels(config.levels, device)
        levels = [level for level in wanted if not (config.quick and level.is_compiled)]
        rows = before + measure_steps(
            levels,
            chosen,
            images,
            device,
            effort,
            ceilings["matrix_flops_per_second"],
            level_limit=config.level_limit,
            report=lambda found, before=before: report(before + found),  # type: ignore[misc]
        )
        rows += [
            {"level": level.name, "blocks": blocks, "skipped": "not compiled with --quick"}
            for level in wanted
            if level not in levels
        ]
    return rows


def chosen_levels(names: tuple[str, ...] | None, device: torch.device) -> list[Level]:
    """Return the levels of a type of device, or those with the given names in that order.

    Raises:
        ArgumentError: this type of device has no level with one of the names.
    """
    from rotnet_fast.benchmarking.levels import levels_of

    levels = {level.name: level for level in levels_of(device)}
    for name in names or ():
        if name not in levels:
            known = ", ".join(f"'{level}'" for level in levels)
            raise ArgumentError(f"levels holds '{name}'; choose from {known}")
    return list(levels.values()) if names is None else [levels[name] for name in names]


def _draw(output: Path, results: dict[str, Any]) -> None:
    from rotnet_fast.plots.roofline import roofline
    from rotnet_fast.plots.style import save

    figure = roofline(
        results["stages"],
        copy_bytes_per_second=results["ceilings"]["copy_bytes_per_second"],
        matrix_flops_per_second=results["ceilings"]["matrix_flops_per_second"],
        title=(
            f"Stages of a NIN-{STAGED_BLOCKS} step of {counted(results['batch'], 'image')}, "
            f"{results['stages'][0]['precision']}, {results['environment']['device']}"
        ),
    )
    for path in save(figure, output.with_suffix("")):
        print(f"written: {path}")


if __name__ == "__main__":
    sys.exit(main())

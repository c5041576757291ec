"""The documentation's tables and the README's chart say what the benchmarks' JSON says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from benchmarks.table import (
    CHARTED,
    OURS,
    chart_bars,
    describe,
    draw_chart,
    kernel_table,
    level_rows,
    level_table,
    main,
    render,
)
from rotnet_fast.benchmarking.levels import BASELINE, DEFAULT

ROOT = Path(__file__).resolve().parents[2]


def row(median: float, **facts: Any) -> dict[str, Any]:
    return {"stats": {"median": median}, "extra_info": facts}


def step(part: str, level: str, median: float, device: str = "cpu", steps: int = 1) -> dict[str, Any]:
    return row(
        median,
        what="training step",
        part=part,
        level=level,
        device=device,
        steps=steps,
        blocks=4,
        batch=128,
        width=1.0,
    )


def test_a_level_is_a_multiple_of_the_baseline_with_the_data_paths_share() -> None:
    rows = [
        step("whole step", BASELINE, 2.0),
        step("data", BASELINE, 0.002),
        step("whole step", DEFAULT, 0.5),
        step("data", DEFAULT, 0.001),
    ]
    assert level_table(level_rows(rows))[2:4] == [
        f"| cpu, NIN-4 | 128 | {BASELINE} | 64.0 | 1.00 | 0.10 % |",
        f"| cpu, NIN-4 | 128 | {DEFAULT} | 256.0 | 4.00 | 0.20 % |",
    ]


def test_on_a_gpu_the_data_paths_share_is_what_a_step_without_it_gains() -> None:
    rows = [
        step("whole step", DEFAULT, 0.02, "cuda", 10),
        step("data", DEFAULT, 0.00001, "cuda", 10),
        step("step without data", DEFAULT, 0.0195, "cuda", 10),
    ]
    assert level_table(level_rows(rows))[2] == f"| cuda, NIN-4 | 128 | {DEFAULT} | 64,000.0 | - | 2.50 % |"


def test_levels_that_were_skipped_or_measured_in_part_are_left_out() -> None:
    assert level_rows([step("whole step", DEFAULT, 1.0)]) == []
    assert level_table([{"level": DEFAULT, "blocks": 4, "skipped": "a reason"}]) == []


@pytest.mark.parametrize("mode", ["batch", "epoch"])
def test_a_kernels_share_is_of_the_copy_on_its_own_device(mode: str) -> None:
    facts = {"mode": mode, "batch": 1000, "side": 32, "rotations": 4, "dtype": "bf16", "calls": 10}
    rows = [
        row(1.0, what="copy ceiling", device="cpu", bytes_moved=1),
        row(1.0, what="copy ceiling", device="cuda", bytes_moved=4e12),
        row(0.001, what="kernel", device="cuda", bytes_per_call=2e8, **facts),
    ]
    epoch = ", a whole epoch" if mode == "epoch" else ""
    assert kernel_table(rows)[2] == f"| 1000 x 32x32{epoch} | 4 | bf16 | 100.0 | 10,000,000 | 50 % |"
    assert kernel_table(rows[:1] + rows[2:]) == []


@pytest.mark.parametrize("name", ["cpu", "cpu-loaders"])
def test_the_recorded_results_can_be_rendered(name: str) -> None:
    path = ROOT / "benchmarks" / "results" / f"{name}.json"
    text = render(json.loads(path.read_text()), path.name)
    assert text.splitlines()[-1].startswith("Measured on ")
    assert text.count("|---") > 3


TABLES = [
    ("cpu", "benchmarks", "docs/performance-tables"),
    ("cpu-steps", "steps", "docs/performance-tables"),
    ("cpu-loaders", "loaders", "docs/performance-tables"),
    ("h200/peers", "gpu-peers", "docs/performance-tables"),
    ("h200/results", "gpu", "docs/performance-tables"),
    ("h200/results", "gpu-accuracies", "docs/results"),
    ("h200/results", "gpu-accuracies", "README"),
]


@pytest.mark.parametrize(("name", "section", "document"), TABLES)
def test_the_tables_of_the_documentation_are_what_the_generator_writes(
    name: str, section: str, document: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (ROOT / f"{document}.md").read_text()
    (tmp_path / "page.md").write_text(page)
    monkeypatch.chdir(ROOT)
    flags = [f"benchmarks/results/{name}.json", "--readme", str(tmp_path / "page.md"), "--section", section]
    monkeypatch.setattr("sys.argv", ["table", *flags])
    main()
    assert (tmp_path / "page.md").read_text() == page


def ways(**rates: float) -> list[dict[str, Any]]:
    facts = dict(zip(("device", "workload", "batch", "side", "dtype"), CHARTED, strict=True))
    return [row(128 / rate, what="rotate_batch", way=way, **facts) for way, rate in rates.items()]


def test_the_chart_has_ours_and_the_three_fastest_others() -> None:
    bars = chart_bars(ways(a=1000, b=4000, rotnet_fast=9000, c=3000, d=2000))
    assert [(bar.label, bar.mean) for bar in bars] == [(OURS, 9), ("b", 4), ("c", 3), ("d", 2)]


@pytest.mark.parametrize("rates", [{"a": 1, "b": 1, "c": 1}, {"rotnet_fast": 1, "a": 1, "b": 1}])
def test_a_chart_of_too_few_ways_is_refused(rates: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="the chart needs ours and three others"):
        chart_bars(ways(**rates))


def test_the_readmes_chart_is_drawn_from_the_recorded_results(tmp_path: Path) -> None:
    results = json.loads((ROOT / "benchmarks" / "results" / "cpu.json").read_text())
    draw_chart(results, tmp_path / "chart.png")
    told = describe(chart_bars(results["benchmarks"]))
    readme = (ROOT / "README.md").read_text()
    for path in (tmp_path / "chart.png", ROOT / "docs" / "images" / "speed.png"):
        with Image.open(path) as image:
            assert image.text["Description"] == told  # type: ignore[attr-defined]
    ours, best = (float(part.partition(": ")[2]) for part in told.split("; ")[:2])
    assert f"{ours / best:.1f} times as fast as the best alternative" in readme
    assert f"rotnet_fast {ours:.2f} thousand, torch.compile {best:.2f}" in readme

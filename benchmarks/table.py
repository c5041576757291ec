"""Markdown tables from the JSON of a run, from which every table of speed in the documentation comes.

pytest benchmarks/ --benchmark-only --benchmark-json=FILE
python -m rotnet_fast.benchmark --output FILE        # or this
python -m benchmarks.table FILE                      # print
python -m benchmarks.table FILE --chart docs/images/speed.png          # draw the README's chart
python -m benchmarks.table FILE --readme docs/performance-tables.md    # replace the table there
python -m benchmarks.table FILE --readme docs/performance-tables.md --section loaders      # or that one
python -m benchmarks.table FILE --readme docs/results.md --section gpu-accuracies   # of benchmarks.gpu_run
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from rotnet_fast.benchmarking.levels import BASELINE
from rotnet_fast.errors import ArgumentError
from rotnet_fast.files import named
from rotnet_fast.paper import EPOCHS, FROZEN, ROTATION_ACCURACY, SUPERVISED
from rotnet_fast.plots.bars import Bar, bars
from rotnet_fast.plots.style import style
from rotnet_fast.study.pages.report import fill

OURS = "rotnet_fast"
CHARTED = ("cpu", "crop, flip, four rotations", 128, 32, "fp32")
"""Device, workload, batch, side and dtype of the README's chart: those of a step of preset paper."""


def rotate_batch_table(rows: list[dict[str, Any]]) -> list[str]:
    """One line per workload: ours, the fastest peer, their ratio, share of the ceiling."""
    ceilings = {
        row["extra_info"]["megabytes"]: row["extra_info"]["bytes_per_second"]
        for row in rows
        if row["extra_info"].get("what") == "ceiling"
    }
    cases: dict[tuple[str, str, int, int, str], dict[str, dict[str, Any]]] = {}
    for row in rows:
        info = row["extra_info"]
        if info.get("what") == "rotate_batch":
            key = (info["device"], info["workload"], info["batch"], info["side"], info["dtype"])
            cases.setdefault(key, {})[info["way"]] = row
    if not cases:
        return []
    lines = [
        "| device, workload | batch | dtype | images/s | fastest other way | images/s | ratio | GB/s written "
        "| of streaming stores |",
        "|---|---|---|---:|---|---:|---:|---:|---:|",
    ]
    for (device, workload, batch, side, dtype), ways in cases.items():
        seconds = {way: row["stats"]["median"] for way, row in ways.items()}
        others = {way: value for way, value in seconds.items() if way != OURS}
        if OURS not in seconds or not others:
            continue
        best = min(others, key=lambda way: others[way])
        written = ways[OURS]["extra_info"]["view_bytes"]
        rate = written / seconds[OURS]
        # The ceiling measured on the buffer nearest in size.
        nearest = min(ceilings, key=lambda size: abs(size * 2**20 - written), default=None)
        share = f"{100 * rate / ceilings[nearest]:.0f} %" if nearest and device == "cpu" else "-"
        lines.append(
            f"| {device}, {workload} | {batch} x {side}x{side} | {dtype} | {batch / seconds[OURS]:,.0f} "
            f"| {best} | {batch / others[best]:,.0f} | {others[best] / seconds[OURS]:.1f} | {rate / 1e9:.1f} "
            f"| {share} |"
        )
    return [*lines, ""]


def kernel_table(rows: list[dict[str, Any]]) -> list[str]:
    """The CUDA kernel alone: time per call and share of the measured copy bandwidth."""
    copies = [
        row
        for row in rows
        if row["extra_info"].get("what") == "copy ceiling" and row["extra_info"]["device"] == "cuda"
    ]
    kernels = [row for row in rows if row["extra_info"].get("what") == "kernel"]
    if not copies or not kernels:
        return []
    ceiling = copies[0]["extra_info"]["bytes_moved"] / copies[0]["stats"]["median"]
    lines = [
        "| CUDA kernel in a graph | rotations | dtype | us per call | images/s | of copy bandwidth |",
        "|---|---:|---|---:|---:|---:|",
    ]
    for row in kernels:
        info = row["extra_info"]
        seconds = row["stats"]["median"] / info["calls"]
        lines.append(op_row(info, seconds, info["bytes_per_call"] / seconds / ceiling))
    return [*lines, ""]


def op_row(case: dict[str, Any], seconds: float, share: float) -> str:
    """One call of the op: what it makes, its seconds and images per second, its share of a copy's rate."""
    what = f"{case['batch']} x {case['side']}x{case['side']}"
    what += ", a whole epoch" if case["mode"] == "epoch" else ""
    return (
        f"| {what} | {case['rotations']} | {case['dtype']} | {1e6 * seconds:.1f} "
        f"| {case['batch'] / seconds:,.0f} | {100 * share:.0f} % |"
    )


def op_table(rows: list[dict[str, Any]]) -> list[str]:
    """The op by ``python -m rotnet_fast.benchmark``: time per call and share of the copy bandwidth."""
    lines = [
        "| one call of the op | rotations | dtype | us | images/s | of copy bandwidth |",
        "|---|---:|---|---:|---:|---:|",
    ]
    return [*lines, *(op_row(row, row["seconds"], row["share_of_copy"]) for row in rows), ""]


def graph_table(rows: list[dict[str, Any]]) -> list[str]:
    """The op beside its peers on a GPU, captured in graphs: what the kernels take, without launching them."""
    cases: dict[tuple[str, int, int, str], dict[str, float]] = {}
    for row in rows:
        info = row["extra_info"]
        if info.get("what") == "rotate_batch in a graph":
            key = (info["workload"], info["batch"], info["side"], info["dtype"])
            cases.setdefault(key, {})[info["way"]] = row["stats"]["median"] / info["calls"]
    lines = ["| in a graph | batch | dtype | way | us | of ours |", "|---|---|---|---|---:|---:|"]
    for (workload, batch, side, dtype), ways in cases.items():
        for way, seconds in sorted(ways.items(), key=lambda pair: pair[1]):
            lines.append(
                f"| {workload} | {batch} x {side}x{side} | {dtype} | {way} | {1e6 * seconds:.1f} "
                f"| {seconds / ways[OURS]:.1f} |"
            )
    return [*lines, ""] if cases else []


def level_rows(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of :func:`level_table` from those of pytest: whole steps, with the parts measured beside them."""
    cases: dict[tuple[str, int, int, float, str], dict[str, float]] = {}
    for row in rows:
        info = row["extra_info"]
        if info.get("what") == "training step":
            key = (info["device"], info["blocks"], info["batch"], info["width"], info["level"])
            cases.setdefault(key, {})[info["part"]] = row["stats"]["median"] / info["steps"]
    found = []
    for (device, blocks, batch, width, level), seconds in cases.items():
        if not {"whole step", "data"} <= seconds.keys():
            continue
        whole, fixed = seconds["whole step"], seconds.get("step without data")
        baseline = cases.get((device, blocks, batch, width, BASELINE), {}).get("whole step")
        found.append(
            {
                "device": device,
                "blocks": blocks,
                "batch": batch,
                "width": width,
                "level": level,
                "images_per_second": batch / whole,
                "times_baseline": None if baseline is None else baseline / whole,
                "data_share": seconds["data"] / whole,
                "data_share_of_difference": None if fixed is None else 1 - fixed / whole,
            }
        )
    return found


def level_table(rows: list[dict[str, Any]]) -> list[str]:
    """Whole training steps at every level, against plain torch in the same run.

    Args:
        rows: of :func:`level_rows`, or ``steps`` of ``python -m rotnet_fast.benchmark`` with the device.
    """
    rows = [row for row in rows if not row.get("skipped")]
    if not rows:
        return []
    lines = [
        f"| device, network | images per step | level | images/s | of {BASELINE} | data path's share |",
        "|---|---:|---|---:|---:|---:|",
    ]
    for row in rows:
        width = "" if row["width"] == 1 else f" x{row['width']:g}"
        times = "-" if row["times_baseline"] is None else f"{row['times_baseline']:.2f}"
        # What a step gains where the views are there already; on a CPU, where nothing overlaps, the data
        # path's own time.
        difference = row["data_share_of_difference"]
        share = row["data_share"] if difference is None else difference
        lines.append(
            f"| {row['device']}, NIN-{row['blocks']}{width} | {row['batch']} | {row['level']} "
            f"| {row['images_per_second']:,.1f} | {times} | {100 * share:.2f} % |"
        )
    return [*lines, ""]


def loader_table(rows: list[dict[str, Any]]) -> list[str]:
    """Images per second of every loader, as a multiple of the DataLoader's; processes; first batches."""
    cases: dict[tuple[str, str, str], dict[str, float]] = {}
    scaling: dict[str, dict[int, float]] = {}
    first: list[tuple[str, int, float]] = []
    for row in rows:
        info = row["extra_info"]
        if info.get("what") == "loader rate":
            key = (info["device"], f"{info['workload']} ({info['data']})", info["stage"])
            cases.setdefault(key, {})[info["way"]] = info["images_per_second"]
        elif info.get("what") == "loader processes":
            scaling.setdefault(info["workload"], {})[info["world"]] = info["images_per_second"]
        elif info.get("what") == "first batch":
            first.append((info["way"], info["images"], row["stats"]["median"]))
    if not cases:
        return []
    lines = ["| JPEG files to batches | loader | images/s | of DataLoader |", "|---|---|---:|---:|"]
    for (device, files, stage), rates in cases.items():
        plain = next((rate for way, rate in rates.items() if way.startswith("DataLoader")), None)
        for way, rate in rates.items():
            times = f"{rate / plain:.1f}" if plain else "-"
            lines.append(f"| {device}, {files}, {stage} | {way} | {rate:,.0f} | {times} |")
    sentences = []
    for workload, rates in scaling.items():
        parts = [f"{rate:,.0f} images/s in {world}" for world, rate in sorted(rates.items())]
        sentences.append(f"{workload}: {', '.join(parts)}")
    if sentences:
        lines += ["", f"The DALI loader in several processes on the same cores: {'; '.join(sentences)}."]
    if first:
        parts = [f"{way} {seconds:.2f} s" for way, _, seconds in first]
        lines += ["", f"Time to the first batch of {first[0][1]:,} files of 32x32: {', '.join(parts)}."]
    return [*lines, ""]


def render(results: dict[str, Any], source: str) -> str:
    """All tables above a line that says where they come from."""
    if "parts" in results:
        return render_gpu_run(results, source)
    if "machine_info" not in results:
        return render_command(results, source)
    machine = results["machine_info"]
    where = (
        f"Measured on {machine['processor']}, {machine['threads']} threads, GPU: {machine['gpu']}; "
        f"torch {machine['torch']}, Python {machine['python']}, commit {machine['commit']}, CPU kernel "
        f"{machine['cpu_kernel']}; medians; from `{source}`."
    )
    rows = results["benchmarks"]
    tables = (
        graph_table(rows),
        rotate_batch_table(rows),
        kernel_table(rows),
        level_table(level_rows(rows)),
        loader_table(rows),
    )
    return "\n".join([*(line for table in tables for line in table), where])


def render_command(results: dict[str, Any], source: str) -> str:
    """The table of levels from the JSON of ``python -m rotnet_fast.benchmark``."""
    facts, ceilings = results["environment"], results["ceilings"]
    kind = "cpu" if facts["cuda"] is None else "cuda"
    rates = ", ".join(
        f"{rate / 1e12:.2f} TFLOP/s in {name}" for name, rate in ceilings["matrix_flops_per_second"].items()
    )
    where = (
        f"Measured on {facts['device']}, {facts['threads']} CPU threads; torch {facts['torch']}, Python "
        f"{facts['python']}, commit {facts['commit']}; ceilings: copy "
        f"{ceilings['copy_bytes_per_second'] / 1e9:.0f} GB/s (read and written), matrix products {rates}; "
        f"{results['data']}; medians; from `{source}`."
    )
    return "\n".join([*level_table([{"device": kind, **row} for row in results["steps"]]), where])


def render_gpu_run(results: dict[str, Any], source: str) -> str:
    """The tables of the op and of the levels from the JSON of ``python -m benchmarks.gpu_run``."""
    levels = results["levels"] | {"environment": results["environment"] | {"commit": results["commit"]}}
    return "\n".join([*op_table(results["op"]["op"]), render_command(levels, source)])


ACCURACIES: tuple[tuple[str, str, float], ...] = (
    ("supervised", "Supervised NIN", SUPERVISED),
    ("conv", "RotNet, conv head on conv2", FROZEN["conv"]),
    ("nonlinear", "RotNet, non-linear head on conv2", FROZEN["nonlinear"]),
)
"""Evaluation of ``benchmarks.gpu_run``, what the table calls it, the published accuracy."""


def render_accuracies(results: dict[str, Any], source: str) -> str:
    """The accuracies that ``python -m benchmarks.gpu_run`` found, and distances to the supervised one."""
    accuracies = {name: results[name]["cells"][0]["accuracy"] for name, _, _ in ACCURACIES}
    pretraining = results["pretrain"]
    lines = [
        "| result | here, % | distance to supervised | published, on CIFAR-10 | its distance |",
        "|---|---:|---:|---:|---:|",
        f"| Rotation accuracy | {pretraining['rotation_accuracy']:.2f} | - "
        f"| about {ROTATION_ACCURACY[EPOCHS]:.1f} | - |",
    ]
    for name, label, published in ACCURACIES:
        distances = "- | {0:.2f} | -" if name == "supervised" else "{1:.2f} | {0:.2f} | {2:.2f}"
        ours = accuracies[name] - accuracies["supervised"]
        shown = distances.format(published, ours, published - SUPERVISED)
        lines.append(f"| {label} | {accuracies[name]:.2f} | {shown} |")
    facts = results["environment"]
    where = (
        f"{pretraining['dataset']}: {pretraining['train_images']:,} training and "
        f"{pretraining['test_images']:,} test images. Preset `paper`, {EPOCHS} epochs each, full width, "
        f"{pretraining['precision']}, seed {pretraining['settings']['seed']}: one training of each. Measured "
        f"on {facts['device']}; torch {facts['torch']}, Python {facts['python']}, commit "
        f"{results['commit']}; from `{source}`."
    )
    return "\n".join([*lines, "", where])


def chart_bars(rows: list[dict[str, Any]]) -> list[Bar]:
    """Thousands of images per second of the op and of its three fastest alternatives, fastest first.

    Raises:
        ValueError: the op or the alternatives were not measured on the workload of the chart.
    """
    rates = {}
    for row in rows:
        info = row["extra_info"]
        names = ("device", "workload", "batch", "side", "dtype")
        if info.get("what") == "rotate_batch" and tuple(info[name] for name in names) == CHARTED:
            rates[info["way"]] = info["batch"] / row["stats"]["median"] / 1000
    others = sorted(rates.keys() - {OURS}, key=lambda way: -rates[way])[:3]
    if OURS not in rates or len(others) < 3:
        raise ValueError(
            f"the file has {len(rates)} ways to do {CHARTED}; the chart needs ours and three others"
        )
    return [Bar(way, rates[way], group="other" if way in others else OURS) for way in (OURS, *others)]


def describe(bars: list[Bar]) -> str:
    """The numbers of the chart as text, which its PNG file carries along."""
    return "; ".join(f"{bar.label}: {bar.mean:.2f}" for bar in bars)


def draw_chart(results: dict[str, Any], path: Path) -> None:
    """Write the chart as PNG."""
    rows = chart_bars(results["benchmarks"])
    machine = results["machine_info"]
    figure = bars(
        rows,
        x_label="thousand images per second, each as four views (higher is better)",
        title=f"Crop, flip, rotate and normalise 128 images of 32x32, {machine['threads']} cores of an "
        f"{machine['processor']}",
    )
    with style():
        figure.savefig(path, dpi=150, metadata={"Description": describe(rows)})


def main() -> None:
    """Command-line entry point."""
    parser = argparse.ArgumentParser(description="Markdown tables from a benchmark run's JSON.")
    parser.add_argument("file", type=named)
    parser.add_argument("--readme", type=named, help="Markdown file whose table is replaced")
    parser.add_argument("--chart", type=named, help="PNG file of the README's chart to write instead")
    parser.add_argument("--section", default="benchmarks", help="name in the lines around the table")
    arguments = parser.parse_args()
    results = json.loads(arguments.file.read_text())
    if arguments.chart is not None:
        draw_chart(results, arguments.chart)
        return
    make = render_accuracies if arguments.section == "gpu-accuracies" else render
    text = make(results, arguments.file.as_posix())
    if arguments.readme is None:
        print(text)
        return
    try:
        fill(arguments.readme, arguments.section, lambda: text)
    except ArgumentError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()

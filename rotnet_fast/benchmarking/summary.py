"""Printed tables of the measurements."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rotnet_fast.plain import counted

Rows = Sequence[Mapping[str, Any]]


def ceilings_lines(ceilings: Mapping[str, Any]) -> list[str]:
    """Format copy bandwidth, matrix rates and streaming stores."""
    lines = [f"copy, read and written: {ceilings['copy_bytes_per_second'] / 1e9:,.1f} GB/s"]
    for name, rate in ceilings["matrix_flops_per_second"].items():
        lines.append(f"matrix products, {name}: {rate / 1e12:,.2f} TFLOP/s")
    stores = ceilings["streaming_store_bytes_per_second"]
    if stores:
        rates = ", ".join(f"{rate / 1e9:.1f} into {size} MiB" for size, rate in stores.items())
        lines.append(f"streaming stores, GB/s: {rates}")
    return lines


def op_lines(rows: Rows) -> list[str]:
    """Format the table of the fused op."""
    table = [("op", "images/s", "GB/s", "of copy")]
    for row in rows:
        what = f"{row['batch']} x {row['side']}x{row['side']}, {row['rotations']} rotations, {row['dtype']}"
        table.append(
            (
                f"{what}, whole epoch" if row["mode"] == "epoch" else what,
                f"{row['images_per_second']:,.0f}",
                f"{row['bytes_per_second'] / 1e9:,.1f}",
                f"{100 * row['share_of_copy']:.0f} %",
            )
        )
    return aligned(table)


def stages_lines(rows: Rows) -> list[str]:
    """Format the table of the slowest stages, and the total of all stages."""
    total = sum(row["count"] * row["seconds"] for row in rows)
    table = [("stage of the NIN-4 step", "us", "of all stages", "GFLOP/s", "GB/s")]
    for row in sorted(rows, key=lambda row: -row["count"] * row["seconds"])[:10]:
        seconds = row["count"] * row["seconds"]
        times = f" ({counted(row['count'], 'time')})" if row["count"] > 1 else ""
        table.append(
            (
                f"{row['stage']} {row['direction']}{times}",
                f"{1e6 * seconds:,.0f}",
                f"{100 * seconds / total:.1f} %",
                f"{row['flops_per_second'] / 1e9:,.0f}",
                f"{row['bytes_per_second'] / 1e9:,.1f}",
            )
        )
    return [*aligned(table), f"all stages, each timed alone: {1e3 * total:,.2f} ms"]


def steps_lines(rows: Rows) -> list[str]:
    """Format the table of the levels of the whole step."""
    head = ("images/s", "of baseline", "by CPU time", "100 epochs", "data path", "of matrix rate", "J/step")
    table: list[tuple[str, ...]] = [("whole step", *head)]
    for row in rows:
        name = f"NIN-{row['blocks']}, {row['level']}"
        if row.get("skipped"):
            table.append((name, f"skipped: {row['skipped']}", *[""] * (len(head) - 1)))
            continue
        times, cpu_times = row["times_baseline"], row["times_baseline_by_cpu_seconds"]
        joules, data = row["joules_per_step"], row["data_share"]
        table.append(
            (
                f"{name}, {counted(row['batch'], 'image')}",
                f"{row['images_per_second']:,.1f}",
                "-" if times is None else f"{times:.2f}",
                "-" if cpu_times is None else f"{cpu_times:.2f}",
                f"{row['seconds_per_100_epochs']:,.0f} s",
                "-" if data is None else f"{100 * data:.2f} %",
                f"{100 * row['share_of_matrix_rate']:.0f} %",
                "-" if joules is None else f"{joules:.1f}",
            )
        )
    return aligned(table)


def aligned(table: Sequence[tuple[str, ...]]) -> list[str]:
    """Format rows as aligned lines, with the first column to the left and the others to the right."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if number else cell.ljust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in table
    ]

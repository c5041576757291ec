"""Sizes of the tiles of the Triton kernels: a fixed table, so that capturing a graph searches for nothing.

The number of groups depends on the shape alone, so that the same card always adds up in the same order.
"""

from __future__ import annotations

from dataclasses import dataclass

MAX_CHANNELS = 256  # a program keeps the weights of a block of outputs in shared memory

# Rows are divided into at most so many groups: a few per multiprocessor of a large card, and few enough that
# their partial sums are nothing beside the rows.
_COLUMN_GROUPS = 512
_MATMUL_GROUPS = 264
_WEIGHT_GROUPS = 88

# The most columns of a 16-bit product per program, by the major number of the compute capability. Where all
# fit, the rows are read once; what limits them is shared memory (99 KiB on 8.6 and 12.0) and, on 10.0,
# registers.
_WIDEST = {9: 256, 10: 128}
_WIDE_ENOUGH = 64  # of any other


@dataclass(frozen=True)
class Tiles:
    """How a kernel divides its work.

    Attributes:
        rows: per step of a program's loop.
        columns: of the output, per program. Of a weight gradient: the inputs.
        chunk: channels per multiplication. Of a weight gradient: the outputs.
        rows_per_group: rows that one program works through.
        groups: programs that the rows are divided among.
        warps: per program.
        stages: of the loop's pipeline; with two, a step's loads run beside the step before.
    """

    rows: int
    columns: int
    chunk: int
    rows_per_group: int
    groups: int
    warps: int
    stages: int


def column_tiles(rows: int, channels: int) -> Tiles:
    """Of the kernels that work by element or by column."""
    block = 128
    return Tiles(block, _divisor(channels, 64), 0, *_groups(rows, block, _COLUMN_GROUPS), warps=4, stages=2)


def matmul_tiles(rows: int, contracted: int, columns: int, item_size: int, capability: int) -> Tiles:
    """Of a product [rows,contracted] x [contracted,columns].

    Args:
        item_size: bytes of a number; fp32 is multiplied without tensor cores, in smaller tiles.
        capability: major number of the device's compute capability; 0 in the interpreter.
    """
    block, width, warps = _block(columns, item_size, capability)
    chunk = max(16, _divisor(contracted, 32 if item_size == 2 else 16))
    return Tiles(block, width, chunk, *_groups(rows, block, _MATMUL_GROUPS), warps=warps, stages=2)


def weight_tiles(rows: int, outputs: int, inputs: int, item_size: int, capability: int) -> Tiles:
    """Of a gradient [outputs,inputs] that sums over rows; the arguments are those of `matmul_tiles`."""
    block, width, warps = _block(inputs, item_size, capability)
    chunk = min(block, _power_of_two(outputs))
    return Tiles(block, width, chunk, *_groups(rows, block, _WEIGHT_GROUPS), warps=warps, stages=2)


def _block(columns: int, item_size: int, capability: int) -> tuple[int, int, int]:
    """Rows, columns and warps of a product's tile."""
    if item_size == 4:
        return 32, min(32, _power_of_two(columns)), 4
    width = min(_WIDEST.get(capability, _WIDE_ENOUGH), _power_of_two(columns))
    return 64, width, 8 if width > 64 else 4


def _groups(rows: int, block: int, most: int) -> tuple[int, int]:
    """Rows per group, a multiple of the block, and the number of groups, none of them empty."""
    blocks = -(-rows // block)
    rows_per_group = block * -(-blocks // most)
    return rows_per_group, -(-rows // rows_per_group)


def _divisor(number: int, most: int) -> int:
    """The largest power of two up to `most` that divides a number."""
    return min(most, number & -number)


def _power_of_two(number: int) -> int:
    """The next power of two, at least 16 (the least that a product of tiles takes)."""
    return max(16, 1 << (number - 1).bit_length())

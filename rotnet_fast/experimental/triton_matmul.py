"""Triton kernels of 1x1 convolutions between BatchNorms, on rows [P,C]; see `triton_batchnorm` for the terms.

The normalised activations exist only inside of the kernels: a prologue makes each tile of them from the raw
output of the convolution below, which is what the forward pass keeps. A tile is rounded to the storage type
before it is multiplied, and an output before its statistics are taken, just as separate kernels would.

Each program loads its part of the weights once, before the loop over its rows, and so keeps it in shared
memory.
"""

import triton
import triton.language as tl

from rotnet_fast.experimental.triton_batchnorm import (
    activation,
    add_tile,
    input_gradient,
    masked_gradient,
    normalised,
    store_partials,
)


@triton.jit
def convolve(
    x,
    state,
    weight,
    y,
    partials,
    rows,
    rows_per_group,
    INPUTS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_OUTPUTS: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """y = relu(batchnorm(x)) weight^T, and y's statistics per group.

    x [P,I], weight [O,I], y [P,O]. Grid: groups, blocks of outputs.
    """
    group = tl.program_id(0)
    outputs = tl.program_id(1) * BLOCK_OUTPUTS + tl.arange(0, BLOCK_OUTPUTS)
    inside = outputs < OUTPUTS
    weights = ()
    for chunk in tl.static_range(0, INPUTS, CHUNK):
        inputs = chunk + tl.arange(0, CHUNK)
        known = inputs < INPUTS
        place = weight + outputs[None, :] * INPUTS + inputs[:, None]
        weights += (tl.load(place, mask=known[:, None] & inside[None, :], other=0.0),)
    count = 0.0
    mean = tl.zeros([BLOCK_OUTPUTS], tl.float32)
    squares = tl.zeros([BLOCK_OUTPUTS], tl.float32)
    first = group * rows_per_group
    last = tl.minimum(first + rows_per_group, rows)
    for start in tl.range(first, last, BLOCK_ROWS):
        row = start + tl.arange(0, BLOCK_ROWS)
        sums = tl.zeros([BLOCK_ROWS, BLOCK_OUTPUTS], tl.float32)
        for chunk in tl.static_range(0, INPUTS, CHUNK):
            inputs = chunk + tl.arange(0, CHUNK)
            known = inputs < INPUTS
            tile_place = row[:, None].to(tl.int64) * INPUTS + inputs[None, :]
            tile = tl.load(x + tile_place, mask=(row < last)[:, None] & known[None, :], other=0.0)
            made = activation(tile, state, inputs, known, INPUTS).to(tile.dtype)
            sums = tl.dot(made, weights[chunk // CHUNK], sums, input_precision="ieee")
        made = sums.to(y.dtype.element_ty)
        valid = (row < last)[:, None] & inside[None, :]
        tl.store(y + row[:, None].to(tl.int64) * OUTPUTS + outputs[None, :], made, mask=valid)
        tile_count = tl.minimum(last - start, BLOCK_ROWS).to(tl.float32)
        count, mean, squares = add_tile(count, mean, squares, made.to(tl.float32), valid, tile_count)
    store_partials(partials, group, tl.num_programs(0), outputs, inside, mean, squares, OUTPUTS)


@triton.jit
def convolve_backward(
    g,
    y,
    state,
    slopes,
    weight,
    x,
    state_below,
    g_below,
    partials,
    rows,
    rows_per_group,
    INPUTS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    MASK: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_INPUTS: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Gradient before the ReLU below, and its sums per group.

    g, y [P,O] of the layer above, weight [O,I], x and g_below [P,I]. Grid: groups, blocks of inputs.
    """
    group = tl.program_id(0)
    inputs = tl.program_id(1) * BLOCK_INPUTS + tl.arange(0, BLOCK_INPUTS)
    inside = inputs < INPUTS
    weights = ()
    for chunk in tl.static_range(0, OUTPUTS, CHUNK):
        outputs = chunk + tl.arange(0, CHUNK)
        known = outputs < OUTPUTS
        place = weight + outputs[:, None] * INPUTS + inputs[None, :]
        weights += (tl.load(place, mask=known[:, None] & inside[None, :], other=0.0),)
    total = tl.zeros([BLOCK_INPUTS], tl.float32)
    along = tl.zeros([BLOCK_INPUTS], tl.float32)
    first = group * rows_per_group
    last = tl.minimum(first + rows_per_group, rows)
    for start in tl.range(first, last, BLOCK_ROWS):
        row = start + tl.arange(0, BLOCK_ROWS)
        sums = tl.zeros([BLOCK_ROWS, BLOCK_INPUTS], tl.float32)
        for chunk in tl.static_range(0, OUTPUTS, CHUNK):
            outputs = chunk + tl.arange(0, CHUNK)
            known = outputs < OUTPUTS
            above_place = row[:, None].to(tl.int64) * OUTPUTS + outputs[None, :]
            above_valid = (row < last)[:, None] & known[None, :]
            above = tl.load(g + above_place, mask=above_valid, other=0.0)
            tile = tl.load(y + above_place, mask=above_valid, other=0.0)
            dy = input_gradient(above, tile, state, slopes, outputs, known, OUTPUTS, MASK).to(tile.dtype)
            sums = tl.dot(dy, weights[chunk // CHUNK], sums, input_precision="ieee")
        below_place = row[:, None].to(tl.int64) * INPUTS + inputs[None, :]
        below_valid = (row < last)[:, None] & inside[None, :]
        below = tl.load(x + below_place, mask=below_valid, other=0.0)
        made = masked_gradient(sums, below, state_below, inputs, inside, INPUTS).to(below.dtype)
        tl.store(g_below + below_place, made, mask=below_valid)
        rounded = tl.where(below_valid, made.to(tl.float32), 0.0)
        total += tl.sum(rounded, axis=0)
        along += tl.sum(rounded * normalised(below, state_below, inputs, inside, INPUTS), axis=0)
    store_partials(partials, group, tl.num_programs(0), inputs, inside, total, along, INPUTS)


@triton.jit
def weight_gradient(
    g,
    y,
    state,
    slopes,
    x,
    state_below,
    partials,
    rows,
    rows_per_group,
    INPUTS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    MASK: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_OUTPUTS: tl.constexpr,
    BLOCK_INPUTS: tl.constexpr,
):
    """Each group's share of the gradient of the weight: fp32 [groups,O,I].

    g, y [P,O] of the layer above, x [P,I]. Grid: groups, blocks of outputs, blocks of inputs.
    """
    group = tl.program_id(0)
    outputs = tl.program_id(1) * BLOCK_OUTPUTS + tl.arange(0, BLOCK_OUTPUTS)
    inputs = tl.program_id(2) * BLOCK_INPUTS + tl.arange(0, BLOCK_INPUTS)
    known, inside = outputs < OUTPUTS, inputs < INPUTS
    sums = tl.zeros([BLOCK_OUTPUTS, BLOCK_INPUTS], tl.float32)
    first = group * rows_per_group
    last = tl.minimum(first + rows_per_group, rows)
    for start in tl.range(first, last, BLOCK_ROWS):
        row = start + tl.arange(0, BLOCK_ROWS)
        above_place = row[:, None].to(tl.int64) * OUTPUTS + outputs[None, :]
        above_valid = (row < last)[:, None] & known[None, :]
        above = tl.load(g + above_place, mask=above_valid, other=0.0)
        tile = tl.load(y + above_place, mask=above_valid, other=0.0)
        dy = input_gradient(above, tile, state, slopes, outputs, known, OUTPUTS, MASK)
        # Of a row that is not there it would be a constant.
        dy = tl.where(above_valid, dy, 0.0).to(tile.dtype)
        below_place = row[:, None].to(tl.int64) * INPUTS + inputs[None, :]
        below = tl.load(x + below_place, mask=(row < last)[:, None] & inside[None, :], other=0.0)
        made = activation(below, state_below, inputs, inside, INPUTS).to(below.dtype)
        sums = tl.dot(tl.trans(dy), made, sums, input_precision="ieee")
    place = (group * OUTPUTS + outputs[:, None]) * INPUTS + inputs[None, :]
    tl.store(partials + place, sums, mask=known[:, None] & inside[None, :])


@triton.jit
def add_groups(
    partials, total, groups, SIZE: tl.constexpr, BLOCK_GROUPS: tl.constexpr, BLOCK_SIZE: tl.constexpr
):
    """total [SIZE] = the sum of partials [groups,SIZE]. Grid: blocks of elements."""
    element = tl.program_id(0) * BLOCK_SIZE + tl.arange(0, BLOCK_SIZE)
    inside = element < SIZE
    sums = tl.zeros([BLOCK_SIZE], tl.float32)
    for start in range(0, groups, BLOCK_GROUPS):
        group = start + tl.arange(0, BLOCK_GROUPS)
        valid = (group < groups)[:, None] & inside[None, :]
        part = tl.load(partials + group[:, None] * SIZE + element[None, :], mask=valid, other=0.0)
        sums += tl.sum(part, axis=0)
    tl.store(total + element, sums, mask=inside)

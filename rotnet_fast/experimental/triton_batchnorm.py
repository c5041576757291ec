"""Triton kernels of BatchNorm with ReLU on rows [P,C]: statistics, normalisation, gradients.

A pixel is a row; P = B*H*W. A *group* is a run of rows that one program sums up in fp32. Groups are put
together in a fixed order and without atomics, so that the same input always gives the same bits.

What a layer keeps, each fp32 [C], one after the other:

``state``       mean, 1 / std, scale = gamma / std, shift = beta - mean * scale
``slopes``      with G the gradient behind the ReLU's mask: scale * mean(G), and
                scale * mean(G * normalised) / std
``partials``    two sums per group, [2,groups,C]: mean and centred squares, or G and G * normalised
"""

import triton
import triton.language as tl


@triton.jit
def activation(y, state, columns, inside, CHANNELS: tl.constexpr):
    """relu(batchnorm(y)) in fp32, for y [rows,columns]. NaN stays NaN, as in torch."""
    scale = tl.load(state + 2 * CHANNELS + columns, mask=inside, other=0.0)
    shift = tl.load(state + 3 * CHANNELS + columns, mask=inside, other=0.0)
    z = y.to(tl.float32) * scale[None, :] + shift[None, :]
    return tl.where(z < 0, 0.0, z)


@triton.jit
def masked_gradient(g, y, state, columns, inside, CHANNELS: tl.constexpr):
    """The gradient before the ReLU, fp32, from that behind it."""
    scale = tl.load(state + 2 * CHANNELS + columns, mask=inside, other=0.0)
    shift = tl.load(state + 3 * CHANNELS + columns, mask=inside, other=0.0)
    z = y.to(tl.float32) * scale[None, :] + shift[None, :]
    return tl.where(z <= 0, 0.0, g.to(tl.float32))


@triton.jit
def normalised(y, state, columns, inside, CHANNELS: tl.constexpr):
    """(y - mean) / std in fp32."""
    mean = tl.load(state + columns, mask=inside, other=0.0)
    inverse_std = tl.load(state + CHANNELS + columns, mask=inside, other=0.0)
    return (y.to(tl.float32) - mean[None, :]) * inverse_std[None, :]


@triton.jit
def input_gradient(g, y, state, slopes, columns, inside, CHANNELS: tl.constexpr, MASK: tl.constexpr):
    """The gradient of y, fp32, from that behind the ReLU (MASK) or before it."""
    if MASK:
        g = masked_gradient(g, y, state, columns, inside, CHANNELS)
    mean = tl.load(state + columns, mask=inside, other=0.0)
    scale = tl.load(state + 2 * CHANNELS + columns, mask=inside, other=0.0)
    constant = tl.load(slopes + columns, mask=inside, other=0.0)
    along_y = tl.load(slopes + CHANNELS + columns, mask=inside, other=0.0)
    centred = y.to(tl.float32) - mean[None, :]
    return scale[None, :] * g.to(tl.float32) - constant[None, :] - centred * along_y[None, :]


@triton.jit
def add_tile(count, mean, squares, y, valid, tile_count):
    """Statistics of `count` rows and of the valid rows of a tile together.

    Chan's formula: a sum of squares would lose all digits where the mean is large beside the spread.
    """
    tile_mean = tl.sum(tl.where(valid, y, 0.0), axis=0) / tile_count
    centred = tl.where(valid, y - tile_mean[None, :], 0.0)
    both = count + tile_count
    delta = tile_mean - mean
    squares += tl.sum(centred * centred, axis=0) + delta * delta * (count * tile_count / both)
    return both, mean + delta * (tile_count / both), squares


@triton.jit
def store_partials(partials, group, groups, columns, inside, one, other, CHANNELS: tl.constexpr):
    """Write the two sums of a group."""
    row = partials + group * CHANNELS + columns
    tl.store(row, one, mask=inside)
    tl.store(row + groups * CHANNELS, other, mask=inside)


@triton.jit
def column_statistics(
    y,
    partials,
    rows,
    rows_per_group,
    CHANNELS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
):
    """Mean and centred squares of each group of y [P,C]. Grid: groups, blocks of channels."""
    group = tl.program_id(0)
    columns = tl.program_id(1) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    inside = columns < CHANNELS
    count = 0.0
    mean = tl.zeros([BLOCK_CHANNELS], tl.float32)
    squares = tl.zeros([BLOCK_CHANNELS], tl.float32)
    first = group * rows_per_group
    last = tl.minimum(first + rows_per_group, rows)
    for start in tl.range(first, last, BLOCK_ROWS):
        row = start + tl.arange(0, BLOCK_ROWS)
        valid = (row < last)[:, None] & inside[None, :]
        tile = tl.load(y + row[:, None].to(tl.int64) * CHANNELS + columns[None, :], mask=valid, other=0.0)
        tile_count = tl.minimum(last - start, BLOCK_ROWS).to(tl.float32)
        count, mean, squares = add_tile(count, mean, squares, tile.to(tl.float32), valid, tile_count)
    store_partials(partials, group, tl.num_programs(0), columns, inside, mean, squares, CHANNELS)


@triton.jit
def finish_statistics(
    partials,
    gamma,
    beta,
    running_mean,
    running_var,
    batches_tracked,
    state,
    groups,
    rows,
    rows_per_group,
    eps,
    momentum,
    CHANNELS: tl.constexpr,
    BLOCK_GROUPS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
):
    """State of a layer from its partials; running statistics move along. Grid: blocks of channels."""
    columns = tl.program_id(0) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    inside = columns < CHANNELS
    mean = tl.zeros([BLOCK_CHANNELS], tl.float32)
    for start in range(0, groups, BLOCK_GROUPS):
        group = start + tl.arange(0, BLOCK_GROUPS)
        valid = (group < groups)[:, None] & inside[None, :]
        share = tl.minimum(rows - group * rows_per_group, rows_per_group).to(tl.float32) / rows
        means = tl.load(partials + group[:, None] * CHANNELS + columns[None, :], mask=valid, other=0.0)
        mean += tl.sum(means * share[:, None], axis=0)
    variance = tl.zeros([BLOCK_CHANNELS], tl.float32)
    for start in range(0, groups, BLOCK_GROUPS):
        group = start + tl.arange(0, BLOCK_GROUPS)
        valid = (group < groups)[:, None] & inside[None, :]
        share = tl.minimum(rows - group * rows_per_group, rows_per_group).to(tl.float32) / rows
        part = partials + group[:, None] * CHANNELS + columns[None, :]
        delta = tl.load(part, mask=valid, other=0.0) - mean[None, :]
        squares = tl.load(part + groups * CHANNELS, mask=valid, other=0.0) / rows
        variance += tl.sum(tl.where(valid, squares + delta * delta * share[:, None], 0.0), axis=0)

    inverse_std = 1.0 / tl.sqrt(variance + eps)
    scale = tl.load(gamma + columns, mask=inside, other=0.0) * inverse_std
    shift = tl.load(beta + columns, mask=inside, other=0.0) - mean * scale
    tl.store(state + columns, mean, mask=inside)
    tl.store(state + CHANNELS + columns, inverse_std, mask=inside)
    tl.store(state + 2 * CHANNELS + columns, scale, mask=inside)
    tl.store(state + 3 * CHANNELS + columns, shift, mask=inside)

    old_mean = tl.load(running_mean + columns, mask=inside, other=0.0)
    old_var = tl.load(running_var + columns, mask=inside, other=0.0)
    unbiased = variance * (rows / (rows - 1.0))
    tl.store(running_mean + columns, old_mean + momentum * (mean - old_mean), mask=inside)
    tl.store(running_var + columns, old_var + momentum * (unbiased - old_var), mask=inside)
    if tl.program_id(0) == 0:
        tl.store(batches_tracked, tl.load(batches_tracked) + 1)


@triton.jit
def normalise(
    y,
    state,
    out,
    rows,
    CHANNELS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
):
    """out = relu(batchnorm(y)), [P,C]. Grid: blocks of rows, blocks of channels."""
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    columns = tl.program_id(1) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    inside = columns < CHANNELS
    place = row[:, None].to(tl.int64) * CHANNELS + columns[None, :]
    valid = (row < rows)[:, None] & inside[None, :]
    z = activation(tl.load(y + place, mask=valid, other=0.0), state, columns, inside, CHANNELS)
    tl.store(out + place, z.to(out.dtype.element_ty), mask=valid)


@triton.jit
def gradient_sums(
    g,
    y,
    state,
    partials,
    rows,
    rows_per_group,
    CHANNELS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
):
    """Sums of the masked gradient, alone and times the normalised y. Grid: groups, blocks of channels."""
    group = tl.program_id(0)
    columns = tl.program_id(1) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    inside = columns < CHANNELS
    total = tl.zeros([BLOCK_CHANNELS], tl.float32)
    along = tl.zeros([BLOCK_CHANNELS], tl.float32)
    first = group * rows_per_group
    last = tl.minimum(first + rows_per_group, rows)
    for start in tl.range(first, last, BLOCK_ROWS):
        row = start + tl.arange(0, BLOCK_ROWS)
        place = row[:, None].to(tl.int64) * CHANNELS + columns[None, :]
        valid = (row < last)[:, None] & inside[None, :]
        below = tl.load(y + place, mask=valid, other=0.0)
        above = tl.load(g + place, mask=valid, other=0.0)  # 0 outside, and so adds nothing
        masked = masked_gradient(above, below, state, columns, inside, CHANNELS)
        total += tl.sum(masked, axis=0)
        along += tl.sum(masked * normalised(below, state, columns, inside, CHANNELS), axis=0)
    store_partials(partials, group, tl.num_programs(0), columns, inside, total, along, CHANNELS)


@triton.jit
def finish_gradients(
    partials,
    state,
    slopes,
    grad_gamma,
    grad_beta,
    groups,
    rows,
    CHANNELS: tl.constexpr,
    BLOCK_GROUPS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
):
    """Gradients of gamma and beta, and the slopes of a layer. Grid: blocks of channels."""
    columns = tl.program_id(0) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    inside = columns < CHANNELS
    total = tl.zeros([BLOCK_CHANNELS], tl.float32)
    along = tl.zeros([BLOCK_CHANNELS], tl.float32)
    for start in range(0, groups, BLOCK_GROUPS):
        group = start + tl.arange(0, BLOCK_GROUPS)
        valid = (group < groups)[:, None] & inside[None, :]
        part = partials + group[:, None] * CHANNELS + columns[None, :]
        total += tl.sum(tl.load(part, mask=valid, other=0.0), axis=0)
        along += tl.sum(tl.load(part + groups * CHANNELS, mask=valid, other=0.0), axis=0)
    tl.store(grad_beta + columns, total, mask=inside)
    tl.store(grad_gamma + columns, along, mask=inside)
    inverse_std = tl.load(state + CHANNELS + columns, mask=inside, other=0.0)
    scale = tl.load(state + 2 * CHANNELS + columns, mask=inside, other=0.0)
    tl.store(slopes + columns, scale * (total / rows), mask=inside)
    tl.store(slopes + CHANNELS + columns, scale * inverse_std * (along / rows), mask=inside)


@triton.jit
def batchnorm_backward(
    g,
    y,
    state,
    slopes,
    grad,
    rows,
    CHANNELS: tl.constexpr,
    MASK: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
):
    """grad = gradient of y [P,C]; may be g itself. Grid: blocks of rows, blocks of channels."""
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    columns = tl.program_id(1) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    inside = columns < CHANNELS
    place = row[:, None].to(tl.int64) * CHANNELS + columns[None, :]
    valid = (row < rows)[:, None] & inside[None, :]
    above = tl.load(g + place, mask=valid, other=0.0)
    below = tl.load(y + place, mask=valid, other=0.0)
    dy = input_gradient(above, below, state, slopes, columns, inside, CHANNELS, MASK)
    tl.store(grad + place, dy.to(grad.dtype.element_ty), mask=valid)

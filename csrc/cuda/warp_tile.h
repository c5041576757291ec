// The work of one block of the CUDA warp kernel, as functions of the thread number; host and device, as in tile.h.
//
// A block takes one 32 x 32 tile of one image's crop sampled at one angle below 90 degrees, and writes it into all
// views that are quarter turns of that: the eight multiples of 45 degrees are sampled twice, not eight times.
#pragma once

#include "../rotnet/normalise.h"
#include "../rotnet/warp.h"
#include "tile.h"

namespace rotnet::cuda {

// Views that differ by quarter turns, by the angle that they are sampled at.
struct WarpGroups {
  int count;
  uint8_t of_view[kMaxViews];
  uint8_t example[kMaxViews];  // of each group, one of its views
};

inline WarpGroups make_groups(const WarpJob& job) {
  WarpGroups groups{};
  for (int k = 0; k < job.num_views; ++k) {
    int group = 0;
    while (group < groups.count && (job.angles[groups.example[group]].cosine != job.angles[k].cosine ||
                                    job.angles[groups.example[group]].sine != job.angles[k].sine)) {
      ++group;
    }
    if (group == groups.count) groups.example[groups.count++] = static_cast<uint8_t>(k);
    groups.of_view[k] = static_cast<uint8_t>(group);
  }
  return groups;
}

struct WarpBlock : Block {
  int group;
  int row0, column0;  // upper left pixel of the crop that the tile's samples touch
};

// Pixels are 1 / sqrt(2) of a view's apart, so that 32 of a view span at most 31 of the crop, at 45 degrees; the
// last sample takes in one more, and rounding may cost another.
constexpr int kWindow = kTile + 2;
constexpr int kWindowPitch = kWindow + 1;
using Window = uint32_t[kWindow * kWindowPitch];
using LevelTile = uint32_t[2 * kTile * kPitch];  // channels 0 and 1 as halves, and channels 2 and 3 behind them

inline Grid make_warp_grid(const WarpJob& job, const WarpGroups& groups) {
  Grid grid = make_grid(job, 0);
  grid.blocks *= groups.count;
  return grid;
}

ROTNET_HOST_DEVICE WarpBlock make_warp_block(const WarpJob& job, const Grid& grid, const WarpGroups& groups,
                                             unsigned number) {
  WarpBlock block;
  block.group = static_cast<int>(number % static_cast<unsigned>(groups.count));
  static_cast<Block&>(block) = make_block(job, grid, number / static_cast<unsigned>(groups.count));
  // Positions grow with the column and the row of a view, but for the source's column, which falls with the row.
  const WarpAngle angle = job.angles[groups.example[block.group]];
  block.row0 = warp_tap(angle, block.y0, block.x0, job.width).row;
  block.column0 = warp_tap(angle, block.y0 + block.height - 1, block.x0, job.width).column;
  return block;
}

// This thread's pixels of the window. Those beyond the crop are not touched by any sample.
template <int C>
ROTNET_HOST_DEVICE void load_window(const WarpJob& job, const WarpBlock& block, const Augmentation draw,
                                    int thread, Window& window) {
  const int width = job.width;
  const int64_t index = image_index(job, block.n);
  const uint8_t* image = job.images + (block.valid ? index : 0) * width * width * C;
  for (int p = thread; p < kWindow * kWindow; p += kThreads) {
    const int row = p / kWindow, column = p - row * kWindow;
    uint32_t pixel = 0;
    if (block.valid && block.row0 + row < width && block.column0 + column < width) {
      const Position stored = uncrop(draw, job.pad, block.row0 + row, block.column0 + column, width);
      const uint8_t* source =
          image + (static_cast<int64_t>(mirror(stored.row, width)) * width + mirror(stored.column, width)) * C;
#pragma unroll
      for (int c = 0; c < C; ++c) pixel |= static_cast<uint32_t>(source[c]) << (8 * c);
    }
    window[row * kWindowPitch + column] = pixel;
  }
}

// This thread's samples of the tile. All threads must have loaded the window.
template <int C>
ROTNET_HOST_DEVICE void sample_tile(const WarpJob& job, const WarpBlock& block, const WarpGroups& groups,
                                    int thread, const Window& window, LevelTile& tile) {
  const WarpAngle angle = job.angles[groups.example[block.group]];
  const int neighbour = job.width > 1 ? 1 : 0;  // a lone pixel has none
  const int column = thread % kTile;
  if (column >= block.width) return;
  for (int row = thread / kTile; row < block.height; row += kThreads / kTile) {
    const WarpTap tap = warp_tap(angle, block.y0 + row, block.x0 + column, job.width);
    const uint32_t* at = window + (tap.row - block.row0) * kWindowPitch + tap.column - block.column0;
    const uint32_t* below = at + neighbour * kWindowPitch;
    const uint64_t levels = interpolate(spread(at[0]), spread(at[neighbour]), spread(below[0]),
                                        spread(below[neighbour]), tap.right, tap.down);
    uint32_t* to = tile + row * kPitch + column;
    to[0] = static_cast<uint32_t>(levels);
    if (C > 2) to[kTile * kPitch] = static_cast<uint32_t>(levels >> 32);
  }
}

// This thread's part of the block's views, and their labels. All threads must have sampled.
template <class Cast, int C, bool kVector>
ROTNET_HOST_DEVICE void write_warped(const WarpJob& job, const WarpBlock& block, const WarpGroups& groups,
                                     int thread, const LevelTile& tile) {
  write_views_of<Cast, C, 16, kVector>(job, block, thread, tile, kGreyStep,
                                       [&](int k) { return groups.of_view[k] == block.group; });
}

}  // namespace rotnet::cuda

// What one block of the CUDA kernel does, as functions of the thread number.
//
// Host and device: a machine without a GPU runs the same code, thread after thread, in
// tests/cpp/test_core.cpp, where the sanitizers watch every access.
//
// A block takes one 32 x 32 tile of one image's upright crop as 32-bit pixels and writes it into the
// K views: one read, K writes. A 32 x 32 image is a single tile.
#pragma once

#include <cmath>
#include <cstdint>

#include "../rotnet/geometry.h"
#include "../rotnet/job.h"

namespace rotnet::cuda {

constexpr int kTile = 32;
constexpr int kThreads = 256;
constexpr int kVectorBytes = 16;

// Pitch 33: rows (turns 0, 2) and columns (turns 1, 3) are both free of bank conflicts.
using Tile = uint32_t[kTile][kTile + 1];

struct alignas(kVectorBytes) Vector {
  uint32_t word[4];
};

struct Grid {
  int tiles_down;
  int tiles_across;
  bool split_views;  // a block per view: small batches would not fill the device otherwise
  int64_t blocks;
};

inline Grid make_grid(const RotateJob& job, int64_t blocks_that_fill_the_device) {
  Grid grid{(job.height + kTile - 1) / kTile, (job.width + kTile - 1) / kTile, false, 0};
  grid.blocks = job.batch * grid.tiles_down * grid.tiles_across;
  grid.split_views = grid.blocks < blocks_that_fill_the_device;
  if (grid.split_views) grid.blocks *= job.num_views;
  return grid;
}

// Whether every tile row of every view starts and ends at a multiple of 16 bytes. A whole tile row
// always is one: 32 elements of at least 2 bytes.
inline bool rows_are_vectors(const RotateJob& job) {
  const int64_t pixel_bytes = int64_t{job.channels} * bytes_per_element(job.type);
  return reinterpret_cast<uintptr_t>(job.views) % kVectorBytes == 0 &&
         job.width * pixel_bytes % kVectorBytes == 0 && job.height * pixel_bytes % kVectorBytes == 0;
}

// Which image, tile and views a block serves.
struct Block {
  int64_t n;
  int first_view, end_view;
  int y0, x0;          // the tile's corner in the upright crop
  int height, width;   // of the tile
  bool valid;          // whether the image's index lies inside [0, num_images)
};

ROTNET_HOST_DEVICE int64_t image_index(const RotateJob& job, int64_t n) { return job.indices ? job.indices[n] : n; }

ROTNET_HOST_DEVICE Block make_block(const RotateJob& job, const Grid& grid, unsigned number) {
  Block block;
  block.first_view = 0;
  block.end_view = job.num_views;
  if (grid.split_views) {
    block.first_view = static_cast<int>(number % static_cast<unsigned>(job.num_views));
    block.end_view = block.first_view + 1;
    number /= static_cast<unsigned>(job.num_views);
  }
  block.x0 = static_cast<int>(number % static_cast<unsigned>(grid.tiles_across)) * kTile;
  number /= static_cast<unsigned>(grid.tiles_across);
  block.y0 = static_cast<int>(number % static_cast<unsigned>(grid.tiles_down)) * kTile;
  block.n = number / static_cast<unsigned>(grid.tiles_down);
  block.height = job.height - block.y0 < kTile ? job.height - block.y0 : kTile;
  block.width = job.width - block.x0 < kTile ? job.width - block.x0 : kTile;
  const int64_t index = image_index(job, block.n);
  block.valid = index >= 0 && index < job.num_images;
  return block;
}

// This thread's pixels of the upright crop, into the tile.
template <int C>
ROTNET_HOST_DEVICE void load_tile(const RotateJob& job, const Block& block, int thread, Tile& tile) {
  const int64_t index = image_index(job, block.n);
  const int64_t sample_id = job.sample_ids ? job.sample_ids[block.n] : index;
  const Augmentation draw =
      draw_augmentation(sample_id, job.key ? job.key[0] : job.seed, job.key ? job.key[1] : job.epoch, job.pad,
                        job.flip_threshold);
  const uint8_t* image = job.images + (block.valid ? index : 0) * job.height * job.width * C;
  for (int p = thread; p < kTile * kTile; p += kThreads) {
    const int row = p / kTile, column = p % kTile;
    if (row >= block.height || column >= block.width) continue;
    const Position stored = uncrop(draw, job.pad, block.y0 + row, block.x0 + column, job.width);
    uint32_t pixel = 0;
    if (block.valid && stored.row >= 0 && stored.row < job.height && stored.column >= 0 &&
        stored.column < job.width) {
      const uint8_t* source = image + (static_cast<int64_t>(stored.row) * job.width + stored.column) * C;
#pragma unroll
      for (int c = 0; c < C; ++c) pixel |= static_cast<uint32_t>(source[c]) << (8 * c);
    }
    tile[row][column] = pixel;
  }
}

// Selects instead of an indexed array: an index that differs between lanes would go to local memory.
template <int C>
ROTNET_HOST_DEVICE float pick(const float (&values)[4], int channel) {
  float result = values[0];
#pragma unroll
  for (int c = 1; c < C; ++c) result = channel == c ? values[c] : result;
  return result;
}

// This thread's elements of the block's views, and the labels. All threads must have loaded.
// `Cast` rounds a float32 to the output type and gives its bits (`Cast::Bits`: 16 or 32 of them).
template <class Cast, int C, bool kVector>
ROTNET_HOST_DEVICE void write_views(const RotateJob& job, const Block& block, int thread, const Tile& tile) {
  using Bits = typename Cast::Bits;
  float scale[4], shift[4];
#pragma unroll
  for (int c = 0; c < C; ++c) {
    // An index out of range shows as NaN: checking it on the host would stop the device.
    scale[c] = block.valid ? job.normalisation.scale[c] : NAN;
    shift[c] = job.normalisation.shift[c];
  }
  const auto element = [&](uint32_t pixel, int channel) -> Bits {
    const auto value = static_cast<float>((pixel >> (8 * channel)) & 0xffu);
    return Cast::bits(fmaf(value, pick<C>(scale, channel), pick<C>(shift, channel)));
  };

  for (int k = block.first_view; k < block.end_view; ++k) {
    const int turn = job.turns[k];
    // The turned tile is rows x columns of the view, with its corner at (top, left).
    const bool sideways = turn % 2 != 0;
    const int rows = sideways ? block.width : block.height, columns = sideways ? block.height : block.width;
    const int view_width = sideways ? job.height : job.width;
    const int from_right = job.width - block.x0 - block.width;
    const int from_bottom = job.height - block.y0 - block.height;
    const int top = turn == 0 ? block.y0 : turn == 1 ? from_right : turn == 2 ? from_bottom : block.x0;
    const int left = turn == 0 ? block.x0 : turn == 1 ? block.y0 : turn == 2 ? from_right : from_bottom;
    Bits* corner = static_cast<Bits*>(job.views) +
                   (block.n * job.num_views + k) * (static_cast<int64_t>(job.height) * job.width * C) +
                   (static_cast<int64_t>(top) * view_width + left) * C;

    if (kVector) {
      constexpr int kElements = kVectorBytes / sizeof(Bits), kPerWord = 4 / sizeof(Bits);
      const int vectors_per_row = columns * C / kElements;
      for (int v = thread; v < rows * vectors_per_row; v += kThreads) {
        const int i = v / vectors_per_row;
        const int first = (v - i * vectors_per_row) * kElements;
        int j = first / C, channel = first % C;
        Position from = unrotate(turn, i, j, block.height, block.width);
        uint32_t pixel = tile[from.row][from.column];
        Vector vector{};
#pragma unroll
        for (int e = 0; e < kElements; ++e) {
          vector.word[e / kPerWord] |= static_cast<uint32_t>(element(pixel, channel)) << (16 * (e % kPerWord));
          if (++channel == C && e + 1 < kElements) {
            channel = 0;
            from = unrotate(turn, i, ++j, block.height, block.width);
            pixel = tile[from.row][from.column];
          }
        }
        *reinterpret_cast<Vector*>(corner + static_cast<int64_t>(i) * view_width * C + first) = vector;
      }
    } else {
      for (int e = thread; e < rows * columns * C; e += kThreads) {
        const int i = e / (columns * C), rest = e - i * (columns * C);
        const Position from = unrotate(turn, i, rest / C, block.height, block.width);
        corner[static_cast<int64_t>(i) * view_width * C + rest] = element(tile[from.row][from.column], rest % C);
      }
    }
    if (block.x0 == 0 && block.y0 == 0 && thread == 0) job.labels[block.n * job.num_views + k] = k;
  }
}

}  // namespace rotnet::cuda

// The work of one block of the CUDA kernels, as functions of the thread number.
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
constexpr int kPitch = kTile + 1;  // rows (turns 0, 2) and columns (turns 1, 3) are both free of bank conflicts
// A multiple of 32 and of the vectors in a row of a whole tile (4, 8, 12, 16, 24 or 32, by type and channels), so that
// a thread stays in its columns: all that depends on these is computed once. It is the least one, so that what each
// thread computes once serves the most stores.
constexpr int kThreads = 96;
constexpr int kVectorBytes = 16;

using Tile = uint32_t[kTile * kPitch];

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
  int y0, x0;         // the tile's corner in the upright crop
  int height, width;  // of the tile
  bool valid;         // whether the image's index lies inside [0, num_images)
};

ROTNET_HOST_DEVICE int64_t image_index(const RotateJob& job, int64_t n) {
  return job.indices ? job.indices[n] : n;
}

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

// Crop and flip of the block's image; they take a hundred instructions, so one thread draws them for all.
ROTNET_HOST_DEVICE Augmentation draw_block(const RotateJob& job, const Block& block) {
  const int64_t sample_id = job.sample_ids ? job.sample_ids[block.n] : image_index(job, block.n);
  return draw_augmentation(sample_id, job.key ? job.key[0] : job.seed, job.key ? job.key[1] : job.epoch, job.pad,
                           job.flip_threshold);
}

// This thread's pixels of the upright crop, into the tile.
template <int C>
ROTNET_HOST_DEVICE void load_tile(const RotateJob& job, const Block& block, const Augmentation draw, int thread,
                                  Tile& tile) {
  const int64_t index = image_index(job, block.n);
  const uint8_t* image = job.images + (block.valid ? index : 0) * job.height * job.width * C;
  const int column = thread % kTile;
  if (column >= block.width) return;
  for (int row = thread / kTile; row < block.height; row += kThreads / kTile) {
    const Position stored = uncrop(draw, job.pad, block.y0 + row, block.x0 + column, job.width);
    uint32_t pixel = 0;
    if (block.valid && stored.row >= 0 && stored.row < job.height && stored.column >= 0 &&
        stored.column < job.width) {
      const uint8_t* source = image + (static_cast<int64_t>(stored.row) * job.width + stored.column) * C;
#pragma unroll
      for (int c = 0; c < C; ++c) pixel |= static_cast<uint32_t>(source[c]) << (8 * c);
    }
    tile[row * kPitch + column] = pixel;
  }
}

// Position in the tile of the pixel at (i, j) of the rotated tile: origin + i * down + j * right.
struct Walk {
  int origin, down, right;
};

ROTNET_HOST_DEVICE Walk walk_of(int turn, int height, int width) {
  const int last_row = (height - 1) * kPitch, last_column = width - 1;
  switch (turn) {  // as unrotate() of geometry.h
    case 1:
      return {last_column, -1, kPitch};
    case 2:
      return {last_row + last_column, -kPitch, -1};
    case 3:
      return {last_row, 1, -kPitch};
    default:
      return {0, kPitch, 1};
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

// The float32 of number `number` of a word that holds four bytes or two halves (`kBits` 8 or 16).
template <int kBits>
ROTNET_HOST_DEVICE float part_as_float(uint32_t word, int number) {
#ifdef __CUDA_ARCH__
  // The number becomes the last bits of 2^23, which is subtracted again: both exact, and both at full rate,
  // which conversions from integers are not.
  const unsigned last = kBits == 8 ? 0x7440u + static_cast<unsigned>(number) : number == 0 ? 0x7410u : 0x7432u;
  return __uint_as_float(__byte_perm(word, 0x4b000000u, last)) - 8388608.0f;
#else
  return static_cast<float>((word >> (kBits * number)) & ((1u << kBits) - 1));
#endif
}

// Stores to an address that is a multiple of 16.
ROTNET_HOST_DEVICE void store(void* to, const Vector& vector) {
#ifdef __CUDA_ARCH__
  // Into the second-level cache, where the first convolution finds it; by an intrinsic, because plain stores were
  // compiled to four of a word each.
  __stcg(static_cast<uint4*>(to), make_uint4(vector.word[0], vector.word[1], vector.word[2], vector.word[3]));
#else
  *static_cast<Vector*>(to) = vector;
#endif
}

// The lower word of (high, low) >> shift, for shift in 0..32.
ROTNET_HOST_DEVICE uint32_t shift_right(uint32_t low, uint32_t high, unsigned shift) {
#ifdef __CUDA_ARCH__
  return __funnelshift_rc(low, high, shift);
#else
  return static_cast<uint32_t>((uint64_t{high} << 32 | low) >> shift);
#endif
}

// A pixel of a tile: bytes in a word, or halves (`kBits` 8 or 16), of which the third and fourth are in a second
// tile behind the first.
template <int C, int kBits>
ROTNET_HOST_DEVICE uint64_t tile_pixel(const uint32_t* at) {
  if constexpr (kBits == 8 || C <= 2) {
    return *at;
  } else {
    return *at | static_cast<uint64_t>(at[kTile * kPitch]) << 32;
  }
}

// Sixteen bytes of a view: `kElements` neighbouring elements of a row. The pixels they touch are packed into a
// stream that begins with the first element, so that each element's place in it is known when compiling, and
// its channel but for the first one's.
template <class Cast, int C, int kBits>
struct VectorOf {
  static constexpr int kPerWord = 4 / static_cast<int>(sizeof(typename Cast::Bits));
  static constexpr int kElements = 4 * kPerWord;
  static constexpr bool kAnyPhase = kElements % C != 0;
  static constexpr int kPixels = (kElements + (kAnyPhase ? C - 1 : 0) + C - 1) / C;
  static constexpr int kPixelBits = C * kBits, kWords = (kPixels * kPixelBits + 31) / 32, kParts = 32 / kBits;

  int column;      // of the first pixel
  int last;        // from it to the last one; not every phase touches that, and it may lie beyond the row then
  unsigned shift;  // bits of the first pixel that belong to the vector before
  float scale[C], offset[C];  // of the channels, from the first element's on

  // Elements from `first` on, of rows of `columns` pixels.
  ROTNET_HOST_DEVICE VectorOf(int first, int columns, const float (&scales)[4], const float (&shifts)[4]) {
    column = first / C;
    const int phase = kAnyPhase ? first - column * C : 0;
    last = column + kPixels - 1 < columns ? kPixels - 1 : columns - 1 - column;
    shift = static_cast<unsigned>(kBits * phase);
#pragma unroll
    for (int c = 0; c < C; ++c) {
      const int channel = phase + c < C ? phase + c : phase + c - C;
      scale[c] = kAnyPhase ? pick<C>(scales, channel) : scales[c];
      offset[c] = kAnyPhase ? pick<C>(shifts, channel) : shifts[c];
    }
  }

  // `from`: the first pixel in the tile; `right`: from one pixel of the row to the next.
  ROTNET_HOST_DEVICE Vector make(const uint32_t* from, int right) const {
    uint32_t stream[kWords + 2] = {};
#pragma unroll
    for (int q = 0; q < kPixels; ++q) {
      const uint64_t pixel = tile_pixel<C, kBits>(from + (kAnyPhase && q == kPixels - 1 ? last : q) * right);
      const int bit = q * kPixelBits, word = bit / 32, at = bit % 32;
      stream[word] |= static_cast<uint32_t>(pixel << at);
      if (at + kPixelBits > 32) stream[word + 1] |= static_cast<uint32_t>(pixel >> (32 - at));
      if (at + kPixelBits > 64) stream[word + 2] |= static_cast<uint32_t>(pixel >> (64 - at));
    }
    Vector vector;
#pragma unroll
    for (int w = 0; w < 4; ++w) {
      float value[kPerWord];
#pragma unroll
      for (int k = 0; k < kPerWord; ++k) {
        const int e = w * kPerWord + k;
        const uint32_t low = stream[e / kParts], high = stream[e / kParts + 1];
        const uint32_t parts = kAnyPhase ? shift_right(low, high, shift) : low;
        value[k] = fmaf(part_as_float<kBits>(parts, e % kParts), scale[e % C], offset[e % C]);
      }
      vector.word[w] = Cast::word(value);
    }
    return vector;
  }
};

// Where a view shows the block's tile, turned: rows x columns pixels with their corner at (top, left).
struct Place {
  int rows, columns, top, left;
  int view_width;
};

ROTNET_HOST_DEVICE Place place_of(const RotateJob& job, const Block& block, int turn) {
  const int from_right = job.width - block.x0 - block.width;
  const int from_bottom = job.height - block.y0 - block.height;
  switch (turn) {  // as unrotate() of geometry.h
    case 1:
      return {block.width, block.height, from_right, block.y0, job.height};
    case 2:
      return {block.height, block.width, from_bottom, from_right, job.width};
    case 3:
      return {block.width, block.height, block.x0, from_bottom, job.height};
    default:
      return {block.height, block.width, block.y0, block.x0, job.width};
  }
}

// The element of job.views at channel 0 of pixel (i, 0) of the tile in view k. 32 bits are enough: csrc/checks.h
// admits fewer than 2^31 elements.
template <int C>
ROTNET_HOST_DEVICE int row_of(const RotateJob& job, const Block& block, int k, const Place& place, int i) {
  const int view = static_cast<int>(block.n) * job.num_views + k;
  return (view * job.height * job.width + (place.top + i) * place.view_width + place.left) * C;
}

// This thread's part of a whole tile. It has the same columns and rows in every view, so that all but the
// addresses is made once, before the views.
template <class Cast, int C, int kBits>
class WholeTile {
 public:
  ROTNET_HOST_DEVICE WholeTile(int thread, const float (&scale)[4], const float (&shift)[4])
      : row_(thread / kPerRow), first_(thread % kPerRow * Maker::kElements), maker_(first_, kTile, scale, shift) {}

  // A copy of the code for each turn: steps through the tile that are known when compiling are part of the load
  // instructions.
  ROTNET_HOST_DEVICE void write(const RotateJob& job, const Block& block, int k, const uint32_t* tile) const {
    switch (job.turns[k]) {
      case 1:
        return write_turned<1>(job, block, k, tile);
      case 2:
        return write_turned<2>(job, block, k, tile);
      case 3:
        return write_turned<3>(job, block, k, tile);
      default:
        return write_turned<0>(job, block, k, tile);
    }
  }

 private:
  using Maker = VectorOf<Cast, C, kBits>;
  static constexpr int kPerRow = kTile * C / Maker::kElements;  // vectors
  static constexpr int kRows = kThreads / kPerRow;              // that the block writes at a time
  static_assert(kThreads % kPerRow == 0, "a thread stays in its columns");

  template <int kTurn>
  ROTNET_HOST_DEVICE void write_turned(const RotateJob& job, const Block& block, int k,
                                       const uint32_t* tile) const {
    const Place place = place_of(job, block, kTurn);
    const Walk walk = walk_of(kTurn, kTile, kTile);
    const uint32_t* from = tile + walk.origin + row_ * walk.down + maker_.column * walk.right;
    typename Cast::Bits* to =
        static_cast<typename Cast::Bits*>(job.views) + (row_of<C>(job, block, k, place, row_) + first_);
#pragma unroll
    for (int i = 0; i < kTile; i += kRows) {
      if (kTile % kRows != 0 && row_ + i >= kTile) break;
      store(to + i * place.view_width * C, maker_.make(from + i * walk.down, walk.right));
    }
  }

  int row_, first_;  // the first row, and in every row the first element
  Maker maker_;
};

// This thread's part of a tile of any size, turned, in view k.
template <class Cast, int C, int kBits, bool kVector>
ROTNET_HOST_DEVICE void write_turned(const RotateJob& job, const Block& block, int k, int thread,
                                     const uint32_t* tile, const float (&scale)[4], const float (&shift)[4]) {
  const int turn = job.turns[k];
  const Place place = place_of(job, block, turn);
  const Walk walk = walk_of(turn, block.height, block.width);
  auto* views = static_cast<typename Cast::Bits*>(job.views);
  if constexpr (kVector) {
    using Maker = VectorOf<Cast, C, kBits>;
    const int per_row = place.columns * C / Maker::kElements;
    for (int v = thread; v < place.rows * per_row; v += kThreads) {
      const int i = v / per_row, first = (v - i * per_row) * Maker::kElements;
      const Maker maker(first, place.columns, scale, shift);
      const uint32_t* from = tile + walk.origin + i * walk.down + maker.column * walk.right;
      store(views + (row_of<C>(job, block, k, place, i) + first), maker.make(from, walk.right));
    }
  } else {
    const int per_row = place.columns * C;
    for (int e = thread; e < place.rows * per_row; e += kThreads) {
      const int i = e / per_row, rest = e - i * per_row;
      const int j = rest / C, channel = rest - j * C;
      const uint64_t pixel = tile_pixel<C, kBits>(tile + walk.origin + i * walk.down + j * walk.right);
      const auto value =
          static_cast<float>(static_cast<uint32_t>(pixel >> (kBits * channel)) & ((1u << kBits) - 1));
      views[row_of<C>(job, block, k, place, i) + rest] =
          Cast::bits(fmaf(value, pick<C>(scale, channel), pick<C>(shift, channel)));
    }
  }
}

// What normalises the block's pixels; a grey level is `step` of what is counted.
template <int C>
ROTNET_HOST_DEVICE void load_normalisation(const RotateJob& job, const Block& block, float step, float (&scale)[4],
                                           float (&shift)[4]) {
#pragma unroll
  for (int c = 0; c < C; ++c) {
    // An index out of range gives NaN, because checking it on the host would stall the device.
    scale[c] = block.valid ? job.normalisation.scale[c] * step : NAN;
    shift[c] = job.normalisation.shift[c];
  }
}

// This thread's part of those views of the block that `wanted(k)` chooses, and their labels. `tile` is that of the
// upright view, at (y0, x0) and of height x width pixels; all threads must have filled it. A grey level is `step` of
// what the tile counts, in parts of `kBits`.
// `Cast` rounds float32 to the output type and gives the bits: `Cast::bits` of one number as `Cast::Bits` (16 or
// 32 of them), `Cast::word` of as many as fill 32 bits.
template <class Cast, int C, int kBits, bool kVector, class Wanted>
ROTNET_HOST_DEVICE void write_views_of(const RotateJob& job, const Block& block, int thread, const uint32_t* tile,
                                       float step, const Wanted& wanted) {
  static_assert(kMaxViews <= kThreads, "a thread per label");
  if (const int k = block.first_view + thread; block.x0 == 0 && block.y0 == 0 && k < block.end_view && wanted(k)) {
    job.labels[block.n * job.num_views + k] = k;
  }
  float scale[4] = {}, shift[4] = {};
  load_normalisation<C>(job, block, step, scale, shift);
  if constexpr (kVector) {
    if (block.height == kTile && block.width == kTile) {
      const WholeTile<Cast, C, kBits> part(thread, scale, shift);
      for (int k = block.first_view; k < block.end_view; ++k) {
        if (wanted(k)) part.write(job, block, k, tile);
      }
      return;
    }
  }
  for (int k = block.first_view; k < block.end_view; ++k) {
    if (wanted(k)) write_turned<Cast, C, kBits, kVector>(job, block, k, thread, tile, scale, shift);
  }
}

// This thread's part of the block's views, and their labels.
template <class Cast, int C, bool kVector>
ROTNET_HOST_DEVICE void write_views(const RotateJob& job, const Block& block, int thread, const Tile& tile) {
  write_views_of<Cast, C, 8, kVector>(job, block, thread, tile, 1.0f, [](int) { return true; });
}

}  // namespace rotnet::cuda

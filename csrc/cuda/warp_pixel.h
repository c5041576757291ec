// What one thread of the CUDA warp kernel does: one pixel of one view. Host and device, as tile.h.
#pragma once

#include <cmath>
#include <cstdint>

#include "../rotnet/geometry.h"
#include "../rotnet/normalise.h"
#include "../rotnet/warp.h"

namespace rotnet::cuda {

constexpr int kWarpThreads = 256;

inline int64_t warp_blocks_per_view(const WarpJob& job) {
  return (static_cast<int64_t>(job.width) * job.width + kWarpThreads - 1) / kWarpThreads;
}

// Pixel `pixel` (row-major) of view `view` (n * K + k), and with pixel 0 its label. Pixels at and beyond
// W * W are nobody's. `Cast` as in tile.h.
template <class Cast, int C>
ROTNET_HOST_DEVICE void warp_pixel(const WarpJob& job, unsigned view, unsigned pixel) {
  const int width = job.width;
  const auto pixels = static_cast<unsigned>(width) * static_cast<unsigned>(width);  // below 2^30
  if (pixel >= pixels) return;
  const int64_t n = view / static_cast<unsigned>(job.num_views);
  const int k = static_cast<int>(view % static_cast<unsigned>(job.num_views));
  if (pixel == 0) job.labels[view] = k;

  const int64_t index = job.indices ? job.indices[n] : n;
  const int64_t sample_id = job.sample_ids ? job.sample_ids[n] : index;
  const Augmentation draw =
      draw_augmentation(sample_id, job.key ? job.key[0] : job.seed, job.key ? job.key[1] : job.epoch, job.pad,
                        job.flip_threshold);
  // An index out of range shows as NaN: checking it on the host would stop the device.
  const bool valid = index >= 0 && index < job.num_images;
  const uint8_t* image = job.images + (valid ? index : 0) * pixels * C;

  const auto load = [&](int row, int column) -> SpreadPixel {
    uint32_t loaded = 0;
    if (valid) {
      const Position stored = uncrop(draw, job.pad, row, column, width);
      const uint8_t* source =
          image + (static_cast<int64_t>(mirror(stored.row, width)) * width + mirror(stored.column, width)) * C;
#pragma unroll
      for (int c = 0; c < C; ++c) loaded |= static_cast<uint32_t>(source[c]) << (8 * c);
    }
    return spread(loaded);
  };

  const int i = static_cast<int>(pixel / static_cast<unsigned>(width));
  const int j = static_cast<int>(pixel % static_cast<unsigned>(width));
  const Position sample = unrotate(job.turns[k], i, j, width, width);
  const WarpTap tap = warp_tap(job.angles[k], sample.row, sample.column, width);
  const int below = width > 1 ? 1 : 0;  // a lone pixel has no neighbours
  const uint64_t levels =
      interpolate(load(tap.row, tap.column), load(tap.row, tap.column + below), load(tap.row + below, tap.column),
                  load(tap.row + below, tap.column + below), tap.right, tap.down);

  auto* out = static_cast<typename Cast::Bits*>(job.views) + (int64_t{view} * pixels + pixel) * C;
#pragma unroll
  for (int c = 0; c < C; ++c) {
    const float scale = valid ? job.normalisation.scale[c] * kGreyStep : NAN;
    out[c] = Cast::bits(fmaf(static_cast<float>(grey_level(levels, c)), scale, job.normalisation.shift[c]));
  }
}

}  // namespace rotnet::cuda

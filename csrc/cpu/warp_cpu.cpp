// The bilinear warp for every processor: all channels of a pixel at once in 64-bit words.
#include "warp_cpu.h"

#include <algorithm>
#include <cstring>
#include <type_traits>

#include "../rotnet/geometry.h"
#include "float_bits.h"

namespace rotnet::cpu {
namespace {

#include "rotate_image.h"

struct BytewiseLanes {
  int channels;
  void load_row(uint32_t* row, const uint8_t* stored, int width, int shift, bool flip) const {
    load_row_bytewise(row, stored, width, channels, shift, flip);
  }
};

template <OutputType type, int channels>
struct Warp {
  using Out = std::conditional_t<type == OutputType::kFloat32, uint32_t, uint16_t>;
  struct Pixel {
    Out element[channels];
  };

  explicit Warp(const WarpJob& job, const WarpPlan& plan)
      : job(job),
        plan(plan),
        row(job.width),
        crop(static_cast<size_t>(plan.pitch) * plan.pitch),
        band(static_cast<size_t>(kBlock) * job.width) {}

  static Out to_bits(float value) {
    if constexpr (type == OutputType::kFloat32) return float32_bits(value);
    if constexpr (type == OutputType::kBFloat16) return bfloat16_bits(value);
    if constexpr (type == OutputType::kFloat16) return float16_bits(value);
  }

  void load_crop(const StoredImage& image) {
    for (int y = 0; y < job.height; ++y) {
      load_crop_row(BytewiseLanes{channels}, job, image, y, row.data());
      SpreadPixel* to = crop.data() + static_cast<int64_t>(y) * plan.pitch;
      for (int x = 0; x < job.width; ++x) to[x] = spread(row[x]);
    }
  }

  // Finished pixels of `count` samples, into the band.
  void sample(const WarpPlan::Tap* taps, int count) {
    for (int p = 0; p < count; ++p) {
      const WarpPlan::Tap tap = taps[p];
      const SpreadPixel* from = crop.data() + tap.offset;
      const uint64_t levels =
          interpolate(from[0], from[1], from[plan.pitch], from[plan.pitch + 1], tap.right, tap.down);
      for (int c = 0; c < channels; ++c) {
        band[p].element[c] = to_bits(normalise_grey_level(grey_level(levels, c), job.normalisation.scale[c],
                                                          job.normalisation.shift[c]));
      }
    }
  }

  // The band's rows, which are rows y0 .. y0+rows-1 of the samples, into a view: see unrotate.
  void write_band(Pixel* view, int turn, int y0, int rows) const {
    const int width = job.width;
    const Pixel* from = band.data();
    switch (turn) {
      case 0:
        std::memcpy(view + static_cast<int64_t>(y0) * width, from, sizeof(Pixel) * rows * width);
        return;
      case 2: {
        Pixel* to = view + static_cast<int64_t>(width - y0 - rows) * width;
        const int count = rows * width;
        for (int p = 0; p < count; ++p) to[p] = from[count - 1 - p];
        return;
      }
      case 1:
        for (int i = 0; i < width; ++i) {
          Pixel* to = view + static_cast<int64_t>(i) * width + y0;
          for (int r = 0; r < rows; ++r) to[r] = from[r * width + width - 1 - i];
        }
        return;
      default:
        for (int i = 0; i < width; ++i) {
          Pixel* to = view + static_cast<int64_t>(i) * width + width - y0 - rows;
          for (int r = 0; r < rows; ++r) to[r] = from[(rows - 1 - r) * width + i];
        }
    }
  }

  void run(int64_t begin, int64_t end) {
    const int64_t view_pixels = static_cast<int64_t>(job.width) * job.width;
    for (int64_t n = begin; n < end; ++n) {
      load_crop(find_image(job, n, end));
      Pixel* views = static_cast<Pixel*>(job.views) + n * job.num_views * view_pixels;
      for (const WarpPlan::Group& group : plan.groups) {
        for (int y0 = 0; y0 < job.width; y0 += kBlock) {
          const int rows = std::min(kBlock, job.width - y0);
          sample(group.taps.data() + static_cast<int64_t>(y0) * job.width, rows * job.width);
          for (const int k : group.views) write_band(views + k * view_pixels, job.turns[k], y0, rows);
        }
      }
      write_labels(job, n);
    }
  }

  const WarpJob& job;
  const WarpPlan& plan;
  std::vector<uint32_t> row;
  std::vector<SpreadPixel> crop;  // [pitch, pitch]
  std::vector<Pixel> band;        // [16, W]
};

template <OutputType type>
void run(const WarpJob& job, const WarpPlan& plan, int64_t begin, int64_t end) {
  switch (job.channels) {
    case 1:
      return Warp<type, 1>(job, plan).run(begin, end);
    case 2:
      return Warp<type, 2>(job, plan).run(begin, end);
    case 3:
      return Warp<type, 3>(job, plan).run(begin, end);
    case 4:
      return Warp<type, 4>(job, plan).run(begin, end);
  }
}

}  // namespace

WarpPlan plan_warp(const WarpJob& job) {
  WarpPlan plan;
  plan.pitch = std::max(job.width, 2);  // a lone pixel has neighbours, too, of weight 0
  std::vector<int64_t> sines;           // one per group
  for (int k = 0; k < job.num_views; ++k) {
    const auto found = std::find(sines.begin(), sines.end(), job.angles[k].sine);
    const auto group = static_cast<size_t>(found - sines.begin());
    if (found == sines.end()) {
      sines.push_back(job.angles[k].sine);
      plan.groups.emplace_back();
    }
    plan.groups[group].views.push_back(k);
  }
  for (WarpPlan::Group& group : plan.groups) {
    const WarpAngle& angle = job.angles[group.views.front()];
    group.taps.reserve(static_cast<size_t>(job.width) * job.width);
    for (int i = 0; i < job.width; ++i) {
      for (int j = 0; j < job.width; ++j) {
        const WarpTap tap = warp_tap(angle, i, j, job.width);
        group.taps.push_back({tap.row * plan.pitch + tap.column, static_cast<uint16_t>(tap.down),
                              static_cast<uint16_t>(tap.right)});
      }
    }
  }
  return plan;
}

void warp_range(const WarpJob& job, const WarpPlan& plan, int64_t begin, int64_t end) {
  switch (job.type) {
    case OutputType::kFloat32:
      return run<OutputType::kFloat32>(job, plan, begin, end);
    case OutputType::kBFloat16:
      return run<OutputType::kBFloat16>(job, plan, begin, end);
    case OutputType::kFloat16:
      return run<OutputType::kFloat16>(job, plan, begin, end);
  }
}

}  // namespace rotnet::cpu

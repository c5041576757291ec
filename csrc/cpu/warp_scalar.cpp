// The bilinear warp for every processor: all channels of a pixel in two 64-bit words.
#include <algorithm>
#include <cstring>
#include <type_traits>
#include <vector>

#include "../rotnet/geometry.h"
#include "float_bits.h"
#include "rotate_cpu.h"

namespace rotnet::cpu {
namespace {

#include "rotate_image.h"
#include "warp_image.h"

template <OutputType type, int channels>
struct ScalarWarpLanes {
  using Out = std::conditional_t<type == OutputType::kFloat32, uint32_t, uint16_t>;
  static constexpr int kChannels = channels;

  explicit ScalarWarpLanes(const WarpJob& job) : normalisation(job.normalisation) {}

  static Out to_bits(float value) {
    if constexpr (type == OutputType::kFloat32) return float32_bits(value);
    if constexpr (type == OutputType::kBFloat16) return bfloat16_bits(value);
    if constexpr (type == OutputType::kFloat16) return float16_bits(value);
  }

  void sample(Out* out, const SpreadPixel* crop, int pitch, const WarpPlan::Tap* taps, int count) const {
    for (int p = 0; p < count; ++p) {
      const WarpPlan::Tap tap = taps[p];
      const SpreadPixel* from = crop + tap.offset;
      const uint64_t levels = interpolate(from[0], from[1], from[pitch], from[pitch + 1], tap.right, tap.down);
      for (int c = 0; c < channels; ++c) {
        *out++ =
            to_bits(normalise_grey_level(grey_level(levels, c), normalisation.scale[c], normalisation.shift[c]));
      }
    }
  }

  const Normalisation normalisation;
};

}  // namespace

void warp_range_scalar(const WarpJob& job, const WarpPlan& plan, int64_t begin, int64_t end) {
  warp_images<ScalarWarpLanes>(job, plan, begin, end);
}

}  // namespace rotnet::cpu

// The kernel for every processor: a table of 256 finished pixels per channel.
#include <algorithm>
#include <cstring>
#include <vector>

#include "../rotnet/geometry.h"
#include "float_bits.h"
#include "rotate_cpu.h"

namespace rotnet::cpu {
namespace {

#include "rotate_image.h"

// Elements travel as bit patterns: float32 as uint32_t, bfloat16 and float16 as uint16_t.
template <OutputType type>
struct ScalarLanes {
  using Out = std::conditional_t<type == OutputType::kFloat32, uint32_t, uint16_t>;

  explicit ScalarLanes(const RotateJob& job) : channels(job.channels) {
    for (int c = 0; c < channels; ++c) {
      for (int value = 0; value < 256; ++value) {
        const float normalised =
            normalise(static_cast<uint8_t>(value), job.normalisation.scale[c], job.normalisation.shift[c]);
        table[c][value] = to_bits(normalised);
      }
    }
  }

  static Out to_bits(float value) {
    if constexpr (type == OutputType::kFloat32) return float32_bits(value);
    if constexpr (type == OutputType::kBFloat16) return bfloat16_bits(value);
    if constexpr (type == OutputType::kFloat16) return float16_bits(value);
  }

  void load_row(uint32_t* row, const uint8_t* stored, int width, int shift, bool flip) const {
    load_row_bytewise(row, stored, width, channels, shift, flip);
  }

  static void transpose(uint32_t* to, int to_pitch, const uint32_t* from, int from_pitch) {
    for (int y = 0; y < kBlock; ++y) {
      for (int x = 0; x < kBlock; ++x) to[x * to_pitch + y] = from[y * from_pitch + x];
    }
  }

  void emit_row(Out* out, const uint32_t* pixels, int count, bool backwards) const {
    for (int x = 0; x < count; ++x) {
      const uint32_t pixel = pixels[backwards ? count - 1 - x : x];
      for (int c = 0; c < channels; ++c) *out++ = table[c][(pixel >> (8 * c)) & 0xff];
    }
  }

  const int channels;
  Out table[4][256];
};

}  // namespace

void rotate_range_scalar(const RotateJob& job, int64_t begin, int64_t end, bool /*stream*/) {
  with_type(job.type, [&](auto type) { rotate_images<ScalarLanes<decltype(type)::value>>(job, begin, end); });
}

}  // namespace rotnet::cpu

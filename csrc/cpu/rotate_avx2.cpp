// The kernel for processors with AVX2, FMA and F16C: eight output elements at a time.
#if defined(__x86_64__)

#include <immintrin.h>

#include <algorithm>
#include <cstring>
#include <type_traits>
#include <vector>

#include "../rotnet/geometry.h"
#include "rotate_cpu.h"
#include "target.h"

ROTNET_TARGET_BEGIN("avx2,fma,f16c")

namespace rotnet::cpu {
namespace {

#include "rotate_image.h"

// Eight pixels make `channels` vectors of eight elements. Vector t holds elements 8t .. 8t+7, that
// is channel (8t+l) % channels of pixel (8t+l) / channels: a lane permutation, a shift and a mask.
template <OutputType type, bool stream>
struct Avx2Lanes {
  using Out = std::conditional_t<type == OutputType::kFloat32, uint32_t, uint16_t>;
  static constexpr int kPixels = 8;

  explicit Avx2Lanes(const RotateJob& job) : channels(job.channels) {
    for (int t = 0; t < channels; ++t) {
      alignas(32) int pixel[2][8], bits[8];
      alignas(32) float scales[8], shifts[8];
      for (int lane = 0; lane < 8; ++lane) {
        const int element = 8 * t + lane, channel = element % channels;
        pixel[0][lane] = element / channels;
        pixel[1][lane] = kPixels - 1 - element / channels;
        bits[lane] = 8 * channel;
        scales[lane] = job.normalisation.scale[channel];
        shifts[lane] = job.normalisation.shift[channel];
      }
      for (int backwards = 0; backwards < 2; ++backwards) {
        permutation[backwards][t] = _mm256_load_si256(reinterpret_cast<const __m256i*>(pixel[backwards]));
      }
      shift_right[t] = _mm256_load_si256(reinterpret_cast<const __m256i*>(bits));
      scale[t] = _mm256_load_ps(scales);
      shift[t] = _mm256_load_ps(shifts);
    }
  }

  void load_row(uint32_t* row, const uint8_t* stored, int width, int shift, bool flip) const {
    load_row_bytewise(row, stored, width, channels, shift, flip);
  }

  static void transpose(uint32_t* to, int to_pitch, const uint32_t* from, int from_pitch) {
    for (int y = 0; y < kBlock; ++y) {
      for (int x = 0; x < kBlock; ++x) to[x * to_pitch + y] = from[y * from_pitch + x];
    }
  }

  __m256 normalised(__m256i pixels, int t, bool backwards) const {
    const __m256i picked = _mm256_permutevar8x32_epi32(pixels, permutation[backwards][t]);
    const __m256i value = _mm256_and_si256(_mm256_srlv_epi32(picked, shift_right[t]), _mm256_set1_epi32(0xff));
    return _mm256_fmadd_ps(_mm256_cvtepi32_ps(value), scale[t], shift[t]);
  }

  static void store(Out* out, __m256 value) {
    if constexpr (type == OutputType::kFloat32) {
      if constexpr (stream) {
        _mm256_stream_ps(reinterpret_cast<float*>(out), value);
      } else {
        _mm256_storeu_ps(reinterpret_cast<float*>(out), value);
      }
    } else {
      __m128i half;
      if constexpr (type == OutputType::kFloat16) {
        half = _mm256_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
      } else {
        // Round to nearest, ties to even; values are finite.
        const __m256i bits = _mm256_castps_si256(value);
        const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
        const __m256i rounded =
            _mm256_srli_epi32(_mm256_add_epi32(_mm256_add_epi32(bits, odd), _mm256_set1_epi32(0x7fff)), 16);
        half = _mm_packus_epi32(_mm256_castsi256_si128(rounded), _mm256_extracti128_si256(rounded, 1));
      }
      if constexpr (stream) {
        _mm_stream_si128(reinterpret_cast<__m128i*>(out), half);
      } else {
        _mm_storeu_si128(reinterpret_cast<__m128i*>(out), half);
      }
    }
  }

  void emit_row(Out* out, const uint32_t* pixels, int count, bool backwards) const {
    int x = 0;
    for (; x + kPixels <= count; x += kPixels) {
      const uint32_t* from = backwards ? pixels + count - kPixels - x : pixels + x;
      const __m256i loaded = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
      for (int t = 0; t < channels; ++t, out += kPixels) store(out, normalised(loaded, t, backwards));
    }
    if (x == count) return;
    // The last, incomplete group: finished in a buffer. Guards make the wider read harmless.
    const uint32_t* from = backwards ? pixels + count - kPixels - x : pixels + x;
    const __m256i loaded = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
    alignas(32) Out buffer[4 * kPixels];
    for (int t = 0; t < channels; ++t) store(buffer + t * kPixels, normalised(loaded, t, backwards));
    std::memcpy(out, buffer, sizeof(Out) * (count - x) * channels);
  }

  const int channels;
  __m256i permutation[2][4];
  __m256i shift_right[4];
  __m256 scale[4];
  __m256 shift[4];
};

template <OutputType type>
void run(const RotateJob& job, int64_t begin, int64_t end, bool stream) {
  if (stream) {
    rotate_images<Avx2Lanes<type, true>>(job, begin, end);
    _mm_sfence();
  } else {
    rotate_images<Avx2Lanes<type, false>>(job, begin, end);
  }
}

}  // namespace

void rotate_range_avx2(const RotateJob& job, int64_t begin, int64_t end, bool stream) {
  // Streaming stores need whole vectors at aligned addresses in every row of the output.
  const int64_t row_bytes = static_cast<int64_t>(job.width) * job.channels * bytes_per_element(job.type);
  stream = stream && job.width % 8 == 0 && job.height % 8 == 0 && row_bytes % 32 == 0 &&
           reinterpret_cast<uintptr_t>(job.views) % 32 == 0;
  with_type(job.type, [&](auto type) { run<decltype(type)::value>(job, begin, end, stream); });
}

}  // namespace rotnet::cpu

ROTNET_TARGET_END

#endif

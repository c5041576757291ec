// The kernel for processors with AVX-512 F, BW, VL, VBMI and BF16: 16 pixels at a time.
#if defined(__x86_64__)

#include <immintrin.h>

#include <algorithm>
#include <cstring>
#include <type_traits>
#include <vector>

#include "../rotnet/geometry.h"
#include "rotate_cpu.h"
#include "target.h"

ROTNET_TARGET_BEGIN("avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi,avx512bf16")

namespace rotnet::cpu {
namespace {

#include "rotate_image.h"

// Bit mask of lanes [low, high) of at most 64.
inline __mmask64 lane_mask(int low, int high) {
  const uint64_t below_high = high >= 64 ? ~0ull : (1ull << high) - 1;
  const uint64_t below_low = low >= 64 ? ~0ull : (1ull << low) - 1;
  return below_high & ~below_low;
}

// One byte permutation takes the values of 16 consecutive output elements out of 16 pixels and
// widens them to 32 bits; conversion and a fused multiply-add finish them.
template <OutputType type, bool stream, int channels>
struct Avx512Lanes {
  using Out = std::conditional_t<type == OutputType::kFloat32, uint32_t, uint16_t>;

  explicit Avx512Lanes(const RotateJob& job) {
    alignas(64) uint8_t bytes[64];
    for (int flip = 0; flip < 2; ++flip) {
      for (int byte = 0; byte < 64; ++byte) {
        const int pixel = flip ? kBlock - 1 - byte / 4 : byte / 4;
        bytes[byte] = static_cast<uint8_t>(byte % 4 < channels ? pixel * channels + byte % 4 : 0);
      }
      widen_pixels[flip] = _mm512_load_si512(bytes);
    }
    for (int t = 0; t < channels; ++t) {
      alignas(64) float scales[16], shifts[16];
      for (int lane = 0; lane < 16; ++lane) {
        const int channel = (16 * t + lane) % channels;
        scales[lane] = job.normalisation.scale[channel];
        shifts[lane] = job.normalisation.shift[channel];
      }
      scale[t] = _mm512_load_ps(scales);
      shift[t] = _mm512_load_ps(shifts);
      for (int backwards = 0; backwards < 2; ++backwards) {
        std::memset(bytes, 0, sizeof(bytes));
        for (int lane = 0; lane < 16; ++lane) {
          const int element = 16 * t + lane;
          const int pixel = backwards ? kBlock - 1 - element / channels : element / channels;
          bytes[4 * lane] = static_cast<uint8_t>(4 * pixel + element % channels);
        }
        pick_elements[backwards][t] = _mm512_load_si512(bytes);
      }
    }
  }

  void load_row(uint32_t* row, const uint8_t* stored, int width, int shift, bool flip) const {
    constexpr __mmask64 kUsedBytes = 0x1111111111111111ull * ((1u << channels) - 1u);
    for (int x = 0; x < width; x += kBlock) {
      // Stored columns first .. first+15 serve pixels x .. x+15; those outside the row are black.
      const int first = flip ? width - x - kBlock + shift : x + shift;
      const int low = std::clamp(-first, 0, kBlock), high = std::clamp(width - first, 0, kBlock);
      const __m512i loaded = _mm512_maskz_loadu_epi8(lane_mask(low * channels, high * channels),
                                                     stored + static_cast<int64_t>(first) * channels);
      const __m512i pixels = _mm512_maskz_permutexvar_epi8(kUsedBytes, widen_pixels[flip], loaded);
      _mm512_storeu_si512(row + x, pixels);
    }
  }

  static void transpose(uint32_t* to, int to_pitch, const uint32_t* from, int from_pitch) {
    __m512i a[16], b[16];
    for (int y = 0; y < 16; ++y) a[y] = _mm512_loadu_si512(from + static_cast<int64_t>(y) * from_pitch);
    for (int y = 0; y < 16; y += 2) {
      b[y] = _mm512_unpacklo_epi32(a[y], a[y + 1]);
      b[y + 1] = _mm512_unpackhi_epi32(a[y], a[y + 1]);
    }
    for (int y = 0; y < 16; y += 4) {
      a[y] = _mm512_unpacklo_epi64(b[y], b[y + 2]);
      a[y + 1] = _mm512_unpackhi_epi64(b[y], b[y + 2]);
      a[y + 2] = _mm512_unpacklo_epi64(b[y + 1], b[y + 3]);
      a[y + 3] = _mm512_unpackhi_epi64(b[y + 1], b[y + 3]);
    }
    // a[4g + r], 128-bit lane l: rows 4g .. 4g+3 of column 4l + r.
    for (int r = 0; r < 4; ++r) {
      b[r] = _mm512_shuffle_i32x4(a[r], a[4 + r], 0x88);
      b[4 + r] = _mm512_shuffle_i32x4(a[r], a[4 + r], 0xdd);
      b[8 + r] = _mm512_shuffle_i32x4(a[8 + r], a[12 + r], 0x88);
      b[12 + r] = _mm512_shuffle_i32x4(a[8 + r], a[12 + r], 0xdd);
    }
    for (int r = 0; r < 4; ++r) {
      _mm512_storeu_si512(to + static_cast<int64_t>(r) * to_pitch, _mm512_shuffle_i32x4(b[r], b[8 + r], 0x88));
      _mm512_storeu_si512(to + static_cast<int64_t>(8 + r) * to_pitch, _mm512_shuffle_i32x4(b[r], b[8 + r], 0xdd));
      _mm512_storeu_si512(to + static_cast<int64_t>(4 + r) * to_pitch,
                          _mm512_shuffle_i32x4(b[4 + r], b[12 + r], 0x88));
      _mm512_storeu_si512(to + static_cast<int64_t>(12 + r) * to_pitch,
                          _mm512_shuffle_i32x4(b[4 + r], b[12 + r], 0xdd));
    }
  }

  __m512 normalised(__m512i pixels, int t, bool backwards) const {
    constexpr __mmask64 kLowBytes = 0x1111111111111111ull;
    const __m512i value = _mm512_maskz_permutexvar_epi8(kLowBytes, pick_elements[backwards][t], pixels);
    return _mm512_fmadd_ps(_mm512_cvtepi32_ps(value), scale[t], shift[t]);
  }

  static __m256i narrow(__m512 value) {
    if constexpr (type == OutputType::kFloat16) {
      return _mm512_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    } else {
      return (__m256i)_mm512_cvtneps_pbh(value);
    }
  }

  static void store_whole(void* out, __m512i value) {
    if constexpr (stream) {
      _mm512_stream_si512(static_cast<__m512i*>(out), value);
    } else {
      _mm512_storeu_si512(out, value);
    }
  }

  // Stores the first `count` of 16 elements.
  static void store_part(Out* out, __m512 value, int count) {
    const auto mask = static_cast<__mmask16>(lane_mask(0, std::clamp(count, 0, 16)));
    if constexpr (type == OutputType::kFloat32) {
      _mm512_mask_storeu_ps(out, mask, value);
    } else {
      _mm256_mask_storeu_epi16(out, mask, narrow(value));
    }
  }

  static __m512i load_group(const uint32_t* pixels, int count, int x, bool backwards) {
    return _mm512_loadu_si512(backwards ? pixels + count - kBlock - x : pixels + x);
  }

  template <bool backwards>
  void emit(Out* out, const uint32_t* pixels, int count) const {
    int x = 0;
    if constexpr (type == OutputType::kFloat32) {
      for (; x + kBlock <= count; x += kBlock) {
        const __m512i group = load_group(pixels, count, x, backwards);
        for (int t = 0; t < channels; ++t, out += 16) {
          store_whole(out, _mm512_castps_si512(normalised(group, t, backwards)));
        }
      }
    } else {
      // Two groups of 16 pixels fill `channels` whole vectors of 32 elements.
      for (; x + 2 * kBlock <= count; x += 2 * kBlock) {
        const __m512i group[2] = {load_group(pixels, count, x, backwards),
                                  load_group(pixels, count, x + kBlock, backwards)};
        for (int t = 0; t < channels; ++t, out += 32) {
          const int low = 2 * t, high = 2 * t + 1;
          const __m256i first = narrow(normalised(group[low / channels], low % channels, backwards));
          const __m256i second = narrow(normalised(group[high / channels], high % channels, backwards));
          store_whole(out, _mm512_inserti64x4(_mm512_castsi256_si512(first), second, 1));
        }
      }
    }
    for (; x < count; x += kBlock) {
      // Guards around the scratch rows make reading past them harmless.
      const __m512i group = load_group(pixels, count, x, backwards);
      const int elements = std::min(kBlock, count - x) * channels;
      for (int t = 0; t < channels; ++t) {
        store_part(out + 16 * t, normalised(group, t, backwards), elements - 16 * t);
      }
      out += elements;
    }
  }

  void emit_row(Out* out, const uint32_t* pixels, int count, bool backwards) const {
    backwards ? emit<true>(out, pixels, count) : emit<false>(out, pixels, count);
  }

  __m512i widen_pixels[2];
  __m512i pick_elements[2][channels];
  __m512 scale[channels];
  __m512 shift[channels];
};

template <OutputType type, bool stream>
void run(const RotateJob& job, int64_t begin, int64_t end) {
  with_channels(job.channels, [&](auto channels) {
    rotate_images<Avx512Lanes<type, stream, decltype(channels)::value>>(job, begin, end);
  });
}

template <OutputType type>
void run(const RotateJob& job, int64_t begin, int64_t end, bool stream) {
  if (stream) {
    run<type, true>(job, begin, end);
    _mm_sfence();  // streaming stores are weakly ordered: finish them before another thread reads
  } else {
    run<type, false>(job, begin, end);
  }
}

}  // namespace

void rotate_range_avx512(const RotateJob& job, int64_t begin, int64_t end, bool stream) {
  // Streaming stores need aligned addresses in every row of the output.
  const int64_t row_bytes = static_cast<int64_t>(job.width) * job.channels * bytes_per_element(job.type);
  stream =
      stream && job.height == job.width && row_bytes % 64 == 0 && reinterpret_cast<uintptr_t>(job.views) % 64 == 0;
  with_type(job.type, [&](auto type) { run<decltype(type)::value>(job, begin, end, stream); });
}

}  // namespace rotnet::cpu

ROTNET_TARGET_END

#endif

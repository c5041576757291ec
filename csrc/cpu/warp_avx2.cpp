// The bilinear warp for processors with AVX2, FMA and F16C: four channels of four neighbours at a time.
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
#include "warp_image.h"

// In memory, a spread pixel is a vector of 32-bit lanes: channels 0, 2, 1, 3.
template <OutputType type, int channels>
struct Avx2WarpLanes {
  using Out = std::conditional_t<type == OutputType::kFloat32, uint32_t, uint16_t>;
  static constexpr int kChannels = channels;

  explicit Avx2WarpLanes(const WarpJob& job)
      : scale(_mm_mul_ps(_mm_loadu_ps(job.normalisation.scale), _mm_set1_ps(kGreyStep))),
        shift(_mm_loadu_ps(job.normalisation.shift)) {}

  void sample(Out* out, const SpreadPixel* crop, int pitch, const WarpPlan::Tap* taps, int count) const {
    constexpr int kDropped = 2 * kPositionBits - kGreyBits;
    for (int p = 0; p < count; ++p, out += channels) {
      const WarpPlan::Tap tap = taps[p];
      const SpreadPixel* from = crop + tap.offset;
      // Left and right neighbour in the halves of a vector: blended downwards, then with each other.
      const __m256i upper = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
      const __m256i lower = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + pitch));
      // Differences of bytes and weights fit 16 bits: one multiplication of those is enough.
      const __m256i moved = _mm256_madd_epi16(_mm256_sub_epi32(lower, upper), _mm256_set1_epi32(tap.down));
      const __m256i both = _mm256_add_epi32(_mm256_slli_epi32(upper, kPositionBits), moved);
      const __m128i left = _mm256_castsi256_si128(both), right = _mm256_extracti128_si256(both, 1);
      const __m128i sum = _mm_add_epi32(_mm_slli_epi32(left, kPositionBits),
                                        _mm_mullo_epi32(_mm_sub_epi32(right, left), _mm_set1_epi32(tap.right)));
      const __m128i level = _mm_srli_epi32(_mm_add_epi32(sum, _mm_set1_epi32(1 << (kDropped - 1))), kDropped);
      const __m128i ordered = _mm_shuffle_epi32(level, _MM_SHUFFLE(3, 1, 2, 0));
      // Whole vectors are stored: what is too much is overwritten by the next pixel.
      store(out, _mm_fmadd_ps(_mm_cvtepi32_ps(ordered), scale, shift));
    }
  }

  static void store(Out* out, __m128 value) {
    if constexpr (type == OutputType::kFloat32) {
      _mm_storeu_ps(reinterpret_cast<float*>(out), value);
    } else if constexpr (type == OutputType::kFloat16) {
      _mm_storel_epi64(reinterpret_cast<__m128i*>(out),
                       _mm_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
    } else {
      // Round to nearest, ties to even; values are finite.
      const __m128i bits = _mm_castps_si128(value);
      const __m128i odd = _mm_and_si128(_mm_srli_epi32(bits, 16), _mm_set1_epi32(1));
      const __m128i rounded = _mm_srli_epi32(_mm_add_epi32(_mm_add_epi32(bits, odd), _mm_set1_epi32(0x7fff)), 16);
      _mm_storel_epi64(reinterpret_cast<__m128i*>(out), _mm_packus_epi32(rounded, rounded));
    }
  }

  const __m128 scale;
  const __m128 shift;
};

}  // namespace

void warp_range_avx2(const WarpJob& job, const WarpPlan& plan, int64_t begin, int64_t end) {
  warp_images<Avx2WarpLanes>(job, plan, begin, end);
}

}  // namespace rotnet::cpu

ROTNET_TARGET_END

#endif

// BatchNorm and ReLU for processors with AVX2: 8 channels at a time.
#if defined(__x86_64__)

#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <type_traits>
#include <vector>

#include "batch_norm_cpu.h"
#include "float_bits.h"
#include "target.h"

ROTNET_TARGET_BEGIN("avx2")

namespace rotnet::cpu {
namespace {

struct Vector {
  static constexpr int kWidth = 8;

  static __m256 load(const float* from) { return _mm256_loadu_ps(from); }
  static __m256 load(const BFloat16* from) {
    const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
  }
  static void store(float* to, __m256 value) { _mm256_storeu_ps(to, value); }
  static void store(BFloat16* to, __m256 value) {
    const __m256 sign = _mm256_and_ps(value, _mm256_set1_ps(-0.0f));
    const __m256 small = _mm256_cmp_ps(_mm256_xor_ps(value, sign), _mm256_set1_ps(kSmallest), _CMP_LT_OQ);
    const __m256i bits = _mm256_castps_si256(_mm256_blendv_ps(value, sign, small));
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i rounded = _mm256_add_epi32(_mm256_add_epi32(bits, odd), _mm256_set1_epi32(0x7fff));
    // Rounding might carry a NaN over to 0.
    const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    const __m256i is_nan = _mm256_castps_si256(_mm256_cmp_ps(value, value, _CMP_UNORD_Q));
    const __m256i high = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, is_nan), 16);
    const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(high, high), 0x08);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_castsi256_si128(packed));
  }
  static __m256 where_active(__m256 y, __m256 value) {
    return _mm256_and_ps(_mm256_cmp_ps(y, _mm256_set1_ps(kSmallest), _CMP_NLT_UQ), value);
  }
};

#include "batch_norm_rows.h"

}  // namespace

constexpr BatchNormKernels kBatchNormAvx2 = {batch_norm_kernel<float>(), batch_norm_kernel<BFloat16>()};

}  // namespace rotnet::cpu

ROTNET_TARGET_END

#endif

// BatchNorm and ReLU for processors with AVX-512 F, BW, VL, DQ and BF16: 16 channels at a time.
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

ROTNET_TARGET_BEGIN("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")

namespace rotnet::cpu {
namespace {

struct Vector {
  static constexpr int kWidth = 16;

  static __m512 load(const float* from) { return _mm512_loadu_ps(from); }
  static __m512 load(const BFloat16* from) {
    const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
  }
  static void store(float* to, __m512 value) { _mm512_storeu_ps(to, value); }
  static void store(BFloat16* to, __m512 value) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), (__m256i)_mm512_cvtneps_pbh(value));
  }
  static __m512 where_active(__m512 y, __m512 value) {
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(y, _mm512_set1_ps(kSmallest), _CMP_NLT_UQ), value);
  }
};

#include "batch_norm_rows.h"

}  // namespace

constexpr BatchNormKernels kBatchNormAvx512 = {batch_norm_kernel<float>(), batch_norm_kernel<BFloat16>()};

}  // namespace rotnet::cpu

ROTNET_TARGET_END

#endif

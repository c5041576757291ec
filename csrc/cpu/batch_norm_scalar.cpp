// BatchNorm and ReLU for every processor: vectors of 16 bytes, which GCC and Clang make of what there is.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <type_traits>
#include <vector>

#include "batch_norm_cpu.h"
#include "float_bits.h"

namespace rotnet::cpu {
namespace {

struct Vector {
  static constexpr int kWidth = 4;
  typedef float Float __attribute__((vector_size(16)));
  typedef uint32_t Bits __attribute__((vector_size(16)));
  typedef uint16_t HalfBits __attribute__((vector_size(8)));

  static Float load(const float* from) {
    Float value;
    std::memcpy(&value, from, sizeof(value));
    return value;
  }
  static Float load(const BFloat16* from) {
    HalfBits half;
    std::memcpy(&half, from, sizeof(half));
    return (Float)(__builtin_convertvector(half, Bits) << 16);
  }
  static void store(float* to, Float value) { std::memcpy(to, &value, sizeof(value)); }
  static void store(BFloat16* to, Float value) {
    const Bits bits = (Bits)value, sign = bits & 0x80000000u;
    const Bits small = (Bits)((Float)(bits ^ sign) < kSmallest);
    const Bits rounded = ((bits + 0x7fffu + ((bits >> 16) & 1u)) & ~small) | (sign & small);
    const Bits kept = value == value ? rounded : (bits | 0x400000u);  // rounding might carry a NaN over to 0
    const HalfBits half = __builtin_convertvector(kept >> 16, HalfBits);
    std::memcpy(to, &half, sizeof(half));
  }
  static Float where_active(Float y, Float value) { return y < kSmallest ? Float{} : value; }
};

#include "batch_norm_rows.h"

}  // namespace

constexpr BatchNormKernels kBatchNormScalar = {batch_norm_kernel<float>(), batch_norm_kernel<BFloat16>()};

}  // namespace rotnet::cpu

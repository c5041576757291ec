// What the parts of the C++ test share.
#pragma once

#include <cstdio>
#include <type_traits>

#include "../../csrc/cpu/float_bits.h"
#include "../../csrc/rotnet/job.h"

inline int failures = 0;

inline void expect(bool condition, const char* what) {
  if (!condition) {
    std::printf("FAILED: %s\n", what);
    ++failures;
  }
}

// The casts of the CUDA kernels, for the host.
template <rotnet::OutputType type>
struct HostCast {
  using Bits = std::conditional_t<type == rotnet::OutputType::kFloat32, uint32_t, uint16_t>;
  static Bits bits(float value) {
    if constexpr (type == rotnet::OutputType::kFloat32) return rotnet::cpu::float32_bits(value);
    if constexpr (type == rotnet::OutputType::kBFloat16) return rotnet::cpu::bfloat16_bits(value);
    if constexpr (type == rotnet::OutputType::kFloat16) return rotnet::cpu::float16_bits(value);
  }
  static uint32_t word(const float (&values)[4 / sizeof(Bits)]) {
    uint32_t word = 0;
    for (size_t k = 0; k < 4 / sizeof(Bits); ++k) word |= static_cast<uint32_t>(bits(values[k])) << (16 * k);
    return word;
  }
};

// The bits of a value in a job's output type, and those that the job's views hold.
inline uint32_t cast_bits(const rotnet::RotateJob& job, float value) {
  switch (job.type) {
    case rotnet::OutputType::kFloat32:
      return rotnet::cpu::float32_bits(value);
    case rotnet::OutputType::kBFloat16:
      return rotnet::cpu::bfloat16_bits(value);
    default:
      return rotnet::cpu::float16_bits(value);
  }
}

inline uint32_t found_bits(const rotnet::RotateJob& job, int64_t element) {
  return job.type == rotnet::OutputType::kFloat32 ? static_cast<const uint32_t*>(job.views)[element]
                                                  : static_cast<const uint16_t*>(job.views)[element];
}

// test_warp.cpp: the bilinear warp, on the CPU and as the CUDA kernel's code on the host.
void check_warp();

// test_batch_norm.cpp: the kernels of BatchNorm and ReLU.
void check_batch_norm();

// Normalisation of a uint8 value: float32(value * scale + shift) with one rounding.
//
// scale and shift are float32. Their product with an 8-bit value is exact in float64, and so is the
// sum for the ranges of mean and std that the op admits; one rounding to float32 remains. A fused
// multiply-add in float32 computes the same, so table look-up, AVX-512 and CUDA agree bit for bit.
#pragma once

#include <cstdint>

#include "macros.h"

namespace rotnet {

struct Normalisation {
  float scale[4];
  float shift[4];
};

inline Normalisation make_normalisation(const double* mean, const double* std, int channels) {
  Normalisation result{};
  for (int c = 0; c < channels; ++c) {
    result.scale[c] = static_cast<float>(1.0 / (255.0 * std[c]));
    result.shift[c] = static_cast<float>(-mean[c] / std[c]);
  }
  return result;
}

inline float normalise(uint8_t value, float scale, float shift) {
  return static_cast<float>(static_cast<double>(value) * static_cast<double>(scale) + static_cast<double>(shift));
}

// The same for a grey level with eight fractional bits (0..65280), as in the warp. Scaling by a
// power of two is exact; the sum is exact for |mean| up to 2^20 / 255.
constexpr float kGreyStep = 1.0f / 256.0f;

inline float normalise_grey_level(uint32_t level, float scale, float shift) {
  return static_cast<float>(static_cast<double>(level) * static_cast<double>(scale * kGreyStep) +
                            static_cast<double>(shift));
}

}  // namespace rotnet

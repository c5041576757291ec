// Rounding of float32 to the 16-bit types (nearest, ties to even), for finite values.
#pragma once

#include <cstdint>
#include <cstring>

namespace rotnet::cpu {

inline uint32_t float32_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}

inline uint16_t bfloat16_bits(float value) {
  const uint32_t bits = float32_bits(value);
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

inline uint16_t float16_bits(float value) {
  const uint32_t bits = float32_bits(value);
  const auto sign = static_cast<uint16_t>((bits >> 16) & 0x8000u);
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude >= 0x477ff000u) return sign | 0x7c00u;  // rounds to 65536 or more: infinity
  if (magnitude < 0x38800000u) {
    // Below 2^-14 the result is a multiple of 2^-24: adding 0.5 leaves just those bits, rounded.
    float shifted;
    std::memcpy(&shifted, &magnitude, sizeof(shifted));
    shifted += 0.5f;
    return sign | static_cast<uint16_t>(float32_bits(shifted) - 0x3f000000u);
  }
  // Rebias the exponent (15 - 127), drop 13 bits of the significand, round to even.
  const uint32_t rounded = magnitude + 0xc8000fffu + ((magnitude >> 13) & 1u);
  return sign | static_cast<uint16_t>(rounded >> 13);
}

}  // namespace rotnet::cpu

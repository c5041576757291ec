// Philox4x32-10, a counter-based random generator: a pure function of counter and key.
// Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
#pragma once

#include <cstdint>

#include "macros.h"

namespace rotnet {

struct Philox4x32 {
  uint32_t word[4];
};

ROTNET_HOST_DEVICE uint32_t multiply_high(uint32_t a, uint32_t b) {
  return static_cast<uint32_t>((static_cast<uint64_t>(a) * b) >> 32);
}

// Ten rounds; `counter` and `key` are low word first.
ROTNET_HOST_DEVICE Philox4x32 philox4x32(Philox4x32 counter, uint32_t key0, uint32_t key1) {
  constexpr uint32_t kMultiplier0 = 0xD2511F53u, kMultiplier1 = 0xCD9E8D57u;
  constexpr uint32_t kWeyl0 = 0x9E3779B9u, kWeyl1 = 0xBB67AE85u;
  for (int round = 0; round < 10; ++round) {
    const uint32_t high0 = multiply_high(kMultiplier0, counter.word[0]);
    const uint32_t low0 = kMultiplier0 * counter.word[0];
    const uint32_t high1 = multiply_high(kMultiplier1, counter.word[2]);
    const uint32_t low1 = kMultiplier1 * counter.word[2];
    counter = {{high1 ^ counter.word[1] ^ key0, low1, high0 ^ counter.word[3] ^ key1, low0}};
    key0 += kWeyl0;
    key1 += kWeyl1;
  }
  return counter;
}

}  // namespace rotnet

// The random draws of one image: where it is cropped and whether it is flipped.
#pragma once

#include <cstdint>

#include "macros.h"
#include "philox.h"

namespace rotnet {

// Streams of draws, the fourth counter word. rotnet_fast/philox.py uses the same numbers.
constexpr uint32_t kPurposeAugmentation = 0;

struct Augmentation {
  int top;   // the crop's first row in the padded image, 0..2*pad
  int left;  // the crop's first column in the padded image, 0..2*pad
  bool flip;
};

// Probability as a threshold on a 32-bit draw; 2^32 (always) does not fit 32 bits, hence 64.
inline uint64_t flip_threshold(double probability) { return static_cast<uint64_t>(probability * 4294967296.0); }

ROTNET_HOST_DEVICE Augmentation draw_augmentation(int64_t sample_id, int64_t seed, int64_t epoch, int pad,
                                                  uint64_t threshold) {
  const auto id = static_cast<uint64_t>(sample_id);
  const auto key = static_cast<uint64_t>(seed);
  const Philox4x32 counter = {{static_cast<uint32_t>(id), static_cast<uint32_t>(id >> 32),
                               static_cast<uint32_t>(epoch), kPurposeAugmentation}};
  const Philox4x32 draw = philox4x32(counter, static_cast<uint32_t>(key), static_cast<uint32_t>(key >> 32));
  const uint32_t cells = 2u * static_cast<uint32_t>(pad) + 1u;
  return {static_cast<int>(multiply_high(draw.word[0], cells)),
          static_cast<int>(multiply_high(draw.word[1], cells)), draw.word[2] < threshold};
}

}  // namespace rotnet

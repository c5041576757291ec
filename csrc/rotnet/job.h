// One call of the rotate-and-batch op as plain pointers and numbers, shared by both backends.
#pragma once

#include <cstdint>

#include "normalise.h"

namespace rotnet {

enum class OutputType { kFloat32, kBFloat16, kFloat16 };

inline int bytes_per_element(OutputType type) { return type == OutputType::kFloat32 ? 4 : 2; }

constexpr int kMaxViews = 64;

struct RotateJob {
  const uint8_t* images;      // [num_images, height, width, channels]
  const int64_t* indices;     // [batch], or null: 0, 1, ..., batch - 1
  const int64_t* sample_ids;  // [batch], or null: the indices
  const int64_t* key;         // [2] (seed, epoch) in the memory of the device, or null: the two below
  int64_t seed;
  int64_t epoch;
  int64_t num_images;
  int64_t batch;
  int height;
  int width;
  int channels;  // 1..4
  int pad;
  int num_views;             // K
  uint8_t turns[kMaxViews];  // quarter turns counter-clockwise, 0..3
  uint64_t flip_threshold;   // of 2^32
  Normalisation normalisation;
  OutputType type;
  void* views;      // [batch * K, height, width, channels]
  int64_t* labels;  // [batch * K]
};

}  // namespace rotnet

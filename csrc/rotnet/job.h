// One call of the rotate-and-batch op as plain pointers and numbers, shared by both backends.
#pragma once

#include <cstdint>
#include <type_traits>

#include "normalise.h"

namespace rotnet {

enum class OutputType { kFloat32, kBFloat16, kFloat16 };

// Call a generic function with a number that is known at run time as a constant, which selects a template's instance.
template <class Function>
auto with_type(OutputType type, const Function& function) {
  switch (type) {
    case OutputType::kFloat32:
      return function(std::integral_constant<OutputType, OutputType::kFloat32>{});
    case OutputType::kBFloat16:
      return function(std::integral_constant<OutputType, OutputType::kBFloat16>{});
    default:
      return function(std::integral_constant<OutputType, OutputType::kFloat16>{});
  }
}

template <class Function>
auto with_channels(int channels, const Function& function) {
  switch (channels) {
    case 1:
      return function(std::integral_constant<int, 1>{});
    case 2:
      return function(std::integral_constant<int, 2>{});
    case 3:
      return function(std::integral_constant<int, 3>{});
    default:
      return function(std::integral_constant<int, 4>{});
  }
}

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

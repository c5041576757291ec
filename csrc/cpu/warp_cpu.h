// CPU backend of the bilinear warp, without torch.
#pragma once

#include <cstdint>
#include <vector>

#include "../rotnet/warp.h"

namespace rotnet::cpu {

// Data shared by all images of a call: where to sample each pixel of a view.
struct WarpPlan {
  struct Tap {
    int32_t offset;  // of the upper left pixel in a crop of `pitch` pixels per row
    uint16_t down, right;
  };
  // The views that differ by whole quarter turns, and their samples. A quarter turn of the view is a
  // quarter turn of the samples: they are worked out once for all of these views.
  struct Group {
    std::vector<int> views;
    std::vector<Tap> taps;  // [W, W]
  };
  std::vector<Group> groups;
  int pitch;
};

WarpPlan plan_warp(const WarpJob& job);

// Makes the views and labels of batch positions [begin, end). Indices must have been checked.
using WarpRange = void (*)(const WarpJob& job, const WarpPlan& plan, int64_t begin, int64_t end);

void warp_range_scalar(const WarpJob& job, const WarpPlan& plan, int64_t begin, int64_t end);
#if defined(__x86_64__)
void warp_range_avx2(const WarpJob& job, const WarpPlan& plan, int64_t begin, int64_t end);
#endif

}  // namespace rotnet::cpu

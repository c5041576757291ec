// Data shared by all images of a warp.
#include "warp_cpu.h"

#include <algorithm>

namespace rotnet::cpu {

WarpPlan plan_warp(const WarpJob& job) {
  WarpPlan plan;
  plan.pitch = std::max(job.width, 2);  // a lone pixel has neighbours, too, of weight 0
  std::vector<int64_t> sines;           // one per group
  for (int k = 0; k < job.num_views; ++k) {
    const auto found = std::find(sines.begin(), sines.end(), job.angles[k].sine);
    const auto group = static_cast<size_t>(found - sines.begin());
    if (found == sines.end()) {
      sines.push_back(job.angles[k].sine);
      plan.groups.emplace_back();
    }
    plan.groups[group].views.push_back(k);
  }
  for (WarpPlan::Group& group : plan.groups) {
    const WarpAngle& angle = job.angles[group.views.front()];
    group.taps.reserve(static_cast<size_t>(job.width) * job.width);
    for (int i = 0; i < job.width; ++i) {
      for (int j = 0; j < job.width; ++j) {
        const WarpTap tap = warp_tap(angle, i, j, job.width);
        group.taps.push_back({tap.row * plan.pitch + tap.column, static_cast<uint16_t>(tap.down),
                              static_cast<uint16_t>(tap.right)});
      }
    }
  }
  return plan;
}

}  // namespace rotnet::cpu

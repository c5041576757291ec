// Which CPU kernel runs, and how.
#include "rotate_cpu.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

#if defined(__linux__)
#include <unistd.h>
#endif

namespace rotnet::cpu {
namespace {

// From slowest to fastest of those that this processor runs.
struct Kernels {
  Kernel list[3];
  int count = 0;
};

Kernels available_kernels() {
  Kernels kernels;
  kernels.list[kernels.count++] = {"scalar", rotate_range_scalar};
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c")) {
    kernels.list[kernels.count++] = {"avx2", rotate_range_avx2};
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512bf16")) {
      kernels.list[kernels.count++] = {"avx512", rotate_range_avx512};
    }
  }
#endif
  return kernels;
}

Kernel choose_kernel() {
  const Kernels kernels = available_kernels();
  const char* wanted = std::getenv("ROTNET_CPU_KERNEL");
  if (wanted == nullptr || *wanted == '\0') return kernels.list[kernels.count - 1];
  std::string names;
  for (int i = 0; i < kernels.count; ++i) {
    if (std::strcmp(kernels.list[i].name, wanted) == 0) return kernels.list[i];
    names += (i ? ", " : "") + std::string(kernels.list[i].name);
  }
  throw std::runtime_error("ROTNET_CPU_KERNEL is '" + std::string(wanted) + "'; this processor runs: " + names);
}

int64_t last_level_cache_bytes() {
#if defined(_SC_LEVEL3_CACHE_SIZE)
  const long bytes = sysconf(_SC_LEVEL3_CACHE_SIZE);
  if (bytes > 0) return bytes;
#endif
  return int64_t{32} << 20;
}

int64_t view_bytes_per_image(const RotateJob& job) {
  return int64_t{job.num_views} * job.height * job.width * job.channels * bytes_per_element(job.type);
}

}  // namespace

const Kernel& selected_kernel() {
  static const Kernel kernel = choose_kernel();
  return kernel;
}

bool should_stream(const RotateJob& job) {
  static const int64_t limit = last_level_cache_bytes() / 2;
  return job.batch * view_bytes_per_image(job) > limit;
}

int64_t first_bad_index(const RotateJob& job) {
  if (job.indices == nullptr) return -1;
  for (int64_t n = 0; n < job.batch; ++n) {
    if (job.indices[n] < 0 || job.indices[n] >= job.num_images) return n;
  }
  return -1;
}

int64_t images_per_thread(const RotateJob& job) {
  // Waking a thread costs a few microseconds, the time in which one thread writes about 128 KiB.
  return std::max<int64_t>(1, (int64_t{128} << 10) / view_bytes_per_image(job));
}

}  // namespace rotnet::cpu

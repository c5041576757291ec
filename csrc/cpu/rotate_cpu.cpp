// Selection and launch of the CPU kernel.
#include "rotate_cpu.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <stdexcept>
#include <string>

namespace rotnet::cpu {
namespace {

struct Kernels {
  Kernel list[3];
  int count = 0;
};

#if defined(__x86_64__)
// Older versions of clang do not know the name for __builtin_cpu_supports.
bool has_f16c() {
  unsigned int a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid(1, &a, &b, &c, &d) != 0 && (c & bit_F16C) != 0;
}
#endif

Kernels find_kernels() {
  Kernels kernels;
  kernels.list[kernels.count++] = {"scalar", rotate_range_scalar, warp_range_scalar, &kBatchNormScalar};
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c()) {
    kernels.list[kernels.count++] = {"avx2", rotate_range_avx2, warp_range_avx2, &kBatchNormAvx2};
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512bf16")) {
      // The warp of a pixel fits the vectors of AVX2: no code of its own.
      kernels.list[kernels.count++] = {"avx512", rotate_range_avx512, warp_range_avx2, &kBatchNormAvx512};
    }
  }
#endif
  return kernels;
}

Kernel choose_kernel() {
  int count = 0;
  const Kernel* kernels = available_kernels(&count);
  const char* wanted = std::getenv("ROTNET_CPU_KERNEL");
  if (wanted == nullptr || *wanted == '\0') return kernels[count - 1];
  std::string names;
  for (int i = 0; i < count; ++i) {
    if (std::strcmp(kernels[i].name, wanted) == 0) return kernels[i];
    names += (i ? ", " : "") + std::string(kernels[i].name);
  }
  throw std::runtime_error("ROTNET_CPU_KERNEL is '" + std::string(wanted) + "'; this processor runs: " + names);
}

// Size of the third-level cache that one core shares. Not sysconf(_SC_LEVEL3_CACHE_SIZE): on
// processors of several dies it adds up all of them (320 MiB where a core reaches 32).
int64_t last_level_cache_bytes() {
  int64_t kibibytes = 0;
  std::ifstream("/sys/devices/system/cpu/cpu0/cache/index3/size") >> kibibytes;
  return kibibytes > 0 ? kibibytes << 10 : int64_t{32} << 20;
}

int64_t view_bytes_per_image(const RotateJob& job) {
  return int64_t{job.num_views} * job.height * job.width * job.channels * bytes_per_element(job.type);
}

}  // namespace

const Kernel* available_kernels(int* count) {
  static const Kernels kernels = find_kernels();
  *count = kernels.count;
  return kernels.list;
}

const Kernel& selected_kernel() {
  static const Kernel kernel = choose_kernel();
  return kernel;
}

bool should_stream(const RotateJob& job) {
  // Beyond half the cache, ordinary stores read each line from memory before they overwrite it.
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

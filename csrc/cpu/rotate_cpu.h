// CPU backend of the rotate-and-batch op, without torch.
#pragma once

#include <cstdint>

#include "../rotnet/job.h"
#include "batch_norm_cpu.h"
#include "warp_cpu.h"

namespace rotnet::cpu {

// Makes the views and labels of batch positions [begin, end). Indices must have been checked.
// `stream`: write around the caches (for outputs that do not fit them).
using RotateRange = void (*)(const RotateJob& job, int64_t begin, int64_t end, bool stream);

void rotate_range_scalar(const RotateJob& job, int64_t begin, int64_t end, bool stream);
#if defined(__x86_64__)
void rotate_range_avx2(const RotateJob& job, int64_t begin, int64_t end, bool stream);
void rotate_range_avx512(const RotateJob& job, int64_t begin, int64_t end, bool stream);
#endif

struct Kernel {
  const char* name;
  RotateRange run;
  WarpRange warp = nullptr;
  const BatchNormKernels* batch_norm = nullptr;
};

// The kernels that this processor runs, slowest first.
const Kernel* available_kernels(int* count);

// The fastest of them. The environment variable ROTNET_CPU_KERNEL
// (scalar, avx2, avx512) names a slower one, for tests and measurements; a name that is unknown or
// that this processor does not run throws std::runtime_error. Decided once per process.
const Kernel& selected_kernel();

// Whether the outputs of `job` are large enough for streaming stores to pay off.
bool should_stream(const RotateJob& job);

// Position of the first index outside [0, num_images), or -1.
int64_t first_bad_index(const RotateJob& job);

// Smallest number of images worth a separate thread.
int64_t images_per_thread(const RotateJob& job);

}  // namespace rotnet::cpu

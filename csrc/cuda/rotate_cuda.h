// CUDA backend of the rotate-and-batch op, without torch.
#pragma once

#include <cuda_runtime_api.h>

#include "../rotnet/job.h"
#include "../rotnet/warp.h"

namespace rotnet::cuda {

// Launches one kernel on `stream`; all pointers of the job are in the memory of the current device.
// Images whose index lies outside [0, num_images) get NaN in every element of their views.
cudaError_t rotate(const RotateJob& job, cudaStream_t stream);

// The same with the bilinear warp.
cudaError_t warp(const WarpJob& job, cudaStream_t stream);

}  // namespace rotnet::cuda

// From a job's output type and channels to template arguments, for the CUDA kernels.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>

#include "../rotnet/job.h"

namespace rotnet::cuda {

// Each rounds float32 to an output type and gives the bits of one number, and of as many as fill a word.
struct CastFloat32 {
  using Bits = uint32_t;
  __device__ static Bits bits(float value) { return __float_as_uint(value); }
  __device__ static uint32_t word(const float (&values)[1]) { return __float_as_uint(values[0]); }
};
struct CastBFloat16 {
  using Bits = uint16_t;
  __device__ static Bits bits(float value) { return __bfloat16_as_ushort(__float2bfloat16_rn(value)); }
  __device__ static uint32_t word(const float (&values)[2]) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(values[0], values[1]);  // one instruction from 8.0 on
    return static_cast<uint32_t>(__bfloat16_as_ushort(pair.y)) << 16 | __bfloat16_as_ushort(pair.x);
  }
};
struct CastFloat16 {
  using Bits = uint16_t;
  __device__ static Bits bits(float value) { return __half_as_ushort(__float2half_rn(value)); }
  __device__ static uint32_t word(const float (&values)[2]) {
    const __half2 pair = __floats2half2_rn(values[0], values[1]);
    return static_cast<uint32_t>(__half_as_ushort(pair.y)) << 16 | __half_as_ushort(pair.x);
  }
};

// Calls `launch(cast, channels)`, whose argument types select the kernel.
template <class Launch>
cudaError_t dispatch(const RotateJob& job, const Launch& launch) {
  return with_channels(job.channels, [&](auto channels) {
    switch (job.type) {
      case OutputType::kFloat32:
        return launch(CastFloat32{}, channels);
      case OutputType::kBFloat16:
        return launch(CastBFloat16{}, channels);
      default:
        return launch(CastFloat16{}, channels);
    }
  });
}

}  // namespace rotnet::cuda

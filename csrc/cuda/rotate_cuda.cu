// One launch: gather, crop, flip, K rotations, normalise, cast, interleave, label. See tile.h.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "rotate_cuda.h"
#include "tile.h"

namespace rotnet::cuda {
namespace {

struct CastFloat32 {
  using Bits = uint32_t;
  __device__ static Bits bits(float value) { return __float_as_uint(value); }
};
struct CastBFloat16 {
  using Bits = uint16_t;
  __device__ static Bits bits(float value) { return __bfloat16_as_ushort(__float2bfloat16_rn(value)); }
};
struct CastFloat16 {
  using Bits = uint16_t;
  __device__ static Bits bits(float value) { return __half_as_ushort(__float2half_rn(value)); }
};

template <class Cast, int C, bool kVector>
__global__ void __launch_bounds__(kThreads)
    rotate_kernel(const __grid_constant__ RotateJob job, const __grid_constant__ Grid grid) {
  __shared__ Tile tile;
  const Block block = make_block(job, grid, blockIdx.x);
  load_tile<C>(job, block, static_cast<int>(threadIdx.x), tile);
  __syncthreads();
  write_views<Cast, C, kVector>(job, block, static_cast<int>(threadIdx.x), tile);
}

template <class Cast, int C>
cudaError_t launch(const RotateJob& job, cudaStream_t stream) {
  int device = 0, processors = 0;
  if (const cudaError_t error = cudaGetDevice(&device); error != cudaSuccess) return error;
  if (const cudaError_t error = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
      error != cudaSuccess) {
    return error;
  }
  const Grid grid = make_grid(job, int64_t{4} * processors);
  const auto blocks = static_cast<unsigned>(grid.blocks);
  if (rows_are_vectors(job)) {
    rotate_kernel<Cast, C, true><<<blocks, kThreads, 0, stream>>>(job, grid);
  } else {
    rotate_kernel<Cast, C, false><<<blocks, kThreads, 0, stream>>>(job, grid);
  }
  return cudaGetLastError();
}

template <class Cast>
cudaError_t launch(const RotateJob& job, cudaStream_t stream) {
  switch (job.channels) {
    case 1:
      return launch<Cast, 1>(job, stream);
    case 2:
      return launch<Cast, 2>(job, stream);
    case 3:
      return launch<Cast, 3>(job, stream);
    default:
      return launch<Cast, 4>(job, stream);
  }
}

}  // namespace

cudaError_t rotate(const RotateJob& job, cudaStream_t stream) {
  if (job.batch == 0) return cudaSuccess;
  switch (job.type) {
    case OutputType::kFloat32:
      return launch<CastFloat32>(job, stream);
    case OutputType::kBFloat16:
      return launch<CastBFloat16>(job, stream);
    default:
      return launch<CastFloat16>(job, stream);
  }
}

}  // namespace rotnet::cuda

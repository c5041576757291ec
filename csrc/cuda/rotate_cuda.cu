// One launch: gather, crop, flip, K rotations, normalise, cast, interleave, label. See tile.h.
#include "dispatch.h"
#include "rotate_cuda.h"
#include "tile.h"

namespace rotnet::cuda {
namespace {

template <class Cast, int C, bool kVector>
__global__ void __launch_bounds__(kThreads)
    rotate_kernel(const __grid_constant__ RotateJob job, const __grid_constant__ Grid grid) {
  __shared__ Tile tile;
  __shared__ Augmentation draw;
  const Block block = make_block(job, grid, blockIdx.x);
  if (threadIdx.x == 0) draw = draw_block(job, block);
  __syncthreads();
  load_tile<C>(job, block, draw, static_cast<int>(threadIdx.x), tile);
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

}  // namespace

cudaError_t rotate(const RotateJob& job, cudaStream_t stream) {
  if (job.batch == 0) return cudaSuccess;
  return dispatch(job, [&](auto cast, auto channels) {
    return launch<decltype(cast), decltype(channels)::value>(job, stream);
  });
}

}  // namespace rotnet::cuda

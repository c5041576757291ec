// One launch: gather, crop, flip, warp to K views, normalise, cast, interleave, label. See warp_pixel.h.
#include "dispatch.h"
#include "rotate_cuda.h"
#include "warp_pixel.h"

namespace rotnet::cuda {
namespace {

template <class Cast, int C>
__global__ void __launch_bounds__(kWarpThreads)
    warp_kernel(const __grid_constant__ WarpJob job, unsigned blocks_per_view) {
  const unsigned view = blockIdx.x / blocks_per_view, block = blockIdx.x % blocks_per_view;
  warp_pixel<Cast, C>(job, view, block * kWarpThreads + threadIdx.x);
}

}  // namespace

cudaError_t warp(const WarpJob& job, cudaStream_t stream) {
  if (job.batch == 0) return cudaSuccess;
  const auto blocks_per_view = static_cast<unsigned>(warp_blocks_per_view(job));
  // Never more blocks than output elements, of which there are fewer than 2^31.
  const auto blocks = static_cast<unsigned>(job.batch * job.num_views) * blocks_per_view;
  return dispatch(job, [&](auto cast, auto channels) {
    warp_kernel<decltype(cast), decltype(channels)::value><<<blocks, kWarpThreads, 0, stream>>>(job, blocks_per_view);
    return cudaGetLastError();
  });
}

}  // namespace rotnet::cuda

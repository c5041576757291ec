// One launch: gather, crop, flip, warp to K views, normalise, cast, interleave, label. See warp_tile.h.
#include "dispatch.h"
#include "rotate_cuda.h"
#include "warp_tile.h"

namespace rotnet::cuda {
namespace {

template <class Cast, int C, bool kVector>
__global__ void __launch_bounds__(kThreads)
    warp_kernel(const __grid_constant__ WarpJob job, const __grid_constant__ Grid grid,
                const __grid_constant__ WarpGroups groups) {
  __shared__ Window window;
  __shared__ LevelTile tile;
  __shared__ Augmentation draw;
  const auto thread = static_cast<int>(threadIdx.x);
  const WarpBlock block = make_warp_block(job, grid, groups, blockIdx.x);
  if (thread == 0) draw = draw_block(job, block);
  __syncthreads();
  load_window<C>(job, block, draw, thread, window);
  __syncthreads();
  sample_tile<C>(job, block, groups, thread, window, tile);
  __syncthreads();
  write_warped<Cast, C, kVector>(job, block, groups, thread, tile);
}

}  // namespace

cudaError_t warp(const WarpJob& job, cudaStream_t stream) {
  if (job.batch == 0) return cudaSuccess;
  const WarpGroups groups = make_groups(job);
  const Grid grid = make_warp_grid(job, groups);
  // Never more blocks than output elements, of which there are fewer than 2^31.
  const auto blocks = static_cast<unsigned>(grid.blocks);
  return dispatch(job, [&](auto cast, auto channels) {
    using Cast = decltype(cast);
    constexpr int C = decltype(channels)::value;
    if (rows_are_vectors(job)) {
      warp_kernel<Cast, C, true><<<blocks, kThreads, 0, stream>>>(job, grid, groups);
    } else {
      warp_kernel<Cast, C, false><<<blocks, kThreads, 0, stream>>>(job, grid, groups);
    }
    return cudaGetLastError();
  });
}

}  // namespace rotnet::cuda

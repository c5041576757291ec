// One launch: gather, crop, flip, K rotations, normalise, cast, interleave, label.
//
// A block takes one 32 x 32 tile of one image's upright crop into shared memory as 32-bit pixels and
// writes it into the K views: one read, K writes. A 32 x 32 image is a single tile. Row pitch 33
// keeps both the rows (turns 0, 2) and the columns (turns 1, 3) free of bank conflicts.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "../rotnet/geometry.h"
#include "rotate_cuda.h"

namespace rotnet::cuda {
namespace {

constexpr int kTile = 32;
constexpr int kThreads = 256;
constexpr int kVectorBytes = 16;

// Vectors need every tile row of every view to start at a multiple of 16 bytes.
constexpr bool tile_rows_are_vectors(int channels, int element_bytes) {
  return kTile * channels * element_bytes % kVectorBytes == 0;
}
static_assert(tile_rows_are_vectors(1, 2), "a full tile row is a whole number of vectors");

template <typename Out>
__device__ __forceinline__ Out cast(float value);
template <>
__device__ __forceinline__ float cast<float>(float value) {
  return value;
}
template <>
__device__ __forceinline__ __nv_bfloat16 cast<__nv_bfloat16>(float value) {
  return __float2bfloat16_rn(value);
}
template <>
__device__ __forceinline__ __half cast<__half>(float value) {
  return __float2half_rn(value);
}

// Selects instead of an indexed array: an index that differs between lanes would go to local memory.
template <int C>
__device__ __forceinline__ float pick(const float (&values)[4], int channel) {
  float result = values[0];
#pragma unroll
  for (int c = 1; c < C; ++c) result = channel == c ? values[c] : result;
  return result;
}

template <typename Out, int C, bool kVector>
__global__ void __launch_bounds__(kThreads)
    rotate_kernel(const __grid_constant__ RotateJob job, int tiles_down, int tiles_across, bool split_views) {
  __shared__ uint32_t tile[kTile][kTile + 1];

  // Which image, tile and views this block serves.
  unsigned block = blockIdx.x;
  int first_view = 0, end_view = job.num_views;
  if (split_views) {
    first_view = static_cast<int>(block % static_cast<unsigned>(job.num_views));
    end_view = first_view + 1;
    block /= static_cast<unsigned>(job.num_views);
  }
  const int x0 = static_cast<int>(block % static_cast<unsigned>(tiles_across)) * kTile;
  block /= static_cast<unsigned>(tiles_across);
  const int y0 = static_cast<int>(block % static_cast<unsigned>(tiles_down)) * kTile;
  const int64_t n = block / static_cast<unsigned>(tiles_down);
  const int tile_height = min(kTile, job.height - y0), tile_width = min(kTile, job.width - x0);

  const int64_t index = job.indices ? job.indices[n] : n;
  const bool valid = index >= 0 && index < job.num_images;
  const int64_t sample_id = job.sample_ids ? job.sample_ids[n] : index;
  const Augmentation draw =
      draw_augmentation(sample_id, job.key ? job.key[0] : job.seed, job.key ? job.key[1] : job.epoch, job.pad,
                        job.flip_threshold);
  const uint8_t* image = job.images + (valid ? index : 0) * job.height * job.width * C;

  for (int p = threadIdx.x; p < kTile * kTile; p += kThreads) {
    const int row = p / kTile, column = p % kTile;
    if (row >= tile_height || column >= tile_width) continue;
    const Position stored = uncrop(draw, job.pad, y0 + row, x0 + column, job.width);
    uint32_t pixel = 0;
    if (valid && stored.row >= 0 && stored.row < job.height && stored.column >= 0 && stored.column < job.width) {
      const uint8_t* source = image + (static_cast<int64_t>(stored.row) * job.width + stored.column) * C;
#pragma unroll
      for (int c = 0; c < C; ++c) pixel |= static_cast<uint32_t>(__ldg(source + c)) << (8 * c);
    }
    tile[row][column] = pixel;
  }
  __syncthreads();

  float scale[4], shift[4];
#pragma unroll
  for (int c = 0; c < C; ++c) {
    // An index out of range shows as NaN: checking it on the host would stop the device.
    scale[c] = valid ? job.normalisation.scale[c] : __int_as_float(0x7fffffff);
    shift[c] = job.normalisation.shift[c];
  }
  const auto element = [&](uint32_t pixel, int channel) {
    const auto value = static_cast<float>((pixel >> (8 * channel)) & 0xffu);
    return cast<Out>(__fmaf_rn(value, pick<C>(scale, channel), pick<C>(shift, channel)));
  };

  for (int k = first_view; k < end_view; ++k) {
    const int turn = job.turns[k];
    // The turned tile: rows x columns of the view, its corner at (top, left).
    const bool sideways = turn % 2 != 0;
    const int rows = sideways ? tile_width : tile_height, columns = sideways ? tile_height : tile_width;
    const int view_width = sideways ? job.height : job.width;
    const int from_right = job.width - x0 - tile_width, from_bottom = job.height - y0 - tile_height;
    const int top = turn == 0 ? y0 : turn == 1 ? from_right : turn == 2 ? from_bottom : x0;
    const int left = turn == 0 ? x0 : turn == 1 ? y0 : turn == 2 ? from_right : from_bottom;
    Out* view = static_cast<Out*>(job.views) +
                (n * job.num_views + k) * (static_cast<int64_t>(job.height) * job.width * C) +
                (static_cast<int64_t>(top) * view_width + left) * C;

    if constexpr (kVector) {
      constexpr int kElements = kVectorBytes / sizeof(Out);
      const int vectors_per_row = columns * C / kElements;
      for (int v = threadIdx.x; v < rows * vectors_per_row; v += kThreads) {
        const int i = v / vectors_per_row;
        const int first = (v - i * vectors_per_row) * kElements;
        int j = first / C, channel = first % C;
        Position from = unrotate(turn, i, j, tile_height, tile_width);
        uint32_t pixel = tile[from.row][from.column];
        alignas(kVectorBytes) Out elements[kElements];
#pragma unroll
        for (int e = 0; e < kElements; ++e) {
          elements[e] = element(pixel, channel);
          if (++channel == C && e + 1 < kElements) {
            channel = 0;
            from = unrotate(turn, i, ++j, tile_height, tile_width);
            pixel = tile[from.row][from.column];
          }
        }
        *reinterpret_cast<uint4*>(view + static_cast<int64_t>(i) * view_width * C + first) =
            *reinterpret_cast<const uint4*>(elements);
      }
    } else {
      for (int e = threadIdx.x; e < rows * columns * C; e += kThreads) {
        const int i = e / (columns * C), rest = e - i * (columns * C);
        const Position from = unrotate(turn, i, rest / C, tile_height, tile_width);
        view[static_cast<int64_t>(i) * view_width * C + rest] = element(tile[from.row][from.column], rest % C);
      }
    }
    if (x0 == 0 && y0 == 0 && threadIdx.x == 0) job.labels[n * job.num_views + k] = k;
  }
}

template <typename Out, int C>
cudaError_t launch(const RotateJob& job, cudaStream_t stream) {
  const int tiles_down = (job.height + kTile - 1) / kTile, tiles_across = (job.width + kTile - 1) / kTile;
  int64_t blocks = job.batch * tiles_down * tiles_across;
  int device = 0, processors = 0;
  if (cudaError_t error = cudaGetDevice(&device); error != cudaSuccess) return error;
  if (cudaError_t error = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
      error != cudaSuccess) {
    return error;
  }
  // Small batches do not fill the device: one block per view, which reads its tile again from L2.
  const bool split_views = blocks < int64_t{4} * processors;
  if (split_views) blocks *= job.num_views;
  const auto grid = static_cast<unsigned>(blocks);
  const auto is_vector = [](int64_t elements) { return elements * C * sizeof(Out) % kVectorBytes == 0; };
  const bool aligned = reinterpret_cast<uintptr_t>(job.views) % kVectorBytes == 0;
  if (aligned && is_vector(job.width) && is_vector(job.height)) {
    rotate_kernel<Out, C, true><<<grid, kThreads, 0, stream>>>(job, tiles_down, tiles_across, split_views);
  } else {
    rotate_kernel<Out, C, false><<<grid, kThreads, 0, stream>>>(job, tiles_down, tiles_across, split_views);
  }
  return cudaGetLastError();
}

template <typename Out>
cudaError_t launch(const RotateJob& job, cudaStream_t stream) {
  switch (job.channels) {
    case 1:
      return launch<Out, 1>(job, stream);
    case 2:
      return launch<Out, 2>(job, stream);
    case 3:
      return launch<Out, 3>(job, stream);
    default:
      return launch<Out, 4>(job, stream);
  }
}

}  // namespace

cudaError_t rotate(const RotateJob& job, cudaStream_t stream) {
  if (job.batch == 0) return cudaSuccess;
  switch (job.type) {
    case OutputType::kFloat32:
      return launch<float>(job, stream);
    case OutputType::kBFloat16:
      return launch<__nv_bfloat16>(job, stream);
    default:
      return launch<__half>(job, stream);
  }
}

}  // namespace rotnet::cuda

// BatchNorm followed by ReLU on the CPU, without torch. Activations are a matrix [P, C] in memory: one row
// per pixel, one column per channel.
//
// The order of sums over rows depends only on P and C: float32 over the rows of a block,
// float64 over the blocks of a chunk and over the chunks. Vectors lie along a row, never across the rows of
// a sum. So results have the same bits for any number of threads and any instruction set.
#pragma once

#include <cstdint>
#include <limits>
#include <vector>

namespace rotnet::cpu {

struct BFloat16 {
  uint16_t bits;
};

// The smallest float32 of full precision, 2^-126. Processors that round to bfloat16 take what is smaller for 0,
// and so does all of this code: y below it is 0, in both types.
constexpr float kSmallest = std::numeric_limits<float>::min();

// How the rows are grouped.
struct RowPlan {
  int64_t rows, channels;
  int64_t folded;      // rows side by side in one line, so that narrow rows fill whole vectors
  int64_t line;        // elements: folded * channels
  int64_t block_rows;  // a multiple of `folded`; a block stays in the cache while it is read twice
  int64_t chunk_rows;  // a multiple of `block_rows`; chunks are what threads share out
  int64_t chunks;

  int64_t begin_of(int64_t chunk) const { return chunk * chunk_rows; }
  int64_t end_of(int64_t chunk) const { return chunk + 1 < chunks ? (chunk + 1) * chunk_rows : rows; }
};

RowPlan plan_rows(int64_t rows, int64_t channels);

// Smallest number of chunks worth a separate thread.
int64_t chunks_per_thread(const RowPlan& plan);

// Values of each channel in a call, repeated along a line.
//   y = (x - mean) * scale + shift where that is at least kSmallest, and 0 elsewhere
//   grad_x = scale * g + tilt * (x - mean) + offset, where g is grad_y where y > 0, and 0 elsewhere
struct LineCoefficients {
  std::vector<float> mean, scale, shift, tilt, offset;
};

// The passes over the rows of chunks [begin, end), for one type of element.
struct BatchNormKernel {
  // Each channel's mean, and the sum of squared distances from it: float64 [chunks, 2, C].
  void (*moments)(const RowPlan& plan, const void* x, double* sums, int64_t begin, int64_t end);
  void (*normalise)(const RowPlan& plan, const LineCoefficients& line, const void* x, void* y, int64_t begin,
                    int64_t end);
  // Each channel's sums of g and of g * (x - mean): float64 [chunks, 2, C].
  void (*gradient_sums)(const RowPlan& plan, const LineCoefficients& line, const void* x, const void* grad_y,
                        double* sums, int64_t begin, int64_t end);
  void (*input_gradient)(const RowPlan& plan, const LineCoefficients& line, const void* x, const void* grad_y,
                         void* grad_x, int64_t begin, int64_t end);
};

// The kernels of one instruction set.
struct BatchNormKernels {
  BatchNormKernel float32, bfloat16;
};

extern const BatchNormKernels kBatchNormScalar;
#if defined(__x86_64__)
extern const BatchNormKernels kBatchNormAvx2;
extern const BatchNormKernels kBatchNormAvx512;
#endif

// Values of each channel, [C] each. `inverse_std` is 1 / sqrt(variance + eps).
struct ChannelStatistics {
  const float *weight, *bias, *mean, *inverse_std;
};

// Mean and biased variance, float64 [C] each, from the sums of all chunks.
void combine_moments(const RowPlan& plan, const double* sums, double* mean, double* variance);

// Sums of all chunks, added up: float64 [2, C].
void combine_sums(const RowPlan& plan, const double* sums, double* total);

LineCoefficients forward_coefficients(const RowPlan& plan, const ChannelStatistics& channels);

// Those of the forward pass, and of the gradient. `total`: what combine_sums made of the gradient sums.
void add_gradient_coefficients(const RowPlan& plan, const ChannelStatistics& channels, const double* total,
                               LineCoefficients* line);

}  // namespace rotnet::cpu

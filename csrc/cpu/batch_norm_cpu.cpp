// Shared by the threads of a BatchNorm: how to divide rows, and how to combine the sums of chunks.
#include "batch_norm_cpu.h"

#include <algorithm>
#include <numeric>

namespace rotnet::cpu {

RowPlan plan_rows(int64_t rows, int64_t channels) {
  constexpr int64_t kShortestLine = 256, kWidestVector = 16;
  constexpr int64_t kBlockElements = 16384;  // 32 KiB of bfloat16, 64 KiB of float32
  constexpr int64_t kMostChunks = 128;       // enough to distribute, few enough to combine
  RowPlan plan{rows, channels, 1, channels, 1, 1, 1};
  if (channels < kShortestLine) {
    const int64_t step = kWidestVector / std::gcd(kWidestVector, channels);  // makes whole vectors
    plan.folded = (kShortestLine + step * channels - 1) / (step * channels) * step;
    plan.line = plan.folded * channels;
  }
  plan.block_rows = std::max<int64_t>(1, kBlockElements / plan.line) * plan.folded;
  const int64_t blocks = (rows + plan.block_rows - 1) / plan.block_rows;
  plan.chunk_rows = (blocks + kMostChunks - 1) / kMostChunks * plan.block_rows;
  plan.chunks = (rows + plan.chunk_rows - 1) / plan.chunk_rows;
  return plan;
}

int64_t chunks_per_thread(const RowPlan& plan) {
  constexpr int64_t kElements = 65536;  // a few microseconds, as waking a thread takes
  return std::max<int64_t>(1, kElements / (plan.chunk_rows * plan.channels));
}

void combine_moments(const RowPlan& plan, const double* sums, double* mean, double* variance) {
  const int64_t channels = plan.channels;
  std::copy(sums, sums + channels, mean);
  std::copy(sums + channels, sums + 2 * channels, variance);
  for (int64_t chunk = 1; chunk < plan.chunks; ++chunk) {
    const double* chunk_mean = sums + chunk * 2 * channels;
    const double* spread = chunk_mean + channels;
    const auto before = static_cast<double>(plan.begin_of(chunk));
    const double share =
        static_cast<double>(plan.end_of(chunk) - plan.begin_of(chunk)) / static_cast<double>(plan.end_of(chunk));
    for (int64_t c = 0; c < channels; ++c) {
      const double difference = chunk_mean[c] - mean[c];
      mean[c] += difference * share;
      variance[c] += spread[c] + difference * difference * (before * share);
    }
  }
  for (int64_t c = 0; c < channels; ++c) variance[c] /= static_cast<double>(plan.rows);
}

void combine_sums(const RowPlan& plan, const double* sums, double* total) {
  std::fill(total, total + 2 * plan.channels, 0.0);
  for (int64_t chunk = 0; chunk < plan.chunks; ++chunk) {
    const double* from = sums + chunk * 2 * plan.channels;
    for (int64_t c = 0; c < 2 * plan.channels; ++c) total[c] += from[c];
  }
}

namespace {

// Repeats the values of the channels, value(c), along a line.
template <class Value>
std::vector<float> along_line(const RowPlan& plan, const Value& value) {
  std::vector<float> line(plan.line);
  for (int64_t c = 0; c < plan.channels; ++c) line[c] = static_cast<float>(value(c));
  for (int64_t j = plan.channels; j < plan.line; ++j) line[j] = line[j - plan.channels];
  return line;
}

}  // namespace

LineCoefficients forward_coefficients(const RowPlan& plan, const ChannelStatistics& channels) {
  LineCoefficients line;
  line.mean = along_line(plan, [&](int64_t c) { return channels.mean[c]; });
  line.scale = along_line(plan, [&](int64_t c) { return channels.weight[c] * channels.inverse_std[c]; });
  line.shift = along_line(plan, [&](int64_t c) { return channels.bias[c]; });
  return line;
}

void add_gradient_coefficients(const RowPlan& plan, const ChannelStatistics& channels, const double* total,
                               LineCoefficients* line) {
  const double* products = total + plan.channels;
  const auto count = static_cast<double>(plan.rows);
  const auto scale = [&](int64_t c) { return static_cast<double>(channels.weight[c] * channels.inverse_std[c]); };
  // A change of x also changes the mean and the variance, so g loses its parts in these two directions.
  line->tilt = along_line(plan, [&](int64_t c) {
    const auto inverse_std = static_cast<double>(channels.inverse_std[c]);
    return -scale(c) * inverse_std * inverse_std * (products[c] / count);
  });
  line->offset = along_line(plan, [&](int64_t c) { return -scale(c) * (total[c] / count); });
}

}  // namespace rotnet::cpu

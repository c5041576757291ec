// BatchNorm and ReLU: every kernel against the definition in float64, and against the others and another
// division among threads to the bit. Buffers have exactly the size they need, for AddressSanitizer.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "../../csrc/cpu/batch_norm_cpu.h"
#include "../../csrc/cpu/rotate_cpu.h"
#include "support.h"

using namespace rotnet::cpu;

namespace {

void to_element(float value, float* to) { *to = value; }
void to_element(float value, BFloat16* to) { to->bits = bfloat16_bits(value); }
double value_of(float element) { return element; }
double value_of(BFloat16 element) {
  const uint32_t bits = static_cast<uint32_t>(element.bits) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

const BatchNormKernel& kernel_of(const BatchNormKernels& kernels, float) { return kernels.float32; }
const BatchNormKernel& kernel_of(const BatchNormKernels& kernels, BFloat16) { return kernels.bfloat16; }

struct Channels {
  std::vector<float> weight, bias, mean, inverse_std;
};

template <class Element>
struct Result {
  std::vector<double> mean, variance, sums;
  std::vector<Element> y, grad_x;
};

template <class Element>
struct Case {
  RowPlan plan;
  std::vector<Element> x, grad_y;
  Channels channels;
};

template <class Element>
Case<Element> make_case(int64_t rows, int64_t channels, std::mt19937_64& random) {
  std::normal_distribution<float> normal;
  Case<Element> made{plan_rows(rows, channels), {}, {}, {}};
  for (int64_t c = 0; c < channels; ++c) {
    made.channels.weight.push_back(normal(random));
    made.channels.bias.push_back(normal(random));
  }
  made.x.resize(rows * channels);
  made.grad_y.resize(rows * channels);
  for (int64_t i = 0; i < rows * channels; ++i) {
    to_element(static_cast<float>(i % channels) + normal(random), &made.x[i]);
    to_element(normal(random), &made.grad_y[i]);
  }
  return made;
}

// What csrc/batch_norm_op.cpp does, with the chunks from `split` on in a call of their own.
template <class Element>
Result<Element> run(const BatchNormKernel& kernel, Case<Element>& made, int64_t split) {
  const RowPlan& plan = made.plan;
  const int64_t channels = plan.channels;
  Result<Element> found;
  found.mean.resize(channels);
  found.variance.resize(channels);
  found.sums.resize(2 * channels);
  found.y.resize(made.x.size());
  found.grad_x.resize(made.x.size());
  std::vector<double> sums(plan.chunks * 2 * channels);
  const auto over_chunks = [&](const auto& pass) {
    pass(split, plan.chunks);
    pass(0, split);
  };
  over_chunks([&](int64_t begin, int64_t end) { kernel.moments(plan, made.x.data(), sums.data(), begin, end); });
  combine_moments(plan, sums.data(), found.mean.data(), found.variance.data());
  made.channels.mean.assign(found.mean.begin(), found.mean.end());
  made.channels.inverse_std.clear();
  for (const double variance : found.variance) {
    made.channels.inverse_std.push_back(static_cast<float>(1 / std::sqrt(variance + 1e-5)));
  }
  const ChannelStatistics statistics{made.channels.weight.data(), made.channels.bias.data(),
                                     made.channels.mean.data(), made.channels.inverse_std.data()};
  LineCoefficients line = forward_coefficients(plan, statistics);
  over_chunks([&](int64_t begin, int64_t end) {
    kernel.normalise(plan, line, made.x.data(), found.y.data(), begin, end);
  });
  over_chunks([&](int64_t begin, int64_t end) {
    kernel.gradient_sums(plan, line, made.x.data(), made.grad_y.data(), sums.data(), begin, end);
  });
  combine_sums(plan, sums.data(), found.sums.data());
  add_gradient_coefficients(plan, statistics, found.sums.data(), &line);
  over_chunks([&](int64_t begin, int64_t end) {
    kernel.input_gradient(plan, line, made.x.data(), made.grad_y.data(), found.grad_x.data(), begin, end);
  });
  return found;
}

template <class Element>
bool equals_definition(const Case<Element>& made, const Result<Element>& found) {
  const double step = sizeof(Element) == 4 ? 1e-5 : 1.0 / 256;  // half of bfloat16's last digit is 2^-9
  const auto near = [](double a, double b, double within) { return std::fabs(a - b) <= within; };
  const int64_t rows = made.plan.rows, channels = made.plan.channels;
  for (int64_t c = 0; c < channels; ++c) {
    double sum = 0, squares = 0;
    for (int64_t r = 0; r < rows; ++r) sum += value_of(made.x[r * channels + c]);
    const double mean = sum / static_cast<double>(rows);
    for (int64_t r = 0; r < rows; ++r) squares += std::pow(value_of(made.x[r * channels + c]) - mean, 2);
    const double variance = squares / static_cast<double>(rows);
    if (!near(found.mean[c], mean, 1e-6 * (1 + std::fabs(mean)))) return false;
    if (!near(found.variance[c], variance, 1e-5 * (variance + 1e-5))) return false;
    const double inverse_std = made.channels.inverse_std[c], scale = inverse_std * made.channels.weight[c];
    double first = 0, second = 0, magnitude = 0;
    for (int64_t r = 0; r < rows; ++r) {
      // The mask is the output's: on the edge, float64 might decide otherwise.
      const double g = value_of(found.y[r * channels + c]) > 0 ? value_of(made.grad_y[r * channels + c]) : 0;
      const double distance = value_of(made.x[r * channels + c]) - made.channels.mean[c];
      first += g;
      second += g * distance;
      magnitude += std::fabs(g) * (1 + std::fabs(distance));
    }
    if (!near(found.sums[c], first, 1e-5 * magnitude)) return false;
    if (!near(found.sums[channels + c], second, 1e-5 * magnitude)) return false;
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t i = r * channels + c;
      const double distance = value_of(made.x[i]) - made.channels.mean[c];
      const double y = std::max(0.0, distance * scale + made.channels.bias[c]);
      if (!near(value_of(found.y[i]), y, step * (1 + y))) return false;
      const double g = value_of(found.y[i]) > 0 ? value_of(made.grad_y[i]) : 0;
      const double inside =
          g - (first + distance * inverse_std * inverse_std * second) / static_cast<double>(rows);
      const double around = std::fabs(scale) * (std::fabs(g) + 1) * (1 + std::fabs(distance * inverse_std));
      if (!near(value_of(found.grad_x[i]), scale * inside, step * (around + 1e-6))) return false;
    }
  }
  return true;
}

template <class Value>
bool same_bits(const std::vector<Value>& a, const std::vector<Value>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(Value)) == 0;
}

template <class Element>
void kernels_agree(int64_t rows, int64_t channels, std::mt19937_64& random) {
  Case<Element> made = make_case<Element>(rows, channels, random);
  int available = 0;
  const Kernel* kernels = available_kernels(&available);
  Result<Element> first;
  for (int i = 0; i < available; ++i) {
    const BatchNormKernel& kernel = kernel_of(*kernels[i].batch_norm, Element{});
    const Result<Element> found = run(kernel, made, i == 0 ? 0 : made.plan.chunks / 2);
    if (i == 0) {
      expect(equals_definition(made, found), "batch norm equals its definition");
      first = found;
    }
    expect(same_bits(found.mean, first.mean) && same_bits(found.variance, first.variance) &&
               same_bits(found.sums, first.sums) && same_bits(found.y, first.y) &&
               same_bits(found.grad_x, first.grad_x),
           "batch norm has the same bits in every kernel and division");
  }
}

// The rounding to bfloat16 at its edges, which random numbers do not find.
void stored_bits_agree() {
  const float edges[] = {0.0f,  1.0f,       1.00390625f, 1.01171875f, kSmallest, 0.75f * kSmallest,
                         3e38f, 3.4028e38f, INFINITY,    NAN,         -NAN,      -1.0f};
  constexpr int64_t kRows = 37;
  const RowPlan plan = plan_rows(kRows, 1);
  const float one = 1, zero = 0;
  LineCoefficients line = forward_coefficients(plan, {&one, &zero, &zero, &one});
  line.tilt.assign(plan.line, 0.0f);
  int available = 0;
  const Kernel* kernels = available_kernels(&available);
  for (const float edge : edges) {
    // bfloat16 cannot hold it: it comes in by way of the offset, which is all that is left of the gradient.
    line.offset.assign(plan.line, edge);
    const std::vector<BFloat16> x(kRows, BFloat16{0x3f80}), grad_y(kRows, BFloat16{0});
    std::vector<BFloat16> first, found(kRows);
    for (int i = 0; i < available; ++i) {
      kernels[i].batch_norm->bfloat16.input_gradient(plan, line, x.data(), grad_y.data(), found.data(), 0,
                                                     plan.chunks);
      if (i == 0) {
        first = found;
        const float seen = static_cast<float>(value_of(found[0]));
        expect(edge == edge ? std::fabs(seen - edge) <= std::fabs(edge) / 256 + kSmallest || std::isinf(seen)
                            : seen != seen,
               "rounding to bfloat16");
      }
      expect(same_bits(found, first), "rounding to bfloat16 is the same in every kernel");
      expect(same_bits(found, std::vector<BFloat16>(kRows, found[0])), "and for single elements");
    }
  }
}

}  // namespace

void check_batch_norm() {
  std::mt19937_64 random(11);
  const int64_t shapes[][2] = {
      {1, 1},    {2, 1},   {700, 1}, {20000, 1}, {3, 5},     {50, 7},   {97, 16},   {501, 17},
      {900, 40}, {33, 96}, {5, 193}, {150, 255}, {130, 256}, {64, 257}, {40, 1000}, {1, 300},
  };
  for (const auto& shape : shapes) {
    kernels_agree<float>(shape[0], shape[1], random);
    kernels_agree<BFloat16>(shape[0], shape[1], random);
  }
  stored_bits_agree();
  std::printf("batch norm checked\n");
}

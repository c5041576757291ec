// CPU implementations of the ops for BatchNorm followed by ReLU, on torch's stable ABI.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <cmath>
#include <initializer_list>
#include <limits>
#include <optional>
#include <vector>

#include "cpu/batch_norm_cpu.h"
#include "cpu/rotate_cpu.h"
#include "memory.h"

namespace rotnet {
namespace {

using cpu::RowPlan;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Checks what memory safety depends on; rotnet_fast/ops/batch_norm.py makes no other calls.
void check_activations(const Tensor& tensor, const Tensor& x) {
  STD_TORCH_CHECK(x.dim() == 4 && x.numel() > 0, "batch_norm_relu: x must be a tensor [B,H,W,C] with elements");
  STD_TORCH_CHECK(x.scalar_type() == ScalarType::Float || x.scalar_type() == ScalarType::BFloat16,
                  "batch_norm_relu: x must be float32 or bfloat16");
  bool alike =
      tensor.is_cpu() && tensor.dim() == 4 && tensor.is_contiguous() && tensor.scalar_type() == x.scalar_type();
  for (int64_t d = 0; alike && d < 4; ++d) alike = tensor.size(d) == x.size(d);
  STD_TORCH_CHECK(alike, "batch_norm_relu: activations must be contiguous CPU tensors of the shape and type of x");
}

float* channel_data(const Tensor& tensor, const RowPlan& plan) {
  STD_TORCH_CHECK(tensor.is_cpu() && tensor.scalar_type() == ScalarType::Float && tensor.dim() == 1 &&
                      tensor.is_contiguous() && tensor.size(0) == plan.channels,
                  "batch_norm_relu: what is given per channel must be a contiguous float32 CPU tensor [C]");
  return static_cast<float*>(tensor.data_ptr());
}

// An argument by name, for check_memory; optional ones may be missing.
struct Argument {
  const char* name;
  const Tensor* tensor;
};

const Tensor* if_given(const std::optional<Tensor>& tensor) { return tensor.has_value() ? &*tensor : nullptr; }

void check_memory(std::initializer_list<Argument> written, std::initializer_list<Argument> read) {
  const auto memories = [](std::initializer_list<Argument> arguments) {
    std::vector<Memory> found;
    for (const Argument& argument : arguments) {
      if (argument.tensor != nullptr)
        found.push_back(memory_of("batch_norm_relu", argument.name, *argument.tensor));
    }
    return found;
  };
  check_apart("batch_norm_relu", memories(written), memories(read));
}

RowPlan plan_for(const Tensor& x) { return cpu::plan_rows(x.numel() / x.size(3), x.size(3)); }

const cpu::BatchNormKernel& kernel_for(const Tensor& x) {
  const cpu::BatchNormKernels& kernels = *cpu::selected_kernel().batch_norm;
  return x.scalar_type() == ScalarType::Float ? kernels.float32 : kernels.bfloat16;
}

// Distributes the chunks over torch's threads.
template <class Pass>
void over_chunks(const RowPlan& plan, const Pass& pass) {
  torch::stable::parallel_for(0, plan.chunks, cpu::chunks_per_thread(plan), pass);
}

void normalise(const Tensor& y, const Tensor& x, const RowPlan& plan, const cpu::ChannelStatistics& channels) {
  const cpu::BatchNormKernel& kernel = kernel_for(x);
  const cpu::LineCoefficients line = cpu::forward_coefficients(plan, channels);
  over_chunks(plan, [&](int64_t begin, int64_t end) {
    kernel.normalise(plan, line, x.data_ptr(), y.data_ptr(), begin, end);
  });
}

}  // namespace

void batch_norm_relu_train_out(const Tensor& y, const Tensor& mean, const Tensor& inverse_std,
                               std::optional<Tensor> running_mean, std::optional<Tensor> running_var,
                               const Tensor& x, const Tensor& weight, const Tensor& bias, double momentum,
                               double eps) {
  check_activations(x, x);
  check_activations(y, x);
  const RowPlan plan = plan_for(x);
  STD_TORCH_CHECK(plan.rows > 1, "batch_norm_relu: one value per channel has no variance");
  float* means = channel_data(mean, plan);
  float* inverse_stds = channel_data(inverse_std, plan);
  float* running_means = running_mean.has_value() ? channel_data(*running_mean, plan) : nullptr;
  float* running_vars = running_var.has_value() ? channel_data(*running_var, plan) : nullptr;
  const cpu::ChannelStatistics channels{channel_data(weight, plan), channel_data(bias, plan), means, inverse_stds};
  check_memory({{"y", &y},
                {"mean", &mean},
                {"inverse_std", &inverse_std},
                {"running_mean", if_given(running_mean)},
                {"running_var", if_given(running_var)}},
               {{"x", &x}, {"weight", &weight}, {"bias", &bias}});

  const cpu::BatchNormKernel& kernel = kernel_for(x);
  std::vector<double> sums(plan.chunks * 2 * plan.channels), moments(2 * plan.channels);
  over_chunks(plan,
              [&](int64_t begin, int64_t end) { kernel.moments(plan, x.data_ptr(), sums.data(), begin, end); });
  double* variances = moments.data() + plan.channels;
  cpu::combine_moments(plan, sums.data(), moments.data(), variances);
  const auto count = static_cast<double>(plan.rows);
  for (int64_t c = 0; c < plan.channels; ++c) {
    const double variance = variances[c];
    means[c] = static_cast<float>(moments[c]);
    // Squares that overflow float32 would turn every y into the bias, which looks valid; NaN does not.
    inverse_stds[c] = std::isfinite(variance) ? static_cast<float>(1 / std::sqrt(variance + eps))
                                              : std::numeric_limits<float>::quiet_NaN();
    const auto move = [&](float* running, double to) {
      if (running != nullptr) running[c] = static_cast<float>((1 - momentum) * running[c] + momentum * to);
    };
    move(running_means, moments[c]);
    move(running_vars, variance * (count / (count - 1)));
  }
  normalise(y, x, plan, channels);
}

void batch_norm_relu_eval_out(const Tensor& y, const Tensor& mean, const Tensor& inverse_std,
                              const Tensor& running_mean, const Tensor& running_var, const Tensor& x,
                              const Tensor& weight, const Tensor& bias, double eps) {
  check_activations(x, x);
  check_activations(y, x);
  const RowPlan plan = plan_for(x);
  float* means = channel_data(mean, plan);
  float* inverse_stds = channel_data(inverse_std, plan);
  const float* running_means = channel_data(running_mean, plan);
  const float* running_vars = channel_data(running_var, plan);
  const cpu::ChannelStatistics channels{channel_data(weight, plan), channel_data(bias, plan), means, inverse_stds};
  check_memory({{"y", &y}, {"mean", &mean}, {"inverse_std", &inverse_std}}, {{"running_mean", &running_mean},
                                                                             {"running_var", &running_var},
                                                                             {"x", &x},
                                                                             {"weight", &weight},
                                                                             {"bias", &bias}});
  std::copy(running_means, running_means + plan.channels, means);
  for (int64_t c = 0; c < plan.channels; ++c) {
    inverse_stds[c] = static_cast<float>(1 / std::sqrt(running_vars[c] + eps));
  }
  normalise(y, x, plan, channels);
}

void batch_norm_relu_backward_out(const Tensor& grad_x, const Tensor& grad_weight, const Tensor& grad_bias,
                                  const Tensor& grad_y, const Tensor& x, const Tensor& weight, const Tensor& bias,
                                  const Tensor& mean, const Tensor& inverse_std, bool training) {
  for (const Tensor* tensor : {&x, &grad_x, &grad_y}) check_activations(*tensor, x);
  const RowPlan plan = plan_for(x);
  const cpu::ChannelStatistics channels{channel_data(weight, plan), channel_data(bias, plan),
                                        channel_data(mean, plan), channel_data(inverse_std, plan)};
  float* grad_weights = channel_data(grad_weight, plan);
  float* grad_biases = channel_data(grad_bias, plan);
  check_memory({{"grad_x", &grad_x}, {"grad_weight", &grad_weight}, {"grad_bias", &grad_bias}},
               {{"grad_y", &grad_y},
                {"x", &x},
                {"weight", &weight},
                {"bias", &bias},
                {"mean", &mean},
                {"inverse_std", &inverse_std}});

  const cpu::BatchNormKernel& kernel = kernel_for(x);
  cpu::LineCoefficients line = cpu::forward_coefficients(plan, channels);
  std::vector<double> sums(plan.chunks * 2 * plan.channels), total(2 * plan.channels);
  over_chunks(plan, [&](int64_t begin, int64_t end) {
    kernel.gradient_sums(plan, line, x.data_ptr(), grad_y.data_ptr(), sums.data(), begin, end);
  });
  cpu::combine_sums(plan, sums.data(), total.data());
  for (int64_t c = 0; c < plan.channels; ++c) {
    grad_biases[c] = static_cast<float>(total[c]);
    grad_weights[c] = static_cast<float>(total[plan.channels + c] * channels.inverse_std[c]);
  }
  // Running statistics do not depend on x.
  if (!training) std::fill(total.begin(), total.end(), 0.0);
  cpu::add_gradient_coefficients(plan, channels, total.data(), &line);
  over_chunks(plan, [&](int64_t begin, int64_t end) {
    kernel.input_gradient(plan, line, x.data_ptr(), grad_y.data_ptr(), grad_x.data_ptr(), begin, end);
  });
}

}  // namespace rotnet

STABLE_TORCH_LIBRARY_FRAGMENT(rotnet_fast, library) {
  library.def(
      "batch_norm_relu_train_out(Tensor(a!) y, Tensor(b!) mean, Tensor(c!) inverse_std, "
      "Tensor(d!)? running_mean, Tensor(e!)? running_var, Tensor x, Tensor weight, Tensor bias, "
      "float momentum, float eps) -> ()");
  library.def(
      "batch_norm_relu_eval_out(Tensor(a!) y, Tensor(b!) mean, Tensor(c!) inverse_std, Tensor running_mean, "
      "Tensor running_var, Tensor x, Tensor weight, Tensor bias, float eps) -> ()");
  library.def(
      "batch_norm_relu_backward_out(Tensor(a!) grad_x, Tensor(b!) grad_weight, Tensor(c!) grad_bias, "
      "Tensor grad_y, Tensor x, Tensor weight, Tensor bias, Tensor mean, Tensor inverse_std, "
      "bool training) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(rotnet_fast, CPU, library) {
  library.impl("batch_norm_relu_train_out", TORCH_BOX(&rotnet::batch_norm_relu_train_out));
  library.impl("batch_norm_relu_eval_out", TORCH_BOX(&rotnet::batch_norm_relu_eval_out));
  library.impl("batch_norm_relu_backward_out", TORCH_BOX(&rotnet::batch_norm_relu_backward_out));
}

// The CPU kernels in several threads, for ThreadSanitizer: ranges as torch's parallel_for hands them out to the
// ops, in std::thread, which the sanitizer understands (OpenMP's own synchronisation it would take for races).
// Each result must have the bits of a single thread's. `test_threads --plant rotate|warp|batch_norm KERNEL` lets
// neighbours write what lies on their border, both of them.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "../../../csrc/cpu/rotate_cpu.h"
#include "../../../csrc/rotnet/augment.h"
#include "../support.h"

using namespace rotnet;
using cpu::Kernel;

namespace {

bool planted = false;

// at::parallel_for, with threads of its own: at most `threads` equal parts of at least `grain`.
template <class Pass>
void share_out(int64_t count, int64_t grain, int threads, const Pass& pass) {
  const auto divide = [](int64_t a, int64_t b) { return (a + b - 1) / b; };
  const int64_t part = divide(count, std::min<int64_t>(threads, divide(count, grain)));
  std::vector<std::thread> running;
  for (int64_t begin = 0; begin < count; begin += part) {
    const int64_t end = std::min(count, begin + part + (planted && threads > 1));
    running.emplace_back([&pass, begin, end] { pass(begin, end); });
  }
  for (std::thread& thread : running) thread.join();
  expect(threads == 1 || running.size() > 1, "the work is enough for several threads");
}

// Memory at a multiple of 64 bytes, as torch's: streaming stores need it.
struct Block {
  alignas(64) char bytes[64];
};

struct Call {
  WarpJob job{};
  std::vector<uint8_t> images;
  std::vector<int64_t> indices, sample_ids, labels;
  std::vector<Block> views;
};

void fill(Call& call, OutputType type, int channels, int side) {
  const double mean[4] = {0.49, 0.48, 0.44, 0.1}, std[4] = {0.25, 0.24, 0.26, 0.3};
  WarpJob& job = call.job;
  job.height = job.width = side;
  job.channels = channels;
  job.num_images = 3;
  job.num_views = 4;
  job.pad = 4;
  job.flip_threshold = flip_threshold(0.5);
  job.seed = 5;
  job.type = type;
  job.normalisation = make_normalisation(mean, std, channels);
  for (int k = 0; k < 4; ++k) {
    job.turns[k] = static_cast<uint8_t>(k);
    job.angles[k] = make_warp_angle(k % 2 ? 45 : 10);
  }
  const int64_t image_bytes = int64_t{side} * side * channels;
  call.images.resize(job.num_images * image_bytes);
  for (size_t i = 0; i < call.images.size(); ++i) call.images[i] = static_cast<uint8_t>(i * 40503 >> 7);
  job.batch = 4 * cpu::images_per_thread(job) + 3;
  for (int64_t n = 0; n < job.batch; ++n) {
    call.indices.push_back(n % 3);
    call.sample_ids.push_back(n * 7919);
  }
  call.labels.assign(job.batch * job.num_views, -1);
  const int64_t bytes = job.batch * job.num_views * image_bytes * bytes_per_element(type);
  call.views.assign((bytes + 63) / 64, Block{});
  job.images = call.images.data();
  job.indices = call.indices.data();
  job.sample_ids = call.sample_ids.data();
  job.labels = call.labels.data();
  job.views = call.views.data();
}

// What csrc/op_cpu.cpp does once arguments are checked.
void run(const Kernel& kernel, const WarpJob& job, bool warp, bool stream, int threads) {
  const cpu::WarpPlan plan = warp ? cpu::plan_warp(job) : cpu::WarpPlan{};
  share_out(job.batch, cpu::images_per_thread(job), threads, [&](int64_t begin, int64_t end) {
    // Of planted races, the views alone: labels are written by code that all kernels share.
    WarpJob own = job;
    std::vector<int64_t> labels;
    if (planted) {
      labels.resize(job.batch * job.num_views);
      own.labels = labels.data();
    }
    if (warp) {
      kernel.warp(own, plan, begin, end);
    } else {
      kernel.run(own, begin, end, stream);
    }
  });
}

void views_do_not_depend_on_the_threads(const Kernel& kernel, bool warp) {
  for (const OutputType type : {OutputType::kFloat32, OutputType::kBFloat16, OutputType::kFloat16}) {
    for (int channels = 1; channels <= 4; ++channels) {
      for (const int side : {17, 32}) {
        for (const bool stream : {false, true}) {
          if ((warp || planted) && stream) continue;
          Call one, several;
          fill(one, type, channels, side);
          fill(several, type, channels, side);
          run(kernel, one.job, warp, stream, 1);
          run(kernel, several.job, warp, stream, 4);
          expect(std::memcmp(one.views.data(), several.views.data(), one.views.size() * sizeof(Block)) == 0,
                 "views do not depend on the threads");
          expect(planted || one.labels == several.labels, "labels do not depend on the threads");
        }
      }
    }
  }
}

struct Activations {
  std::vector<float> x, grad_y, y, grad_x;  // of bfloat16, two elements each
  std::vector<double> sums, products;
};

// What csrc/batch_norm_op.cpp does with its passes, each of which ends before the next one begins.
Activations run(const cpu::BatchNormKernel& kernel, const cpu::RowPlan& plan, int64_t floats, int threads) {
  Activations found;
  for (int64_t i = 0; i < floats; ++i) {
    found.x.push_back(std::sin(static_cast<float>(i)));
    found.grad_y.push_back(std::cos(static_cast<float>(i)));
  }
  found.y.resize(floats);
  found.grad_x.resize(floats);
  found.sums.resize(plan.chunks * 2 * plan.channels);
  found.products.resize(found.sums.size());
  const std::vector<float> ones(plan.channels, 1.0f);
  cpu::LineCoefficients line =
      cpu::forward_coefficients(plan, {ones.data(), ones.data(), ones.data(), ones.data()});
  line.tilt = line.offset = line.shift;
  const auto over_chunks = [&](const auto& pass) {
    share_out(plan.chunks, cpu::chunks_per_thread(plan), threads, pass);
  };
  const void *x = found.x.data(), *grad_y = found.grad_y.data();
  over_chunks([&](int64_t a, int64_t b) { kernel.moments(plan, x, found.sums.data(), a, b); });
  over_chunks([&](int64_t a, int64_t b) { kernel.normalise(plan, line, x, found.y.data(), a, b); });
  over_chunks(
      [&](int64_t a, int64_t b) { kernel.gradient_sums(plan, line, x, grad_y, found.products.data(), a, b); });
  over_chunks(
      [&](int64_t a, int64_t b) { kernel.input_gradient(plan, line, x, grad_y, found.grad_x.data(), a, b); });
  return found;
}

void batch_norm_does_not_depend_on_the_threads(const Kernel& kernel) {
  for (const int64_t channels : {24, 96, 300}) {
    const cpu::RowPlan plan = cpu::plan_rows(400000 / channels + 1, channels);
    const int64_t elements = plan.rows * channels;
    for (const bool narrow : {false, true}) {
      const cpu::BatchNormKernel& passes = narrow ? kernel.batch_norm->bfloat16 : kernel.batch_norm->float32;
      const int64_t floats = narrow ? (elements + 1) / 2 : elements;
      const Activations one = run(passes, plan, floats, 1), several = run(passes, plan, floats, 4);
      const auto same = [](const auto& a, const auto& b) {
        return std::memcmp(a.data(), b.data(), a.size() * sizeof(a[0])) == 0;
      };
      expect(same(one.sums, several.sums) && same(one.products, several.products) && same(one.y, several.y) &&
                 same(one.grad_x, several.grad_x),
             "batch norm does not depend on the threads");
    }
  }
}

}  // namespace

int main(int count, char** arguments) {
  planted = count == 4 && std::strcmp(arguments[1], "--plant") == 0;
  int available = 0;
  const Kernel* kernels = cpu::available_kernels(&available);
  for (int i = 0; i < available; ++i) {
    const auto wanted = [&](const char* what) {
      return !planted || (std::strcmp(arguments[2], what) == 0 && std::strcmp(arguments[3], kernels[i].name) == 0);
    };
    if (wanted("rotate")) views_do_not_depend_on_the_threads(kernels[i], false);
    if (wanted("warp")) views_do_not_depend_on_the_threads(kernels[i], true);
    if (wanted("batch_norm")) batch_norm_does_not_depend_on_the_threads(kernels[i]);
    std::printf("kernel %s checked\n", kernels[i].name);
  }
  std::printf("%d failures\n", failures);
  return failures == 0 ? 0 : 1;
}

// The ops' schemas and their CPU implementations, on torch's stable ABI.
#include "checks.h"
#include "cpu/rotate_cpu.h"

namespace rotnet {
namespace {

void check_indices(const RotateJob& job) {
  const int64_t bad = cpu::first_bad_index(job);
  STD_TORCH_CHECK(bad < 0, "indices[", bad, "] is ", job.indices[bad], ", outside [0, ", job.num_images,
                  "): pass rows that images has");
}

}  // namespace

void rotate_batch_out_cpu(const Tensor& views, const Tensor& labels, const Tensor& images,
                          std::optional<Tensor> indices, std::optional<Tensor> sample_ids,
                          std::optional<Tensor> key, int64_t seed, int64_t epoch, std::vector<int64_t> turns,
                          int64_t pad, double flip_prob, std::vector<double> mean, std::vector<double> std) {
  RotateJob job = make_job(views, labels, images, indices, sample_ids, key, seed, epoch, turns.size(), pad,
                           flip_prob, mean, std);
  set_turns(job, turns);
  check_indices(job);
  const cpu::RotateRange run = cpu::selected_kernel().run;
  const bool stream = cpu::should_stream(job);
  torch::stable::parallel_for(0, job.batch, cpu::images_per_thread(job),
                              [&](int64_t begin, int64_t end) { run(job, begin, end, stream); });
}

void warp_batch_out_cpu(const Tensor& views, const Tensor& labels, const Tensor& images,
                        std::optional<Tensor> indices, std::optional<Tensor> sample_ids, std::optional<Tensor> key,
                        int64_t seed, int64_t epoch, std::vector<int64_t> degrees, int64_t pad, double flip_prob,
                        std::vector<double> mean, std::vector<double> std) {
  const WarpJob job = make_warp_job(make_job(views, labels, images, indices, sample_ids, key, seed, epoch,
                                             degrees.size(), pad, flip_prob, mean, std),
                                    degrees);
  check_indices(job);
  if (job.batch == 0) return;  // skips the W x W numbers per angle that all images share
  const cpu::WarpRange run = cpu::selected_kernel().warp;
  const cpu::WarpPlan plan = cpu::plan_warp(job);
  torch::stable::parallel_for(0, job.batch, cpu::images_per_thread(job),
                              [&](int64_t begin, int64_t end) { run(job, plan, begin, end); });
}

}  // namespace rotnet

// Returns the name of the CPU kernel in use, or why there is none, for `python -m rotnet_fast.doctor`.
extern "C" __attribute__((visibility("default"))) const char* rotnet_fast_cpu_kernel() {
  static const std::string name = [] {
    try {
      return std::string(rotnet::cpu::selected_kernel().name);
    } catch (const std::exception& error) {
      return std::string(error.what());
    }
  }();
  return name.c_str();
}

STABLE_TORCH_LIBRARY(rotnet_fast, library) {
  // rotnet_fast/ops/library.py has the same schemas for the plain-torch fallback, and explains SymInt.
  library.def(
      "rotate_batch_out(Tensor(a!) views, Tensor(b!) labels, Tensor images, Tensor? indices, "
      "Tensor? sample_ids, Tensor? key, SymInt seed, SymInt epoch, int[] turns, SymInt pad, "
      "float flip_prob, float[] mean, float[] std) -> ()");
  library.def(
      "warp_batch_out(Tensor(a!) views, Tensor(b!) labels, Tensor images, Tensor? indices, "
      "Tensor? sample_ids, Tensor? key, SymInt seed, SymInt epoch, int[] degrees, SymInt pad, "
      "float flip_prob, float[] mean, float[] std) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(rotnet_fast, CPU, library) {
  library.impl("rotate_batch_out", TORCH_BOX(&rotnet::rotate_batch_out_cpu));
  library.impl("warp_batch_out", TORCH_BOX(&rotnet::warp_batch_out_cpu));
}

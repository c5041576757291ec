// CUDA implementations of the ops, on torch's stable ABI. They form a separate library, because one that is
// linked to torch_cuda does not load with a CPU-only torch.
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

#include "checks.h"
#include "cuda/rotate_cuda.h"

namespace rotnet {
namespace {

// Calls `start(stream)` on the device of images with its current stream.
template <class Start>
void on_current_stream(const Tensor& images, const Start& start) {
  const auto device = images.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
  const cudaError_t error = start(static_cast<cudaStream_t>(stream));
  STD_TORCH_CHECK(error == cudaSuccess,
                  "rotate_batch_out: the CUDA kernel did not start: ", cudaGetErrorString(error));
}

}  // namespace

void rotate_batch_out_cuda(const Tensor& views, const Tensor& labels, const Tensor& images,
                           std::optional<Tensor> indices, std::optional<Tensor> sample_ids,
                           std::optional<Tensor> key, int64_t seed, int64_t epoch, std::vector<int64_t> turns,
                           int64_t pad, double flip_prob, std::vector<double> mean, std::vector<double> std) {
  // The dispatcher comes here if any tensor is on a CUDA device; make_job checks that all of them are.
  RotateJob job = make_job(views, labels, images, indices, sample_ids, key, seed, epoch, turns.size(), pad,
                           flip_prob, mean, std);
  set_turns(job, turns);
  on_current_stream(images, [&](cudaStream_t stream) { return cuda::rotate(job, stream); });
}

void warp_batch_out_cuda(const Tensor& views, const Tensor& labels, const Tensor& images,
                         std::optional<Tensor> indices, std::optional<Tensor> sample_ids,
                         std::optional<Tensor> key, int64_t seed, int64_t epoch, std::vector<int64_t> degrees,
                         int64_t pad, double flip_prob, std::vector<double> mean, std::vector<double> std) {
  const WarpJob job = make_warp_job(make_job(views, labels, images, indices, sample_ids, key, seed, epoch,
                                             degrees.size(), pad, flip_prob, mean, std),
                                    degrees);
  on_current_stream(images, [&](cudaStream_t stream) { return cuda::warp(job, stream); });
}

}  // namespace rotnet

STABLE_TORCH_LIBRARY_IMPL(rotnet_fast, CUDA, library) {
  library.impl("rotate_batch_out", TORCH_BOX(&rotnet::rotate_batch_out_cuda));
  library.impl("warp_batch_out", TORCH_BOX(&rotnet::warp_batch_out_cuda));
}

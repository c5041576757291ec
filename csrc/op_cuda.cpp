// The op's CUDA implementation, on torch's stable ABI. A library of its own: one that is linked to
// torch_cuda does not load beside a CPU-only torch.
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

#include "checks.h"
#include "cuda/rotate_cuda.h"

namespace rotnet {

void rotate_batch_out_cuda(const Tensor& views, const Tensor& labels, const Tensor& images,
                           std::optional<Tensor> indices, std::optional<Tensor> sample_ids,
                           std::optional<Tensor> key, int64_t seed, int64_t epoch, std::vector<int64_t> turns,
                           int64_t pad, double flip_prob, std::vector<double> mean, std::vector<double> std) {
  // The dispatcher comes here when any tensor is on a CUDA device; make_job checks that all are.
  STD_TORCH_CHECK(images.is_cuda(), "rotate_batch_out: views and labels must be on the device of images");
  const RotateJob job = make_job(views, labels, images, indices, sample_ids, key, seed, epoch, turns, pad,
                                 flip_prob, mean, std);
  const auto device = images.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
  const cudaError_t error = cuda::rotate(job, static_cast<cudaStream_t>(stream));
  STD_TORCH_CHECK(error == cudaSuccess, "rotate_batch: the CUDA kernel did not start: ", cudaGetErrorString(error));
}

}  // namespace rotnet

STABLE_TORCH_LIBRARY_IMPL(rotnet_fast, CUDA, library) {
  library.impl("rotate_batch_out", TORCH_BOX(&rotnet::rotate_batch_out_cuda));
}

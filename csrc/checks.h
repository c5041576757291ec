// Converts the tensors of one op call to a RotateJob or a WarpJob, and checks everything that memory safety
// depends on; rotnet_fast/ops/rotate.py has already reported most errors with friendlier messages.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <optional>
#include <vector>

#include "memory.h"
#include "rotnet/augment.h"
#include "rotnet/job.h"
#include "rotnet/warp.h"

namespace rotnet {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline const int64_t* optional_ids(const char* name, const std::optional<Tensor>& ids, int64_t count,
                                   const Tensor& images) {
  if (!ids.has_value()) return nullptr;
  STD_TORCH_CHECK(ids->scalar_type() == ScalarType::Long && ids->dim() == 1 && ids->is_contiguous() &&
                      (count < 0 || ids->size(0) == count),
                  "rotate_batch_out: ", name, " must be a contiguous int64 tensor of the expected length");
  STD_TORCH_CHECK(ids->is_cpu() == images.is_cpu() && ids->get_device_index() == images.get_device_index(),
                  "rotate_batch_out: ", name, " must be on the device of images");
  return static_cast<const int64_t*>(ids->data_ptr());
}

// Fills in everything but the rotations; `turns` stay 0.
inline RotateJob make_job(const Tensor& views, const Tensor& labels, const Tensor& images,
                          const std::optional<Tensor>& indices, const std::optional<Tensor>& sample_ids,
                          const std::optional<Tensor>& key, int64_t seed, int64_t epoch,
                          size_t number_of_rotations, int64_t pad, double flip_prob,
                          const std::vector<double>& mean, const std::vector<double>& std) {
  STD_TORCH_CHECK(images.dim() == 4 && images.scalar_type() == ScalarType::Byte && images.is_contiguous(),
                  "rotate_batch_out: images must be a contiguous uint8 tensor [N,H,W,C]");
  RotateJob job{};
  job.num_images = images.size(0);
  const int64_t height = images.size(1), width = images.size(2), channels = images.size(3);
  constexpr int64_t kMaxSide = 32767;  // positions, padding included, stay far inside an int
  STD_TORCH_CHECK(
      height >= 1 && height <= kMaxSide && width >= 1 && width <= kMaxSide && channels >= 1 && channels <= 4,
      "rotate_batch_out: images must have 1 to 32767 rows and columns and 1 to 4 channels");
  STD_TORCH_CHECK(pad >= 0 && pad <= 32767, "rotate_batch_out: pad must lie in [0, 32767]");
  STD_TORCH_CHECK(flip_prob >= 0.0 && flip_prob <= 1.0, "rotate_batch_out: flip_prob must lie in [0, 1]");
  STD_TORCH_CHECK(static_cast<int64_t>(mean.size()) == channels && static_cast<int64_t>(std.size()) == channels,
                  "rotate_batch_out: mean and std need one value per channel");
  const auto num_views = static_cast<int64_t>(number_of_rotations);
  STD_TORCH_CHECK(num_views >= 1 && num_views <= kMaxViews, "rotate_batch_out: 1 to ", kMaxViews,
                  " rotations are supported, got ", num_views);
  job.indices = optional_ids("indices", indices, -1, images);
  job.batch = indices.has_value() ? indices->size(0) : job.num_images;
  job.sample_ids = optional_ids("sample_ids", sample_ids, job.batch, images);
  job.key = optional_ids("seed", key, 2, images);

  constexpr int64_t kMaxElements = (int64_t{1} << 31) - 1;
  const int64_t per_image = num_views * channels * height * width;  // below 2^6 * 2^2 * 2^30
  STD_TORCH_CHECK(job.batch == 0 || per_image <= kMaxElements / job.batch,
                  "rotate_batch_out: at most 2**31 - 1 output elements are supported");
  STD_TORCH_CHECK(views.dim() == 4 && views.is_contiguous() && views.size(0) == job.batch * num_views &&
                      views.size(1) == height && views.size(2) == width && views.size(3) == channels,
                  "rotate_batch_out: views must be a contiguous tensor [B*K,H,W,C]");
  STD_TORCH_CHECK(labels.dim() == 1 && labels.is_contiguous() && labels.scalar_type() == ScalarType::Long &&
                      labels.size(0) == job.batch * num_views,
                  "rotate_batch_out: labels must be a contiguous int64 tensor [B*K]");
  for (const Tensor* output : {&views, &labels}) {
    STD_TORCH_CHECK(output->is_cpu() == images.is_cpu() && output->get_device_index() == images.get_device_index(),
                    "rotate_batch_out: views and labels must be on the device of images");
  }
  switch (views.scalar_type()) {
    case ScalarType::Float:
      job.type = OutputType::kFloat32;
      break;
    case ScalarType::BFloat16:
      job.type = OutputType::kBFloat16;
      break;
    case ScalarType::Half:
      job.type = OutputType::kFloat16;
      break;
    default:
      STD_TORCH_CHECK(false, "rotate_batch_out: views must be float32, bfloat16 or float16");
  }
  // rotate_batch cannot check this in advance (a compiled graph's tensors have no address yet), so it forwards
  // these messages under its own name; hence the views are called `out`.
  constexpr const char* kCaller = "rotate_batch";
  const std::vector<Memory> written = {memory_of(kCaller, "out", views), memory_of(kCaller, "labels", labels)};
  std::vector<Memory> read = {memory_of(kCaller, "images", images)};
  if (indices.has_value()) read.push_back(memory_of(kCaller, "indices", *indices));
  if (sample_ids.has_value()) read.push_back(memory_of(kCaller, "sample_ids", *sample_ids));
  if (key.has_value()) read.push_back(memory_of(kCaller, "seed", *key));
  check_apart(kCaller, written, read);

  job.images = static_cast<const uint8_t*>(images.data_ptr());
  job.seed = seed;
  job.epoch = epoch;
  job.height = static_cast<int>(height);
  job.width = static_cast<int>(width);
  job.channels = static_cast<int>(channels);
  job.pad = static_cast<int>(pad);
  job.num_views = static_cast<int>(num_views);
  job.flip_threshold = flip_threshold(flip_prob);
  job.normalisation = make_normalisation(mean.data(), std.data(), job.channels);
  job.views = views.data_ptr();
  job.labels = static_cast<int64_t*>(labels.data_ptr());
  return job;
}

inline void set_turns(RotateJob& job, const std::vector<int64_t>& turns) {
  for (size_t k = 0; k < turns.size(); ++k) {
    STD_TORCH_CHECK(turns[k] >= 0 && turns[k] <= 3, "rotate_batch_out: turns must lie in 0..3");
    STD_TORCH_CHECK(turns[k] % 2 == 0 || job.height == job.width,
                    "rotate_batch_out: only square images can be rotated by 90 or 270 degrees");
    job.turns[k] = static_cast<uint8_t>(turns[k]);
  }
}

inline WarpJob make_warp_job(const RotateJob& job, const std::vector<int64_t>& degrees) {
  STD_TORCH_CHECK(job.height == job.width, "warp_batch_out: only square images can be rotated by any angle");
  WarpJob warp{job, {}};
  for (size_t k = 0; k < degrees.size(); ++k) {
    STD_TORCH_CHECK(degrees[k] >= 0 && degrees[k] < 360, "warp_batch_out: degrees must lie in 0..359");
    warp.turns[k] = static_cast<uint8_t>(degrees[k] / 90);
    warp.angles[k] = make_warp_angle(static_cast<int>(degrees[k] % 90));
  }
  return warp;
}

}  // namespace rotnet

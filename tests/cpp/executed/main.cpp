// Runs the CUDA kernels on the CPU with random jobs, and demands the bits of the CPU kernels.
//
// usage: executed JOBS SEED [FAULT]
//
// FAULT is the number of one that tests/support/executed_kernels.py planted. Ends with 1 at the first difference, after
// saying where it is.
#include <cinttypes>
#include <set>

#include "../../../csrc/cpu/rotate_cpu.h"
#include "../../../csrc/cuda/rotate_cuda.h"
#include "../../../csrc/rotnet/augment.h"
#include "simt.h"

using namespace rotnet;

// The part of the CUDA runtime that launches need.
cudaError_t CUDARTAPI cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
cudaError_t CUDARTAPI cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) {
  return *value = simt::multiprocessors, cudaSuccess;
}
cudaError_t CUDARTAPI cudaGetLastError() { return std::exchange(simt::error, cudaSuccess); }

namespace {

constexpr size_t kGuard = 256;  // bytes before and behind an output that nobody may write

// Memory with an address that is `offset` beyond a multiple of 16 bytes.
class Output {
 public:
  Output(size_t bytes, size_t offset, uint8_t pattern)
      : bytes_(bytes), pattern_(pattern), memory_(bytes + offset + 16 + 2 * kGuard, pattern) {
    const auto start = reinterpret_cast<uintptr_t>(memory_.data()) + kGuard;
    begin_ = kGuard + (16 - start % 16) % 16 + offset;
  }

  uint8_t* data() { return memory_.data() + begin_; }

  bool guards_are_whole() const {
    const auto whole = [&](uint8_t byte) { return byte == pattern_; };
    return std::all_of(memory_.begin(), memory_.begin() + begin_, whole) &&
           std::all_of(memory_.begin() + begin_ + bytes_, memory_.end(), whole);
  }

 private:
  size_t bytes_, begin_;
  uint8_t pattern_;
  std::vector<uint8_t> memory_;
};

struct RandomJob {
  WarpJob job{};
  bool warp;
  std::vector<uint8_t> images;
  std::vector<int64_t> indices, sample_ids, key;
  size_t offset;  // of the views from a multiple of 16 bytes

  int64_t view_elements() const { return int64_t{job.height} * job.width * job.channels; }
  int64_t views() const { return job.batch * job.num_views; }
  bool valid(int64_t n) const {
    const int64_t index = job.indices ? job.indices[n] : n;
    return index >= 0 && index < job.num_images;
  }
};

class Draw {
 public:
  explicit Draw(uint64_t seed) : random_(seed) {}
  int64_t any() { return static_cast<int64_t>(random_()); }
  int below(int n) { return static_cast<int>(random_() % static_cast<uint64_t>(n)); }
  int between(int low, int high) { return low + below(high - low + 1); }
  bool one_in(int n) { return below(n) == 0; }

 private:
  std::mt19937_64 random_;
};

// A whole tile, several, vectors in part of a tile, or anything.
int draw_side(Draw& draw) {
  switch (draw.below(5)) {
    case 0:
      return draw.between(1, 72);
    case 1:
      return 8 * draw.between(1, 9);
    case 2:
      return 64;
    default:
      return 32;
  }
}

void draw_normalisation(Draw& draw, WarpJob& job) {
  double mean[4], std[4];
  for (int c = 0; c < 4; ++c) {
    mean[c] = draw.one_in(8) ? draw.between(-1000, 1000) : draw.below(1000) / 1000.0;
    std[c] = draw.between(1, 1000) / 1000.0;
  }
  job.normalisation = make_normalisation(mean, std, job.channels);
}

// Quarter turns, or any whole degrees for the warp; an image that is not square keeps its sides.
void draw_rotations(Draw& draw, RandomJob& made) {
  WarpJob& job = made.job;
  const bool multiples_of_45 = draw.one_in(2);
  for (int k = 0; k < job.num_views; ++k) {
    int degrees = 90 * draw.below(4);
    if (made.warp) degrees = multiples_of_45 ? 45 * draw.below(8) : draw.below(360);
    if (job.height != job.width) degrees = 180 * draw.below(2);
    job.turns[k] = static_cast<uint8_t>(degrees / 90);
    job.angles[k] = make_warp_angle(degrees % 90);
  }
}

RandomJob draw_job(Draw& draw) {
  RandomJob made;
  WarpJob& job = made.job;
  made.warp = draw.one_in(3);
  job.channels = draw.between(1, 4);
  job.height = draw_side(draw);
  job.width = made.warp || !draw.one_in(3) ? job.height : draw_side(draw);
  job.num_views = draw.between(1, 4);
  job.batch = draw.one_in(50) ? 0 : draw.between(1, 3);
  if (draw.one_in(10)) {
    job.num_views = draw.between(5, kMaxViews);
    job.height = job.width = draw.between(1, 8);
  }
  job.num_images = draw.between(1, 3);
  job.pad = draw.one_in(4) ? draw.below(80) : draw.below(5);
  job.flip_threshold = flip_threshold(0.5 * draw.below(3));
  job.type = static_cast<OutputType>(draw.below(3));
  draw_normalisation(draw, job);
  draw_rotations(draw, made);

  made.images.resize(static_cast<size_t>(job.num_images * made.view_elements()));
  simt::fill_with_random_bytes(made.images.data(), made.images.size());
  const int64_t outside[] = {-1, job.num_images, INT64_MIN, INT64_MAX};
  const bool some_bad = draw.one_in(4);
  for (int64_t n = 0; n < job.batch; ++n) {
    made.indices.push_back(some_bad && draw.one_in(2) ? outside[draw.below(4)]
                                                      : draw.below(static_cast<int>(job.num_images)));
    made.sample_ids.push_back(draw.any());
  }
  made.key = {draw.any(), draw.any()};
  job.images = made.images.data();
  if (draw.one_in(5)) {
    job.batch = std::min(job.batch, job.num_images);  // which the op makes the same
  } else {
    job.indices = made.indices.data();
  }
  if (draw.one_in(2)) job.sample_ids = made.sample_ids.data();
  if (draw.one_in(2)) {
    job.key = made.key.data();
  } else {
    job.seed = made.key[0];
    job.epoch = made.key[1];
  }
  const int size = bytes_per_element(job.type);
  made.offset = draw.one_in(4) ? static_cast<size_t>(size * draw.between(1, 16 / size - 1)) : 0;
  return made;
}

void print(const RandomJob& made) {
  const char* types[] = {"float32", "bfloat16", "float16"};
  std::printf("%s to %s, %d x %d x %d, batch %" PRId64 " of %" PRId64
              ", %d views, pad %d, offset %zu, %d multiprocessors",
              made.warp ? "warp" : "rotate", types[static_cast<int>(made.job.type)], made.job.height,
              made.job.width, made.job.channels, made.job.batch, made.job.num_images, made.job.num_views,
              made.job.pad, made.offset, simt::multiprocessors);
}

// The views and labels of the CPU kernels. Those of bad indices are left out.
void run_on_cpu(const RandomJob& made, uint8_t* views, int64_t* labels) {
  WarpJob job = made.job;
  const size_t image_bytes =
      static_cast<size_t>(job.num_views * made.view_elements()) * static_cast<size_t>(bytes_per_element(job.type));
  for (int64_t n = 0; n < made.job.batch; ++n) {
    if (!made.valid(n)) continue;
    // One image at a time: an image's views do not depend on the others.
    const int64_t index = made.job.indices ? made.job.indices[n] : n;
    const int64_t sample_id = made.job.sample_ids ? made.job.sample_ids[n] : index;
    job.batch = 1;
    job.indices = &index;
    job.sample_ids = &sample_id;
    job.views = views + static_cast<size_t>(n) * image_bytes;
    job.labels = labels + n * job.num_views;
    if (made.warp) {
      cpu::warp_range_scalar(job, cpu::plan_warp(job), 0, 1);
    } else {
      cpu::rotate_range_scalar(job, 0, 1, false);
    }
  }
}

bool is_nan(OutputType type, uint32_t bits) {
  if (type == OutputType::kFloat32) return (bits & 0x7fffffffu) > 0x7f800000u;
  return (bits & 0x7fffu) > (type == OutputType::kBFloat16 ? 0x7f80u : 0x7c00u);
}

uint32_t element(const uint8_t* views, int64_t number, int size) {
  uint32_t bits = 0;
  std::memcpy(&bits, views + number * size, static_cast<size_t>(size));
  return bits;
}

// Number of the first element that is not what it should be, or -1.
int64_t first_difference(const RandomJob& made, const uint8_t* found, const uint8_t* expected) {
  const int size = bytes_per_element(made.job.type);
  const int64_t per_image = made.job.num_views * made.view_elements();
  for (int64_t n = 0; n < made.job.batch; ++n) {
    const bool valid = made.valid(n);
    const int64_t begin = n * per_image;
    if (valid &&
        std::memcmp(found + begin * size, expected + begin * size, static_cast<size_t>(per_image * size)) == 0) {
      continue;
    }
    for (int64_t e = begin; e < begin + per_image; ++e) {
      const uint32_t bits = element(found, e, size);
      if (valid ? bits != element(expected, e, size) : !is_nan(made.job.type, bits)) return e;
    }
  }
  return -1;
}

// Runs one job both ways; whether all is as it should be.
bool check(const RandomJob& made) {
  const int size = bytes_per_element(made.job.type);
  const size_t bytes = static_cast<size_t>(made.views() * made.view_elements()) * static_cast<size_t>(size);
  const size_t label_bytes = static_cast<size_t>(made.views()) * sizeof(int64_t);
  Output found(bytes, made.offset, 0xa5), expected(bytes, 0, 0x5a);
  Output labels(label_bytes, 0, 0xa5), expected_labels(label_bytes, 0, 0x5a);
  run_on_cpu(made, expected.data(), reinterpret_cast<int64_t*>(expected_labels.data()));

  WarpJob job = made.job;
  job.views = found.data();
  job.labels = reinterpret_cast<int64_t*>(labels.data());
  const int64_t blocks_before = simt::blocks_run;
  const cudaError_t error = made.warp ? cuda::warp(job, nullptr) : cuda::rotate(job, nullptr);
  if (error != cudaSuccess) return std::printf("differs: error %d of the launch: ", error), false;
  if (job.batch == 0 && simt::blocks_run != blocks_before)
    return std::printf("differs: blocks without images: "), false;

  if (const int64_t e = first_difference(made, found.data(), expected.data()); e >= 0) {
    const int64_t view = e / made.view_elements(), pixel = e % made.view_elements() / job.channels;
    const int view_width = job.turns[view % job.num_views] % 2 ? job.height : job.width;
    std::printf("differs: image %" PRId64 ", view %" PRId64 ", row %" PRId64 ", column %" PRId64
                ", channel %d is %08x, ",
                view / job.num_views, view % job.num_views, pixel / view_width, pixel % view_width,
                static_cast<int>(e % job.channels), element(found.data(), e, size));
    if (made.valid(view / job.num_views)) {
      std::printf("not %08x: ", element(expected.data(), e, size));
    } else {
      std::printf("not NaN: ");
    }
    return false;
  }
  for (int64_t v = 0; v < made.views(); ++v) {
    if (job.labels[v] != v % job.num_views) {
      return std::printf("differs: label %" PRId64 " is %" PRId64 ": ", v, job.labels[v]), false;
    }
  }
  if (!found.guards_are_whole() || !labels.guards_are_whole()) {
    return std::printf("differs: something was written outside of the outputs: "), false;
  }
  return true;
}

}  // namespace

int main(int count, char** arguments) {
  if (count < 3) return std::fputs("usage: executed JOBS SEED [FAULT]\n", stderr), 2;
  const int jobs = std::atoi(arguments[1]);
  const uint64_t seed = std::strtoull(arguments[2], nullptr, 10);
  if (count > 3) simt::planted = std::atoi(arguments[3]);
  simt::random_bits.seed(seed + 1);
  Draw draw(seed);
  std::set<std::string> variants;
  int64_t elements = 0, bad = 0;
  for (int number = 0; number < jobs; ++number) {
    const int multiprocessors[] = {1, 4, 132};
    simt::multiprocessors = multiprocessors[draw.below(3)];
    const RandomJob made = draw_job(draw);
    if (!check(made)) {
      print(made);
      std::printf(" (job %d of seed %" PRIu64 ")\n", number, seed);
      return 1;
    }
    elements += made.views() * made.view_elements();
    for (int64_t n = 0; n < made.job.batch; ++n) bad += !made.valid(n);
    if (made.job.batch > 0) {
      variants.insert(simt::last_launch + " " + std::to_string(static_cast<int>(made.job.type)) + " " +
                      std::to_string(made.job.channels));
    }
  }
  for (const auto& [name, times] : simt::launches)
    std::printf("launched %" PRId64 " times: %s\n", times, name.c_str());
  std::printf("%d jobs, %" PRId64 " blocks, %" PRId64 " waits at barriers, %" PRId64 " elements, %" PRId64
              " bad indices, %zu kernels by type and channels, 0 differences\n",
              jobs, simt::blocks_run, simt::barriers_passed, elements, bad, variants.size());
  return 0;
}

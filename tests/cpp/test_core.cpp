// The header core and the CPU kernels without torch or Python: known answers, and every kernel
// against the index maps applied pixel by pixel. Buffers have exactly the size they need, so that
// AddressSanitizer sees an access one byte outside. `test_core --plant address|undefined` commits
// such a fault on purpose: a sanitizer run that does not notice it proves nothing.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

#include "../../csrc/cpu/rotate_cpu.h"
#include "../../csrc/cuda/tile.h"
#include "../../csrc/rotnet/geometry.h"
#include "support.h"

using namespace rotnet;

namespace {

void philox_gives_the_published_known_answers() {
  const Philox4x32 zeros = philox4x32({{0, 0, 0, 0}}, 0, 0);
  expect(zeros.word[0] == 0x6627e8d5u && zeros.word[3] == 0x9b00dbd8u, "philox of zeros");
  const Philox4x32 pi =
      philox4x32({{0x243f6a88u, 0x85a308d3u, 0x13198a2eu, 0x03707344u}}, 0xa4093822u, 0x299f31d0u);
  expect(pi.word[0] == 0xd16cfe09u && pi.word[3] == 0x24126ea1u, "philox of the digits of pi");
}

void four_quarter_turns_are_none() {
  for (int row = 0; row < 5; ++row) {
    for (int column = 0; column < 5; ++column) {
      Position p{row, column};
      for (int i = 0; i < 4; ++i) p = unrotate(1, p.row, p.column, 5, 5);
      expect(p.row == row && p.column == column, "four quarter turns");
      const Position half = unrotate(2, row, column, 5, 5);
      const Position quarter = unrotate(1, row, column, 5, 5);
      const Position twice = unrotate(1, quarter.row, quarter.column, 5, 5);
      expect(half.row == twice.row && half.column == twice.column, "two quarter turns");
      const Position back = unrotate(3, quarter.row, quarter.column, 5, 5);
      expect(back.row == row && back.column == column, "a quarter turn back");
    }
  }
}

// The definition, one element at a time.
bool equals_definition(const RotateJob& job) {
  for (int64_t n = 0; n < job.batch; ++n) {
    const int64_t index = job.indices[n];
    const Augmentation draw = draw_augmentation(job.sample_ids ? job.sample_ids[n] : index, job.seed, job.epoch,
                                                job.pad, job.flip_threshold);
    for (int k = 0; k < job.num_views; ++k) {
      if (job.labels[n * job.num_views + k] != k) return false;
      for (int i = 0; i < job.height; ++i) {
        for (int j = 0; j < job.width; ++j) {
          const Position up = unrotate(job.turns[k], i, j, job.height, job.width);
          const Position at = uncrop(draw, job.pad, up.row, up.column, job.width);
          const bool inside = at.row >= 0 && at.row < job.height && at.column >= 0 && at.column < job.width;
          for (int c = 0; c < job.channels; ++c) {
            const uint8_t value =
                inside ? job.images[((index * job.height + at.row) * job.width + at.column) * job.channels + c]
                       : 0;
            const int64_t element =
                (((n * job.num_views + k) * job.height + i) * job.width + j) * job.channels + c;
            const float normalised = normalise(value, job.normalisation.scale[c], job.normalisation.shift[c]);
            if (found_bits(job, element) != cast_bits(job, normalised)) return false;
          }
        }
      }
    }
  }
  return true;
}

// The CUDA kernel's code on the host: each block's threads one after the other, load before write.
template <OutputType type, int C>
void run_blocks(const RotateJob& job, bool split_views) {
  const cuda::Grid grid = cuda::make_grid(job, split_views ? int64_t{1} << 40 : 0);
  for (int64_t number = 0; number < grid.blocks; ++number) {
    cuda::Tile tile;
    std::memset(tile, 0xee, sizeof(tile));
    const cuda::Block block = cuda::make_block(job, grid, static_cast<unsigned>(number));
    const Augmentation draw = cuda::draw_block(job, block);
    for (int thread = 0; thread < cuda::kThreads; ++thread) cuda::load_tile<C>(job, block, draw, thread, tile);
    for (int thread = 0; thread < cuda::kThreads; ++thread) {
      if (cuda::rows_are_vectors(job)) {
        cuda::write_views<HostCast<type>, C, true>(job, block, thread, tile);
      } else {
        cuda::write_views<HostCast<type>, C, false>(job, block, thread, tile);
      }
    }
  }
}

template <OutputType type>
void run_blocks(const RotateJob& job, bool split_views) {
  switch (job.channels) {
    case 1:
      return run_blocks<type, 1>(job, split_views);
    case 2:
      return run_blocks<type, 2>(job, split_views);
    case 3:
      return run_blocks<type, 3>(job, split_views);
    default:
      return run_blocks<type, 4>(job, split_views);
  }
}

// Has the shape of a CPU kernel, so that the same test drives it; one grid serves the whole batch.
void cuda_code_on_the_host(const RotateJob& job, int64_t /*begin*/, int64_t /*end*/, bool split_views) {
  switch (job.type) {
    case OutputType::kFloat32:
      return run_blocks<OutputType::kFloat32>(job, split_views);
    case OutputType::kBFloat16:
      return run_blocks<OutputType::kBFloat16>(job, split_views);
    default:
      return run_blocks<OutputType::kFloat16>(job, split_views);
  }
}

void cuda_code_marks_bad_indices_with_nan() {
  const int64_t indices[] = {0, 7, -1};
  const std::vector<uint8_t> images(32 * 32 * 3, 255);
  std::vector<float> views(3 * 32 * 32 * 3);
  int64_t labels[3];
  const double mean[3] = {0.5, 0.5, 0.5}, std[3] = {0.5, 0.5, 0.5};
  RotateJob job{};
  job.images = images.data();
  job.indices = indices;
  job.num_images = 1;
  job.batch = 3;
  job.height = job.width = 32;
  job.channels = 3;
  job.num_views = 1;
  job.normalisation = make_normalisation(mean, std, 3);
  job.views = views.data();
  job.labels = labels;
  run_blocks<OutputType::kFloat32>(job, true);
  const float white = normalise(255, job.normalisation.scale[0], job.normalisation.shift[0]);
  for (size_t i = 0; i < views.size(); ++i) {
    if (i < 32 * 32 * 3) {
      expect(views[i] == white, "views of a good index");
    } else {
      expect(std::isnan(views[i]), "views of a bad index are NaN");
    }
  }
}

void kernel_equals_the_definition(const cpu::Kernel& kernel, int calls) {
  std::mt19937_64 random(7);
  const auto below = [&](int n) { return static_cast<int>(random() % n); };
  const int sides[] = {1, 2, 7, 8, 9, 15, 16, 17, 31, 32, 33, 48, 64, 72};
  const double mean[4] = {0.49, 0.48, 0.44, 0.1}, std[4] = {0.25, 0.24, 0.26, 0.3};
  for (int call = 0; call < calls; ++call) {
    RotateJob job{};
    job.height = job.width = sides[below(14)];
    job.channels = 1 + below(4);
    job.num_images = 1 + below(3);
    job.batch = below(4);
    job.num_views = 1 + below(5);
    bool square = false;
    for (int k = 0; k < job.num_views; ++k) {
      job.turns[k] = static_cast<uint8_t>(below(4));
      square = square || job.turns[k] % 2;
    }
    if (!square) job.width = sides[below(14)];
    job.pad = below(3) == 0 ? below(80) : 4;
    job.flip_threshold = flip_threshold(0.5 * below(3));
    job.seed = static_cast<int64_t>(random());
    job.epoch = below(1000);
    job.type = static_cast<OutputType>(below(3));
    job.normalisation = make_normalisation(mean, std, job.channels);
    std::vector<uint8_t> images(job.num_images * job.height * job.width * job.channels);
    for (uint8_t& value : images) value = static_cast<uint8_t>(random());
    std::vector<int64_t> indices(job.batch), labels(job.batch * job.num_views);
    for (int64_t& index : indices) index = below(static_cast<int>(job.num_images));
    const size_t bytes = static_cast<size_t>(job.batch) * job.num_views * job.height * job.width * job.channels *
                         bytes_per_element(job.type);
    // Aligned for streaming stores, and not a byte longer than the output.
    void* views = nullptr;
    if (posix_memalign(&views, 64, bytes) != 0) std::abort();
    std::memset(views, 0xff, bytes);
    job.images = images.data();
    job.indices = indices.data();
    job.views = views;
    job.labels = labels.data();
    const bool stream = below(2);
    if (kernel.run == cuda_code_on_the_host) {
      kernel.run(job, 0, job.batch, stream);
    } else {
      const int64_t middle = job.batch / 2;
      kernel.run(job, 0, middle, stream);
      kernel.run(job, middle, job.batch, stream);
    }
    if (!equals_definition(job)) {
      std::printf("%s: %d x %d x %d, type %d, stream %d\n", kernel.name, job.height, job.width, job.channels,
                  static_cast<int>(job.type), stream);
      expect(false, "kernel equals the definition");
    }
    std::free(views);
  }
}

void bad_indices_are_found() {
  const int64_t indices[] = {0, 2, -1};
  RotateJob job{};
  job.indices = indices;
  job.num_images = 3;
  job.batch = 2;
  expect(cpu::first_bad_index(job) == -1, "good indices");
  job.batch = 3;
  expect(cpu::first_bad_index(job) == 2, "negative index");
  job.num_images = 2;
  expect(cpu::first_bad_index(job) == 1, "index past the end");
}

int plant(const char* fault) {
  std::vector<int> memory(4);
  volatile int position = 4;
  if (std::strcmp(fault, "address") == 0) return memory.data()[position];
  if (std::strcmp(fault, "undefined") == 0) return 1 << (position * 10);
  return 2;
}

}  // namespace

int main(int count, char** arguments) {
  if (count == 3 && std::strcmp(arguments[1], "--plant") == 0) return plant(arguments[2]);
  philox_gives_the_published_known_answers();
  four_quarter_turns_are_none();
  bad_indices_are_found();
  cuda_code_marks_bad_indices_with_nan();
  kernel_equals_the_definition({"cuda, on the host", cuda_code_on_the_host}, 1000);
  int available = 0;
  const cpu::Kernel* kernels = cpu::available_kernels(&available);
  for (int i = 0; i < available; ++i) {
    kernel_equals_the_definition(kernels[i], 2000);
    std::printf("kernel %s checked\n", kernels[i].name);
  }
  check_warp();
  check_batch_norm();
  std::printf("%d failures\n", failures);
  return failures == 0 ? 0 : 1;
}

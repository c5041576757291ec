// The bilinear warp: its positions, and both backends against four weighted pixels, one channel at a time.
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

#include "../../csrc/cpu/rotate_cpu.h"
#include "../../csrc/cuda/warp_tile.h"
#include "support.h"

using namespace rotnet;

namespace {

void positions_stay_inside_the_crop_at_every_angle() {
  bool inside = true, near = true;
  for (int degrees = 0; degrees < 90; ++degrees) {
    const WarpAngle angle = make_warp_angle(degrees);
    expect(angle.cosine >= 0 && angle.sine >= 0 && angle.cosine + angle.sine <= (int64_t{1} << 39) + 1,
           "the square stays inside the crop");
    const double cosine = std::cos(degrees * std::acos(-1.0) / 180),
                 sine = std::sin(degrees * std::acos(-1.0) / 180);
    for (const int width : {1, 2, 3, 4, 5, 31, 32, 224, 4095, 32767}) {
      const int last = width - 1;
      const int steps = width < 300 ? last : 3;  // of large images, the corners and some between
      for (int a = 0; a <= steps; ++a) {
        for (int b = 0; b <= steps; ++b) {
          const int i = steps ? last * static_cast<int64_t>(a) / steps : 0;
          const int j = steps ? last * static_cast<int64_t>(b) / steps : 0;
          const WarpTap tap = warp_tap(angle, i, j, width);
          inside = inside && tap.row >= 0 && tap.column >= 0 && tap.row <= std::max(width - 2, 0) &&
                   tap.column <= std::max(width - 2, 0) && tap.down <= 2048 && tap.right <= 2048 &&
                   (width > 1 || tap.down + tap.right == 0);
          const double u = j - last / 2.0, v = i - last / 2.0;
          const double x = last / 2.0 + (cosine * u - sine * v) / std::sqrt(2.0);
          const double y = last / 2.0 + (sine * u + cosine * v) / std::sqrt(2.0);
          const double limit = 1.0 / 4096 + 1e-6;
          near = near && std::abs(tap.column + tap.right / 2048.0 - x) <= limit &&
                 std::abs(tap.row + tap.down / 2048.0 - y) <= limit;
        }
      }
    }
  }
  expect(inside, "taps inside the crop");
  expect(near, "positions within 1/4096 pixel");
}

void special_angles_are_exact() {
  const WarpAngle none = make_warp_angle(0), diagonal = make_warp_angle(45);
  expect(none.sine == 0, "no rotation");
  expect(diagonal.sine == diagonal.cosine && diagonal.sine == int64_t{1} << 38, "45 degrees");
}

// The definition, one element at a time; `degrees` per view, not split into quarter turns.
bool equals_definition(const WarpJob& job, const std::vector<int>& degrees) {
  const int width = job.width;
  for (int64_t n = 0; n < job.batch; ++n) {
    const int64_t index = job.indices[n];
    const Augmentation draw = draw_augmentation(job.sample_ids ? job.sample_ids[n] : index, job.seed, job.epoch,
                                                job.pad, job.flip_threshold);
    const auto pixel = [&](int row, int column, int c) -> int64_t {
      Position at = uncrop(draw, job.pad, row, column, width);
      // Step by step, unlike mirror(): what lies beyond an edge shows what lies as far before it.
      for (int* position : {&at.row, &at.column}) {
        while (*position < 0 || *position >= width)
          *position = *position < 0 ? -1 - *position : 2 * width - 1 - *position;
      }
      return job.images[((index * width + at.row) * width + at.column) * job.channels + c];
    };
    for (int k = 0; k < job.num_views; ++k) {
      if (job.labels[n * job.num_views + k] != k) return false;
      WarpAngle angle = make_warp_angle(degrees[k] % 90);
      for (int turn = 0; turn < degrees[k] / 90; ++turn) angle = {-angle.sine, angle.cosine};
      for (int i = 0; i < width; ++i) {
        for (int j = 0; j < width; ++j) {
          const WarpTap tap = warp_tap(angle, i, j, width);
          const int64_t right = tap.right, down = tap.down;
          for (int c = 0; c < job.channels; ++c) {
            int64_t sum = 0;
            for (int y = 0; y < 2; ++y) {
              for (int x = 0; x < 2; ++x) {
                const int64_t weight = (y ? down : 2048 - down) * (x ? right : 2048 - right);
                if (weight) sum += weight * pixel(tap.row + y, tap.column + x, c);
              }
            }
            const double level = static_cast<double>((sum + (1 << 13)) >> 14) / 256;
            const auto value = static_cast<float>(level * job.normalisation.scale[c] + job.normalisation.shift[c]);
            const int64_t element = (((n * job.num_views + k) * width + i) * width + j) * job.channels + c;
            if (found_bits(job, element) != cast_bits(job, value)) return false;
          }
        }
      }
    }
  }
  return true;
}

// The CUDA kernel's code on the host: each block's threads one after the other, from barrier to barrier.
template <OutputType type, int C>
void run_threads(const WarpJob& job) {
  const cuda::WarpGroups groups = cuda::make_groups(job);
  const cuda::Grid grid = cuda::make_warp_grid(job, groups);
  for (int64_t number = 0; number < grid.blocks; ++number) {
    cuda::Window window;
    cuda::LevelTile tile;
    std::memset(window, 0xee, sizeof(window));
    std::memset(tile, 0xee, sizeof(tile));
    const cuda::WarpBlock block = cuda::make_warp_block(job, grid, groups, static_cast<unsigned>(number));
    const Augmentation draw = cuda::draw_block(job, block);
    for (int thread = 0; thread < cuda::kThreads; ++thread) cuda::load_window<C>(job, block, draw, thread, window);
    for (int thread = 0; thread < cuda::kThreads; ++thread) {
      cuda::sample_tile<C>(job, block, groups, thread, window, tile);
    }
    for (int thread = 0; thread < cuda::kThreads; ++thread) {
      if (cuda::rows_are_vectors(job)) {
        cuda::write_warped<HostCast<type>, C, true>(job, block, groups, thread, tile);
      } else {
        cuda::write_warped<HostCast<type>, C, false>(job, block, groups, thread, tile);
      }
    }
  }
}

template <OutputType type>
void run_threads(const WarpJob& job) {
  switch (job.channels) {
    case 1:
      return run_threads<type, 1>(job);
    case 2:
      return run_threads<type, 2>(job);
    case 3:
      return run_threads<type, 3>(job);
    default:
      return run_threads<type, 4>(job);
  }
}

void cuda_code_on_the_host(const WarpJob& job) {
  switch (job.type) {
    case OutputType::kFloat32:
      return run_threads<OutputType::kFloat32>(job);
    case OutputType::kBFloat16:
      return run_threads<OutputType::kBFloat16>(job);
    default:
      return run_threads<OutputType::kFloat16>(job);
  }
}

void cuda_code_on_the_host(const WarpJob& job, const cpu::WarpPlan&, int64_t begin, int64_t /*end*/) {
  if (begin == 0) cuda_code_on_the_host(job);  // one grid serves the whole batch
}

void equals_the_definition(cpu::WarpRange run, const char* name, int calls) {
  std::mt19937_64 random(11);
  const auto below = [&](int n) { return static_cast<int>(random() % n); };
  const int sides[] = {1, 2, 3, 7, 8, 15, 16, 17, 32, 33, 64, 72};
  const double mean[4] = {0.49, 0.48, 0.44, 1000.0}, std[4] = {0.25, 0.24, 0.26, 0.3};
  for (int call = 0; call < calls; ++call) {
    WarpJob job{};
    job.height = job.width = sides[below(12)];
    job.channels = 1 + below(4);
    job.num_images = 1 + below(3);
    job.batch = below(4);
    job.num_views = 1 + below(5);
    std::vector<int> degrees(job.num_views);
    for (int k = 0; k < job.num_views; ++k) {
      degrees[k] = below(2) ? 45 * below(8) : below(360);
      job.turns[k] = static_cast<uint8_t>(degrees[k] / 90);
      job.angles[k] = make_warp_angle(degrees[k] % 90);
    }
    job.pad = below(3) == 0 ? below(80) : 4;
    job.flip_threshold = flip_threshold(0.5 * below(3));
    job.seed = static_cast<int64_t>(random());
    job.epoch = below(1000);
    job.type = static_cast<OutputType>(below(3));
    job.normalisation = make_normalisation(mean, std, job.channels);
    std::vector<uint8_t> images(job.num_images * job.width * job.width * job.channels);
    for (uint8_t& value : images) value = static_cast<uint8_t>(random());
    std::vector<int64_t> indices(job.batch), labels(job.batch * job.num_views);
    for (int64_t& index : indices) index = below(static_cast<int>(job.num_images));
    // Exactly as many bytes as the output has.
    const size_t bytes = static_cast<size_t>(job.batch) * job.num_views * job.width * job.width * job.channels *
                         bytes_per_element(job.type);
    void* views = nullptr;  // aligned, so that the GPU's code writes vectors
    if (posix_memalign(&views, 64, bytes) != 0) std::abort();
    std::memset(views, 0xff, bytes);
    job.images = images.data();
    job.indices = indices.data();
    job.views = views;
    job.labels = labels.data();
    const cpu::WarpPlan plan = cpu::plan_warp(job);
    run(job, plan, 0, job.batch / 2);
    if (job.batch > 0) run(job, plan, job.batch / 2, job.batch);
    if (!equals_definition(job, degrees)) {
      std::printf("%s: side %d, channels %d, type %d\n", name, job.width, job.channels,
                  static_cast<int>(job.type));
      expect(false, "warp equals the definition");
    }
    std::free(views);
  }
}

void cuda_code_marks_bad_indices_with_nan() {
  const int64_t indices[] = {0, 7, -1};
  const std::vector<uint8_t> images(16 * 16, 255);
  std::vector<float> views(3 * 16 * 16);
  int64_t labels[3];
  const double mean[1] = {0.5}, std[1] = {0.5};
  WarpJob job{};
  job.images = images.data();
  job.indices = indices;
  job.num_images = 1;
  job.batch = 3;
  job.height = job.width = 16;
  job.channels = 1;
  job.num_views = 1;
  job.angles[0] = make_warp_angle(45);
  job.normalisation = make_normalisation(mean, std, 1);
  job.views = views.data();
  job.labels = labels;
  cuda_code_on_the_host(job);
  const float white = normalise(255, job.normalisation.scale[0], job.normalisation.shift[0]);
  for (size_t i = 0; i < views.size(); ++i) {
    expect(i < 16 * 16 ? views[i] == white : std::isnan(views[i]), "white views, NaN where the index is bad");
  }
}

}  // namespace

void check_warp() {
  special_angles_are_exact();
  positions_stay_inside_the_crop_at_every_angle();
  cuda_code_marks_bad_indices_with_nan();
  equals_the_definition(cuda_code_on_the_host, "cuda warp, on the host", 400);
  int available = 0;
  const cpu::Kernel* kernels = cpu::available_kernels(&available);
  for (int i = 0; i < available; ++i) equals_the_definition(kernels[i].warp, kernels[i].name, 400);
  std::printf("warp checked\n");
}

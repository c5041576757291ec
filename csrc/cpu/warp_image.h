// The straight line from one stored image to its warped views, shared by the CPU kernels.
//
// Included after rotate_image.h by each kernel's source file, inside its own namespace and target
// options. `Lanes` supplies, for one output type, number of channels and instruction set:
//   sample   taps -> finished pixels, one after the other; may write up to 16 bytes beyond the last
//
// Sixteen rows of samples at a time are finished in a buffer that stays in the first-level cache, and
// copied into every view that shows them: a quarter turn only changes the order.

template <class Lanes>
class Warp {
 public:
  static constexpr int channels = Lanes::kChannels;
  struct Pixel {
    typename Lanes::Out element[channels];
  };

  Warp(const WarpJob& job, const WarpPlan& plan)
      : job(job),
        plan(plan),
        lanes(job),
        columns(job.width),
        crop(static_cast<size_t>(plan.pitch) * plan.pitch),
        band(static_cast<size_t>(kBlock) * job.width + 16 / sizeof(Pixel) + 1) {}

  void run(int64_t begin, int64_t end) {
    const int64_t view_pixels = static_cast<int64_t>(job.width) * job.width;
    for (int64_t n = begin; n < end; ++n) {
      load_crop(find_image(job, n, end));
      Pixel* views = static_cast<Pixel*>(job.views) + n * job.num_views * view_pixels;
      for (const WarpPlan::Group& group : plan.groups) {
        for (int y0 = 0; y0 < job.width; y0 += kBlock) {
          const int rows = std::min(kBlock, job.width - y0);
          lanes.sample(band.data()->element, crop.data(), plan.pitch,
                       group.taps.data() + static_cast<int64_t>(y0) * job.width, rows * job.width);
          for (const int k : group.views) write_band(views + k * view_pixels, job.turns[k], y0, rows);
        }
      }
      write_labels(job, n);
    }
  }

 private:
  void load_crop(const StoredImage& image) {
    const int width = job.width;
    for (int x = 0; x < width; ++x) {
      columns[x] = mirror(uncrop(image.draw, job.pad, 0, x, width).column, width) * channels;
    }
    for (int y = 0; y < width; ++y) {
      const int stored_row = mirror(uncrop(image.draw, job.pad, y, 0, width).row, width);
      const uint8_t* stored = image.pixels + static_cast<int64_t>(stored_row) * width * channels;
      SpreadPixel* to = crop.data() + static_cast<int64_t>(y) * plan.pitch;
      for (int x = 0; x < width; ++x) {
        uint32_t pixel = 0;
        for (int c = 0; c < channels; ++c) pixel |= static_cast<uint32_t>(stored[columns[x] + c]) << (8 * c);
        to[x] = spread(pixel);
      }
    }
  }

  // The band's rows, which are rows y0 .. y0+rows-1 of the samples, into a view: see unrotate.
  void write_band(Pixel* view, int turn, int y0, int rows) const {
    const int width = job.width;
    const Pixel* from = band.data();
    switch (turn) {
      case 0:
        std::memcpy(view + static_cast<int64_t>(y0) * width, from, sizeof(Pixel) * rows * width);
        return;
      case 2: {
        Pixel* to = view + static_cast<int64_t>(width - y0 - rows) * width;
        const int count = rows * width;
        for (int p = 0; p < count; ++p) to[p] = from[count - 1 - p];
        return;
      }
      case 1:
        for (int i = 0; i < width; ++i) {
          Pixel* to = view + static_cast<int64_t>(i) * width + y0;
          for (int r = 0; r < rows; ++r) to[r] = from[r * width + width - 1 - i];
        }
        return;
      default:
        for (int i = 0; i < width; ++i) {
          Pixel* to = view + static_cast<int64_t>(i) * width + width - y0 - rows;
          for (int r = 0; r < rows; ++r) to[r] = from[(rows - 1 - r) * width + i];
        }
    }
  }

  const WarpJob& job;
  const WarpPlan& plan;
  const Lanes lanes;
  std::vector<int> columns;       // of the stored row, in bytes
  std::vector<SpreadPixel> crop;  // [pitch, pitch]
  std::vector<Pixel> band;        // [16, W] and what sample may write beyond
};

template <template <OutputType, int> class Lanes>
void warp_images(const WarpJob& job, const WarpPlan& plan, int64_t begin, int64_t end) {
  with_type(job.type, [&](auto type) {
    with_channels(job.channels, [&](auto channels) {
      Warp<Lanes<decltype(type)::value, decltype(channels)::value>>(job, plan).run(begin, end);
    });
  });
}

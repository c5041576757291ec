// The straight line from one stored image to its K views, shared by the CPU kernels.
//
// Included by each kernel's source file inside its own namespace and target options. `Lanes`
// supplies the three inner loops for one instruction set:
//   load_row   stored row   -> cropped, flipped row of 32-bit pixels (one byte per channel)
//   transpose  a 16 x 16 block of 32-bit pixels
//   emit_row   32-bit pixels -> normalised, interleaved output row, forwards or backwards
//
// The upright crop lives in a scratch tile of 32-bit pixels. Views 0 and 180 read its rows forwards
// and backwards; bands of 16 transposed columns serve 90 and 270 the same way.

constexpr int64_t kPrefetchBytes = 4096;  // beyond, the processor has noticed the sequence itself
constexpr int kBlock = 16;                // pixels per block; also the guard around every scratch row

inline int round_up_to_block(int n) { return (n + kBlock - 1) / kBlock * kBlock; }

// The loop behind load_row where no instruction set does better: pixel x of the crop's row is stored
// column x + shift, counted from the right where flipped; what lies outside is black.
inline void load_row_bytewise(uint32_t* row, const uint8_t* stored, int width, int channels, int shift,
                              bool flip) {
  for (int x = 0; x < width; ++x) {
    const int column = (flip ? width - 1 - x : x) + shift;
    uint32_t pixel = 0;
    if (column >= 0 && column < width) {
      const uint8_t* source = stored + static_cast<int64_t>(column) * channels;
      pixel = source[0];
      if (channels > 1) pixel |= static_cast<uint32_t>(source[1]) << 8;
      if (channels > 2) pixel |= static_cast<uint32_t>(source[2]) << 16;
      if (channels > 3) pixel |= static_cast<uint32_t>(source[3]) << 24;
    }
    row[x] = pixel;
  }
}

// Where one image of a job lies and how it is cropped.
struct StoredImage {
  const uint8_t* pixels;
  Augmentation draw;
};

// Looks up image n, and starts to fetch the one after it, which lies anywhere in memory: its start is on
// the way while this one is written.
inline StoredImage find_image(const RotateJob& job, int64_t n, int64_t end) {
  const int64_t image_bytes = static_cast<int64_t>(job.height) * job.width * job.channels;
  const int64_t index = job.indices ? job.indices[n] : n;
  const int64_t sample_id = job.sample_ids ? job.sample_ids[n] : index;
  if (n + 1 < end) {
    const uint8_t* next = job.images + (job.indices ? job.indices[n + 1] : n + 1) * image_bytes;
    const int64_t bytes = std::min<int64_t>(image_bytes, kPrefetchBytes);
    for (int64_t byte = 0; byte < bytes; byte += 64) __builtin_prefetch(next + byte);
  }
  return {job.images + index * image_bytes,
          draw_augmentation(sample_id, job.key ? job.key[0] : job.seed, job.key ? job.key[1] : job.epoch, job.pad,
                            job.flip_threshold)};
}

// Row y of the upright crop as 32-bit pixels.
template <class Lanes>
void load_crop_row(const Lanes& lanes, const RotateJob& job, const StoredImage& image, int y, uint32_t* row) {
  const int stored_row = uncrop(image.draw, job.pad, y, 0, job.width).row;
  if (stored_row < 0 || stored_row >= job.height) {
    std::memset(row, 0, sizeof(uint32_t) * job.width);
  } else {
    lanes.load_row(row, image.pixels + static_cast<int64_t>(stored_row) * job.width * job.channels, job.width,
                   image.draw.left - job.pad, image.draw.flip);
  }
}

inline void write_labels(const RotateJob& job, int64_t n) {
  for (int k = 0; k < job.num_views; ++k) job.labels[n * job.num_views + k] = k;
}

// Scratch memory of one thread. Rows are a multiple of 16 pixels apart plus one cache line: a power
// of two would map the 16 rows of a block onto one cache set. emit_row may read up to 15 pixels
// before and after a row, hence the guards.
class Scratch {
 public:
  Scratch(int height, int width)
      : tile_pitch(round_up_to_block(width) + kBlock),
        band_pitch(round_up_to_block(height) + kBlock),
        memory_(static_cast<size_t>(2 * kBlock) + static_cast<size_t>(round_up_to_block(height)) * tile_pitch +
                static_cast<size_t>(kBlock) * band_pitch + kBlock) {
    const auto address = reinterpret_cast<uintptr_t>(memory_.data());
    const size_t skip = (64 - address % 64) % 64 / sizeof(uint32_t);
    tile = memory_.data() + skip + kBlock;
    band = tile + static_cast<size_t>(round_up_to_block(height)) * tile_pitch;
  }

  const int tile_pitch;
  const int band_pitch;
  uint32_t* tile;  // [height rounded up, tile_pitch]
  uint32_t* band;  // [16, band_pitch]

 private:
  std::vector<uint32_t> memory_;
};

template <class Lanes>
void rotate_images(const RotateJob& job, int64_t begin, int64_t end) {
  using Out = typename Lanes::Out;
  const int height = job.height, width = job.width, channels = job.channels;
  const int64_t image_elements = static_cast<int64_t>(height) * width * channels;
  bool any_sideways = false;
  for (int k = 0; k < job.num_views; ++k) any_sideways |= job.turns[k] % 2 == 1;
  const Lanes lanes(job);
  Scratch scratch(height, width);

  for (int64_t n = begin; n < end; ++n) {
    const StoredImage image = find_image(job, n, end);
    Out* views = static_cast<Out*>(job.views) + n * job.num_views * image_elements;
    for (int y = 0; y < height; ++y) {
      load_crop_row(lanes, job, image, y, scratch.tile + static_cast<int64_t>(y) * scratch.tile_pitch);
    }

    for (int k = 0; k < job.num_views; ++k) {
      if (job.turns[k] % 2) continue;
      Out* view = views + k * image_elements;
      for (int i = 0; i < height; ++i) {
        // unrotate: view row i shows tile row i forwards, or row height-1-i backwards.
        const int y = unrotate(job.turns[k], i, 0, height, width).row;
        lanes.emit_row(view + static_cast<int64_t>(i) * width * channels,
                       scratch.tile + static_cast<int64_t>(y) * scratch.tile_pitch, width, job.turns[k] == 2);
      }
    }

    if (any_sideways) {
      for (int x0 = 0; x0 < width; x0 += kBlock) {
        for (int y0 = 0; y0 < height; y0 += kBlock) {
          Lanes::transpose(scratch.band + y0, scratch.band_pitch,
                           scratch.tile + static_cast<int64_t>(y0) * scratch.tile_pitch + x0, scratch.tile_pitch);
        }
        const int columns = std::min(kBlock, width - x0);
        for (int k = 0; k < job.num_views; ++k) {
          if (job.turns[k] % 2 == 0) continue;
          Out* view = views + k * image_elements;
          for (int c = 0; c < columns; ++c) {
            // unrotate: tile column x is view row width-1-x downwards (90) or row x upwards (270).
            const int i = job.turns[k] == 1 ? width - 1 - (x0 + c) : x0 + c;
            lanes.emit_row(view + static_cast<int64_t>(i) * height * channels,
                           scratch.band + static_cast<int64_t>(c) * scratch.band_pitch, height, job.turns[k] == 3);
          }
        }
      }
    }
    write_labels(job, n);
  }
}

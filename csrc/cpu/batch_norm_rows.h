// The passes of BatchNorm and ReLU, shared by the CPU kernels.
//
// Included by each kernel's source file inside its own namespace and target options. `Vector` supplies, for one
// instruction set, what `Single` below does for a single element. Built with -ffp-contract=off: were a
// multiplication and an addition fused in one pass and not in another, the gradient's mask would differ from
// the output's.

// One element at a time, for the rest of a line.
struct Single {
  static constexpr int kWidth = 1;

  static float load(const float* from) { return *from; }
  static float load(const BFloat16* from) {
    const uint32_t bits = static_cast<uint32_t>(from->bits) << 16;
    float value;
    std::memcpy(&value, &bits, sizeof(value));
    return value;
  }
  static void store(float* to, float value) { *to = value; }
  // Rounds as the instruction of AVX-512 does: to nearest, ties to even; below 2^-126 to 0; NaN to a quiet NaN.
  static void store(BFloat16* to, float value) {
    if (value != value) {
      to->bits = static_cast<uint16_t>(float32_bits(value) >> 16 | 0x40u);
    } else {
      to->bits = std::fabs(value) < kSmallest ? float32_bits(value) >> 31 << 15 : bfloat16_bits(value);
    }
  }
  // `value` where y is at least 2^-126, so that what is stored of y is above 0, and where y is NaN.
  static float where_active(float y, float value) { return y < kSmallest ? 0 : value; }
};

// The elements [0, count) of a line, as vectors and then one by one.
template <class Body>
inline void along(int64_t count, const Body& body) {
  int64_t j = 0;
  for (; j + Vector::kWidth <= count; j += Vector::kWidth) body(Vector{}, j);
  for (; j < count; ++j) body(Single{}, j);
}

// Calls body(lanes, number, j, first): for element j of `number` lines, the first of which begins at element
// `first` of the matrix. Several lines at a time spare reloading what belongs to j.
template <class Body>
inline void over_lines(const RowPlan& plan, int64_t begin_row, int64_t end_row, const Body& body) {
  constexpr int kTogether = 4;
  using Together = std::integral_constant<int, kTogether>;
  using Alone = std::integral_constant<int, 1>;
  const int64_t line = plan.line;
  int64_t first = begin_row * plan.channels;
  const int64_t end = end_row * plan.channels;
  for (; first + kTogether * line <= end; first += kTogether * line) {
    along(line, [&](auto lanes, int64_t j) { body(lanes, Together{}, j, first); });
  }
  for (; first < end; first += line) {
    along(std::min(line, end - first), [&](auto lanes, int64_t j) { body(lanes, Alone{}, j, first); });
  }
}

// What a pass reads again and again, held by value: stores might overwrite it for all that a compiler knows.
struct LinePointers {
  explicit LinePointers(const LineCoefficients& line)
      : mean(line.mean.data()),
        scale(line.scale.data()),
        shift(line.shift.data()),
        tilt(line.tilt.data()),
        offset(line.offset.data()) {}
  const float *mean, *scale, *shift, *tilt, *offset;
};

// The sums of each channel, out of the `folded` ones of a line: float64 [C].
inline void unfold(const RowPlan& plan, const std::vector<float>& sums, double* to) {
  std::fill(to, to + plan.channels, 0.0);
  for (int64_t r = 0; r < plan.folded; ++r) {
    const float* from = sums.data() + r * plan.channels;
    for (int64_t c = 0; c < plan.channels; ++c) to[c] += static_cast<double>(from[c]);
  }
}

template <class Element>
void moments(const RowPlan& plan, const void* x, double* sums, int64_t begin, int64_t end) {
  const auto* in = static_cast<const Element*>(x);
  const int64_t channels = plan.channels, length = plan.line;
  std::vector<float> about(length), first_sums(length), second_sums(length);
  float *const middles = about.data(), *const firsts = first_sums.data(), *const seconds = second_sums.data();
  std::vector<double> first(channels), second(channels);
  for (int64_t chunk = begin; chunk < end; ++chunk) {
    double* mean = sums + chunk * 2 * channels;
    double* spread = mean + channels;
    std::fill(mean, mean + 2 * channels, 0.0);
    const int64_t chunk_begin = plan.begin_of(chunk), chunk_end = plan.end_of(chunk);
    for (int64_t row = chunk_begin; row < chunk_end; row += plan.block_rows) {
      const int64_t row_end = std::min(row + plan.block_rows, chunk_end);
      const auto count = static_cast<double>(row_end - row);
      std::fill(first_sums.begin(), first_sums.end(), 0.0f);
      over_lines(plan, row, row_end, [&](auto lanes, auto number, int64_t j, int64_t at) {
        using L = decltype(lanes);
        auto sum = L::load(firsts + j);
        for (int n = 0; n < number; ++n) sum += L::load(in + at + n * length + j);
        L::store(firsts + j, sum);
      });
      unfold(plan, first_sums, first.data());
      for (int64_t j = 0, c = 0; j < length; ++j, c = c + 1 < channels ? c + 1 : 0) {
        about[j] = static_cast<float>(first[c] / count);
      }
      // Distances are taken from a mean that is at hand, so that nothing cancels out; what its rounding
      // leaves of their sum is put right afterwards.
      std::fill(first_sums.begin(), first_sums.end(), 0.0f);
      std::fill(second_sums.begin(), second_sums.end(), 0.0f);
      over_lines(plan, row, row_end, [&](auto lanes, auto number, int64_t j, int64_t at) {
        using L = decltype(lanes);
        const auto middle = L::load(middles + j);
        auto sum = L::load(firsts + j), squares = L::load(seconds + j);
        for (int n = 0; n < number; ++n) {
          const auto distance = L::load(in + at + n * length + j) - middle;
          sum += distance;
          squares += distance * distance;
        }
        L::store(firsts + j, sum);
        L::store(seconds + j, squares);
      });
      unfold(plan, first_sums, first.data());
      unfold(plan, second_sums, second.data());
      const auto before = static_cast<double>(row - chunk_begin);
      const double share = count / (before + count);
      for (int64_t c = 0; c < channels; ++c) {
        const double block_mean = static_cast<double>(about[c]) + first[c] / count;
        const double difference = block_mean - mean[c];
        mean[c] += difference * share;
        spread[c] += second[c] - first[c] * first[c] / count + difference * difference * (before * share);
      }
    }
  }
}

template <class Element>
void normalise(const RowPlan& plan, const LineCoefficients& line, const void* x, void* y, int64_t begin,
               int64_t end) {
  const auto* in = static_cast<const Element*>(x);
  auto* out = static_cast<Element*>(y);
  const LinePointers known(line);
  const int64_t length = plan.line;
  // Backwards, because the previous pass may have left the last chunks in the caches.
  for (int64_t chunk = end - 1; chunk >= begin; --chunk) {
    over_lines(plan, plan.begin_of(chunk), plan.end_of(chunk),
               [&](auto lanes, auto number, int64_t j, int64_t at) {
                 using L = decltype(lanes);
                 const auto mean = L::load(known.mean + j);
                 const auto scale = L::load(known.scale + j);
                 const auto shift = L::load(known.shift + j);
                 for (int n = 0; n < number; ++n) {
                   const int64_t element = at + n * length + j;
                   const auto value = (L::load(in + element) - mean) * scale + shift;
                   L::store(out + element, L::where_active(value, value));
                 }
               });
  }
}

template <class Element>
void gradient_sums(const RowPlan& plan, const LineCoefficients& line, const void* x, const void* grad_y,
                   double* sums, int64_t begin, int64_t end) {
  const auto* in = static_cast<const Element*>(x);
  const auto* grad = static_cast<const Element*>(grad_y);
  const LinePointers known(line);
  const int64_t channels = plan.channels, length = plan.line;
  std::vector<float> first_sums(length), second_sums(length);
  float *const firsts = first_sums.data(), *const seconds = second_sums.data();
  std::vector<double> block(channels);
  for (int64_t chunk = begin; chunk < end; ++chunk) {
    double* total = sums + chunk * 2 * channels;
    std::fill(total, total + 2 * channels, 0.0);
    const int64_t chunk_end = plan.end_of(chunk);
    for (int64_t row = plan.begin_of(chunk); row < chunk_end; row += plan.block_rows) {
      std::fill(first_sums.begin(), first_sums.end(), 0.0f);
      std::fill(second_sums.begin(), second_sums.end(), 0.0f);
      over_lines(plan, row, std::min(row + plan.block_rows, chunk_end),
                 [&](auto lanes, auto number, int64_t j, int64_t at) {
                   using L = decltype(lanes);
                   const auto mean = L::load(known.mean + j);
                   const auto scale = L::load(known.scale + j);
                   const auto shift = L::load(known.shift + j);
                   auto sum = L::load(firsts + j), products = L::load(seconds + j);
                   for (int n = 0; n < number; ++n) {
                     const int64_t element = at + n * length + j;
                     const auto distance = L::load(in + element) - mean;
                     const auto g = L::where_active(distance * scale + shift, L::load(grad + element));
                     sum += g;
                     products += g * distance;
                   }
                   L::store(firsts + j, sum);
                   L::store(seconds + j, products);
                 });
      for (const auto* found : {&first_sums, &second_sums}) {
        double* to = total + (found == &first_sums ? 0 : channels);
        unfold(plan, *found, block.data());
        for (int64_t c = 0; c < channels; ++c) to[c] += block[c];
      }
    }
  }
}

template <class Element>
void input_gradient(const RowPlan& plan, const LineCoefficients& line, const void* x, const void* grad_y,
                    void* grad_x, int64_t begin, int64_t end) {
  const auto* in = static_cast<const Element*>(x);
  const auto* grad = static_cast<const Element*>(grad_y);
  auto* out = static_cast<Element*>(grad_x);
  const LinePointers known(line);
  const int64_t length = plan.line;
  for (int64_t chunk = end - 1; chunk >= begin; --chunk) {
    over_lines(plan, plan.begin_of(chunk), plan.end_of(chunk),
               [&](auto lanes, auto number, int64_t j, int64_t at) {
                 using L = decltype(lanes);
                 const auto mean = L::load(known.mean + j);
                 const auto scale = L::load(known.scale + j);
                 const auto shift = L::load(known.shift + j);
                 const auto tilt = L::load(known.tilt + j);
                 const auto offset = L::load(known.offset + j);
                 for (int n = 0; n < number; ++n) {
                   const int64_t element = at + n * length + j;
                   const auto distance = L::load(in + element) - mean;
                   const auto g = L::where_active(distance * scale + shift, L::load(grad + element));
                   L::store(out + element, g * scale + (distance * tilt + offset));
                 }
               });
  }
}

template <class Element>
constexpr BatchNormKernel batch_norm_kernel() {
  return {moments<Element>, normalise<Element>, gradient_sums<Element>, input_gradient<Element>};
}

// The bilinear warp of calls whose rotations are not all multiples of 90 degrees, in integers, so that
// the CPU and the GPU give the same bits.
//
// A view shows the central square of side W / sqrt(2), which stays inside the W x W crop at any angle,
// rotated counter-clockwise and enlarged to W x W. A rotation is a number of quarter turns,
// which only move finished pixels (see unrotate), and a remainder below 90 degrees, which is sampled.
#pragma once

#include <cmath>
#include <cstdint>

#include "job.h"
#include "macros.h"

namespace rotnet {

// Fractional bits: of source positions while they are worked out, of positions as they are used
// (weights 0..2048, so that a position is off by at most 1/4096 pixel), and of grey levels.
constexpr int kFineBits = 40;
constexpr int kPositionBits = 11;
constexpr int kGreyBits = 8;

// cos and sin of 0 <= degrees < 90, each divided by 2 sqrt(2), with kFineBits fractional bits. The 2 is
// there because distances from the centre are counted in half pixels.
struct WarpAngle {
  int64_t cosine;
  int64_t sine;
};

// A job whose `turns` are the quarter turns of each view, before which the crop is sampled at an angle.
struct WarpJob : RotateJob {
  WarpAngle angles[kMaxViews];
};

// No value comes near a rounding boundary (a test checks it), so every maths library gives the same.
inline int64_t warp_sine(int degrees) {
  constexpr double kRadians = 3.14159265358979323846 / 180.0;
  return std::llround(std::sin(degrees * kRadians) / (2.0 * std::sqrt(2.0)) *
                      static_cast<double>(1LL << kFineBits));
}

inline WarpAngle make_warp_angle(int degrees) { return {warp_sine(90 - degrees), warp_sine(degrees)}; }

// The 2 x 2 pixels of the crop behind one pixel of a view, and how far between them it lies.
struct WarpTap {
  int row, column;       // of the upper left one; 0..width-2, or 0 where width is 1
  uint32_t down, right;  // weights 0..2048 of the lower and of the right ones; 0 where width is 1
};

// Rounds a source position and splits it. |cosine| + |sine| <= 2^39 + 1 keeps x above -2^28, and the
// rounded position in 0..(width - 1) * 2048.
ROTNET_HOST_DEVICE void split_position(int64_t x, int width, int* pixel, uint32_t* weight) {
  constexpr int kDropped = kFineBits - kPositionBits;
  const int position = static_cast<int>((x + (int64_t{1} << (kDropped - 1))) >> kDropped);
  const int last = width > 1 ? width - 2 : 0;
  *pixel = position >> kPositionBits < last ? position >> kPositionBits : last;
  *weight = static_cast<uint32_t>(position - (*pixel << kPositionBits));
}

// Position of (row, column) of the view in the upright crop, in terms of pixel centres.
ROTNET_HOST_DEVICE WarpTap warp_tap(const WarpAngle& angle, int row, int column, int width) {
  const int64_t centre = static_cast<int64_t>(width - 1) << (kFineBits - 1);
  const int64_t u = 2 * column + 1 - width, v = 2 * row + 1 - width;  // half pixels right and down of the centre
  WarpTap tap;
  split_position(centre + angle.cosine * u - angle.sine * v, width, &tap.column, &tap.right);
  split_position(centre + angle.sine * u + angle.cosine * v, width, &tap.row, &tap.down);
  return tap;
}

// A 32-bit pixel of four bytes with room to compute: two channels to a word, 32 bits each.
struct SpreadPixel {
  uint64_t even;  // channels 0 and 2
  uint64_t odd;   // channels 1 and 3
};

ROTNET_HOST_DEVICE SpreadPixel spread(uint32_t pixel) {
  const uint64_t low = pixel & 0x00ff00ffu, high = (pixel >> 8) & 0x00ff00ffu;
  constexpr uint64_t kLanes = 0x000000ff000000ffull;
  return {(low | low << 16) & kLanes, (high | high << 16) & kLanes};
}

// Both lanes of a word times 2048 - weight, plus those of the other times weight. Differences may
// borrow from the upper lane; the sum is right all the same, because it fits its lanes again.
ROTNET_HOST_DEVICE uint64_t blend(uint64_t from, uint64_t to, uint32_t weight) {
  return (from << kPositionBits) + (to - from) * weight;
}

// Grey levels with kGreyBits fractional bits, 0..65280, rounded; channel c in bits 16c..16c+15.
ROTNET_HOST_DEVICE uint64_t interpolate(const SpreadPixel& upper_left, const SpreadPixel& upper_right,
                                        const SpreadPixel& lower_left, const SpreadPixel& lower_right,
                                        uint32_t right, uint32_t down) {
  constexpr int kDropped = 2 * kPositionBits - kGreyBits;
  constexpr uint64_t kHalf = 0x0000000100000001ull << (kDropped - 1), kLanes = 0x0000ffff0000ffffull;
  const uint64_t even = blend(blend(upper_left.even, upper_right.even, right),
                              blend(lower_left.even, lower_right.even, right), down);
  const uint64_t odd =
      blend(blend(upper_left.odd, upper_right.odd, right), blend(lower_left.odd, lower_right.odd, right), down);
  return (((even + kHalf) >> kDropped) & kLanes) | (((odd + kHalf) >> kDropped) & kLanes) << 16;
}

ROTNET_HOST_DEVICE uint32_t grey_level(uint64_t interpolated, int channel) {
  return static_cast<uint32_t>(interpolated >> (16 * channel)) & 0xffffu;
}

}  // namespace rotnet

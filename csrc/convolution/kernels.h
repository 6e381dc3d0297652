// What is written for each instruction set: the inner loops, on operands that lie as they are read.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>

#include "convolution/convolution.h"

namespace iiae::convolution {

// Numbers of bf16 are multiplied in pairs: a product takes two neighbours of one operand and two of the other, and adds both.
using Pair = std::uint32_t;

inline constexpr std::size_t kLanes = 16;          // channels of a vector
inline constexpr std::size_t kBlock = 2 * kLanes;  // channels of a block of weights; the last block may have half
inline constexpr std::size_t kGroup = 4;           // neighbouring pixels, computed together

// To the nearest, ties to even; infinities and NaN stay what they are.
inline Bf16 round_to_bf16(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<Bf16>(bits >> 16 | 0x40);
  return static_cast<Bf16>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

inline std::size_t padded(std::size_t channels) { return (channels + kLanes - 1) / kLanes * kLanes; }

// out(pixel, channel) = bias + sum over rows r and numbers l of in(pixel, r, l) * weight(r, l, channel), where in(pixel, r,
// ...) are `2 * pairs` contiguous numbers that begin at `in + (y * step + r) * row + x * pixel` for the pixel in row y, column
// x.
struct Product {
  const Bf16* in;
  std::size_t row, pixel;  // distances in numbers
  std::size_t step;        // rows between those of two rows of pixels
  std::size_t rows, pairs;
  std::size_t height, width;  // pixels; the width is a multiple of kGroup
  const Pair* weight;         // [block][row][pair][channel of the block]
  const float* bias;          // padded
  std::size_t channels;
  Bf16* out;
  std::size_t out_row, out_pixel;
  // 1 or 2, the latter only where there are no more than kLanes channels: their second half goes to out_row / 2 after the
  // first.
  std::size_t parts;
};

// sums[block][ky][n][channel] += sum over steps t of large(ky, t, n) * small(t, channel), for all `kernel_row` numbers n of a
// row of the kernel, over all pieces. Row ky of the kernel reads plane ky % 2, from step (ky / 2) * plane_row.
struct GradientSum {
  const Pair* large;                                           // [piece][plane][step + plane_row][kernel_row]
  const Pair* small;                                           // [piece][step][channel]
  std::size_t pieces, steps, plane_row, kernel_row, channels;  // channels padded
  float* sums;
};

struct Kernels {
  const char* name;
  void (*multiply)(const Product& product);
  void (*add_gradient)(const GradientSum& sum);
  // out[i] = the pair (first[i], second[i])
  void (*pair)(const Bf16* first, const Bf16* second, Pair* out, std::size_t count);
  // sums[i] += in[i]
  void (*add)(const Bf16* in, float* sums, std::size_t count);
  // out[i] = the pair (first[i * stride], second[i * stride]), rounded; zero where a pointer is null, and for i from `count`
  // on, which is at most kLanes.
  void (*pack)(const float* first, const float* second, std::size_t stride, std::size_t count, Pair* out);
  // out[p * distance + i] = the pair (rows[i * stride + 2 * p], rows[i * stride + 2 * p + 1]), rounded, for p below `pairs`;
  // zero for i from `count` on, which is at most kLanes.
  void (*pack_rows)(const float* rows, std::size_t stride, std::size_t count, std::size_t pairs, Pair* out,
                    std::size_t distance);
};

}  // namespace iiae::convolution

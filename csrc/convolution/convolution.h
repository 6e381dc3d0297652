// The published networks' convolutions on a CPU: 4×4, stride 2, one pixel of padding, in bf16 with fp32 sums.
//
// Such a layer connects a large map, twice as high and wide, with a small one. `down` goes from the large to the small map (a
// convolution, or the gradient of a transposed one's input), `up` the other way, and `weight_gradient` is the same for both.
// Maps are (batch, rows, columns, channels), contiguous; a weight is one number for each small channel, large channel, row and
// column of the kernel, as PyTorch has it for either kind of layer.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "team.h"

namespace iiae::convolution {

using Bf16 = std::uint16_t;  // bits of a bfloat16

struct Shape {
  std::size_t batch;
  std::size_t height, width;  // of the small map; the width is a multiple of four
  std::size_t small, large;   // channels
};

// fp32 numbers (small, large, 4, 4) and the distances between them, in numbers.
template <class Float>
struct Kernel {
  Float* data;
  std::size_t small, large, row, column;

  Float& at(std::size_t s, std::size_t l, std::size_t y, std::size_t x) const {
    return data[s * small + l * large + y * row + x * column];
  }
};

// `bias` may be null: one number for each channel of `out`.
void down(const Shape& shape, const Bf16* large_map, const Kernel<const float>& weight, const float* bias, Bf16* out,
          const Team& team);
void up(const Shape& shape, const Bf16* small_map, const Kernel<const float>& weight, const float* bias, Bf16* out,
        const Team& team);
// Sums over all pixels of the products of both maps; the same, bit for bit, for the same number of threads.
void weight_gradient(const Shape& shape, const Bf16* small_map, const Bf16* large_map, const Kernel<float>& out,
                     const Team& team);

// The sum over all pixels, for each channel; the same, bit for bit, for the same number of threads.
void channel_sums(const Bf16* map, std::size_t pixels, std::size_t channels, float* out, const Team& team);

// Names of the instruction sets that this processor has, best first; the last is "scalar".
std::vector<std::string> instruction_sets();
// Of the functions above, from now on. Throws std::invalid_argument for one that is not available.
void select_instruction_set(const std::string& name);
std::string instruction_set();
// Whether this processor multiplies matrices of bf16 in units of their own (AMX), which these kernels do not use.
bool has_matrix_units();

}  // namespace iiae::convolution

// What is written for each instruction set: loops over rows of `width` numbers, with one number of a parameter for each. A row
// is some neighbouring pixels, so that it has whole vectors even where there are few channels.
#pragma once

#include <cstddef>
#include <type_traits>

#include "batch_norm/batch_norm.h"

namespace iiae::batch_norm {

inline constexpr std::size_t kLanes = 16;
using Full = std::integral_constant<std::size_t, kLanes>;  // a whole vector, known when the kernel is compiled

// What an activation's input is computed from: x * scale + offset.
struct Affine {
  const float *scale, *offset;
  float slope;
};

struct Kernels {
  // Adds x - shift and its square to two sums.
  void (*moments)(const Bf16* x, std::size_t rows, std::size_t width, const float* shift, float* sums, float* squares);
  void (*activate)(const Bf16* x, std::size_t rows, std::size_t width, const Affine& affine, Bf16* out);
  // Adds h and h * (x - mean) to two sums; h is the gradient before the activation.
  void (*gradient_sums)(const Bf16* x, const Bf16* gradient, std::size_t rows, std::size_t width, const Affine& affine,
                        const float* mean, float* sums, float* products);
  // out = h * scale + x * of_x + constant
  void (*gradient)(const Bf16* x, const Bf16* gradient, std::size_t rows, std::size_t width, const Affine& affine,
                   const float* of_x, const float* constant, Bf16* out);
};

namespace scalar {
extern const Kernels kKernels;
}
#if defined(__x86_64__)
namespace avx512_bf16 {
extern const Kernels kKernels;
}
#endif

}  // namespace iiae::batch_norm

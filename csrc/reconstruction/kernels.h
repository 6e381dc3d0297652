// What is written for each instruction set: plain loops that a compiler makes vectors of.
#pragma once

#include "reconstruction/reconstruction.h"

namespace iiae::reconstruction {

struct Kernels {
  // The sum over `count` elements, not weighted; writes weighted derivatives unless `gradient` is null.
  double (*with_floats)(const Losses& losses, const Bf16* prediction, const float* target, std::size_t count, Bf16* gradient);
  double (*with_bytes)(const Losses& losses, const Bf16* prediction, const std::uint8_t* target, std::size_t count,
                       Bf16* gradient);
  void (*scale)(float scale, Bf16* values, std::size_t count);
};

namespace portable {
extern const Kernels kKernels;
}
#if defined(__x86_64__)
namespace avx512 {
extern const Kernels kKernels;
}
#endif

}  // namespace iiae::reconstruction

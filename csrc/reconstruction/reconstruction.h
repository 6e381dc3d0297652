// Reconstruction losses of bf16 predictions on a CPU, with the gradient written in the same pass.
#pragma once

#include <cstddef>
#include <cstdint>

#include "team.h"

namespace iiae::reconstruction {

using Bf16 = std::uint16_t;  // bits of a bfloat16

enum class Likelihood { kLaplace, kGaussian };

struct Losses {
  std::size_t samples, elements;  // of each sample
  Likelihood likelihood;
  bool tanh;  // of the prediction, before it is compared
  float weight;
};

// loss[sample] = weight * sum over its elements of |x - x̂| or (x - x̂)², in fp32 from sums in fp64; and, unless `gradient` is
// null, the derivative by each prediction, in bf16. Targets are fp32, or bytes v that mean v / 127.5 - 1. The same bits for any
// number of threads.
template <class Target>
void compute(const Losses& losses, const Bf16* prediction, const Target* target, float* loss, Bf16* gradient, const Team& team);

// gradient *= scale[sample], where that is not 1.
void scale(std::size_t samples, std::size_t elements, const float* scale, Bf16* gradient, const Team& team);

}  // namespace iiae::reconstruction
